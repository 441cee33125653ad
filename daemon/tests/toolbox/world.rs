//! A daemon of its own for each test: own folder, own user, own address of the loopback network.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use atoll_api::daemon::{DaemonConfig, Hello, owner_preamble, preamble};
use axum::body::{Body, Bytes};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixListener};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response as Handshake;

pub const USER: &str = "tester";
pub const UID: u32 = 54321;
pub const SECOND_GROUP: u32 = 54322;
pub const NEW_SDK: (&str, &str) = ("X-Daytona-SDK-Version", "0.226.1");
/// No condition in these tests takes longer.
pub const DEADLINE: Duration = Duration::from_secs(15);

pub type Socket = WebSocketStream<TcpStream>;

pub struct World {
    pub dir: TempDir,
    pub hello: Hello,
    address: SocketAddr,
    secret: String,
    daemon: Child,
}

pub struct Setup {
    pub shells: &'static str,
    pub entrypoint: Vec<String>,
    pub binary: PathBuf,
    /// Where the daemon's own words go; beside the tests' when absent.
    pub log: Option<std::fs::File>,
    pub uid: u32,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            shells: "/bin/sh\n/bin/bash\n",
            entrypoint: Vec::new(),
            binary: env!("CARGO_BIN_EXE_atoll-daemon").into(),
            log: None,
            uid: UID,
        }
    }
}

impl World {
    pub async fn new() -> World {
        World::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> World {
        assert!(rustix::process::geteuid().is_root(), "these tests start the daemon, which needs root");
        let dir = tempfile::tempdir().unwrap();
        open_to_all(dir.path());
        let etc = dir.path().join("etc");
        let home = dir.path().join("home");
        std::fs::create_dir(&etc).unwrap();
        std::fs::create_dir(&home).unwrap();
        let uid = setup.uid;
        chown(&home, Some(uid), Some(uid)).unwrap();
        let passwd =
            format!("root:x:0:0::/root:/bin/bash\n{USER}:x:{uid}:{uid}::{}:/bin/bash\n", home.display());
        std::fs::write(etc.join("passwd"), passwd).unwrap();
        std::fs::write(
            etc.join("group"),
            format!("root:x:0:\n{USER}:x:{uid}:\nsecond:x:{SECOND_GROUP}:{USER}\n"),
        )
        .unwrap();
        std::fs::write(etc.join("shells"), setup.shells).unwrap();
        let secret = uuid::Uuid::new_v4().simple().to_string().repeat(2);
        let config = DaemonConfig {
            sandbox_id: "sandbox-1".into(),
            secret: secret.clone(),
            user: USER.into(),
            env: [("FROM_CONFIG".to_owned(), "yes".to_owned())].into(),
            entrypoint: setup.entrypoint,
            work_dir: None,
        };
        let config_path = dir.path().join("config.json");
        std::fs::write(&config_path, serde_json::to_vec(&config).unwrap()).unwrap();
        std::fs::set_permissions(&config_path, std::fs::Permissions::from_mode(0o600)).unwrap();

        // The whole of 127/8 is loopback: an address per daemon, and no race for ports.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [_, _, a, b] = std::process::id().to_be_bytes();
        let address = SocketAddr::from(([127, a | 1, b, NEXT.fetch_add(1, Ordering::Relaxed)], 2280));

        let hello_path = dir.path().join("hello.sock");
        let listener = UnixListener::bind(&hello_path).unwrap();
        // As a shell starts what it runs in the background, under nohup.
        let daemon = Command::new("sh")
            .args(["-c", r#"trap "" HUP INT QUIT; exec "$0" "$@""#])
            .arg(&setup.binary)
            .args(["--config".as_ref(), config_path.as_os_str(), "--hello".as_ref(), hello_path.as_os_str()])
            .args(["--accounts-dir".as_ref(), etc.as_os_str()])
            .args(["--state-dir".as_ref(), dir.path().join("state").as_os_str()])
            .args(["--listen", &address.to_string()])
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(setup.log.map_or_else(Stdio::inherit, Stdio::from))
            .spawn()
            .unwrap();
        let hello = tokio::time::timeout(DEADLINE, async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            serde_json::from_str(&line).unwrap()
        });
        let hello = hello.await.expect("the daemon says hello");
        World { dir, hello, address, secret, daemon }
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub fn pid(&self) -> i32 {
        self.daemon.id() as i32
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    pub fn web_terminal(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), atoll_api::access::WEB_TERMINAL_PORT)
    }

    pub async fn web_page(&self, path: &str) -> Answer {
        let stream = TcpStream::connect(self.web_terminal()).await.unwrap();
        let request = Request::builder().uri(path).header("host", "sandbox").body(Body::empty()).unwrap();
        self.send_on(stream, request).await
    }

    /// Without the preamble.
    pub async fn stranger(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub async fn connect(&self) -> TcpStream {
        let mut stream = self.stranger().await;
        stream.write_all(preamble(&self.secret).as_bytes()).await.unwrap();
        stream
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        self.send_on(self.connect().await, request).await
    }

    /// As the node itself, and not for one of its callers.
    pub async fn send_as_owner(&self, request: Request<Body>) -> Answer {
        let mut stream = self.stranger().await;
        stream.write_all(owner_preamble(&self.secret).as_bytes()).await.unwrap();
        self.send_on(stream, request).await
    }

    async fn send_on(&self, stream: TcpStream, request: Request<Body>) -> Answer {
        let what = format!("{} {}", request.method(), request.uri());
        let stream = TokioIo::new(stream);
        let exchange = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let response = sender.send_request(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(Body::new(body), usize::MAX).await;
            Answer {
                what: what.clone(),
                status: parts.status,
                headers: parts.headers,
                body: body.map_err(drop),
            }
        };
        tokio::time::timeout(DEADLINE * 2, exchange).await.unwrap_or_else(|_| panic!("{what}: no answer"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Body::empty(), &[]).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, Body::empty(), &[]).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(
            Method::POST,
            path,
            Body::from(body.to_string()),
            &[(CONTENT_TYPE.as_str(), "application/json")],
        )
        .await
    }

    pub async fn call(&self, method: Method, path: &str, body: Body, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("host", "sandbox");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body).unwrap()).await
    }

    pub async fn execute(&self, command: &str) -> Value {
        self.post("/process/execute", serde_json::json!({ "command": command })).await.expect(200).json()
    }

    pub async fn websocket(&self, path: &str, protocols: &str) -> (Socket, Handshake) {
        let mut request = format!("ws://sandbox{path}").into_client_request().unwrap();
        if !protocols.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
        }
        tokio_tungstenite::client_async(request, self.connect().await).await.unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its exit code, once it has ended.
    pub fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + DEADLINE;
        loop {
            match self.daemon.try_wait().unwrap() {
                Some(status) => return status.code(),
                None => assert!(Instant::now() < until, "the daemon does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.daemon.try_wait().unwrap().is_none() {
            self.signal(rustix::process::Signal::TERM);
            self.daemon.wait().unwrap();
        }
    }
}

pub struct Answer {
    what: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// `Err` when the connection broke before the body's end.
    pub body: Result<Bytes, ()>,
}

impl Answer {
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{}: {}", self.what, self.text());
        self
    }

    /// Also that it has the documented shape.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) {
        let answer = self.expect(status);
        let body = answer.json();
        assert_eq!(body["code"], code, "{}: {body}", answer.what);
        assert_eq!((&body["statusCode"], &body["source"]), (&status.into(), &"DAYTONA_DAEMON".into()));
        for required in ["message", "path", "timestamp", "method"] {
            assert!(body[required].is_string(), "{required} of {body}");
        }
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.bytes())
            .unwrap_or_else(|_| panic!("{}: not JSON: {}", self.what, self.text()))
    }

    #[track_caller]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    #[track_caller]
    pub fn bytes(&self) -> &Bytes {
        self.body.as_ref().expect("the body is whole")
    }
}

/// Whether a test can go on; where everything must be tested, it must.
pub async fn has(world: &World, what: &str, probe: &str) -> bool {
    let ended = world.execute(probe).await;
    if ended["exitCode"] == 0 {
        return true;
    }
    let is_required = std::env::var("ATOLL_TESTS_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(!is_required, "{what} is not installed: {ended}");
    println!("skipped: {what} is not installed");
    false
}

/// Asks again until it holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether all of them are installed. Where everything is required (`ATOLL_TESTS_REQUIRE_ALL=1`) one that is not fails the test.
pub fn has_programs(names: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let is_there = |name: &&&str| path.split(':').any(|dir| Path::new(dir).join(name).is_file());
    let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    if missing.is_empty() {
        return true;
    }
    let is_required = std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!is_required, "not installed: {missing:?}");
    eprintln!("SKIPPED: not installed: {missing:?}");
    false
}

pub fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// As a query value.
pub fn encoded(path: &Path) -> String {
    path.to_str().unwrap().replace('%', "%25").replace(' ', "%20").replace('#', "%23").replace('&', "%26")
}
