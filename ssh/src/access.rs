//! What a login's token opens: one sandbox, judged anew for every channel, so that a move, a stop or an expiry counts at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_api::access::{Credential, SshGrant, Target, authorize};
use atoll_api::ids::{RequestId, SandboxId};
use atoll_api::tokens::SshToken;
use atoll_mesh::dial::{ByteStream, DIAL_DEADLINE_MS, Dial, DialError, Directory, DirectoryError};
use tokio::time::{Instant, timeout};

use crate::refusal::Refusal;

/// The two seams that this door stands on.
#[derive(Clone)]
pub(crate) struct Seams {
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) dial: Arc<dyn Dial>,
}

const DIRECTORY_DEADLINE_MS: u64 = 10_000;
/// The dialer promises [`DIAL_DEADLINE_MS`]; this is for the case that it breaks its promise.
const DIAL_PATIENCE_MS: u64 = DIAL_DEADLINE_MS + 2_000;

/// Proof that a token was valid when the client logged in.
pub(crate) struct Access {
    seams: Seams,
    grant: SshGrant,
    activity: Activity,
}

impl Access {
    /// Judges a user name. The answer is the same for a name that is no token and a token that nobody knows.
    pub(crate) async fn judge(seams: Seams, user: &str) -> Result<Access, Refusal> {
        let token: SshToken = user.parse().map_err(|_| Refusal::WrongToken)?;
        let grant = ask(seams.directory.ssh_token(&token)).await?;
        let access =
            Access { activity: Activity::new(seams.directory.clone(), grant.sandbox_id), seams, grant };
        access.authorize(Target::Daemon).await?;
        Ok(access)
    }

    pub(crate) fn sandbox_id(&self) -> SandboxId {
        self.grant.sandbox_id
    }

    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Resolves when the token no longer opens anything.
    pub(crate) async fn ended(&self) {
        self.seams.directory.ssh_token_ended(&self.grant).await;
    }

    pub(crate) async fn dial(&self, target: Target, request_id: &RequestId) -> Result<ByteStream, Refusal> {
        let proof = self.authorize(target).await?;
        let dialled = self.seams.dial.dial(&proof, request_id);
        match timeout(Duration::from_millis(DIAL_PATIENCE_MS), dialled).await {
            Ok(stream) => Ok(stream?),
            Err(_) => Err(DialError::TimedOut.into()),
        }
    }

    async fn authorize(&self, target: Target) -> Result<atoll_api::access::AuthorizedSandbox, Refusal> {
        let sandbox = match ask(self.seams.directory.sandbox(self.grant.sandbox_id)).await {
            Err(Refusal::WrongToken) => return Err(Refusal::SandboxGone),
            other => other?,
        };
        Ok(authorize(&Credential::Ssh(self.grant.clone()), &sandbox, target, now_ms())?)
    }
}

async fn ask<T>(answer: impl Future<Output = Result<T, DirectoryError>>) -> Result<T, Refusal> {
    match timeout(Duration::from_millis(DIRECTORY_DEADLINE_MS), answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Refusal::DirectoryUnreachable("no answer in time".into())),
    }
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn new_request_id() -> RequestId {
    RequestId::from_random(rand::random())
}

/// Tells the directory that bytes pass, at most once per [`TOUCH_INTERVAL_MS`]. An open but silent channel is not activity.
pub(crate) struct Activity {
    directory: Arc<dyn Directory>,
    sandbox_id: SandboxId,
    since: Instant,
    /// Milliseconds after `since` from which the next touch counts.
    next_touch_ms: AtomicU64,
}

const TOUCH_INTERVAL_MS: u64 = 1_000;

impl Activity {
    fn new(directory: Arc<dyn Directory>, sandbox_id: SandboxId) -> Activity {
        Activity { directory, sandbox_id, since: Instant::now(), next_touch_ms: AtomicU64::new(0) }
    }

    pub(crate) fn bytes_passed(&self) {
        let now_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due_ms = self.next_touch_ms.load(Ordering::Relaxed);
        if now_ms >= due_ms
            && self
                .next_touch_ms
                .compare_exchange(due_ms, now_ms + TOUCH_INTERVAL_MS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.directory.touch(self.sandbox_id);
        }
    }
}
