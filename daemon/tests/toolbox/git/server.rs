//! A server of repositories as the world's are: smart HTTP by `git http-backend`, behind doors that behave well or badly.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// In a URL both must be encoded.
pub const USERNAME: &str = "alice@example";
pub const PASSWORD: &str = "pass word/%41-q7Zx";

pub struct GitServer {
    dir: TempDir,
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

struct Shared {
    root: PathBuf,
    seen: Mutex<Vec<Seen>>,
    is_open: watch::Sender<bool>,
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub authorization: Option<String>,
}

impl GitServer {
    pub async fn start() -> GitServer {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            root: dir.path().to_owned(),
            seen: Mutex::default(),
            is_open: watch::Sender::new(true),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        GitServer { dir, address, shared, serving }
    }

    /// With two commits on `main` and one more on `side`; the files are `a` and `b`.
    pub async fn with_repository(name: &str) -> GitServer {
        let server = GitServer::start().await;
        let bare = server.repository(name);
        run(
            server.dir.path(),
            &format!(
                "git init -q --bare -b main {bare}; git -C {bare} config http.receivepack true
             git init -q -b main w; cd w; echo one >a; git add .; git commit -qm first
             echo two >b; git add .; git commit -qm 'second\n\nwith a body'
             git checkout -qb side; echo side >s; git add .; git commit -qm side
             git push -q {bare} main side; cd ..; rm -r w",
                bare = bare.display()
            ),
        );
        server
    }

    pub fn repository(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.git"))
    }

    /// A shell in the repository, with git as the administrator of the server has it. What it prints.
    pub fn run(&self, name: &str, script: &str) -> String {
        run(&self.repository(name), script)
    }

    /// Somebody else's commit.
    pub fn commit(&self, name: &str, branch: &str, file: &str, content: &str) {
        let bare = self.repository(name);
        run(
            self.dir.path(),
            &format!(
            "git clone -q -b {branch} {bare} w; cd w; echo {content} >{file}; git add .; git commit -qm other
             git push -q origin {branch}; cd ..; rm -r w",
            bare = bare.display()
        ),
        );
    }

    /// The door decides how the server behaves: `public`, `private`, `forbidden`, `gated`, `hung`, `redirect`, `broken`.
    pub fn url(&self, door: &str, name: &str) -> String {
        format!("http://{}/{door}/{name}.git", self.address)
    }

    pub fn url_with_credentials(&self, door: &str, name: &str) -> String {
        let url = self.url(door, name);
        url.replace("http://", &format!("http://{}:{}@", percent(USERNAME), percent(PASSWORD)))
    }

    /// What comes through the door `gated` waits until it is open.
    pub fn open_gate(&self, is_open: bool) {
        self.shared.is_open.send_replace(is_open);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The texts by which the credentials could be found anywhere.
pub fn secrets() -> Vec<String> {
    vec![PASSWORD.to_owned(), percent(PASSWORD), basic().trim_start_matches("Basic ").to_owned()]
}

fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |text, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => text + &char::from(byte).to_string(),
        _ => format!("{text}%{byte:02X}"),
    })
}

fn basic() -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{USERNAME}:{PASSWORD}")))
}

#[track_caller]
fn run(dir: &Path, script: &str) -> String {
    let output = std::process::Command::new("bash")
        .args(["-ec", script])
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .envs([("HOME", "/nonexistent"), ("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null")])
        .envs([("GIT_AUTHOR_NAME", "Ann"), ("GIT_AUTHOR_EMAIL", "ann@example.org")])
        .envs([("GIT_COMMITTER_NAME", "Ann"), ("GIT_COMMITTER_EMAIL", "ann@example.org")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let authorization = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    let is_authorized = authorization.as_deref() == Some(&*basic());
    shared.seen.lock().unwrap().push(Seen { path: path.clone(), authorization });
    let (door, below) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    match door {
        "private" | "gated" if !is_authorized => {
            let mut refused = plain(StatusCode::UNAUTHORIZED);
            refused.headers_mut().insert("www-authenticate", "Basic realm=\"repositories\"".parse().unwrap());
            return refused;
        }
        "gated" => {
            shared.is_open.subscribe().wait_for(|is_open| *is_open).await.unwrap();
        }
        "forbidden" => return plain(StatusCode::FORBIDDEN),
        "broken" => return plain(StatusCode::INTERNAL_SERVER_ERROR),
        "hung" => std::future::pending().await,
        "redirect" => {
            // Another name for the same machine is another origin.
            let host = request.headers()["host"].to_str().unwrap().replace("127.0.0.1", "localhost");
            let query = request.uri().query().unwrap_or_default();
            let mut moved = plain(StatusCode::FOUND);
            let location = format!("http://{host}/private/{below}?{query}");
            moved.headers_mut().insert("location", location.parse().unwrap());
            return moved;
        }
        _ => {}
    }
    backend(&shared.root, format!("/{below}"), request).await
}

fn plain(status: StatusCode) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

/// As CGI (RFC 3875) has it.
async fn backend(root: &Path, path_info: String, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let header = |headers: &HeaderMap, name: &str| {
        headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .envs([("HOME", "/nonexistent"), ("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_HTTP_EXPORT_ALL", "1")])
        .env("GIT_PROJECT_ROOT", root)
        .env("PATH_INFO", path_info)
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header(&parts.headers, CONTENT_TYPE.as_str()))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header(&parts.headers, CONTENT_ENCODING.as_str()))
        .env("GIT_PROTOCOL", header(&parts.headers, "git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async move {
        let _ = stdin.write_all(&body).await;
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.unwrap().stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").expect("headers end");
    let mut response = Response::builder();
    for line in std::str::from_utf8(&output[..end]).unwrap().lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value[..3].parse::<u16>().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(Body::from(output[end + 4..].to_vec())).unwrap()
}
