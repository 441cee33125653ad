//! The connections that have said the secret. When there is no room for one more, the oldest that asks for nothing gives way: who only
//! holds connections open keeps nobody out.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::task::AbortHandle;

const CONNECTIONS_MAX: usize = 1024;

#[derive(Default)]
pub struct Guests {
    oldest_first: VecDeque<Guest>,
}

struct Guest {
    connection: AbortHandle,
    asking: Asking,
}

/// Held once by the guest, once by its connection, and once by each request until its answer is sent.
#[derive(Clone, Default)]
pub struct Asking(Arc<()>);

impl Guest {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.asking.0) <= 2
    }
}

impl Guests {
    /// Whether one more may come in.
    pub fn make_room(&mut self) -> bool {
        if self.oldest_first.len() < CONNECTIONS_MAX {
            return true;
        }
        self.oldest_first.retain(|guest| !guest.connection.is_finished());
        if self.oldest_first.len() < CONNECTIONS_MAX {
            return true;
        }
        let idle = self.oldest_first.iter().position(Guest::is_idle);
        let Some(guest) = idle.and_then(|idle| self.oldest_first.remove(idle)) else { return false };
        guest.connection.abort();
        true
    }

    pub fn add(&mut self, connection: AbortHandle, asking: Asking) {
        debug_assert!(self.oldest_first.len() < CONNECTIONS_MAX);
        self.oldest_first.push_back(Guest { connection, asking });
    }
}

/// An answer's body: the request is not over before it is.
pub struct Answering {
    pub body: Body,
    pub _asking: Asking,
}

impl hyper::body::Body for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
