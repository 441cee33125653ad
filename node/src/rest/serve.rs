//! Serves the router on a Unix socket that only our own edge can reach, with a bound on everything.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::verb::VERB_DEADLINE_MS;

/// Connections that the edge may hold at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16_384;
/// How long a connection may be idle, or take to send a request's head. Longer than the edge keeps one idle, so that
/// it is the edge that closes and a request never meets a closing door.
const HEAD_DEADLINE_MS: u64 = 75_000;
/// How long requests in flight may take once we stop: a verb's time and a little.
const DRAIN_DEADLINE_MS: u64 = VERB_DEADLINE_MS + 2_000;
/// Out of file descriptors: some time for others to close theirs.
const ACCEPT_BACKOFF_MS: u64 = 50;

/// Until `cancel`. Then nothing new is accepted, and requests in flight are finished within a deadline.
pub async fn serve(listener: UnixListener, router: Router, cancel: CancellationToken) {
    let connections = TaskTracker::new();
    let abandon = CancellationToken::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some((stream, permit)) = next_connection(&listener, &room, &cancel).await {
        let (router, cancel, abandon) = (router.clone(), cancel.clone(), abandon.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection(stream, router, cancel) => {}
                () = abandon.cancelled() => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(Duration::from_millis(DRAIN_DEADLINE_MS), connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests in flight are abandoned");
        abandon.cancel();
        connections.wait().await;
    }
}

async fn next_connection(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
    cancel: &CancellationToken,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let accepted = async {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return (stream, permit),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(ACCEPT_BACKOFF_MS)).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => None,
        accepted = accepted => Some(accepted),
    }
}

async fn connection(stream: UnixStream, router: Router, cancel: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEAD_DEADLINE_MS))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}
