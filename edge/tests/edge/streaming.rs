//! Bytes pass as they come, both ways, and memory does not grow with them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::world::*;

const MIB: usize = 1024 * 1024;

async fn web_socket(world: &World, host: &str, path: &str) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{host}{path}").into_client_request().unwrap();
    request.headers_mut().insert("authorization", bearer(&key_of(1)).parse().unwrap());
    let tcp = TcpStream::connect(world.http).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let upgraded = tokio::time::timeout(PATIENCE, tokio_tungstenite::client_async(request, tcp)).await;
    upgraded.expect("an answer to the upgrade").expect("the upgrade succeeds").0
}

async fn echo(socket: &mut WebSocketStream<TcpStream>, message: Message) {
    socket.send(message.clone()).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer, message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_arrives_while_the_answer_is_open() {
    let world = World::new().await;
    let mut client = world.client().await;

    let mut response = client.open(get_from(&preview(3000, PUBLIC), "/sse"), Bytes::new()).await;
    let first = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await.unwrap().unwrap().unwrap();
    world.app.go_on.notify_one();
    let second = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await.unwrap().unwrap().unwrap();

    assert_eq!(first.into_data().unwrap(), "data: first\n\n");
    assert_eq!(second.into_data().unwrap(), "data: second\n\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_both_ways_unchanged() {
    let world = World::new().await;
    let host = preview(3000, PUBLIC);
    let body: Bytes = (0..64 * MIB).map(|i| (i % 253) as u8).collect::<Vec<u8>>().into();
    let sum = body.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));

    let uploaded =
        world.client().await.send_body(get_from(&host, "/upload").method("POST"), body.clone()).await;
    let downloaded = world.send(get_from(&host, &format!("/download/{}", 64 * MIB))).await;

    assert_eq!(uploaded.body, format!("{} {sum}", body.len()));
    assert_eq!(downloaded.body.len(), 64 * MIB);
    assert!(downloaded.body.chunks(64 * 1024).enumerate().all(|(i, chunk)| chunk[0] == (i % 251) as u8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_stops_the_program_that_sends() {
    let world = World::new().await;
    let host = preview(3000, PUBLIC);
    let mut client = world.client().await;

    let unread = client.open(get_from(&host, "/flood"), Bytes::new()).await;
    // Time enough for an edge without back pressure to fetch far more.
    let mut other = world.client().await;
    for _ in 0..300 {
        assert_eq!(other.send(get_from(&host, "/")).await.status, 200);
    }

    let bytes = world.app.flooded_bytes.load(Ordering::SeqCst);
    assert!(bytes < 64 * MIB, "{bytes} bytes were taken from the program");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunked_upload_arrives_whole() {
    let world = World::new().await;
    let host = preview(3000, PUBLIC);
    let mut tcp = TcpStream::connect(world.http).await.unwrap();

    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..100 {
        tcp.write_all(b"3\r\nabc\r\n").await.unwrap();
    }
    tcp.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, tcp.read_to_string(&mut answer)).await.unwrap().unwrap();

    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("300 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let world = World::new().await;
    let host = preview(3000, PUBLIC);
    let mut tcp = TcpStream::connect(world.http).await.unwrap();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    );

    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    tokio::time::timeout(PATIENCE, tcp.read_exact(&mut first)).await.unwrap().unwrap();
    tcp.write_all(b"abc").await.unwrap();
    let mut rest = String::new();
    tokio::time::timeout(PATIENCE, tcp.read_to_string(&mut rest)).await.unwrap().unwrap();

    assert_eq!(&first, b"HTTP/1.1 100");
    assert!(rest.contains("HTTP/1.1 200"), "{rest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web_sockets_pass_on_previews_and_the_toolbox() {
    let world = World::new().await;
    let toolbox = format!("/toolbox/{}/ws", sandbox_id(PRIVATE));
    for (host, path) in [(preview(3000, PRIVATE), "/ws"), ("localhost".to_owned(), toolbox.as_str())] {
        let mut socket = web_socket(&world, &host, path).await;

        echo(&mut socket, Message::text("hello")).await;
        echo(&mut socket, Message::binary(vec![7; 300_000])).await;
        socket.send(Message::text("authorization?")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("false"), "{host}");
    }
}

/// cloudflare/pingora#946: an upgrade answered at once used to lose its tunnel now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_upgrades_all_hold() {
    const UPGRADES: usize = 2_000;
    const AT_ONCE: usize = 20;
    let world = std::sync::Arc::new(World::new().await);
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let world = world.clone();
        workers.spawn(async move {
            for n in 0..UPGRADES / AT_ONCE {
                let mut socket = web_socket(&world, &preview(3000, PUBLIC), "/ws").await;
                echo(&mut socket, Message::text(n.to_string())).await;
            }
        });
    }

    let all = tokio::time::timeout(Duration::from_secs(60), workers.join_all()).await;

    assert!(all.is_ok(), "2,000 upgrades within a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_at_once_all_succeed() {
    let world = std::sync::Arc::new(World::new().await);
    let mut requests = JoinSet::new();
    for n in 0..200u8 {
        let world = world.clone();
        requests.spawn(async move {
            let target = format!("/{n}");
            let answer = world.send(get_from(&preview(3000, 2 + n % 10), &target)).await;
            assert_eq!((answer.status, answer.json()["target"].as_str()), (200, Some(target.as_str())));
        });
    }

    requests.join_all().await;

    assert_eq!(world.dial.dialed.lock().unwrap().len(), 200);
    assert_eq!(world.directory.touches.load(Ordering::SeqCst), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_request_has_no_body_and_the_connection_goes_on() {
    let world = World::new().await;
    let mut client = world.client().await;

    let head = client.send(get_from(&preview(3000, PUBLIC), "/").method("HEAD")).await;
    let next = client.send(get_from(&preview(3000, PUBLIC), "/next")).await;

    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(next.json()["target"], "/next");
}
