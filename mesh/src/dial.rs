//! The seams of the doors: [`Directory`] finds what a credential or id means, [`Dial`] reaches into a sandbox.
//! Edge and SSH know nothing else of the cluster.

use async_trait::async_trait;
use atoll_api::access::{AuthorizedSandbox, Caller, PreviewGrant, SandboxFacts, SshGrant};
use atoll_api::ids::{RequestId, SandboxId};
use atoll_api::tokens::{ApiKey, SignedPreviewToken, SshToken};
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways. Shutdown of the write half is an end-of-file for the other side.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub type ByteStream = Box<dyn Duplex>;

#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Connects to the proof's target, here or through one tunnel. Bounded: it answers within [`DIAL_DEADLINE_MS`].
    async fn dial(
        &self,
        sandbox: &AuthorizedSandbox,
        request_id: &RequestId,
    ) -> Result<ByteStream, DialError>;
}

pub const DIAL_DEADLINE_MS: u64 = 10_000;

/// Named by what the visitor can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("sandbox not found")]
    NotFound,
    /// It exists and is not running. The words are what integrators match to start it again.
    #[error("sandbox is {state}. Is the Sandbox started?")]
    NotRunning { state: String },
    /// It runs, but nothing listens on that port.
    #[error("nothing listens on port {port} in the sandbox")]
    PortClosed { port: u16 },
    /// Its node, or its region, cannot be reached now.
    #[error("the sandbox's node cannot be reached: {0}")]
    Unreachable(String),
    #[error("too many connections to this sandbox")]
    Overloaded,
    #[error("the sandbox did not accept the connection in time")]
    TimedOut,
    #[error("internal error: {0}")]
    Internal(String),
}

#[async_trait]
pub trait Directory: Send + Sync + 'static {
    async fn sandbox(&self, sandbox_id: SandboxId) -> Result<SandboxFacts, DirectoryError>;
    /// The same, not from a replica that may lag behind.
    async fn sandbox_now(&self, sandbox_id: SandboxId) -> Result<SandboxFacts, DirectoryError>;
    async fn signed_preview(&self, token: &SignedPreviewToken) -> Result<PreviewGrant, DirectoryError>;
    async fn ssh_token(&self, token: &SshToken) -> Result<SshGrant, DirectoryError>;
    async fn api_key(&self, key: &ApiKey) -> Result<Caller, DirectoryError>;
    /// Resolves when the SSH token has been revoked, has expired, or its sandbox is gone: cut its sessions.
    async fn ssh_token_ended(&self, grant: &SshGrant);
    /// Bytes have passed: the sandbox is in use. Never blocks; may be called for every chunk.
    fn touch(&self, sandbox_id: SandboxId);
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    #[error("not found")]
    NotFound,
    /// The region that would know cannot be reached now.
    #[error("region unreachable: {0}")]
    Unreachable(String),
}
