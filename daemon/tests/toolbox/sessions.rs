//! Sessions: one shell each, sequential, with logs that can be followed.

use axum::body::Body;
use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::world::{NEW_SDK, Setup, Socket, World, eventually};

async fn with_session() -> World {
    let world = World::new().await;
    world.post("/process/session", json!({ "sessionId": "s" })).await.expect(201);
    world
}

/// As a new SDK.
async fn exec(world: &World, command: &str) -> Value {
    let body = Body::from(json!({ "command": command }).to_string());
    world.call(Method::POST, "/process/session/s/exec", body, &[NEW_SDK]).await.expect(200).json()
}

async fn exec_async(world: &World, command: &str) -> String {
    let body = json!({ "command": command, "runAsync": true });
    let answer = world.post("/process/session/s/exec", body).await.expect(202).json();
    answer["cmdId"].as_str().unwrap().to_owned()
}

async fn logs(world: &World, command: &str, headers: &[(&str, &str)]) -> crate::world::Answer {
    let path = format!("/process/session/s/command/{command}/logs");
    world.call(Method::GET, &path, Body::empty(), headers).await.expect(200)
}

async fn exit_code(world: &World, command: &str) -> Option<i64> {
    world.get(&format!("/process/session/s/command/{command}")).await.expect(200).json()["exitCode"].as_i64()
}

#[tokio::test]
async fn commands_share_directory_and_variables() {
    let world = with_session().await;

    exec(&world, "cd /usr; X=1; export Y=2; f() { echo $X$Y; }").await;
    let second = exec(&world, "pwd; f; echo oops >&2; (exit 5)").await;

    assert_eq!((&second["stdout"], &second["stderr"]), (&json!("/usr\n12\n"), &json!("oops\n")));
    assert_eq!(second["exitCode"], 5);
    assert!(second["output"].as_str().unwrap().contains("\x01\x01\x01/usr\n"));
    let session = world.get("/process/session/s").await.expect(200).json();
    assert_eq!(session["sessionId"], "s");
    assert_eq!(session["commands"][1]["exitCode"], 5);
    assert_eq!(world.get("/process/session").await.expect(200).json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_table_of_sessions_is_guarded() {
    let world = with_session().await;

    world.post("/process/session", json!({ "sessionId": "s" })).await.expect_error(409, "CONFLICT");
    world.post("/process/session", json!({ "sessionId": "" })).await.expect_error(400, "BAD_REQUEST");
    world.get("/process/session/x").await.expect_error(404, "PROCESS_NOT_FOUND");
    world.delete("/process/session/x").await.expect_error(404, "PROCESS_NOT_FOUND");
    world
        .post("/process/session/x/exec", json!({ "command": "true" }))
        .await
        .expect_error(404, "PROCESS_NOT_FOUND");
    world.post("/process/session/s/exec", json!({ "command": " " })).await.expect_error(400, "BAD_REQUEST");
    world.get("/process/session/s/command/x").await.expect_error(404, "PROCESS_NOT_FOUND");
    world.get("/process/session/s/command/x/logs").await.expect_error(404, "PROCESS_NOT_FOUND");
}

#[tokio::test]
async fn what_ends_badly_ends_with_its_command() {
    for shells in ["/bin/bash\n", ""] {
        let world = World::with(Setup { shells, ..Setup::default() }).await;
        world.post("/process/session", json!({ "sessionId": "s" })).await.expect(201);

        for (command, stdout, code) in [
            ("cat <<EOF\nhello\nEOF", "hello\n", Some(0)),
            ("cat <<EOF\nno end", "no end\n", Some(0)),
            ("cat", "", Some(0)),
            ("if", "", None),
            ("echo 'open", "", None),
            ("set -C; alias echo=false; echo() { :; }", "", Some(0)),
            ("printf still", "still", Some(0)),
            ("sleep 300 & printf bg", "bg", Some(0)),
        ] {
            let ended = exec(&world, command).await;
            assert_eq!(ended["stdout"], stdout, "{command:?} in {shells:?}: {ended}");
            match code {
                Some(code) => assert_eq!(ended["exitCode"], code, "{command:?} in {shells:?}"),
                None => assert_ne!(ended["exitCode"], 0, "{command:?} in {shells:?}"),
            }
        }
    }
}

#[tokio::test]
async fn the_shells_end_is_the_sessions_end() {
    let world = with_session().await;

    let last = exec(&world, "echo bye; exit 9").await;

    assert_eq!((&last["exitCode"], &last["stdout"]), (&json!(9), &json!("bye\n")));
    let after = world.post("/process/session/s/exec", json!({ "command": "true" })).await;
    after.expect_error(410, "SESSION_ENDED");
    world.delete("/process/session/s").await.expect(204);
}

#[tokio::test]
async fn an_asynchronous_command_takes_input_until_it_ends() {
    let world = with_session().await;
    let command = exec_async(&world, "read a; read b; echo got $a $b").await;
    let input = format!("/process/session/s/command/{command}/input");

    world.post(&input, json!({ "data": "one" })).await.expect(204);
    assert_eq!(exit_code(&world, &command).await, None);
    world.post(&input, json!({ "data": "two\n" })).await.expect(204);

    eventually("it ends", async || exit_code(&world, &command).await == Some(0)).await;
    let stdout = logs(&world, &command, &[NEW_SDK]).await.json()["stdout"].as_str().unwrap().to_owned();
    assert_eq!(stdout, "one\ntwo\ngot one two\n");
    world.post(&input, json!({ "data": "late" })).await.expect_error(410, "COMMAND_ALREADY_COMPLETED");
}

#[tokio::test]
async fn commands_run_one_after_the_other() {
    let world = with_session().await;

    exec_async(&world, "read wait; echo first >> order").await;
    let second = exec_async(&world, "echo second >> order").await;
    assert_eq!(exit_code(&world, &second).await, None);
    let first =
        world.get("/process/session/s").await.json()["commands"][0]["id"].as_str().unwrap().to_owned();
    world.post(&format!("/process/session/s/command/{first}/input"), json!({ "data": "" })).await.expect(204);

    assert_eq!(exec(&world, "cat order").await["stdout"], "first\nsecond\n");
}

#[tokio::test]
async fn logs_have_the_shape_of_the_sdk() {
    let world = with_session().await;
    let command = exec_async(&world, "echo out; sleep 0.05; echo err >&2").await;
    eventually("it ends", async || exit_code(&world, &command).await.is_some()).await;

    let marked = "\x01\x01\x01out\n\x02\x02\x02err\n";
    assert_eq!(
        logs(&world, &command, &[NEW_SDK]).await.json(),
        json!({ "output": marked, "stdout": "out\n", "stderr": "err\n" })
    );
    assert_eq!(logs(&world, &command, &[("X-Daytona-SDK-Version", "0.100.0")]).await.text(), marked);
    assert_eq!(logs(&world, &command, &[("X-Daytona-SDK-Version", "0.26.0")]).await.text(), "out\nerr\n");
    assert_eq!(logs(&world, &command, &[]).await.text(), "out\nerr\n");
    assert_eq!(logs(&world, &command, &[("X-Daytona-Split-Output", "true")]).await.text(), marked);
}

/// Everything until the close, and its code.
async fn follow(mut socket: Socket) -> (Vec<u8>, CloseCode) {
    let mut log = Vec::new();
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Binary(chunk) => log.extend_from_slice(&chunk),
            Message::Close(frame) => return (log, frame.unwrap().code),
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_follower_sees_all_and_is_told_the_end() {
    let world = with_session().await;
    let command = exec_async(&world, "echo before; read x; echo after; printf tail >&2").await;
    let path = format!("/process/session/s/command/{command}/logs?follow=true");
    let (mut socket, _) = world.websocket(&path, "").await;

    let first = socket.next().await.unwrap().unwrap();
    assert_eq!(first.into_data(), "\x01\x01\x01before\n");
    socket.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("p".into()));
    world
        .post(&format!("/process/session/s/command/{command}/input"), json!({ "data": "go" }))
        .await
        .expect(204);
    let (log, code) = follow(socket).await;

    assert_eq!(code, CloseCode::Normal);
    assert_eq!(String::from_utf8(log).unwrap(), "\x01\x01\x01go\n\x01\x01\x01after\n\x02\x02\x02tail");
    // Who comes later sees it all at once.
    let (log, code) = follow(world.websocket(&path, "").await.0).await;
    assert_eq!((log.len() > 30, code), (true, CloseCode::Normal));
}

#[tokio::test]
async fn a_follower_of_much_output_gets_every_byte() {
    let world = with_session().await;
    let command = exec_async(&world, "seq 1 300000").await;

    let path = format!("/process/session/s/command/{command}/logs?follow=true");
    let (log, code) = follow(world.websocket(&path, "").await.0).await;

    let text = String::from_utf8(log).unwrap().replace("\x01\x01\x01", "");
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(code, CloseCode::Normal);
    assert!(text == expected, "{} of {} bytes", text.len(), expected.len());
}

#[tokio::test]
async fn deleting_a_session_ends_all_that_is_in_it() {
    let world = with_session().await;
    let command =
        exec_async(&world, "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > pid; sleep 300' & sleep 300")
            .await;
    let marker = world.home().join("pid");
    eventually("it runs", async || std::fs::read_to_string(&marker).is_ok_and(|pid| pid.ends_with('\n')))
        .await;
    let path = format!("/process/session/s/command/{command}/logs?follow=true");
    let (socket, _) = world.websocket(&path, "").await;

    world.delete("/process/session/s").await.expect(204);

    let pid = std::fs::read_to_string(marker).unwrap();
    eventually("its children are gone", async || {
        !std::path::Path::new(&format!("/proc/{}", pid.trim())).exists()
    })
    .await;
    assert_eq!(follow(socket).await.1, CloseCode::Normal);
    world.get("/process/session/s").await.expect_error(404, "PROCESS_NOT_FOUND");
    world.post("/process/session", json!({ "sessionId": "s" })).await.expect(201);
}

#[tokio::test]
async fn a_session_that_is_deleted_may_say_goodbye() {
    let world = with_session().await;
    let command = "python3 -c \"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (open('bye', 'w').close(), sys.exit())); open('up', 'w').close(); time.sleep(300)\"";
    exec_async(&world, command).await;
    eventually("it runs", async || world.home().join("up").exists()).await;

    world.delete("/process/session/s").await.expect(204);

    assert!(world.home().join("bye").exists());
}

#[tokio::test]
async fn no_command_needs_the_client_that_sent_it() {
    use tokio::io::AsyncWriteExt;
    let world = with_session().await;
    for (number, run_async) in [(1, true), (2, false)] {
        let body =
            json!({ "command": format!("sleep 0.2; touch done{number}"), "runAsync": run_async }).to_string();
        let mut stream = world.connect().await;
        let head = format!(
            "POST /process/session/s/exec HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        eventually("it is queued", async || {
            world.get("/process/session/s").await.json()["commands"].as_array().unwrap().len() == number
        })
        .await;
        drop(stream);
    }

    for number in [1, 2] {
        let file = world.home().join(format!("done{number}"));
        eventually("it ran to its end", async || file.exists()).await;
    }
}

#[tokio::test]
async fn the_entrypoints_log_can_be_followed_to_its_end() {
    let entrypoint = ["sh", "-c", "echo up; echo oh >&2; exit 3"].map(str::to_owned).into();
    let world = World::with(Setup { entrypoint, ..Setup::default() }).await;

    let (log, code) =
        follow(world.websocket("/process/session/entrypoint/logs?follow=true", "").await.0).await;

    assert_eq!(code, CloseCode::Normal);
    let log = String::from_utf8(log).unwrap();
    assert!(log.contains("\x01\x01\x01up\n") && log.contains("\x02\x02\x02oh\n"), "{log:?}");
    let session = world.get("/process/session/entrypoint").await.expect(200).json();
    assert_eq!(session["commands"][0]["exitCode"], 3);
}
