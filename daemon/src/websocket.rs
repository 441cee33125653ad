//! What all our WebSockets share: the choice of a subprotocol, and a close that arrives.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};

use crate::utf8::boundary_at_most;

const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// What one close frame may carry, by the protocol.
const REASON_BYTES_MAX: usize = 123;

/// A client that offers subprotocols gives up when none is chosen; some offer only a note of their version.
pub fn choose_first_protocol(upgrade: &mut WebSocketUpgrade) {
    let first = upgrade.requested_protocols().next().cloned();
    if let Some(first) = first {
        upgrade.set_selected_protocol(first);
    }
}

pub async fn close(mut socket: WebSocket, code: u16, mut reason: String) {
    reason.truncate(boundary_at_most(&reason, REASON_BYTES_MAX));
    let _ = tokio::time::timeout(CLOSE_DEADLINE, async {
        socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await?;
        // Until the client has answered: dropping the socket earlier may lose the last bytes.
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    })
    .await;
}
