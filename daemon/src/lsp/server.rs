//! One language server: a child of the sandbox's user, the documents that it has open, and how it ended.
//!
//! Documents are what stands on disk: the toolbox's callers change files and have no way to send unsaved text. So before each
//! question about a document its file is read, and the server is told when it differs from what it knows.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::connection::{CallError, Connection, Wire, pair};
use super::{Language, LspError, uri};
use crate::files::workers::Workers;
use crate::launch::{Input, Launch, Launcher, Output, Running};
use crate::output::Stream;
use crate::reaper::{Exit, ExitWatch, Reaper};

/// From its start to its answer to `initialize`.
const START_DEADLINE: Duration = Duration::from_secs(30);
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// Each of: answering `shutdown`, ending after `exit`.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// After its end, for what it still has to say of it.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(1);
const LAST_WORDS_BYTES_MAX: usize = 1024;
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Open at a time; the one opened first is closed for another.
const DOCUMENTS_MAX: usize = 128;

pub struct Server {
    connection: Connection,
    language: Language,
    leader: Pid,
    reaper: Reaper,
    exit: ExitWatch,
    obituary: Arc<Mutex<Option<String>>>,
    finds_symbols_itself: bool,
    /// Held while the server is told about one, so that what it hears is in the order of what was read.
    documents: tokio::sync::Mutex<VecDeque<Document>>,
}

struct Document {
    path: PathBuf,
    version: i32,
    digest: u64,
}

#[derive(Deserialize)]
struct Initialized {
    #[serde(default)]
    capabilities: Capabilities,
}

#[derive(Deserialize, Default)]
struct Capabilities {
    /// Absent, a bool, or options.
    #[serde(default, rename = "workspaceSymbolProvider")]
    workspace_symbols: Option<Value>,
}

impl Server {
    /// Dropped before it is ready, it is killed.
    pub async fn start(
        launcher: &Launcher,
        launch: Launch,
        language: Language,
        project: &Path,
    ) -> Result<Server, LspError> {
        let root = uri::of(project);
        let name = project.file_name().map_or_else(|| root.clone(), |name| name.to_string_lossy().into());
        let folder = json!({ "uri": root, "name": name });
        let program = launch.program.display().to_string();
        let running = launcher
            .start(launch, Input::Piped, Output::Split)
            .map_err(|error| LspError::NoStart(format!("could not start {program}: {error}")))?;
        let (connection, wire) = pair(folder.clone());
        let mut server = Server {
            connection,
            language,
            leader: running.pid,
            reaper: launcher.reaper.clone(),
            exit: running.exit.clone(),
            obituary: Arc::default(),
            finds_symbols_itself: false,
            documents: tokio::sync::Mutex::default(),
        };
        // Ends with the process, which ends with the connection.
        tokio::spawn(live(running, wire, server.reaper.clone(), server.obituary.clone()));
        let asked = server.initialize(&root, folder);
        let capabilities = match timeout(START_DEADLINE, asked).await {
            Ok(Ok(capabilities)) => capabilities,
            Ok(Err(CallError::Ended)) => {
                return Err(LspError::NoStart(format!(
                    "the language server ended: {}",
                    server.obituary().await
                )));
            }
            Ok(Err(error)) => return Err(LspError::NoStart(error.to_string())),
            Err(_) => return Err(LspError::NoStart(CallError::Deadline(START_DEADLINE).to_string())),
        };
        server.finds_symbols_itself =
            capabilities.workspace_symbols.is_some_and(|provider| provider != Value::Bool(false));
        Ok(server)
    }

    async fn initialize(&self, root: &str, folder: Value) -> Result<Capabilities, CallError> {
        let params = json!({
            // No parent to watch: a server that may not see our process would take it for dead.
            "processId": null,
            "clientInfo": { "name": "atoll" },
            "rootUri": root,
            "workspaceFolders": [folder],
            "initializationOptions": self.language.options(),
            "capabilities": {
                "general": { "positionEncodings": ["utf-16"] },
                "window": { "workDoneProgress": true },
                "workspace": { "configuration": true, "workspaceFolders": true, "symbol": {} },
                "textDocument": {
                    "synchronization": {},
                    "completion": {
                        "contextSupport": true,
                        "completionItem": { "documentationFormat": ["markdown", "plaintext"] },
                    },
                    "documentSymbol": { "hierarchicalDocumentSymbolSupport": true },
                },
            },
        });
        let initialized: Initialized = self.connection.request("initialize", params, START_DEADLINE).await?;
        self.connection.notify("initialized", json!({})).await?;
        Ok(initialized.capabilities)
    }

    pub fn has_ended(&self) -> bool {
        self.exit.now().is_some()
    }

    pub fn finds_symbols_itself(&self) -> bool {
        self.finds_symbols_itself
    }

    /// How it ended, once it has.
    pub async fn obituary(&self) -> String {
        // `live` writes it within its own deadline after the end.
        let _ = timeout(LAST_WORDS_DEADLINE * 2, async {
            while self.written_obituary().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        self.written_obituary().unwrap_or_else(|| "nobody knows why".into())
    }

    fn written_obituary(&self) -> Option<String> {
        self.obituary.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub async fn request<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, LspError> {
        match self.connection.request(method, params, REQUEST_DEADLINE).await {
            Err(CallError::Ended) => Err(LspError::Ended(self.obituary().await)),
            answer => Ok(answer?),
        }
    }

    /// Tells the server what the file holds now, if it doesn't know yet. The URI by which the server knows it.
    pub async fn open(&self, path: &Path, workers: &Workers) -> Result<String, LspError> {
        let uri = uri::of(path);
        let mut documents = self.documents.lock().await;
        let read = path.to_owned();
        let text = workers.run(move || read_text(&read)).await?;
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let digest = hasher.finish();
        if let Some(document) = documents.iter_mut().find(|document| document.path == path) {
            if document.digest != digest {
                document.version += 1;
                document.digest = digest;
                let params = json!({
                    "textDocument": { "uri": uri, "version": document.version },
                    "contentChanges": [{ "text": text }],
                });
                self.tell("textDocument/didChange", params).await?;
            }
            return Ok(uri);
        }
        if documents.len() >= DOCUMENTS_MAX
            && let Some(oldest) = documents.pop_front()
        {
            self.tell_closed(&oldest.path).await?;
        }
        let params = json!({ "textDocument": {
            "uri": uri, "languageId": self.language.id_of(path), "version": 1, "text": text } });
        self.tell("textDocument/didOpen", params).await?;
        documents.push_back(Document { path: path.to_owned(), version: 1, digest });
        Ok(uri)
    }

    /// One that is not open stays so.
    pub async fn close(&self, path: &Path) -> Result<(), LspError> {
        let mut documents = self.documents.lock().await;
        match documents.iter().position(|document| document.path == path) {
            Some(at) => {
                documents.remove(at);
                self.tell_closed(path).await
            }
            None => Ok(()),
        }
    }

    pub async fn has_open_documents(&self) -> bool {
        !self.documents.lock().await.is_empty()
    }

    async fn tell_closed(&self, path: &Path) -> Result<(), LspError> {
        self.tell("textDocument/didClose", json!({ "textDocument": { "uri": uri::of(path) } })).await
    }

    async fn tell(&self, method: &str, params: Value) -> Result<(), LspError> {
        match self.connection.notify(method, params).await {
            Err(CallError::Ended) => Err(LspError::Ended(self.obituary().await)),
            told => Ok(told?),
        }
    }

    /// Asks it to end, and ends it.
    pub async fn stop(&self) {
        let polite = async {
            self.connection.request::<IgnoredAny>("shutdown", Value::Null, STOP_DEADLINE).await?;
            self.connection.notify("exit", Value::Null).await
        };
        if polite.await.is_ok() {
            let _ = timeout(STOP_DEADLINE, self.exit.clone().exited()).await;
        }
        kill(&self.reaper, self.leader);
        self.exit.clone().exited().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(&self.reaper, self.leader);
    }
}

/// With all that it has started, which is more than one process for some.
fn kill(reaper: &Reaper, leader: Pid) {
    reaper.signal_group(leader, Signal::KILL);
    reaper.signal_session(leader, Signal::KILL);
}

/// Carries messages until an end, sees to it that it is the end of everything, and writes down how it came.
async fn live(running: Running, mut wire: Wire, reaper: Reaper, obituary: Arc<Mutex<Option<String>>>) {
    let Running { pid, mut exit, stdin, stdout, stderr } = running;
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        unreachable!("started with three pipes")
    };
    let mut words = VecDeque::new();
    let why = {
        let mut errors = Stream::new(stderr, exit.clone());
        let listen = async {
            while let Some(bytes) = errors.next().await {
                words.extend(bytes);
                words.drain(..words.len().saturating_sub(LAST_WORDS_BYTES_MAX));
            }
        };
        tokio::pin!(listen);
        let mut has_fallen_silent = false;
        let carry = wire.carry(stdin, stdout);
        tokio::pin!(carry);
        let mut watched = exit.clone();
        let why = loop {
            tokio::select! {
                why = &mut carry => break why,
                // A process that it has started may hold its pipes open.
                _ = watched.exited() => break String::new(),
                () = &mut listen, if !has_fallen_silent => has_fallen_silent = true,
            }
        };
        // Its pipes are closed most often because it is about to end by itself, and then the code is worth knowing.
        let own_end = timeout(LAST_WORDS_DEADLINE / 2, exit.exited()).await;
        kill(&reaper, pid);
        if !has_fallen_silent {
            let _ = timeout(LAST_WORDS_DEADLINE / 2, &mut listen).await;
        }
        match own_end {
            Ok(Exit::Code(code)) => format!("exit code {code}"),
            Ok(Exit::Signal(number)) => format!("killed by signal {number}"),
            Err(_) => why,
        }
    };
    let words: Vec<u8> = words.into();
    let words = String::from_utf8_lossy(&words);
    let words = words.trim();
    let text = if words.is_empty() { why } else { format!("{why}; its last words: {words}") };
    *obituary.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    // Whoever waits for an answer hears of the end now, and finds the reason.
    drop(wire);
}

fn read_text(path: &Path) -> Result<String, LspError> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error: std::io::Error| LspError::Unreadable(error, path.display().to_string());
    // Not blocking, or a FIFO would hold a worker for ever.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(LspError::TooLarge(path.display().to_string(), DOCUMENT_BYTES_MAX));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}
