//! Requests that no honest client sends: each is answered, none is passed on, and the edge goes on.

use std::time::Duration;

use atoll_edge::EdgeLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::*;

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("no answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_heads_are_refused_and_never_forwarded() {
    let world = World::new().await;
    let host = preview(3000, PUBLIC);
    let long = "a".repeat(300);
    let cases = [
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("no host in 1.0", "GET / HTTP/1.0\r\n\r\n".to_owned(), "400"),
        ("two hosts", format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n"), "400"),
        ("long host", format!("GET / HTTP/1.1\r\nHost: {long}\r\n\r\n"), "400"),
        ("host with path", format!("GET / HTTP/1.1\r\nHost: {host}/x\r\n\r\n"), "400"),
        ("host with user", format!("GET / HTTP/1.1\r\nHost: a@{host}\r\n\r\n"), "400"),
        ("host with space", format!("GET / HTTP/1.1\r\nHost: a {host}\r\n\r\n"), "400"),
        ("empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), "400"),
        ("latin-1 host", "GET / HTTP/1.1\r\nHost: h\u{e9}\r\n\r\n".to_owned(), "400"),
        ("other authority", format!("GET http://evil/ HTTP/1.1\r\nHost: {host}\r\n\r\n"), "400"),
        ("asterisk", format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n"), "400"),
        (
            "both lengths",
            format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            "400",
        ),
        (
            "both lengths, the other way round",
            format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n"
            ),
            "400",
        ),
        (
            "two lengths",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
            "400",
        ),
        ("signed length", format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: +1\r\n\r\nx"), "400"),
        (
            "odd coding",
            format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            "400",
        ),
        ("space before colon", format!("GET / HTTP/1.1\r\nHost : {host}\r\n\r\n"), "400"),
        ("folded", format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: a\r\n b\r\n\r\n"), "400"),
        ("connect", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".to_owned(), "405"),
        ("trace", format!("TRACE / HTTP/1.1\r\nHost: {host}\r\n\r\n"), "405"),
        ("long target", format!("GET /{} HTTP/1.1\r\nHost: {host}\r\n\r\n", "a".repeat(20_000)), "414"),
        ("many headers", format!("GET / HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "X: y\r\n".repeat(200)), "431"),
        (
            "absurdly many headers",
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "X: y\r\n".repeat(400)),
            "400",
        ),
        ("big header", format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "y".repeat(70_000)), "431"),
        ("not http", "hello\r\n\r\n".to_owned(), "400"),
    ];
    for (what, request, expected) in cases {
        // `Connection: close` ends those which the edge could answer and keep.
        let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);

        let answer = raw(world.http, request.as_bytes()).await;

        assert_eq!(status(&answer), expected, "{what}: {answer}");
    }
    assert!(world.dial.dialed.lock().unwrap().is_empty(), "something reached a sandbox");
    assert_eq!(world.send(get_from(&host, "/")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absolute_target_is_forwarded_as_a_path() {
    let world = World::new().await;
    for host in [preview(3000, PUBLIC), "localhost".to_owned()] {
        let request = format!("GET http://{host}/a?b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");

        let answer = raw(world.http, request.as_bytes()).await;

        assert_eq!(status(&answer), "200", "{answer}");
        assert!(answer.contains(r#""target":"/a?b""#), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_header_cannot_remove_what_we_say() {
    let world = World::new().await;
    let host = preview(3000, PUBLIC);
    let naming = |name: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close, {name}\r\n\r\n");

    let protected = raw(world.http, naming("x-forwarded-for").as_bytes()).await;
    let other = raw(world.http, naming("x-request-id").as_bytes()).await;

    assert_eq!(status(&protected), "400", "{protected}");
    assert!(other.contains(r#""x-request-id":""#), "{other}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smuggled_second_request_is_judged_like_any_other() {
    let world = World::new().await;
    let (public, private) = (preview(3000, PUBLIC), preview(3000, PRIVATE));
    let request = format!(
        "GET /one HTTP/1.1\r\nHost: {public}\r\n\r\nGET /two HTTP/1.1\r\nHost: {private}\r\nConnection: close\r\n\r\n"
    );

    let answers = raw(world.http, request.as_bytes()).await;

    assert!(answers.starts_with("HTTP/1.1 200"), "{answers}");
    assert!(answers.contains("HTTP/1.1 401") && !answers.contains(r#""target":"/two""#), "{answers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_websocket_upgrades_reach_a_sandbox() {
    let world = World::new().await;

    let answer = world
        .send(
            get_from(&preview(3000, PUBLIC), "/")
                .header("upgrade", "atoll-channel")
                .header("connection", "Upgrade"),
        )
        .await;

    assert_eq!((answer.status, answer.saw("upgrade")), (200, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_answers_nonsense_or_nothing_is_a_502() {
    let world = World::new().await;
    for bytes in
        ["", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"]
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.dial.set(PUBLIC, 3000, Ok(listener.local_addr().unwrap()));
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = tcp.read(&mut head).await;
            let _ = tcp.write_all(bytes.as_bytes()).await;
        });

        let answer = world.send(get_from(&preview(3000, PUBLIC), "/")).await;

        assert_eq!((answer.status, answer.json()["code"].as_str()), (502, Some("BAD_GATEWAY")), "{bytes}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upload_still_gets_its_answer() {
    let world = World::new().await;
    let mut tcp = TcpStream::connect(world.http).await.unwrap();
    let host = preview(3000, PRIVATE);
    let body = vec![b'x'; 4 * 1024 * 1024];

    tcp.write_all(
        format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(),
    )
    .await
    .unwrap();
    tcp.write_all(&body).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.unwrap().unwrap();

    assert_eq!(status(&String::from_utf8_lossy(&answer)), "401");
}

/// Whether the edge closes the connection, while the client sends one more byte of a header now and then.
async fn dripping_is_cut(tcp: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    let cut = async {
        loop {
            tokio::select! {
                read = tcp.read_u8() => return assert!(read.is_err(), "nothing was asked"),
                () = tokio::time::sleep(HEAD_TIMEOUT / 10) => {}
            }
            if tcp.write_all(b"x").await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, cut).await.expect("the connection is cut");
}

const HEAD_TIMEOUT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_drips_in_is_cut_as_a_whole_and_not_by_the_byte() {
    let limits = EdgeLimits { head_timeout: HEAD_TIMEOUT, ..EdgeLimits::default() };
    let world = World::with(None, limits).await;
    let mut tcp = TcpStream::connect(world.http).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX: ").await.unwrap();

    dripping_is_cut(&mut tcp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_is_cut_when_its_next_head_is_not_whole_in_time() {
    let limits = EdgeLimits { idle_timeout: HEAD_TIMEOUT, ..EdgeLimits::default() };
    let world = World::with(None, limits).await;
    let host = preview(3000, PUBLIC);
    let mut silent = world.client().await;
    let mut dripping = TcpStream::connect(world.http).await.unwrap();

    assert_eq!(silent.send(get_from(&host, "/")).await.status, 200);
    silent.closed().await;
    let request = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    dripping.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tokio::time::timeout(PATIENCE, dripping.read_u8()).await.unwrap().unwrap());
    }
    dripping.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
    dripping_is_cut(&mut dripping).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_take_longer_than_a_head() {
    let limits =
        EdgeLimits { head_timeout: HEAD_TIMEOUT, idle_timeout: HEAD_TIMEOUT, ..EdgeLimits::default() };
    let world = World::with(None, limits).await;
    let mut client = world.client().await;

    let (app, host) = (world.app.clone(), preview(3000, PUBLIC));
    let answered = tokio::spawn(async move { client.send(get_from(&host, "/held")).await.status });
    app.held.notified().await;
    // Time itself is what is tested here.
    tokio::time::sleep(HEAD_TIMEOUT * 3).await;
    app.go_on.notify_one();

    assert_eq!(answered.await.unwrap(), 200);
}
