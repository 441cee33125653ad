//! One client's WebSocket on a terminal: control messages as text, the terminal's bytes as binary.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, close_code};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;

use super::{Attached, PtyExit};
use crate::websocket::close;

/// A client that takes nothing for this long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitControl {
    /// The client understands a message about the exit before the close.
    Message,
    CloseOnly,
}

/// Tells the client why it gets no terminal.
pub async fn refuse(mut socket: WebSocket, error: String) {
    let control = json!({ "type": "control", "status": "error", "error": error });
    let _ = tokio::time::timeout(SEND_DEADLINE, socket.send(Message::Text(control.to_string().into()))).await;
    close(socket, close_code::POLICY, error).await;
}

pub async fn converse(socket: WebSocket, attached: Attached, exit_control: ExitControl) {
    let Attached { mut output, was_slow, mut exited, input } = attached;
    let (mut sink, mut stream) = socket.split();
    // Reading goes on beside writing: input must reach a program whose output waits, and reading is what answers pings.
    let typed = async {
        while let Some(Ok(message)) = stream.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
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
        let connected = json!({ "type": "control", "status": "connected" }).to_string();
        sink.send(Message::Text(connected.into())).await?;
        while let Some(chunk) = output.recv().await {
            match tokio::time::timeout(SEND_DEADLINE, sink.send(Message::Binary(chunk))).await {
                Ok(sent) => sent?,
                Err(_) => was_slow.store(true, Ordering::Relaxed),
            }
            if was_slow.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        if was_slow.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // Output ends when the exit is known.
        let exit = exited.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        if let (ExitControl::Message, Some(exit)) = (exit_control, &exit) {
            let mut control = json!({ "type": "control", "status": "exited", "exitCode": exit.code });
            if let Some(reason) = &exit.reason {
                control["exitReason"] = json!(reason);
            }
            sink.send(Message::Text(control.to_string().into())).await?;
        }
        Ok::<_, axum::Error>(exit)
    };
    let ended = tokio::select! {
        ended = shown => ended,
        () = typed => return,
    };
    let Ok(socket) = stream.reunite(sink) else { return };
    match ended {
        Ok(Some(exit)) => close(socket, exit_close_code(&exit), exit_reason(&exit)).await,
        Ok(None) => close(socket, close_code::POLICY, "slow consumer".into()).await,
        Err(_) => {}
    }
}

fn exit_close_code(exit: &PtyExit) -> u16 {
    if exit.code == 0 { close_code::NORMAL } else { close_code::ERROR }
}

fn exit_reason(exit: &PtyExit) -> String {
    let mut reason = json!({ "exitCode": exit.code });
    if let Some(words) = &exit.reason {
        reason["exitReason"] = json!(words);
    }
    reason.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_close_reason_is_json() {
        let exit = PtyExit { code: 137, reason: Some("SIGKILL".into()) };

        assert_eq!(exit_reason(&exit), r#"{"exitCode":137,"exitReason":"SIGKILL"}"#);
        assert_eq!(exit_close_code(&exit), 1011);
        assert_eq!(exit_reason(&PtyExit { code: 0, reason: None }), r#"{"exitCode":0}"#);
    }
}
