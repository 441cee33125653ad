//! The web terminal: a page with a terminal emulator, and a WebSocket with a shell of the sandbox's user.
//!
//! It listens on the loopback only. Previews reach it there as they reach any port, after the edge has seen that the caller may;
//! the port is never public. It has no secret of its own, so what else is in the sandbox could connect too. Therefore a
//! connection is served only when its other end belongs (see [`peer`]) to who gains nothing by a shell of the user's: the user,
//! root, or somebody outside the sandbox, which is the node. Anybody else's is closed without a byte. A page of another site,
//! open in the browser of who may, is told apart by its origin.
//!
//! While nobody is connected this is one listening socket. Each WebSocket has a terminal of its own, which ends with it.

mod pages;
mod peer;
mod socket;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::from_fn;
use axum::response::Response;
use axum::routing::get;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tower_service::Service;

use crate::errors::{self, ApiError};
use crate::identity::Rooms;
use crate::routes::Daemon;
use crate::websocket::accept;

const CONNECTIONS_MAX: usize = 64;
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
const READ_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Out of descriptors or memory: look again after this.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Serves until dropped.
pub async fn serve(listener: TcpListener, rooms: Arc<Rooms>) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(converse(stream, peer, rooms.daemon()));
                }
                Ok(_) => tracing::debug!("the web terminal has {CONNECTIONS_MAX} connections already"),
                Err(error) => {
                    tracing::warn!(%error, "accept for the web terminal");
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, daemon: Arc<Daemon>) {
    let Ok(own) = stream.local_addr() else { return };
    if !peer::may_open(peer, own, daemon.launcher.account().uid) {
        tracing::debug!("somebody in the sandbox may not open the web terminal");
        return;
    }
    let _ = stream.set_nodelay(true);
    let router = router(daemon);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        router.clone().call(request.map(Body::new))
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection of the web terminal ended");
    }
}

fn router(daemon: Arc<Daemon>) -> Router {
    pages::routes()
        .route("/ws", get(open))
        .fallback(errors::unknown_route)
        .method_not_allowed_fallback(errors::unknown_method)
        .layer(from_fn(errors::describe))
        .with_state(daemon)
}

async fn open(
    State(daemon): State<Arc<Daemon>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|_| ApiError::bad_request("this route is a WebSocket"))?;
    if !is_own_page(&headers) {
        return Err(ApiError::forbidden("the web terminal is opened from its own page only"));
    }
    let seat = daemon.sockets.seat()?;
    Ok(accept(upgrade, seat, socket::INPUT_BYTES_MAX, |socket| socket::converse(socket, daemon)))
}

/// A browser says which site opens a WebSocket, and sends the cookies of ours whichever it is. Who is no browser says nothing.
fn is_own_page(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let Some(origin) = origin.as_ref().and_then(Uri::authority) else { return false };
    // Proxies before us say which name the browser knows.
    [header::HOST.as_str(), "x-forwarded-host"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .any(|host| host.eq_ignore_ascii_case(origin.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_page_opens_the_terminal() {
        for (origin, host, forwarded, is_own) in [
            (None, "a:1", None, true),
            (Some("https://a.example"), "a.example", None, true),
            (Some("http://A.example:8080"), "a.example:8080", None, true),
            (Some("https://a.example"), "localhost:22222", Some("a.example"), true),
            (Some("https://b.example"), "a.example", None, false),
            (Some("https://b.example"), "localhost:22222", Some("a.example"), false),
            (Some("null"), "a.example", None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            if let Some(forwarded) = forwarded {
                headers.insert("x-forwarded-host", forwarded.parse().unwrap());
            }
            assert_eq!(is_own_page(&headers), is_own, "{origin:?} {host} {forwarded:?}");
        }
    }
}
