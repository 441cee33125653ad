//! One WebSocket with one terminal: text that says a size resizes it, anything else is typed; output comes as text.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, close_code};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;

use crate::pty::tty::Size;
use crate::pty::{Attached, PtyExit, Terminal, routes};
use crate::routes::Daemon;
use crate::utf8::Decoder;
use crate::websocket::close;

/// Of one message.
pub const INPUT_BYTES_MAX: usize = 64 * 1024;
/// A browser that takes nothing for this long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    rows: u16,
    cols: u16,
}

/// The terminal goes with its page, and whatever runs on it.
struct Opened {
    daemon: Arc<Daemon>,
    terminal: Arc<Terminal>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.daemon.terminals.delete(&self.terminal.id, &self.daemon.launcher);
    }
}

pub async fn converse(socket: WebSocket, daemon: Arc<Daemon>) {
    let id = format!("web-terminal-{}", uuid::Uuid::new_v4().simple());
    let opened = routes::create_default(&daemon, id).and_then(|terminal| {
        let opened = Opened { daemon: daemon.clone(), terminal };
        let attached = daemon.terminals.attach(&opened.terminal, &daemon.launcher)?;
        Ok((opened, attached))
    });
    match opened {
        Ok((opened, attached)) => show(socket, &opened.terminal, attached).await,
        Err(error) => close(socket, close_code::ERROR, error.to_string()).await,
    }
}

async fn show(socket: WebSocket, terminal: &Terminal, attached: Attached) {
    let Attached { mut output, was_slow, mut exited, input } = attached;
    let (mut sink, mut stream) = socket.split();
    let typed = async {
        while let Some(Ok(message)) = stream.next().await {
            let bytes = match message {
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(Resize { rows, cols }) => {
                        let _ = terminal.resize(Size::clamped(cols, rows));
                        continue;
                    }
                    Err(_) => text.into(),
                },
                Message::Binary(bytes) => bytes,
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => break,
            };
            if input.send(bytes).await.is_err() {
                // The terminal is ending; the other half says so.
                std::future::pending::<()>().await;
            }
        }
    };
    let shown = async {
        let mut decoder = Decoder::default();
        while let Some(chunk) = output.recv().await {
            let text = decoder.decode(&chunk);
            if text.is_empty() {
                continue;
            }
            match tokio::time::timeout(SEND_DEADLINE, sink.send(Message::Text(text.into()))).await {
                Ok(Ok(())) if !was_slow.load(Ordering::Relaxed) => {}
                Ok(Err(_)) => return None,
                Ok(Ok(())) | Err(_) => return Some((close_code::POLICY, "slow consumer".to_owned())),
            }
        }
        if was_slow.load(Ordering::Relaxed) {
            return Some((close_code::POLICY, "slow consumer".to_owned()));
        }
        let exit = exited.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone())?;
        Some((close_code::NORMAL, words(&exit)))
    };
    let end = tokio::select! {
        end = shown => end,
        () = typed => None,
    };
    if let (Some((code, reason)), Ok(socket)) = (end, stream.reunite(sink)) {
        close(socket, code, reason).await;
    }
}

fn words(exit: &PtyExit) -> String {
    match exit.code {
        0 => "the shell has ended".to_owned(),
        code => format!("the shell has ended with code {code}"),
    }
}
