//! `ANY /proxy/{port}/…`: the request, streamed, to a port of the sandbox's own loopback; upgrades become a pipe.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::errors::{ApiError, Verbatim};
use crate::routes::Daemon;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// They speak of one connection, and there are two.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
];

pub async fn forward(State(daemon): State<Arc<Daemon>>, mut request: Request) -> Result<Response, ApiError> {
    let (port, uri) = target(request.uri())?;
    if port == daemon.own_port() {
        return Err(ApiError::bad_request("this port is the daemon's own"));
    }
    let stream = connect(port).await?;
    let refused = |error: hyper::Error| ApiError::bad_gateway(format!("port {port} did not answer: {error}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(refused)?;
    // Ends with the exchange: both its handle and its streams are ours.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, port, "proxied connection ended");
        }
    });

    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let seat = upgrade.as_ref().map(|_| daemon.sockets.seat()).transpose()?;
    let downstream = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    parts.version = Version::HTTP_11;
    clean(&mut parts.headers, upgrade.as_ref());
    let host = HeaderValue::from_str(&format!("localhost:{port}")).expect("digits");
    parts.headers.insert(header::HOST, host);
    let mut response = sender.send_request(Request::from_parts(parts, body)).await.map_err(refused)?;

    let upgraded = response.headers().get(header::UPGRADE).cloned();
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(downstream)) = (response.status(), downstream) {
        let upstream = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let _seat = seat;
            let Ok((downstream, upstream)) = tokio::try_join!(downstream, upstream) else { return };
            let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
            // How it ended is between the two.
            let _ = tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await;
        });
    }
    clean(response.headers_mut(), upgraded.as_ref());
    response.extensions_mut().insert(Verbatim);
    Ok(response.map(Body::new))
}

/// The path below `/proxy/{port}` as it was written, with the query.
fn target(uri: &Uri) -> Result<(u16, Uri), ApiError> {
    let rest = uri.path().strip_prefix("/proxy/").unwrap_or_default();
    let (port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let port = port.parse().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| ApiError::bad_request("not a port"))?;
    let path = if path.is_empty() { "/" } else { path };
    let uri = match uri.query() {
        Some(query) => format!("{path}?{query}").parse(),
        None => path.parse(),
    };
    Ok((port, uri.map_err(|_| ApiError::bad_request("not a path"))?))
}

/// What listens on `localhost` may listen on either.
async fn connect(port: u16) -> Result<TcpStream, ApiError> {
    let addresses =
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    match tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(_)) | Err(_) => Err(ApiError::bad_gateway(format!("nothing answers on port {port}"))),
    }
}

fn clean(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_kept_as_written() {
        for (uri, port, path) in [
            ("/proxy/3000/a%20b/../c?d=%2F", 3000, "/a%20b/../c?d=%2F"),
            ("/proxy/3000", 3000, "/"),
            ("/proxy/3000/", 3000, "/"),
            ("/proxy/8080//x", 8080, "//x"),
        ] {
            assert_eq!(target(&uri.parse().unwrap()).unwrap(), (port, path.parse().unwrap()));
        }
        for bad in ["/proxy/x/", "/proxy/0/", "/proxy/70000/"] {
            assert!(target(&bad.parse().unwrap()).is_err(), "{bad}");
        }
    }
}
