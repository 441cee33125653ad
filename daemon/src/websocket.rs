//! What all our WebSockets share: room for so many, the choice of a subprotocol, and a close that arrives.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::errors::ApiError;
use crate::utf8::boundary_at_most;

/// Open at a time, of all routes together. The door counts a connection no more once it is a WebSocket.
const OPEN_MAX: usize = 512;
/// Taken for each when it opens, and the default is sixteen times this. A longer message takes more while it comes in.
const READ_BUFFER_BYTES: usize = 8 * 1024;

const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// What one close frame may carry, by the protocol.
const REASON_BYTES_MAX: usize = 123;

/// Which of our connections are WebSockets.
pub struct Sockets(Arc<Semaphore>);

/// Held for as long as the WebSocket is open.
pub struct Seat {
    _permit: OwnedSemaphorePermit,
}

impl Default for Sockets {
    fn default() -> Sockets {
        Sockets(Arc::new(Semaphore::new(OPEN_MAX)))
    }
}

impl Sockets {
    pub fn seat(&self) -> Result<Seat, ApiError> {
        let permit = self.0.clone().try_acquire_owned();
        let refused = |_| {
            ApiError::conflict(format!(
                "this sandbox has {OPEN_MAX} WebSockets open: close one, then try again"
            ))
        };
        Ok(Seat { _permit: permit.map_err(refused)? })
    }
}

pub fn accept<F: Future<Output = ()> + Send + 'static>(
    upgrade: WebSocketUpgrade,
    seat: Seat,
    message_bytes_max: usize,
    converse: impl FnOnce(WebSocket) -> F + Send + 'static,
) -> Response {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(message_bytes_max)
        .max_frame_size(message_bytes_max)
        .on_upgrade(async move |socket| {
            let _seat = seat;
            converse(socket).await;
        })
}

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
