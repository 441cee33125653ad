//! What nobody means: paths that climb, fields without measure, garbage in sockets, connections by the thousand. The daemon says what
//! is wrong, stays small, and goes on.

use axum::body::Body;
use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::processes::status_kib;
use crate::world::{DEADLINE, Setup, Socket, World, eventually};

/// Of a build without optimization, after anything in here.
const RESIDENT_KIB_MAX: u64 = 96 * 1024;
const CONNECTIONS: usize = 10_000;

impl World {
    async fn is_well(&self) {
        self.get("/version").await.expect(200);
        assert_eq!(self.execute("echo well").await["result"], "well\n");
        let resident = status_kib(self.pid(), "VmRSS");
        assert!(resident < RESIDENT_KIB_MAX, "the daemon takes {resident} KiB");
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn a_path_that_climbs_or_is_none_opens_nothing_and_harms_nothing() {
    let world = World::new().await;
    std::fs::write(world.dir.path().join("secret"), "not for the user").unwrap();
    std::fs::set_permissions(
        world.dir.path().join("secret"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let secret = world.dir.path().join("secret");
    let paths = [
        format!("../../..{}", secret.display()),
        format!("{}/../secret", world.home().display()),
        format!("{}/x/../../secret", world.home().display()),
        "/etc/shadow".into(),
        "../".repeat(2000) + "etc/shadow",
        "/proc/self/mem".into(),
        "/proc/1/environ".into(),
        "/dev/zero".into(),
        "/dev/kmsg".into(),
        "a\0b".into(),
        "\u{202e}../\u{feff}".into(),
        "..\\..\\etc\\shadow".into(),
        "~root/.ssh/id_rsa".into(),
        "file:///etc/shadow".into(),
        "%2e%2e%2fetc%2fshadow".into(),
        "x".repeat(5000),
        "d/".repeat(5000),
        "-rf".into(),
        "".into(),
    ];

    for path in &paths {
        let path = percent_encoded(path);
        for (method, route) in [
            (Method::GET, format!("/files/download?path={path}")),
            (Method::GET, format!("/files?path={path}&depth=3")),
            (Method::GET, format!("/files/info?path={path}")),
            (Method::GET, format!("/files/find?path={path}&pattern=root")),
            (Method::GET, format!("/files/search?path={path}&pattern=*")),
            (Method::GET, format!("/files/{path}")),
            (Method::GET, format!("/git/status?path={path}")),
            (Method::POST, format!("/files/permissions?path={path}&mode=777")),
            (Method::POST, format!("/files/move?source={path}&destination=moved")),
            (Method::POST, format!("/files/move?source={path}&destination={path}")),
            (Method::POST, format!("/files/folder?path={path}%2Fbelow&mode=755")),
            (Method::POST, format!("/files/upload-v2?path={path}%2Fbelow")),
        ] {
            let answer = world.call(method.clone(), &route, Body::from("content"), &[]).await;
            assert!(answer.status.as_u16() < 500, "{method} {route}: {} {}", answer.status, answer.text());
            assert!(!answer.text().contains("not for the user"), "{route}");
        }
        let bulk = world.post("/files/bulk-download", json!({ "paths": [path] })).await.expect(200);
        assert!(!bulk.text().contains("not for the user"), "{path}");
    }

    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "not for the user");
    world.is_well().await;
}

#[tokio::test]
async fn a_field_without_measure_is_refused_or_borne() {
    let world = World::new().await;
    let huge = "x".repeat(1024 * 1024);
    let long = "x".repeat(7 * 1024 * 1024);
    let many = vec!["no/such/file"; 200_000];
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));

    for (route, body) in [
        ("/process/execute", json!({ "command": long })),
        ("/process/execute", json!({ "command": "true", "cwd": huge })),
        ("/process/execute", json!({ "command": "true", "envs": { "A": long } })),
        ("/process/execute", json!({ "command": "true", "envs": { huge.as_str(): "a" } })),
        ("/process/execute", json!({ "command": "true", "timeout": i64::MAX })),
        ("/process/execute", json!({ "command": "true", "timeout": -1 })),
        ("/process/code-run", json!({ "code": "pass", "language": "python", "argv": [huge] })),
        ("/process/session", json!({ "sessionId": huge })),
        ("/process/pty", json!({ "id": huge })),
        ("/process/pty", json!({ "id": "p", "cols": 70_000, "rows": -1 })),
        ("/process/interpreter/context", json!({ "cwd": huge, "language": huge })),
        ("/files/replace", json!({ "files": many, "pattern": "a", "newValue": "b" })),
        ("/files/replace", json!({ "files": [], "pattern": huge, "newValue": huge })),
        ("/files/bulk-download", json!({ "paths": [huge] })),
        ("/git/clone", json!({ "url": huge, "path": huge })),
        ("/git/add", json!({ "path": "/tmp", "files": many })),
        ("/git/commit", json!({ "path": "/tmp", "message": long, "author": "a", "email": "b" })),
        ("/git/config", json!({ "key": huge, "value": huge })),
        ("/git/credentials", json!({ "username": huge, "password": huge })),
        ("/init", json!({ "token": long })),
    ] {
        let answer = world.post(route, body).await;
        assert!(answer.status.as_u16() < 500, "{route}: {} {}", answer.status, answer.text());
    }
    for route in ["/process/execute", "/process/session", "/env", "/git/clone", "/files/replace"] {
        for body in [&deep, "{\"command\":\"\\ud8", "nul", "\u{feff}{}", "[]", "{\"set\":{\"A\":1e999}}"] {
            let answer = world.call(Method::POST, route, Body::from(body.to_owned()), &[]).await;
            assert!(
                answer.status.is_client_error(),
                "{route} {}: {}",
                &body[..body.len().min(40)],
                answer.status
            );
        }
    }
    // Headers and targets have their measure, too.
    for request in [
        format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "y".repeat(1024 * 1024)),
        format!("GET /version HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "y".repeat(1024 * 1024)),
        format!("GET /version HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Many: y\r\n".repeat(20_000)),
        "GET /version HTTP/9.9\r\n\r\n\0\u{1}\u{2}".to_owned(),
        "POST /init HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n"
            .to_owned(),
        "POST /init HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n".to_owned(),
    ] {
        let said = said_to(world.connect().await, request.as_bytes()).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{:.60}: {said}", request);
    }
    world.is_well().await;
}

/// What comes back until the other end closes.
async fn said_to(mut stream: TcpStream, bytes: &[u8]) -> String {
    // Refused halfway, writing fails; the answer may be there all the same.
    let _ = stream.write_all(bytes).await;
    let mut said = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut said)).await.expect("it closes");
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn garbage_in_a_socket_ends_that_socket_and_nothing_else() {
    let entrypoint = ["sh", "-c", "echo runs; exec sleep 300"].map(str::to_owned).into();
    let world = World::with(Setup { entrypoint, ..Setup::default() }).await;
    world.post("/process/session", json!({ "sessionId": "s" })).await.expect(201);
    let running = json!({ "command": "sleep 300", "runAsync": true });
    let id = world.post("/process/session/s/exec", running).await.expect(202).json();
    let logs = format!("/process/session/s/command/{}/logs?follow=true", id["cmdId"].as_str().unwrap());
    world.post("/process/pty", json!({ "id": "p" })).await.expect(201);
    let mut noise = Noise(7);

    for path in [
        "/process/pty/p/connect",
        "/process/pty/create-connect?id=made",
        "/process/interpreter/execute",
        "/process/session/entrypoint/logs?follow=true",
        &logs,
        WEB_TERMINAL,
    ] {
        for garbage in 0..6 {
            if garbage > 0 && path.contains("create-connect") {
                let _ = world.delete("/process/pty/made").await;
            }
            let mut socket = opened(&world, path).await;
            let sent = match garbage {
                0 => socket.send(Message::Binary(noise.bytes(50_000).into())).await,
                1 => socket.send(Message::Text("{\"code\":1,\"rows\":".repeat(1000).into())).await,
                2 => socket.send(Message::Binary(vec![0; 17 * 1024 * 1024].into())).await,
                3 => socket.send(Message::Ping(noise.bytes(125).into())).await,
                // Not even frames: neither masked nor of a known kind.
                4 => socket.get_mut().write_all(&noise.bytes(100_000)).await.map_err(Into::into),
                // The head of a frame of 2^62 bytes, and no more.
                _ => socket
                    .get_mut()
                    .write_all(&[0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4])
                    .await
                    .map_err(Into::into),
            };
            // It may have been closed while we were still writing.
            drop(sent);
            if matches!(garbage, 2 | 4 | 5) {
                expect_end(&mut socket, &format!("{path} with garbage {garbage}")).await;
            }
        }
        world.get("/version").await.expect(200);
    }
    world.is_well().await;
}

const WEB_TERMINAL: &str = "the web terminal";

async fn opened(world: &World, path: &str) -> Socket {
    if path != WEB_TERMINAL {
        return world.websocket(path, "").await.0;
    }
    let stream = TcpStream::connect(world.web_terminal()).await.unwrap();
    let request = "ws://sandbox/ws".into_client_request().unwrap();
    let (socket, _): (WebSocketStream<TcpStream>, _) =
        tokio_tungstenite::client_async(request, stream).await.unwrap();
    socket
}

async fn expect_end(socket: &mut Socket, what: &str) {
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(DEADLINE, end).await.unwrap_or_else(|_| panic!("{what}: not ended"));
}

/// The same each time.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| {
                self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                self.0.to_be_bytes()[0]
            })
            .collect()
    }
}

#[tokio::test]
async fn requests_that_never_end_keep_nobody_out() {
    let world = World::new().await;
    let halves = [
        "GET /vers",
        "GET /version HTTP/1.1\r\nHost: x\r\nX-Half",
        "POST /process/execute HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{\"command\":",
        "POST /files/upload-v2?path=half HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\nhalf",
        "GET /process/pty/create-connect?id=half HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n",
    ];
    let mut held = Vec::new();

    for half in halves {
        for _ in 0..100 {
            let mut stream = world.connect().await;
            stream.write_all(half.as_bytes()).await.unwrap();
            held.push(stream);
        }
        world.is_well().await;
    }
    // Their other halves never come: who has gone is forgotten.
    drop(held);
    world.is_well().await;
}

#[tokio::test]
async fn ten_thousand_idle_connections_neither_fill_the_memory_nor_the_house() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let world = World::new().await;
    let mut idle = Vec::with_capacity(CONNECTIONS);

    for number in 0..CONNECTIONS {
        idle.push(match number % 2 {
            0 => world.stranger().await,
            _ => world.connect().await,
        });
        if number % 1000 == 999 {
            world.is_well().await;
        }
    }

    let owner = hyper::Request::get("/version").header("host", "sandbox").body(Body::empty()).unwrap();
    // Who serves nothing there says so.
    world.send_as_owner(owner).await.expect(404);
    world.is_well().await;
    drop(idle);
    world.is_well().await;
}

#[tokio::test]
async fn a_busy_connection_is_not_the_one_that_gives_way() {
    let world = World::new().await;
    let waiting = world.post("/process/execute", json!({ "command": "read line < gate; echo $line" }));
    let busy = async {
        world.execute("mkfifo gate").await;
        waiting.await.expect(200).json()
    };
    let crowd = async {
        // Not before it waits.
        let is_there = "while ! pgrep -f 'read line' >/dev/null; do sleep 0.01; done";
        world.execute(is_there).await;
        let mut idle = Vec::new();
        for _ in 0..1500 {
            idle.push(world.connect().await);
        }
        world.execute("echo through > gate").await;
        idle
    };

    let (ended, _idle): (Value, _) = tokio::join!(busy, crowd);

    assert_eq!(ended["result"], "through\n");
}

#[tokio::test]
async fn sockets_beyond_their_number_are_refused_and_cost_little() {
    const OPEN_MAX: usize = 512;
    let entrypoint = ["sh", "-c", "echo runs; exec sleep 300"].map(str::to_owned).into();
    let world = World::with(Setup { entrypoint, ..Setup::default() }).await;
    let follow = "/process/session/entrypoint/logs?follow=true";
    let mut followers = Vec::new();
    for _ in 0..OPEN_MAX {
        followers.push(world.websocket(follow, "").await.0);
    }

    let headers = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    for path in [follow, "/process/pty/create-connect?id=p", "/process/interpreter/execute"] {
        world.call(Method::GET, path, Body::empty(), &headers).await.expect_error(409, "CONFLICT");
    }
    world.is_well().await;
    assert_eq!(world.get("/process/pty").await.expect(200).json(), json!({ "sessions": [] }));

    // A place that one leaves is another's.
    followers.pop().unwrap().close(None).await.unwrap();
    eventually("there is a place again", async || {
        world.call(Method::GET, follow, Body::empty(), &headers).await.status == 101
    })
    .await;
}
