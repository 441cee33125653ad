//! HTTPS: both HTTP versions, and the scheme that is told to who is behind.

use std::sync::Arc;
use std::time::Duration;

use atoll_edge::EdgeLimits;
use bytes::Bytes;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::*;

const CERTIFICATE: &[u8] = include_bytes!("fixtures/tls-cert.pem");
const KEY: &[u8] = include_bytes!("fixtures/tls-key.pem");

fn server() -> Arc<rustls::ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
}

async fn connect(world: &World, host: &str, protocol: &str) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.into()];
    let tcp = TcpStream::connect(world.https.unwrap()).await.unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    tls
}

async fn h2(world: &World, host: &str) -> h2::client::SendRequest<Bytes> {
    let tls = connect(world, host, "h2").await;
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

async fn ask(
    sender: &h2::client::SendRequest<Bytes>,
    request: http::Request<()>,
) -> (http::response::Parts, Vec<u8>) {
    let mut sender = sender.clone().ready().await.unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    let (head, mut body) = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = tokio::time::timeout(PATIENCE, body.data()).await.unwrap() {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    (head, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_serves_previews_toolbox_and_api() {
    let world = World::with(Some(server()), EdgeLimits::default()).await;
    let host = preview(3000, PRIVATE);
    let sender = h2(&world, &host).await;
    let request = |target: &str| http::Request::builder().uri(format!("https://{host}{target}"));

    let opened = request("/x?DAYTONA_SANDBOX_AUTH_KEY=right&a=b")
        .header("authorization", "Bearer x")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let (head, body) = ask(&sender, opened.body(()).unwrap()).await;
    let (denied, denial) = ask(&sender, request("/").body(()).unwrap()).await;
    let (large, bytes) = ask(
        &sender,
        request("/download/3000000").header("x-daytona-preview-token", "right").body(()).unwrap(),
    )
    .await;

    let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(head.status, 200);
    assert!(head.headers["set-cookie"].to_str().unwrap().ends_with("; Secure"));
    assert_eq!((seen["target"].as_str(), seen["headers"]["authorization"].as_str()), (Some("/x?a=b"), None));
    assert_eq!(seen["headers"]["cookie"], "a=1; b=2");
    assert_eq!(seen["headers"]["x-forwarded-proto"], "https");
    assert_eq!(seen["headers"]["host"], host);
    assert_eq!(denied.status, 401);
    assert!(String::from_utf8(denial).unwrap().contains("DAYTONA_PROXY"));
    assert_eq!((large.status.as_u16(), bytes.len()), (200, 3_000_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_carries_many_requests_at_once() {
    let world = World::with(Some(server()), EdgeLimits::default()).await;
    let sender = h2(&world, "localhost").await;

    let asked = (0..100).map(|n| {
        let request = http::Request::builder().uri(format!("https://localhost/api/{n}")).body(()).unwrap();
        let sender = &sender;
        async move { (n, ask(sender, request).await) }
    });
    for (n, (head, body)) in futures_util::future::join_all(asked).await {
        let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (head.status.as_u16(), seen["target"].as_str()),
            (200, Some(format!("/api/{n}").as_str()))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_over_tls_works_as_well() {
    let world = World::with(Some(server()), EdgeLimits::default()).await;
    let tls = connect(&world, "localhost", "http/1.1").await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, http_body_util::Empty<Bytes>>(
        hyper_util::rt::TokioIo::new(tls),
    )
    .await
    .unwrap();
    tokio::spawn(connection);

    let request = get_from("localhost", "/api").body(http_body_util::Empty::new()).unwrap();
    let answer = Answer::read(sender.send_request(request).await.unwrap()).await;

    assert_eq!((answer.status, answer.saw("x-forwarded-proto").as_deref()), (200, Some("https")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_does_not_come_is_cut() {
    use tokio::io::AsyncReadExt;
    let limits = EdgeLimits { handshake_timeout: Duration::from_millis(100), ..EdgeLimits::default() };
    let world = World::with(Some(server()), limits).await;

    let mut silent = TcpStream::connect(world.https.unwrap()).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, silent.read(&mut [0; 1])).await;

    assert!(matches!(ended, Ok(Ok(0) | Err(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_connection_that_asks_for_nothing_is_cut_and_one_that_has_asked_is_kept() {
    use tokio::io::AsyncReadExt;
    let head_timeout = Duration::from_millis(200);
    let limits = EdgeLimits { head_timeout, idle_timeout: head_timeout, ..EdgeLimits::default() };
    let world = World::with(Some(server()), limits).await;
    let host = preview(3000, PUBLIC);
    let request = || http::Request::builder().uri(format!("https://{host}/")).body(()).unwrap();

    let used = h2(&world, &host).await;
    assert_eq!(ask(&used, request()).await.0.status, 200);
    let mut silent = connect(&world, &host, "h2").await;
    // The server's settings come, and then the end.
    let ended = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await;

    assert!(ended.is_ok(), "the silent connection stays open");
    assert_eq!(ask(&used, request()).await.0.status, 200);
}
