//! Language servers: one per language and project, kept between requests (`/lsp/…`).
//!
//!   start ──▶ launched ──initialize──▶ ready ──stop: shutdown, exit, kill──▶ gone
//!                └──deadline, death──▶ gone    └──death──▶ told to the next caller, then gone

mod answers;
mod connection;
mod framing;
mod project;
pub mod routes;
mod server;
mod uri;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::routes::Daemon;
use connection::CallError;
use server::Server;

/// Each takes 100 MB and more, and a processor now and then.
const SERVERS_MAX: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    Python,
    Typescript,
    Javascript,
}

#[derive(Debug, thiserror::Error)]
pub enum LspError {
    /// The caller's: to be started first.
    #[error("no language server for {0} in {1}: start it with POST /lsp/start")]
    NotStarted(&'static str, String),
    #[error("the language server has ended ({0}); start it again with POST /lsp/start")]
    Ended(String),
    #[error("at most {SERVERS_MAX} language servers: stop one with POST /lsp/stop")]
    TooMany,
    #[error("{1}: {0}")]
    Unreadable(std::io::Error, String),
    #[error("{0} has more than {1} bytes, which is too long for a document")]
    TooLarge(String, u64),
    /// The sandbox's: its image lacks the program, or it doesn't work.
    #[error("{0} is not in the sandbox's PATH; install it, for example with: {1}")]
    Missing(&'static str, &'static str),
    #[error("{0}")]
    NoStart(String),
    #[error("{0}")]
    Call(#[from] CallError),
}

impl Language {
    const ALL: [Language; 3] = [Language::Python, Language::Typescript, Language::Javascript];

    pub fn parse(id: &str) -> Option<Language> {
        Language::ALL.into_iter().find(|language| language.id() == id)
    }

    pub fn id(self) -> &'static str {
        match self {
            Language::Python => "python",
            Language::Typescript => "typescript",
            Language::Javascript => "javascript",
        }
    }

    /// By its name the server knows whether it is one with types, or with markup in it.
    fn id_of(self, path: &Path) -> &'static str {
        match (self, path.extension().and_then(|extension| extension.to_str())) {
            (Language::Python, _) => "python",
            (_, Some("tsx")) => "typescriptreact",
            (_, Some("jsx")) => "javascriptreact",
            (_, Some("ts" | "mts" | "cts")) => "typescript",
            (_, Some("js" | "mjs" | "cjs")) => "javascript",
            (language, _) => language.id(),
        }
    }

    fn program(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Language::Python => (&["pylsp"], &[]),
            Language::Typescript | Language::Javascript => (&["typescript-language-server"], &["--stdio"]),
        }
    }

    fn how_to_install(self) -> &'static str {
        match self {
            Language::Python => "pip install python-lsp-server",
            Language::Typescript | Language::Javascript => {
                "npm install -g typescript typescript-language-server"
            }
        }
    }

    /// What differs from an editor's wishes: one process instead of two, and nothing fetched from outside behind one's back.
    fn options(self) -> Value {
        match self {
            Language::Python => Value::Null,
            Language::Typescript | Language::Javascript => json!({
                "hostInfo": "atoll",
                "disableAutomaticTypingAcquisition": true,
                "tsserver": { "useSyntaxServer": "never" },
            }),
        }
    }

    fn extensions(self) -> &'static [&'static str] {
        match self {
            Language::Python => &["py", "pyi"],
            Language::Typescript => &["ts", "tsx", "mts", "cts"],
            Language::Javascript => &["js", "jsx", "mjs", "cjs"],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    language: Language,
    project: PathBuf,
}

impl Key {
    fn not_started(&self) -> LspError {
        LspError::NotStarted(self.language.id(), self.project.display().to_string())
    }
}

/// Locked while it starts, so that who asks meanwhile waits for it.
type Slot = tokio::sync::Mutex<Option<Arc<Server>>>;

#[derive(Default)]
pub struct LanguageServers {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

impl LanguageServers {
    /// One that runs already stays.
    async fn start(&self, key: &Key, daemon: &Daemon) -> Result<(), LspError> {
        let slot = self.slot_for(key)?;
        let mut place = slot.lock().await;
        if place.as_ref().is_some_and(|server| !server.has_ended()) {
            return Ok(());
        }
        *place = None;
        let started = launch(key, daemon).await;
        match started {
            Ok(server) => *place = Some(Arc::new(server)),
            Err(error) => {
                self.forget(key, &slot);
                return Err(error);
            }
        }
        Ok(())
    }

    fn slot_for(&self, key: &Key) -> Result<Arc<Slot>, LspError> {
        let mut slots = self.lock();
        if let Some(slot) = slots.get(key) {
            return Ok(slot.clone());
        }
        // Those that are being started are held by whoever starts them.
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot
                    .try_lock()
                    .map_or(true, |server| server.as_ref().is_some_and(|server| !server.has_ended()))
        });
        if slots.len() >= SERVERS_MAX {
            return Err(LspError::TooMany);
        }
        let slot = Arc::<Slot>::default();
        slots.insert(key.clone(), slot.clone());
        Ok(slot)
    }

    /// The caller who finds it dead is told how it died; after that it is as if it had never been started.
    async fn find(&self, key: &Key) -> Result<Arc<Server>, LspError> {
        let slot = self.lock().get(key).cloned().ok_or_else(|| key.not_started())?;
        let mut place = slot.lock().await;
        let server = place.clone().ok_or_else(|| key.not_started())?;
        if server.has_ended() {
            *place = None;
            self.forget(key, &slot);
            return Err(LspError::Ended(server.obituary().await));
        }
        Ok(server)
    }

    async fn stop(&self, key: &Key) -> Result<(), LspError> {
        let slot = self.lock().get(key).cloned().ok_or_else(|| key.not_started())?;
        let mut place = slot.lock().await;
        let server = place.take().ok_or_else(|| key.not_started())?;
        server.stop().await;
        self.forget(key, &slot);
        Ok(())
    }

    fn forget(&self, key: &Key, slot: &Arc<Slot>) {
        let mut slots = self.lock();
        // Another may have been put there meanwhile.
        if slots.get(key).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            slots.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn launch(key: &Key, daemon: &Daemon) -> Result<Server, LspError> {
    let env = daemon.environment.with(&Default::default());
    let (names, args) = key.language.program();
    let found = crate::programs::first_in_path(daemon, &env, names).await;
    let (_, program) = found.ok_or(LspError::Missing(names[0], key.language.how_to_install()))?;
    let launch = crate::launch::Launch {
        program,
        arg0: None,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env,
        cwd: key.project.clone(),
    };
    Server::start(&daemon.launcher, launch, key.language, &key.project).await
}
