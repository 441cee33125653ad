//! The web terminal's page and its WebSocket, and who may open them.

use std::os::unix::process::CommandExt;
use std::process::Command;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::world::{DEADLINE, Socket, USER, World, eventually};

async fn opened(world: &World) -> Socket {
    let stream = TcpStream::connect(world.web_terminal()).await.unwrap();
    tokio_tungstenite::client_async("ws://sandbox/ws", stream).await.unwrap().0
}

async fn type_in(socket: &mut Socket, text: &str) {
    socket.send(Message::Text(text.into())).await.unwrap();
}

/// All text until `enough`, or the close.
async fn watch(socket: &mut Socket, enough: impl Fn(&str) -> bool) -> (String, Option<CloseFrame>) {
    let mut seen = String::new();
    let watching = async {
        while !enough(&seen) {
            match socket.next().await.expect("a close frame").unwrap() {
                Message::Text(text) => seen.push_str(&text),
                Message::Close(frame) => return frame,
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
        None
    };
    let close = tokio::time::timeout(DEADLINE, watching).await;
    (seen.clone(), close.unwrap_or_else(|_| panic!("never seen: {seen:?}")))
}

#[tokio::test]
async fn the_page_brings_all_that_it_needs() {
    let world = World::new().await;

    let page = world.web_page("/").await.expect(200);
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    let text = page.text();
    let parts = text.split(['"']).filter(|part| part.ends_with(".js") || part.ends_with(".css"));
    let parts: Vec<_> = parts.collect();
    assert_eq!(parts.len(), 5);
    for part in parts {
        assert!(!part.contains("//"), "{part} is not from here");
        assert!(world.web_page(&format!("/{part}")).await.expect(200).bytes().len() > 50, "{part}");
    }
    world.web_page("/none").await.expect_error(404, "NOT_FOUND");
    world.web_page("/ws").await.expect_error(400, "BAD_REQUEST");
    let ports = world.get("/port").await.expect(200).json();
    assert!(!ports["ports"].as_array().unwrap().contains(&json!(22222)), "{ports}");
}

#[tokio::test]
async fn a_socket_is_a_shell_of_the_user_and_takes_sizes() {
    let world = World::new().await;
    let mut socket = opened(&world).await;

    type_in(&mut socket, r#"{"rows": 41, "cols": 123}"#).await;
    type_in(&mut socket, "echo I am $(whoami 2>/dev/null || id -u) $USER; stty size\n").await;
    watch(&mut socket, |text| text.contains("41 123\r\n") && text.contains(&format!("{USER}\r\n"))).await;
    // Not a size, so it is typed.
    type_in(&mut socket, r#"echo '{"rows": 1}'"#).await;
    type_in(&mut socket, "\n").await;
    watch(&mut socket, |text| text.contains("{\"rows\": 1}\r\n")).await;
    type_in(&mut socket, "exit 3\n").await;
    let (_, close) = watch(&mut socket, |_| false).await;

    let close = close.unwrap();
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1000, "the shell has ended with code 3"));
    assert_eq!(world.get("/process/pty").await.json(), json!({ "sessions": [] }));
}

#[tokio::test]
async fn characters_come_whole_however_they_are_written() {
    let world = World::new().await;
    let mut socket = opened(&world).await;

    let bytes = "for n in $(seq 300); do printf '\\xf0\\x9f'; sleep 0.001; printf '\\x98\\x80'; done; echo; echo en''d\n";
    type_in(&mut socket, bytes).await;
    let (text, _) = watch(&mut socket, |text| text.contains("end\r\n")).await;

    assert_eq!(text.matches('😀').count(), 300, "{text}");
    assert!(!text.contains(char::REPLACEMENT_CHARACTER));
}

#[tokio::test]
async fn a_terminal_goes_with_its_page() {
    let world = World::new().await;
    let mut socket = opened(&world).await;
    type_in(&mut socket, "echo pid $$; (trap '' HUP; exec sleep 300)\n").await;
    let (text, _) = watch(&mut socket, |text| {
        text.rsplit_once("pid ")
            .is_some_and(|(_, rest)| rest.ends_with("\n") && rest.starts_with(char::is_numeric))
    })
    .await;
    let pid = text.rsplit_once("pid ").unwrap().1.split_whitespace().next().unwrap();

    drop(socket);

    let process = format!("/proc/{pid}");
    eventually("its shell is gone", async || !std::path::Path::new(&process).exists()).await;
    assert_eq!(world.get("/process/pty").await.json(), json!({ "sessions": [] }));
}

#[tokio::test]
async fn another_sites_page_opens_nothing() {
    let world = World::new().await;

    for (origin, is_let_in) in [("https://evil.example", false), ("http://sandbox", true)] {
        let stream = TcpStream::connect(world.web_terminal()).await.unwrap();
        let mut request = "ws://sandbox/ws".into_client_request().unwrap();
        request.headers_mut().insert("origin", origin.parse().unwrap());
        assert_eq!(tokio_tungstenite::client_async(request, stream).await.is_ok(), is_let_in, "{origin}");
    }
}

#[tokio::test]
async fn other_users_of_the_sandbox_are_not_let_in() {
    let world = World::new().await;
    let address = world.web_terminal();
    let ask = format!(
        "exec 3<>/dev/tcp/{}/{}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 2>/dev/null; cat <&3 2>/dev/null | head -c 12",
        address.ip(),
        address.port()
    );

    assert_eq!(world.execute(&ask).await["result"], "HTTP/1.0 200");
    let as_uid = |uid: u32| {
        let output = Command::new("bash").uid(uid).gid(uid).args(["-c", &ask]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!([as_uid(0), as_uid(54999), as_uid(65534)], ["HTTP/1.0 200", "", ""]);
}
