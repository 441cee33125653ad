//! The door: a connection becomes HTTP only after it has said the sandbox's secret, and how it says it leads to a room.
//!
//! Anyone in the sandbox can connect to the port. Whoever doesn't begin with the preamble is closed without a byte, and can't keep
//! the node out: beyond [`GREETING_MAX`] silent connections the oldest gives way.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::daemon::{PREAMBLE_BYTES, owner_preamble, preamble};
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tower_service::Service;

use crate::guests::{Answering, Asking, Guests};
use crate::identity::{Room, Rooms};
use crate::linger::Lingering;

const PREAMBLE_DEADLINE: Duration = Duration::from_secs(5);
const GREETING_MAX: usize = 64;
/// Also how long an idle kept-alive connection is held. Longer than any pool of the node keeps one.
const HEADER_DEADLINE: Duration = Duration::from_secs(120);
/// Headers and the pieces of a body are read in buffers of at most this.
const READ_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Out of descriptors or memory: look again after this.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Serves until dropped.
pub async fn serve(listener: TcpListener, secret: &str, rooms: Arc<Rooms>) -> Infallible {
    let expected = Arc::new(Preambles::new(secret));
    let mut greeting: JoinSet<Option<(TcpStream, Room)>> = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    let mut connections: JoinSet<()> = JoinSet::new();
    let mut guests = Guests::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    oldest_first.retain(|greeting| !greeting.is_finished());
                    if oldest_first.len() >= GREETING_MAX && let Some(oldest) = oldest_first.pop_front() {
                        oldest.abort();
                    }
                    oldest_first.push_back(greeting.spawn(authenticate(stream, expected.clone())));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            },
            Some(greeted) = greeting.join_next() => {
                match greeted {
                    // The owner comes in also when everybody else has filled the house.
                    Ok(Some((stream, Room::Owner))) => {
                        connections.spawn(converse(stream, Room::Owner, rooms.clone(), Asking::default()));
                    }
                    Ok(Some((stream, room))) if guests.make_room() => {
                        let asking = Asking::default();
                        let connection = converse(stream, room, rooms.clone(), asking.clone());
                        guests.add(connections.spawn(connection), asking);
                    }
                    Ok(Some(_)) => tracing::debug!("everybody in a full house is being answered"),
                    Ok(None) | Err(_) => {}
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What a connection may begin with.
struct Preambles {
    everybody: Vec<u8>,
    owner: Vec<u8>,
}

impl Preambles {
    fn new(secret: &str) -> Preambles {
        Preambles { everybody: preamble(secret).into_bytes(), owner: owner_preamble(secret).into_bytes() }
    }

    fn room(&self, said: &[u8]) -> Option<Room> {
        if equal_in_constant_time(said, &self.everybody) {
            Some(Room::Everybody)
        } else {
            equal_in_constant_time(said, &self.owner).then_some(Room::Owner)
        }
    }
}

async fn authenticate(mut stream: TcpStream, expected: Arc<Preambles>) -> Option<(TcpStream, Room)> {
    let mut said = [0; PREAMBLE_BYTES];
    let read = tokio::time::timeout(PREAMBLE_DEADLINE, stream.read_exact(&mut said)).await;
    let room = if matches!(read, Ok(Ok(_))) { expected.room(&said) } else { None };
    if room.is_none() {
        tracing::debug!("connection without the preamble closed");
    }
    Some((stream, room?))
}

/// The time taken depends on the lengths only.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| std::hint::black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

async fn converse(stream: TcpStream, room: Room, rooms: Arc<Rooms>, asking: Asking) {
    // Answers are small and latency counts; a failure only costs time.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let _asking = asking.clone();
        let answered = rooms.router(room).call(request.map(Body::new));
        async move { Ok::<_, Infallible>(answered.await?.map(|body| Answering { body, _asking })) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(Lingering::new(stream)), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::equal_in_constant_time;

    #[test]
    fn only_the_same_bytes_are_equal() {
        assert!(equal_in_constant_time(b"abc", b"abc"));
        assert!(!equal_in_constant_time(b"abc", b"abd"));
        assert!(!equal_in_constant_time(b"abc", b"abcd"));
        assert!(!equal_in_constant_time(b"abcd", b"abc"));
    }
}
