//! JSON-RPC with one language server: our requests and their answers, and its requests, which are answered here.
//!
//! Messages stay text until somebody who waits for one takes it: what nobody asked for (logs, diagnostics) costs no memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::framing;

/// Messages that wait for the server to read them.
const OUTGOING_MAX: usize = 64;
/// Requests that wait for an answer.
const PENDING_MAX: usize = 64;
/// How long one message may wait for a server that does not read.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// Of one question about settings; answers are one `null` each.
const SETTINGS_MAX: usize = 1000;
const METHOD_NOT_FOUND: i64 = -32601;

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The caller's, or somebody's who asks without waiting for answers.
    #[error("{PENDING_MAX} requests wait for the language server already; try again later")]
    Busy,
    #[error("the language server has not answered within {} s", .0.as_secs())]
    Deadline(Duration),
    /// What the server says of a request that it does not like.
    #[error("the language server refuses: {0}")]
    Refused(String),
    #[error("the language server does not speak the protocol: {0}")]
    Malformed(String),
    /// It has ended; how is known to whoever watches the process.
    #[error("the language server has ended")]
    Ended,
}

type Answer = Result<Box<RawValue>, CallError>;

/// Our side. Dropping the last one ends the conversation, and with it the server.
pub struct Connection {
    outgoing: mpsc::Sender<Vec<u8>>,
    pending: Arc<Mutex<Pending>>,
    next: AtomicU64,
}

/// The other side, to be driven by whoever owns the process.
pub struct Wire {
    outgoing: mpsc::Receiver<Vec<u8>>,
    /// Weak, as ours is the last strong one.
    answers: mpsc::WeakSender<Vec<u8>>,
    pending: Arc<Mutex<Pending>>,
    folder: Value,
}

#[derive(Default)]
struct Pending {
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    is_closed: bool,
}

/// `folder` is what the server hears when it asks for its workspace folders.
pub fn pair(folder: Value) -> (Connection, Wire) {
    let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
    let pending = Arc::<Mutex<Pending>>::default();
    let wire = Wire { outgoing, answers: sender.downgrade(), pending: pending.clone(), folder };
    (Connection { outgoing: sender, pending, next: AtomicU64::new(1) }, wire)
}

/// Forgets a request whose caller has gone.
struct Waiting<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let was_waiting = held(&self.connection.pending).waiting.remove(&self.id).is_some();
        if was_waiting {
            // It need not go on with it. When there is no room for saying so, it does.
            let cancel =
                json!({ "jsonrpc": "2.0", "method": "$/cancelRequest", "params": { "id": self.id } });
            let _ = self.connection.outgoing.try_send(framing::framed(cancel.to_string().as_bytes()));
        }
    }
}

impl Connection {
    pub async fn request<T: DeserializeOwned>(
        &self,
        method: &str,
        params: impl Serialize,
        deadline: Duration,
    ) -> Result<T, CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut pending = held(&self.pending);
            if pending.is_closed {
                return Err(CallError::Ended);
            }
            if pending.waiting.len() >= PENDING_MAX {
                return Err(CallError::Busy);
            }
            pending.waiting.insert(id, sender);
        }
        let _waiting = Waiting { connection: self, id };
        let exchange = async {
            self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await?;
            answer.await.map_err(|_| CallError::Ended)?
        };
        let answer =
            tokio::time::timeout(deadline, exchange).await.map_err(|_| CallError::Deadline(deadline))??;
        serde_json::from_str(answer.get()).map_err(|error| CallError::Malformed(error.to_string()))
    }

    pub async fn notify(&self, method: &str, params: impl Serialize) -> Result<(), CallError> {
        self.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params })).await
    }

    async fn send(&self, message: &Value) -> Result<(), CallError> {
        let framed = framing::framed(message.to_string().as_bytes());
        self.outgoing.send(framed).await.map_err(|_| CallError::Ended)
    }
}

impl Wire {
    /// Until one of the two ends, or the server breaks the rules; says which.
    pub async fn carry(&mut self, stdin: pipe::Sender, stdout: pipe::Receiver) -> String {
        let Wire { outgoing, answers, pending, folder } = self;
        tokio::select! {
            why = write(outgoing, stdin) => why,
            why = read(answers, pending, folder, stdout) => why,
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut pending = held(&self.pending);
        pending.is_closed = true;
        pending.waiting.clear();
    }
}

async fn write(outgoing: &mut mpsc::Receiver<Vec<u8>>, mut stdin: pipe::Sender) -> String {
    while let Some(message) = outgoing.recv().await {
        match tokio::time::timeout(WRITE_DEADLINE, stdin.write_all(&message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return format!("its input is closed: {error}"),
            Err(_) => return "it does not read its input".to_owned(),
        }
    }
    "nobody needs it any more".to_owned()
}

/// A message, as far as it has to be understood here.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default)]
    method: Option<String>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

async fn read(
    answers: &mpsc::WeakSender<Vec<u8>>,
    pending: &Mutex<Pending>,
    folder: &Value,
    stdout: pipe::Receiver,
) -> String {
    let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, stdout);
    loop {
        let bytes = match framing::read(&mut reader).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return "its output is closed".to_owned(),
            Err(error) => return format!("it does not speak the protocol: {error}"),
        };
        let Ok(message) = serde_json::from_slice::<Message>(&bytes) else {
            return "it does not speak the protocol: a message is not JSON-RPC".to_owned();
        };
        match (message.id, &message.method) {
            (Some(id), Some(method)) => {
                let answer = answer_to(method, message.params, folder);
                let answer = match answer {
                    Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
                    Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error }),
                };
                let framed = framing::framed(answer.to_string().as_bytes());
                // Waiting here for room could mean waiting for each other: it writes, and reads nothing.
                if answers.upgrade().is_none_or(|answers| answers.try_send(framed).is_err()) {
                    return "it asks more than it listens".to_owned();
                }
            }
            (Some(id), None) => {
                let Ok(id) = id.get().parse() else { continue };
                let waiting = held(pending).waiting.remove(&id);
                let answer = match message.error {
                    Some(error) => Err(CallError::Refused(format!("{} ({})", error.message, error.code))),
                    None => Ok(message.result.map_or_else(null, ToOwned::to_owned)),
                };
                if let Some(waiting) = waiting {
                    // Its caller may just have gone.
                    let _ = waiting.send(answer);
                }
            }
            (None, _) => {}
        }
    }
}

/// To what servers ask their editor. There is nobody to show anything to, and no setting that differs from a server's own default.
fn answer_to(method: &str, params: Option<&RawValue>, folder: &Value) -> Result<Value, Value> {
    #[derive(Deserialize)]
    struct Settings {
        items: Vec<serde::de::IgnoredAny>,
    }
    match method {
        "workspace/configuration" => {
            let asked = params.and_then(|params| serde_json::from_str::<Settings>(params.get()).ok());
            let count = asked.map_or(0, |asked| asked.items.len()).min(SETTINGS_MAX);
            Ok(Value::Array(vec![Value::Null; count]))
        }
        "workspace/workspaceFolders" => Ok(json!([folder])),
        "workspace/applyEdit" => Ok(json!({ "applied": false, "failureReason": "nobody edits here" })),
        "window/showDocument" => Ok(json!({ "success": false })),
        "client/registerCapability"
        | "client/unregisterCapability"
        | "window/workDoneProgress/create"
        | "window/showMessageRequest" => Ok(Value::Null),
        method if method.starts_with("workspace/") && method.ends_with("/refresh") => Ok(Value::Null),
        _ => Err(json!({ "code": METHOD_NOT_FOUND, "message": format!("this client has no {method:?}") })),
    }
}

fn null() -> Box<RawValue> {
    RawValue::from_string("null".to_owned()).expect("null is JSON")
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, params: &str) -> Result<Value, Value> {
        let params = RawValue::from_string(params.to_owned()).unwrap();
        answer_to(method, Some(&params), &json!({ "uri": "file:///p", "name": "p" }))
    }

    #[test]
    fn every_setting_asked_for_is_answered_with_none() {
        assert_eq!(
            ask("workspace/configuration", r#"{"items":[{"section":"a"},{}]}"#),
            Ok(json!([null, null]))
        );
        assert_eq!(ask("workspace/configuration", "7"), Ok(json!([])));
    }

    #[test]
    fn registrations_are_taken_and_unknown_questions_refused() {
        assert_eq!(ask("client/registerCapability", "{}"), Ok(Value::Null));
        assert_eq!(ask("window/workDoneProgress/create", r#"{"token":1}"#), Ok(Value::Null));
        assert_eq!(ask("workspace/workspaceFolders", "null").unwrap()[0]["name"], "p");
        assert_eq!(ask("no/such", "null").unwrap_err()["code"], METHOD_NOT_FOUND);
    }
}
