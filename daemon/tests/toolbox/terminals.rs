//! PTY sessions over WebSocket.

use base64::Engine;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::world::{DEADLINE, Socket, World, eventually};

const CAPABLE: &str = "X-Daytona-Pty-Exit-Control";

struct Seen {
    text: String,
    controls: Vec<Value>,
    close: Option<CloseFrame>,
}

/// Reads until `enough`, or the close.
async fn watch(socket: &mut Socket, enough: impl Fn(&str) -> bool) -> Seen {
    let mut seen = Seen { text: String::new(), controls: Vec::new(), close: None };
    let watching = async {
        while !enough(&seen.text) {
            match socket.next().await {
                Some(Ok(Message::Binary(bytes))) => seen.text += &String::from_utf8_lossy(&bytes),
                Some(Ok(Message::Text(text))) => seen.controls.push(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => {
                    seen.close = frame;
                    break;
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("{error}"),
                None => break,
            }
        }
    };
    if tokio::time::timeout(DEADLINE * 2, watching).await.is_err() {
        let tail = seen.text.len().saturating_sub(1000);
        panic!("never seen; last {:?}", seen.text.get(tail..));
    }
    seen
}

async fn connected(world: &World, path: &str, protocols: &str) -> Socket {
    let (mut socket, _) = world.websocket(path, protocols).await;
    let first = socket.next().await.unwrap().unwrap();
    assert_eq!(first.to_text().unwrap(), r#"{"status":"connected","type":"control"}"#);
    socket
}

fn close_of(seen: &Seen) -> (u16, Value) {
    let close = seen.close.as_ref().expect("a close frame");
    (close.code.into(), serde_json::from_str(&close.reason).unwrap())
}

#[tokio::test]
async fn a_terminal_in_one_request_lives_until_its_shell_ends() {
    let world = World::new().await;
    let envs = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"PTYVAR":"v1"}"#);
    let protocols = format!("{CAPABLE}, X-Daytona-Pty-Envs~{envs}, X-Daytona-SDK-Version~0.226.1");
    let (mut socket, handshake) =
        world.websocket("/process/pty/create-connect?id=t&cols=100&rows=30&cwd=/usr", &protocols).await;
    assert_eq!(handshake.headers()["sec-websocket-protocol"], CAPABLE);

    socket.send(Message::Binary("stty size; pwd; echo [$PTYVAR] [$TERM]; tty\n".into())).await.unwrap();
    let seen = watch(&mut socket, |text| text.contains("/dev/pts/") && text.contains("[v1]")).await;
    assert_eq!(seen.controls, [json!({ "type": "control", "status": "connected" })]);
    assert!(seen.text.contains("30 100") && seen.text.contains("/usr\r\n"), "{}", seen.text);
    assert!(seen.text.contains("[v1] [xterm-256color]"), "{}", seen.text);
    socket.send(Message::Text("exit 3\n".into())).await.unwrap();
    let seen = watch(&mut socket, |_| false).await;

    let exited =
        json!({ "type": "control", "status": "exited", "exitCode": 3, "exitReason": "non-zero exit" });
    assert_eq!(seen.controls, [exited]);
    assert_eq!(close_of(&seen), (1011, json!({ "exitCode": 3, "exitReason": "non-zero exit" })));
    world.get("/process/pty/t").await.expect_error(404, "PROCESS_NOT_FOUND");
}

#[tokio::test]
async fn a_clean_end_closes_normally_and_old_clients_get_no_message() {
    let world = World::new().await;
    let mut socket = connected(&world, "/process/pty/create-connect?id=t", "something-else").await;

    socket.send(Message::Text("exit 0\n".into())).await.unwrap();
    let seen = watch(&mut socket, |_| false).await;

    assert_eq!(seen.controls, Vec::<Value>::new());
    assert_eq!(close_of(&seen), (1000, json!({ "exitCode": 0 })));
}

#[tokio::test]
async fn a_terminal_is_created_listed_resized_shared_and_killed() {
    let world = World::new().await;
    let created =
        world.post("/process/pty", json!({ "id": "t", "envs": { "A": "1" } })).await.expect(201).json();
    assert_eq!(created, json!({ "sessionId": "t" }));
    world.post("/process/pty", json!({ "id": "t" })).await.expect_error(409, "CONFLICT");
    let info = world.get("/process/pty/t").await.expect(200).json();
    assert_eq!((&info["cols"], &info["rows"], &info["active"]), (&json!(80), &json!(24), &json!(true)));
    assert_eq!((&info["envs"], &info["lazyStart"]), (&json!({ "A": "1" }), &json!(false)));
    assert_eq!(world.get("/process/pty").await.json()["sessions"][0]["id"], "t");

    let mut one = connected(&world, "/process/pty/t/connect", CAPABLE).await;
    let mut two = connected(&world, "/process/pty/t/connect", CAPABLE).await;
    let resized =
        world.post("/process/pty/t/resize", json!({ "cols": 132, "rows": 50 })).await.expect(200).json();
    assert_eq!((&resized["cols"], &resized["rows"]), (&json!(132), &json!(50)));
    one.send(Message::Text("stty size\n".into())).await.unwrap();
    watch(&mut one, |text| text.contains("50 132")).await;
    watch(&mut two, |text| text.contains("50 132")).await;
    world.delete("/process/pty/t").await.expect(200);

    for socket in [&mut one, &mut two] {
        let seen = watch(socket, |_| false).await;
        assert_eq!(close_of(&seen), (1011, json!({ "exitCode": 137, "exitReason": "SIGKILL" })));
    }
    world.delete("/process/pty/t").await.expect_error(404, "PROCESS_NOT_FOUND");
}

#[tokio::test]
async fn a_lazy_terminal_starts_with_its_first_client() {
    let world = World::new().await;
    world.post("/process/pty", json!({ "id": "t", "lazyStart": true })).await.expect(201);
    assert_eq!(world.get("/process/pty/t").await.json()["active"], false);
    world.post("/process/pty/t/resize", json!({ "cols": 90, "rows": 20 })).await.expect(200);

    let mut socket = connected(&world, "/process/pty/t/connect", CAPABLE).await;
    socket.send(Message::Text("stty size\n".into())).await.unwrap();

    watch(&mut socket, |text| text.contains("20 90")).await;
    assert_eq!(world.get("/process/pty/t").await.json()["active"], true);
}

#[tokio::test]
async fn who_gets_no_terminal_is_told_over_the_socket() {
    let world = World::new().await;
    world.post("/process/pty", json!({ "id": "taken" })).await.expect(201);

    for path in [
        "/process/pty/nobody/connect",
        "/process/pty/create-connect?id=taken",
        "/process/pty/create-connect?cols=80",
        "/process/pty/create-connect?id=x&cols=0",
        "/process/pty/create-connect?id=x&cwd=/no/such",
    ] {
        let (mut socket, _) = world.websocket(path, CAPABLE).await;
        let seen = watch(&mut socket, |_| false).await;
        assert_eq!(seen.controls.len(), 1, "{path}");
        assert_eq!(seen.controls[0]["status"], "error", "{path}");
        assert!(seen.close.is_some(), "{path}");
    }
    world.post("/process/pty", json!({ "id": "x", "cols": 1001 })).await.expect_error(400, "BAD_REQUEST");
    world
        .post("/process/pty", json!({ "id": "x", "cwd": "/no/such" }))
        .await
        .expect_error(400, "BAD_REQUEST");
    world.get("/process/pty/x").await.expect_error(404, "PROCESS_NOT_FOUND");
}

#[tokio::test]
async fn ctrl_c_reaches_the_program_and_pings_are_answered_meanwhile() {
    let world = World::new().await;
    let mut socket = connected(&world, "/process/pty/create-connect?id=t", CAPABLE).await;
    socket.send(Message::Text("sh -c 'echo be\"\"gin; exec sleep 300'\n".into())).await.unwrap();
    watch(&mut socket, |text| text.contains("begin")).await;

    socket.send(Message::Ping("p".into())).await.unwrap();
    let pong = async { while !matches!(socket.next().await.unwrap().unwrap(), Message::Pong(_)) {} };
    tokio::time::timeout(DEADLINE, pong).await.unwrap();
    socket.send(Message::Binary(vec![3].into())).await.unwrap();
    // What is typed before the shell has taken the terminal back may be thrown away with the signal.
    let is_back = |text: &str| {
        let since = text.rsplit_once("^C").map(|(_, since)| since);
        since.is_some_and(|since| since.contains("$ ") || since.contains("# "))
    };
    watch(&mut socket, is_back).await;

    socket.send(Message::Text("echo af''ter\n".into())).await.unwrap();
    watch(&mut socket, |text| text.contains("after")).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_let_go_and_others_stay() {
    let world = World::new().await;
    let mut reader = connected(&world, "/process/pty/create-connect?id=t", CAPABLE).await;
    let mut sleeper = connected(&world, "/process/pty/t/connect", CAPABLE).await;

    reader.send(Message::Text("seq 1 3000000; echo en''d\n".into())).await.unwrap();
    let near_its_end = |text: &str| {
        text.as_bytes()[text.len().saturating_sub(300)..].windows(5).any(|end| end == b"end\r\n")
    };
    watch(&mut reader, near_its_end).await;

    let seen = watch(&mut sleeper, |_| false).await;
    assert_eq!(u16::from(seen.close.unwrap().code), 1008);
    eventually("the terminal is alive", async || world.get("/process/pty/t").await.status == 200).await;
}

#[tokio::test]
async fn the_end_of_a_terminal_is_told_in_the_protocols_words() {
    let world = World::new().await;
    for (typed, code, exit) in [
        ("exit\n", 1000, json!({ "exitCode": 0 })),
        ("exit 3\n", 1011, json!({ "exitCode": 3, "exitReason": "non-zero exit" })),
        ("exit 130\n", 1011, json!({ "exitCode": 130, "exitReason": "Ctrl+C" })),
        ("exec sh -c 'kill -TERM $$'\n", 1011, json!({ "exitCode": 143, "exitReason": "SIGTERM" })),
        ("exec sh -c 'kill -KILL $$'\n", 1011, json!({ "exitCode": 137, "exitReason": "SIGKILL" })),
        ("exec sh -c 'kill -USR1 $$'\n", 1011, json!({ "exitCode": 138, "exitReason": "signal 10" })),
    ] {
        let mut capable = connected(&world, "/process/pty/create-connect?id=t", CAPABLE).await;
        let mut plain = connected(&world, "/process/pty/t/connect", "X-Daytona-SDK-Version~0.226.1").await;
        capable.send(Message::Text(typed.into())).await.unwrap();

        let (of_capable, of_plain) =
            (watch(&mut capable, |_| false).await, watch(&mut plain, |_| false).await);

        assert_eq!(close_of(&of_capable), (code, exit.clone()), "{typed}");
        assert_eq!(close_of(&of_plain), (code, exit.clone()), "{typed}");
        let control = &of_capable.controls[0];
        assert_eq!(
            (&control["status"], &control["exitCode"]),
            (&json!("exited"), &exit["exitCode"]),
            "{typed}"
        );
        assert!(of_plain.controls.is_empty(), "{typed}");
        world.post("/process/pty/t/resize", json!({ "cols": 9, "rows": 9 })).await.expect_error(410, "GONE");
        let never = world.post("/process/pty/never/resize", json!({ "cols": 9, "rows": 9 })).await;
        never.expect_error(404, "PROCESS_NOT_FOUND");
    }
}
