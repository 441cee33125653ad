//! How long a client may hold a connection without asking for anything. Pingora counts from byte to byte, and not at all
//! between the requests of a kept connection: who drips a head, or just stays, would keep the place of somebody else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::raw_connect::ProxyDigest;
use tokio::time::{Instant, sleep_until};

/// One per connection. It runs while a request's head is awaited and stands still during the request.
#[derive(Debug)]
pub struct HeadClock {
    head_timeout: Duration,
    idle_timeout: Duration,
    /// When the head must be whole; `None` while a request is served.
    due: Mutex<Option<Instant>>,
}

impl HeadClock {
    /// Stands still until [`HeadClock::connected`].
    pub fn new(head_timeout: Duration, idle_timeout: Duration) -> HeadClock {
        HeadClock { head_timeout, idle_timeout, due: Mutex::new(None) }
    }

    /// The first request is awaited.
    pub fn connected(&self) {
        self.set(Some(Instant::now() + self.head_timeout));
    }

    /// A head has come whole.
    pub fn received(&self) {
        self.set(None);
    }

    /// The request is over, and the next one is awaited.
    pub fn answered(&self) {
        self.set(Some(Instant::now() + self.idle_timeout));
    }

    /// Returns when a head was due and is not there.
    pub async fn run_out(&self) {
        loop {
            let now = Instant::now();
            let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
            if due.is_some_and(|due| due <= now) {
                return;
            }
            // Whatever is set from now on is not due before that.
            let look_again = now + self.idle_timeout;
            sleep_until(due.map_or(look_again, |due| due.min(look_again))).await;
        }
    }

    fn set(&self, due: Option<Instant>) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = due;
    }

    /// The one thing of ours that Pingora carries from a connection to its requests, under TLS and HTTP/2 too. Its own
    /// use is with proxies on the way to an upstream, of which we have none.
    pub fn into_digest(self: Arc<Self>) -> ProxyDigest {
        let unused = ResponseHeader::build(http::StatusCode::OK, Some(0)).expect("200 is a status");
        ProxyDigest::new(Box::new(unused), Some(Box::new(self)))
    }

    /// The clock of the connection that a request came by.
    pub fn of(downstream: &ServerSession) -> Option<&HeadClock> {
        let digest = downstream.digest()?.proxy_digest.as_deref()?;
        digest.user_data.as_ref()?.downcast_ref::<Arc<HeadClock>>().map(Arc::as_ref)
    }
}
