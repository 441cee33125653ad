//! One server with a directory that knows one sandbox and one token, and the commands that talk to it.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::access::{AuthorizedSandbox, Caller, PreviewGrant, SandboxFacts, SshGrant, Target};
use atoll_api::ids::{Generation, NodeId, OrganizationId, RegionOrdinal, RequestId, SandboxId};
use atoll_api::sandbox::{Phase, Placement};
use atoll_api::tokens::{ApiKey, SignedPreviewToken, SshToken, TokenHash};
use atoll_mesh::dial::{ByteStream, Dial, DialError, Directory, DirectoryError};
use atoll_ssh::{SshConfig, SshHandle, SshLimits, SshServer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::fake_daemon;

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub server: SshHandle,
    pub directory: Arc<FakeDirectory>,
    pub sandbox: Arc<FakeSandbox>,
    pub token: String,
    home: tempfile::TempDir,
}

pub struct FakeDirectory {
    token: SshToken,
    grant: SshGrant,
    pub ended: CancellationToken,
    pub touches: AtomicUsize,
}

/// Dials into processes of this machine.
#[derive(Default)]
pub struct FakeSandbox {
    pub not_running: Mutex<Option<String>>,
    pub dialled: Mutex<Vec<Target>>,
}

impl World {
    pub async fn new() -> World {
        World::with_limits(SshLimits::default()).await
    }

    pub async fn with_limits(limits: SshLimits) -> World {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let region = RegionOrdinal::new(5).unwrap();
        let token = SshToken::from_random(region, [7; 30]);
        let grant = SshGrant {
            sandbox_id: SandboxId::new(region, [9; 14]),
            expires_at_ms: u64::MAX,
            token_hash: token.hash(),
        };
        let directory = Arc::new(FakeDirectory {
            token: token.clone(),
            grant,
            ended: CancellationToken::new(),
            touches: AtomicUsize::new(0),
        });
        let sandbox = Arc::new(FakeSandbox::default());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = SshConfig { limits, ..SshConfig::new(listen, [3; 32]) };
        let server = SshServer::start(config, directory.clone(), sandbox.clone()).await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let known = format!("[127.0.0.1]:{} {}\n", server.local_addr().port(), server.host_key_openssh());
        std::fs::write(home.path().join("known_hosts"), known).unwrap();
        World { server, directory, sandbox, token: token.reveal().to_owned(), home }
    }

    pub fn port(&self) -> u16 {
        self.server.local_addr().port()
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// An OpenSSH tool that checks the host key and reads nobody's configuration. Add options, then the destination.
    pub fn tool(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .args(["-F", "none", "-o", "LogLevel=INFO", "-o", "StrictHostKeyChecking=yes"])
            .args(["-o", "IdentityFile=none", "-o", "IdentityAgent=none", "-o"])
            .arg(format!("UserKnownHostsFile={}", self.path("known_hosts").display()))
            .args(["-o", &format!("Port={}", self.port())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub fn destination(&self) -> String {
        format!("{}@127.0.0.1", self.token)
    }

    /// `ssh <options> <token>@node <command>`
    pub fn ssh(&self, options: &[&str], remote: &str) -> Command {
        let mut command = self.tool("ssh");
        command.args(options).arg(self.destination()).arg(remote);
        command
    }
}

/// False, said aloud, where the OpenSSH client is not installed.
pub fn openssh_is_here() -> bool {
    is_here("ssh", "openssh-client")
}

/// Whether a program is installed. Where everything is required (`ATOLL_TESTS_REQUIRE_ALL`) its absence is a failure.
pub fn is_here(program: &str, package: &str) -> bool {
    let tried =
        std::process::Command::new(program).arg("-V").stdin(Stdio::null()).stderr(Stdio::null()).status();
    let here = tried.is_ok();
    assert!(here || std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_none(), "no {program}: install {package}");
    if !here {
        eprintln!("SKIPPED: no {program} here (apt-get install {package})");
    }
    here
}

pub async fn within_patience<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it takes longer than anything here should")
}

pub async fn run(mut command: Command) -> Output {
    within_patience(command.output()).await.unwrap()
}

/// Runs with these bytes as standard input while reading the output.
pub async fn run_with_input(mut command: Command, input: Vec<u8>) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let output = within_patience(child.wait_with_output()).await.unwrap();
    feed.await.unwrap();
    output
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[async_trait]
impl Directory for FakeDirectory {
    async fn sandbox(&self, sandbox_id: SandboxId) -> Result<SandboxFacts, DirectoryError> {
        if sandbox_id != self.grant.sandbox_id {
            return Err(DirectoryError::NotFound);
        }
        Ok(SandboxFacts {
            sandbox_id,
            organization_id: OrganizationId(uuid::Uuid::nil()),
            public: false,
            preview_token_hash: TokenHash::of("x"),
            phase: Phase::Running,
            placement: Placement { node_id: NodeId(1), generation: Generation(1) },
            signing_key_version: 0,
        })
    }

    async fn sandbox_now(&self, sandbox_id: SandboxId) -> Result<SandboxFacts, DirectoryError> {
        self.sandbox(sandbox_id).await
    }

    async fn signed_preview(&self, _token: &SignedPreviewToken) -> Result<PreviewGrant, DirectoryError> {
        Err(DirectoryError::NotFound)
    }

    async fn ssh_token(&self, token: &SshToken) -> Result<SshGrant, DirectoryError> {
        if *token == self.token && !self.ended.is_cancelled() {
            return Ok(self.grant.clone());
        }
        Err(DirectoryError::NotFound)
    }

    async fn api_key(&self, _key: &ApiKey) -> Result<Caller, DirectoryError> {
        Err(DirectoryError::NotFound)
    }

    async fn ssh_token_ended(&self, _grant: &SshGrant) {
        self.ended.cancelled().await;
    }

    fn touch(&self, _sandbox_id: SandboxId) {
        self.touches.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Dial for FakeSandbox {
    async fn dial(
        &self,
        proof: &AuthorizedSandbox,
        _request_id: &RequestId,
    ) -> Result<ByteStream, DialError> {
        self.dialled.lock().unwrap().push(proof.target());
        if let Some(state) = self.not_running.lock().unwrap().clone() {
            return Err(DialError::NotRunning { state });
        }
        match proof.target() {
            Target::Daemon => {
                let (door, daemon) = tokio::io::duplex(64 * 1024);
                tokio::spawn(fake_daemon::serve(daemon));
                Ok(Box::new(door))
            }
            Target::Port(port) => match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(_) => Err(DialError::PortClosed { port }),
            },
        }
    }
}
