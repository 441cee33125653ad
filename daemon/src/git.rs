//! `/git…`: repositories of the sandbox, worked on by the sandbox's own git as its user. Knows git's words, not its formats on disk.
//!
//!   request ─▶ [`names`], [`address`]: typed ─▶ [`Operations`]: room ─▶ [`program`]: one process after another ─▶ answer
//!                                                                          └─ exit ≠ 0 ─▶ [`failure`]: typed error

mod address;
pub mod branches;
pub mod changes;
mod clone;
pub mod config;
mod credentials;
mod failure;
mod history;
mod names;
mod program;
pub mod remotes;
mod status;
mod sync;

pub use clone::clone;
pub use history::history;
pub use status::status;
pub use sync::{pull, push};

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::Instrument;

use crate::errors::ApiError;

/// Of each kind, so that clones that hang keep nobody from asking for a status.
const RUNNING_MAX: usize = 8;
/// A request that finds no room waits this long.
const ROOM_DEADLINE: Duration = Duration::from_secs(60);

/// Whether an operation speaks to a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Local,
    Remote,
}

/// What runs. An operation goes on when its caller has gone: the SDKs' time-outs say that they cancel nothing, and a git that is
/// killed halfway leaves its locks behind. Its deadline ends it.
pub struct Operations {
    local: Arc<Semaphore>,
    remote: Arc<Semaphore>,
    cloning: Mutex<HashSet<PathBuf>>,
}

impl Default for Operations {
    fn default() -> Operations {
        let room = || Arc::new(Semaphore::new(RUNNING_MAX));
        Operations { local: room(), remote: room(), cloning: Mutex::default() }
    }
}

impl Operations {
    async fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let room = match kind {
            Kind::Local => self.local.clone(),
            Kind::Remote => self.remote.clone(),
        };
        let Ok(room) = tokio::time::timeout(ROOM_DEADLINE, room.acquire_owned()).await else {
            return Err(ApiError::request_timeout(format!(
                "{RUNNING_MAX} git operations are running already: try again when one has ended"
            )));
        };
        let task = async move {
            let _room = room.expect("the semaphore is never closed");
            work.await
        };
        let task = tokio::spawn(task.in_current_span());
        task.await.unwrap_or_else(|_| Err(ApiError::internal("the daemon is stopping")))
    }

    /// `None` while another clone is making that folder.
    fn claim(self: &Arc<Self>, target: &Path) -> Option<Claim> {
        let is_free = self.lock().insert(target.to_owned());
        is_free.then(|| Claim { operations: self.clone(), target: target.to_owned() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.cloning.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody else clones into this folder.
struct Claim {
    operations: Arc<Operations>,
    target: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.operations.lock().remove(&self.target);
    }
}
