//! One run's WebSocket: the request as its first message, frames as they come, and a close that says how it ended.
//!
//!   1000 it ran, also when it failed or was interrupted   4008 its time was over
//!   1002 the first message is no request                   1008 refused: unknown context, full queue, too slow a client
//!   1011 the interpreter could not be started, or died

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, close_code};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;

use super::{End, Said};
use crate::process::checked_envs;
use crate::routes::Daemon;
use crate::websocket::close;

/// Code beyond this is refused; it belongs into a file.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// A client that takes nothing for this long is let go, and its run stopped.
const SLOW_CLIENT_DEADLINE: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

const TIMED_OUT: u16 = 4008;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    code: String,
    context_id: Option<String>,
    envs: Option<HashMap<String, String>>,
    /// Seconds. Absent is [`DEFAULT_TIMEOUT`], 0 is none.
    timeout: Option<f64>,
}

struct Close {
    code: u16,
    reason: String,
}

impl Close {
    fn new(code: u16, reason: impl Into<String>) -> Close {
        Close { code, reason: reason.into() }
    }
}

impl From<End> for Close {
    fn from(end: End) -> Close {
        match end {
            End::Done => Close::new(close_code::NORMAL, ""),
            End::TimedOut => Close::new(TIMED_OUT, "execution timed out and was interrupted"),
            End::TimedOutAndKilled => {
                let reason = "execution timed out and the interpreter was ended with it; the context's variables are lost";
                Close::new(TIMED_OUT, reason)
            }
            End::Died(reason) => Close::new(close_code::ERROR, reason),
            End::Deleted => Close::new(close_code::POLICY, "the context was deleted"),
        }
    }
}

pub async fn converse(mut socket: WebSocket, daemon: Arc<Daemon>) {
    let request = tokio::time::timeout(REQUEST_DEADLINE, first_message(&mut socket)).await;
    let close_with = match request {
        Ok(Some(Ok(request))) => match submit(&daemon, request) {
            Ok(said) => return show(socket, said).await,
            Err(close) => close,
        },
        Ok(Some(Err(close))) => close,
        Ok(None) => return,
        Err(_) => Close::new(close_code::POLICY, "no request came"),
    };
    close(socket, close_with.code, close_with.reason).await;
}

/// `None` when the client has gone.
async fn first_message(socket: &mut WebSocket) -> Option<Result<Request, Close>> {
    loop {
        let request = match socket.recv().await? {
            Ok(Message::Text(text)) => serde_json::from_str(&text),
            Ok(Message::Binary(bytes)) => serde_json::from_slice(&bytes),
            Ok(Message::Ping(_) | Message::Pong(_)) => continue,
            Ok(Message::Close(_)) => return None,
            // Also a message that is too long.
            Err(error) => return Some(Err(Close::new(close_code::SIZE, error.to_string()))),
        };
        return Some(
            request.map_err(|error| Close::new(close_code::PROTOCOL, format!("not a request: {error}"))),
        );
    }
}

fn submit(daemon: &Arc<Daemon>, request: Request) -> Result<tokio::sync::mpsc::Receiver<Said>, Close> {
    let refused = |error: &dyn std::fmt::Display| Close::new(close_code::POLICY, error.to_string());
    let envs = checked_envs(request.envs).map_err(|error| refused(&error))?;
    let timeout = match request.timeout {
        None => Some(DEFAULT_TIMEOUT),
        Some(0.0) => None,
        Some(seconds) if seconds > 0.0 && seconds <= f64::from(u32::MAX) => {
            Some(Duration::from_secs_f64(seconds))
        }
        Some(_) => return Err(refused(&"timeout is a number of seconds")),
    };
    daemon
        .interpreters
        .submit(daemon, request.context_id.as_deref(), request.code, envs, timeout)
        .map_err(|error| refused(&error))
}

/// Reading goes on beside writing: that is what answers pings and what sees the client go. Its going drops `said`, which stops the run.
async fn show(socket: WebSocket, mut said: tokio::sync::mpsc::Receiver<Said>) {
    let (mut sink, mut stream) = socket.split();
    let heard = async {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Close(_) = message {
                break;
            }
        }
    };
    let sent = async {
        loop {
            let frame = match said.recv().await {
                Some(Said::Frame(frame)) => frame,
                Some(Said::End(end)) => return Some(end.into()),
                None => return Some(End::Deleted.into()),
            };
            let text = serde_json::to_string(&frame).expect("a struct of strings is always JSON");
            match tokio::time::timeout(SLOW_CLIENT_DEADLINE, sink.send(Message::Text(text.into()))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(Close::new(close_code::POLICY, "slow consumer")),
            }
        }
    };
    let end = tokio::select! {
        end = sent => end,
        () = heard => None,
    };
    drop(said);
    if let (Some(end), Ok(socket)) = (end, stream.reunite(sink)) {
        close(socket, end.code, end.reason).await;
    }
}
