//! Previews and SSH through nodes that don't own the sandbox.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::Rule;
use crate::world::{Made, US, World};

pub const RULES: &[Rule] = &[
    ("a_preview_opens_by_header_query_signed_url_or_public_flag", preview_credentials),
    ("a_preview_never_passes_the_callers_authorization_on", authorization_is_stripped),
    ("an_event_is_not_held_back", events_stream),
    ("large_bodies_pass_both_ways", large_bodies),
    ("websockets_pass_through_a_preview", websocket),
    ("a_terminal_works_over_websocket_through_another_node", pty),
    ("files_go_in_and_out_through_another_node", files),
    ("a_body_that_is_refused_unread_still_gets_the_daemons_answer", refused_body),
    ("ssh_runs_commands_through_any_node", ssh_exec),
    ("ssh_gives_a_terminal_with_its_size", ssh_terminal),
    ("scp_and_sftp_carry_files", ssh_files),
    ("ssh_forwards_local_ports", ssh_forward),
    ("a_revoked_ssh_token_opens_nothing", ssh_revoked),
];

const SERVER: &str = r#"
import http.server, json, time
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        if self.path == '/events':
            self.send_response(200); self.send_header('Content-Type', 'text/event-stream'); self.send_header('Connection', 'close'); self.end_headers()
            self.wfile.write(b'data: first\n\n'); self.wfile.flush()
            time.sleep(3)
            self.wfile.write(b'data: last\n\n'); self.close_connection = True
            return
        if self.path.startswith('/big'):
            self.send_response(200); self.send_header('Content-Length', str(64 << 20)); self.end_headers()
            for _ in range(64): self.wfile.write(b'x' * (1 << 20))
            return
        body = json.dumps({'path': self.path, 'headers': {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        left, total = int(self.headers['Content-Length']), 0
        while left:
            chunk = self.rfile.read(min(left, 1 << 20)); left -= len(chunk); total += len(chunk)
        body = str(total).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(('127.0.0.1', 8000), H).serve_forever()
"#;

/// A sandbox with a small web server on its loopback's port 8000.
fn with_server(world: &World) -> Made<'_> {
    let sandbox = world.create(0);
    let upload = world.toolbox(1, &sandbox, Method::POST, "/files/upload-v2?path=/home/daytona/server.py");
    world.send(upload.body(SERVER)).expect(200);
    world.serve(&sandbox, 8000, "python3 ~/server.py");
    sandbox
}

fn preview_credentials(world: &World) {
    let sandbox = with_server(world);
    let label = format!("8000-{}", sandbox.id);
    let token = world.preview_token(&sandbox, 8000);
    for node in [world.other_than(&sandbox), sandbox.owner, US] {
        world.send(world.preview(node, &label, Method::GET, "/")).expect(401);
        let wrong =
            world.preview(node, &label, Method::GET, "/").header("x-daytona-preview-token", "0".repeat(32));
        world.send(wrong).expect(401);
        let header = world.preview(node, &label, Method::GET, "/a").header("x-daytona-preview-token", &token);
        assert_eq!(world.send(header).expect(200).json()["path"], "/a");
        let query =
            world.preview(node, &label, Method::GET, &format!("/b?x=1&DAYTONA_SANDBOX_AUTH_KEY={token}"));
        assert_eq!(world.send(query).expect(200).json()["path"], "/b?x=1");
        let signed = format!("/sandbox/{}/ports/8000/signed-preview-url?expiresInSeconds=60", sandbox.id);
        let signed = world.get(node, &signed).expect(200).json();
        let signed_label = format!("8000-{}", signed["token"].as_str().unwrap());
        world.send(world.preview(node, &signed_label, Method::GET, "/")).expect(200);
        let other_port = format!("8001-{}", signed["token"].as_str().unwrap());
        world.send(world.preview(node, &other_port, Method::GET, "/")).expect(401);
    }
    world.api(1, Method::POST, &format!("/sandbox/{}/public/true", sandbox.id), None).expect(200);
    world.eventually(Duration::from_secs(5), || {
        let status = world.send(world.preview(2, &label, Method::GET, "/")).status;
        (status == 200, status)
    });
    let daemon = format!("2280-{}", sandbox.id);
    world.send(world.preview(2, &daemon, Method::GET, "/version")).expect(401);
    let closed = format!("9999-{}", sandbox.id);
    let closed = world.send(world.preview(2, &closed, Method::GET, "/"));
    assert_eq!(closed.status, 502, "{}", closed.body);
}

fn authorization_is_stripped(world: &World) {
    let sandbox = with_server(world);
    let label = format!("8000-{}", sandbox.id);
    let other = world.other_than(&sandbox);
    let request = world.preview(other, &label, Method::GET, "/").bearer_auth(&world.cluster.ready.api_key);
    let seen = world
        .send(request.header("x-forwarded-for", "6.6.6.6").header("cookie", "mine=1"))
        .expect(200)
        .json();
    let headers = seen["headers"].as_object().unwrap();
    assert!(
        !headers.contains_key("authorization") && !headers.contains_key("x-daytona-preview-token"),
        "{seen}"
    );
    assert_eq!(headers["cookie"], "mine=1");
    assert!(!seen.to_string().contains("6.6.6.6"), "{seen}");
}

fn events_stream(world: &World) {
    let sandbox = with_server(world);
    let token = world.preview_token(&sandbox, 8000);
    let other = world.other_than(&sandbox);
    let label = format!("8000-{}", sandbox.id);
    let request =
        world.preview(other, &label, Method::GET, "/events").header("x-daytona-preview-token", token);
    world.block_on(async {
        let began = Instant::now();
        let mut answer = request.send().await.expect("an answer");
        let first = answer.chunk().await.expect("a chunk").expect("an event");
        assert!(first.starts_with(b"data: first"), "{first:?}");
        assert!(
            began.elapsed() < Duration::from_millis(2500),
            "the event was held back {:?}",
            began.elapsed()
        );
        let rest = answer.chunk().await.expect("a chunk").expect("an event");
        assert!(rest.starts_with(b"data: last"), "{rest:?}");
    });
}

fn large_bodies(world: &World) {
    const BYTES: usize = 64 << 20;
    let sandbox = with_server(world);
    let token = world.preview_token(&sandbox, 8000);
    let other = world.other_than(&sandbox);
    let label = format!("8000-{}", sandbox.id);
    let down = world.preview(other, &label, Method::GET, "/big").header("x-daytona-preview-token", &token);
    assert_eq!(world.send(down).expect(200).body.len(), BYTES);
    let up = world.preview(other, &label, Method::POST, "/").header("x-daytona-preview-token", &token);
    assert_eq!(world.send(up.body(vec![b'y'; BYTES])).expect(200).body, BYTES.to_string());
}

/// A WebSocket server on port 8001 that says again what it is told.
pub const ECHO: &str = r#"
import base64, hashlib, socket, struct
s = socket.create_server(('127.0.0.1', 8001))
while True:
    c, _ = s.accept(); f = c.makefile('rwb'); key = None
    while (line := f.readline().strip()):
        name, _, value = line.partition(b': ')
        if name.lower() == b'sec-websocket-key': key = value
    if not key:
        c.close(); continue
    accept = base64.b64encode(hashlib.sha1(key + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest())
    f.write(b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ' + accept + b'\r\n\r\n'); f.flush()
    while (head := f.read(2)) and head[0] & 15 == 1:
        n = head[1] & 127
        if n == 126: n = struct.unpack('>H', f.read(2))[0]
        mask = f.read(4); data = bytes(b ^ mask[i % 4] for i, b in enumerate(f.read(n)))
        f.write(bytes([0x81]) + (bytes([n]) if n < 126 else b'\x7e' + struct.pack('>H', n)) + data); f.flush()
    c.close()
"#;

fn websocket(world: &World) {
    let sandbox = world.create(0);
    let upload = world.toolbox(1, &sandbox, Method::POST, "/files/upload-v2?path=/home/daytona/echo.py");
    world.send(upload.body(ECHO)).expect(200);
    world.serve(&sandbox, 8001, "python3 ~/echo.py");
    let token = world.preview_token(&sandbox, 8001);
    let base = world.cluster.node(world.other_than(&sandbox)).http.replace("http://", "ws://");
    let mut request = format!("{base}/ws").into_client_request().unwrap();
    let host = format!("8001-{}.{}", sandbox.id, world.cluster.ready.preview_domain);
    request.headers_mut().insert("host", host.parse().unwrap());
    request.headers_mut().insert("x-daytona-preview-token", token.parse().unwrap());
    world.block_on(async {
        let (mut socket, _) =
            tokio_tungstenite::connect_async(request).await.expect("the upgrade is accepted");
        for text in ["hello", &"long ".repeat(1000)] {
            socket.send(Message::text(text)).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
        }
    });
}

fn pty(world: &World) {
    let sandbox = world.create(0);
    let base = world.cluster.node(world.other_than(&sandbox)).http.replace("http://", "ws://");
    let url = format!("{base}/toolbox/{}/process/pty/create-connect?id=t1&cols=91&rows=17", sandbox.id);
    let mut request = url.into_client_request().unwrap();
    let bearer = format!("Bearer {}", world.cluster.ready.api_key);
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    request.headers_mut().insert("sec-websocket-protocol", "X-Daytona-Pty-Exit-Control".parse().unwrap());
    let (seen, close) = world.block_on(async {
        let (mut socket, _) =
            tokio_tungstenite::connect_async(request).await.expect("the upgrade is accepted");
        let (mut seen, mut close) = (String::new(), None);
        socket.send(Message::binary(&b"stty size; exit 5\n"[..])).await.unwrap();
        while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(20), socket.next()).await {
            match message {
                Message::Binary(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                Message::Text(text) => seen.push_str(&text),
                Message::Close(frame) => close = frame,
                _ => {}
            }
        }
        (seen, close)
    });
    assert!(seen.contains("17 91"), "{seen}");
    assert!(close.is_some_and(|frame| frame.reason.contains("\"exitCode\":5")), "{seen}");
}

fn files(world: &World) {
    let sandbox = world.create(0);
    let other = world.other_than(&sandbox);
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let upload = world.toolbox(other, &sandbox, Method::POST, "/files/upload-v2?path=/tmp/in/deep/file.bin");
    world.send(upload.body(bytes.clone())).expect(200);
    let download = world.toolbox(other, &sandbox, Method::GET, "/files/download?path=/tmp/in/deep/file.bin");
    let back = world.block_on(async { download.send().await.unwrap().bytes().await.unwrap() });
    assert!(back == bytes, "{} bytes came back", back.len());
    let missing = world.toolbox(other, &sandbox, Method::GET, "/files/download?path=/no/such/file");
    let missing = world.send(missing);
    assert_eq!((missing.status, &missing.json()["code"]), (404, &json!("FILE_NOT_FOUND")));
    let shadow = world.toolbox(other, &sandbox, Method::GET, "/files/download?path=/etc/shadow");
    world.send(shadow).expect(403);
}

fn refused_body(world: &World) {
    let sandbox = world.create(0);
    for node in [sandbox.owner, world.other_than(&sandbox)] {
        for path in ["/files/folder", "/no/such/route"] {
            for _ in 0..5 {
                let request = world.toolbox(node, &sandbox, Method::POST, path).body(vec![b'x'; 900_000]);
                let answer = world.send(request);
                assert!((400..500).contains(&answer.status), "{path}: {} {}", answer.status, answer.body);
            }
        }
    }
}

/// `ssh` options and destination for a fresh token, through the given node.
struct Ssh {
    options: Vec<String>,
    token: String,
    host: String,
    port: String,
}

impl Ssh {
    fn to(world: &World, sandbox: &Made<'_>, node: usize) -> Ssh {
        let access = world
            .api(node, Method::POST, &format!("/sandbox/{}/ssh-access", sandbox.id), None)
            .expect(200)
            .json();
        let command = access["sshCommand"].as_str().unwrap();
        let (host, port) = world.cluster.node(node).ssh.rsplit_once(':').unwrap();
        assert_eq!(command, format!("ssh -p {port} {}@{host}", access["token"].as_str().unwrap()));
        let options =
            ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"];
        Ssh {
            options: options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]).collect(),
            token: access["token"].as_str().unwrap().to_owned(),
            host: host.to_owned(),
            port: port.to_owned(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command.args(&self.options).args(["-p", &self.port]).args(&arguments[..arguments.len() - 1]);
        command.arg(format!("{}@{}", self.token, self.host)).arg(arguments[arguments.len() - 1]);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("ssh runs")
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

fn ssh_exec(world: &World) {
    let sandbox = world.create(0);
    for node in [sandbox.owner, world.other_than(&sandbox), US] {
        let ssh = Ssh::to(world, &sandbox, node);
        let output = ssh.run(&["echo out; echo err >&2; whoami; exit 7"]);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), stdout(&output).as_str(), complaint.as_str()),
            (Some(7), "out\ndaytona\n", "err\n")
        );
    }
}

fn ssh_terminal(world: &World) {
    let sandbox = world.create(0);
    let ssh = Ssh::to(world, &sandbox, world.other_than(&sandbox));
    let output = ssh.run(&["-tt", "test -t 0 && test -t 1 && echo terminal; stty size"]);
    assert!(
        stdout(&output).contains("terminal\n0 0") || stdout(&output).contains("terminal\n24 80"),
        "{}",
        stdout(&output)
    );
    let mut shell = ssh.command(&["-tt", ""]);
    let mut shell =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("ssh runs");
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), b"echo shell-$((40+2)); exit 9\n").unwrap();
    let output = shell.wait_with_output().unwrap();
    assert!(
        stdout(&output).contains("shell-42") && output.status.code() == Some(9),
        "{} {}",
        output.status,
        stdout(&output)
    );
}

fn ssh_files(world: &World) {
    let sandbox = world.create(0);
    let ssh = Ssh::to(world, &sandbox, world.other_than(&sandbox));
    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    std::fs::write(&there, vec![7u8; 2_000_000]).unwrap();
    let remote = |path: &str| format!("{}@{}:{path}", ssh.token, ssh.host);
    let copy = |from: &str, to: &str| {
        let output = Command::new("scp")
            .args(&ssh.options)
            .args(["-P", &ssh.port, from, to])
            .output()
            .expect("scp runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    copy(there.to_str().unwrap(), &remote("copied.bin"));
    copy(&remote("copied.bin"), back.to_str().unwrap());
    assert_eq!(std::fs::read(&back).unwrap(), std::fs::read(&there).unwrap());
    assert_eq!(world.exec(0, &sandbox, "stat -c %U:%s ~/copied.bin").1, "daytona:2000000\n");
    let batch = dir.path().join("batch");
    std::fs::write(&batch, "mkdir made\nls\n").unwrap();
    let sftp = Command::new("sftp")
        .args(&ssh.options)
        .args(["-P", &ssh.port, "-b"])
        .arg(&batch)
        .arg(format!("{}@{}", ssh.token, ssh.host))
        .output()
        .expect("sftp runs");
    assert!(
        sftp.status.success() && stdout(&sftp).contains("made"),
        "{}",
        String::from_utf8_lossy(&sftp.stderr)
    );
}

fn ssh_forward(world: &World) {
    let sandbox = with_server(world);
    let ssh = Ssh::to(world, &sandbox, world.other_than(&sandbox));
    let local = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("{local}:localhost:8000");
    let mut tunnel = ssh.command(&["-N", "-L", &forward, "-o", "ExitOnForwardFailure=yes", ""]);
    let mut tunnel = tunnel.spawn().expect("ssh runs");
    world.eventually(Duration::from_secs(15), || {
        let opened = std::net::TcpStream::connect(("127.0.0.1", local)).is_ok();
        (opened, opened)
    });
    let answer = world.send(world.http.get(format!("http://127.0.0.1:{local}/through")));
    tunnel.kill().unwrap();
    tunnel.wait().unwrap();
    assert_eq!(answer.expect(200).json()["path"], "/through");
}

fn ssh_revoked(world: &World) {
    let sandbox = world.create(0);
    let other = world.other_than(&sandbox);
    let ssh = Ssh::to(world, &sandbox, other);
    let mut live = ssh.command(&["sleep 60"]).spawn().expect("ssh runs");
    world.eventually(Duration::from_secs(10), || {
        let running = world.exec(0, &sandbox, "pgrep -f '^sleep 60' >/dev/null && echo yes").1;
        (running == "yes\n", running)
    });
    world
        .api(sandbox.owner, Method::DELETE, &format!("/sandbox/{}/ssh-access", sandbox.id), None)
        .expect(200);
    world.eventually(Duration::from_secs(10), || {
        let refused = ssh.run(&["echo in"]);
        (!refused.status.success() && stdout(&refused).is_empty(), stdout(&refused))
    });
    let began = Instant::now();
    while live.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(15), "the live session was not cut");
        std::thread::sleep(Duration::from_millis(50));
    }
}
