//! Who may be dialled now, with which secret, and how many connections each sandbox may hold.
//! Read on every connection, so it never asks the runner's task.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use atoll_api::access::{DAEMON_PORT, Target};
use atoll_api::daemon::preamble;
use atoll_api::ids::SandboxId;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::handle::RunnerDialError;
use crate::mount::Secret;
use crate::reconcile::{Reachable, WishState};
use crate::runtime::{ByteStream, Incarnation, Runtime, RuntimeError};

/// Why a wish was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// As the sandbox's own failure has it.
    #[error("{0}")]
    Failed(String),
    /// The sandbox is not this node's any more, or the runner ends.
    #[error("the sandbox is not on this node")]
    Elsewhere,
}

pub(crate) struct Doors {
    connections_max: usize,
    dial_deadline: Duration,
    /// Set when a daemon has said hello or was adopted; before the core calls it serving.
    secrets: Mutex<HashMap<Incarnation, Secret>>,
    doors: RwLock<HashMap<SandboxId, Door>>,
    /// Counts the times that doors were set.
    changes: watch::Sender<u64>,
}

#[derive(Clone)]
struct Door {
    incarnation: Incarnation,
    /// `None` while it does not serve.
    open: Option<OpenDoor>,
    desired_version: u64,
    state: WishState,
}

#[derive(Clone)]
struct OpenDoor {
    secret: Secret,
    permits: Arc<Semaphore>,
}

impl Doors {
    pub(crate) fn new(connections_max: usize, dial_deadline: Duration) -> Doors {
        let (changes, _) = watch::channel(0);
        Doors { connections_max, dial_deadline, secrets: Mutex::default(), doors: RwLock::default(), changes }
    }

    pub(crate) fn keep_secret(&self, incarnation: Incarnation, secret: Secret) {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).insert(incarnation, secret);
    }

    pub(crate) fn secret(&self, incarnation: Incarnation) -> Option<Secret> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).get(&incarnation).cloned()
    }

    /// Ends when this wish, or a newer one, has been granted or has failed. The caller sets the deadline.
    pub(crate) async fn until_granted(
        &self,
        incarnation: Incarnation,
        desired_version: u64,
    ) -> Result<(), NotGranted> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let doors = self.doors.read().unwrap_or_else(PoisonError::into_inner);
                match doors.get(&incarnation.sandbox_id) {
                    Some(door)
                        if door.incarnation == incarnation && door.desired_version >= desired_version =>
                    {
                        match &door.state {
                            WishState::Granted => return Ok(()),
                            WishState::Failed(reason) => return Err(NotGranted::Failed(reason.clone())),
                            WishState::UnderWay => {}
                        }
                    }
                    Some(door) if door.incarnation.generation > incarnation.generation => {
                        return Err(NotGranted::Elsewhere);
                    }
                    // It may not have been heard of here yet.
                    Some(_) | None => {}
                }
            }
            if changes.changed().await.is_err() {
                return Err(NotGranted::Elsewhere);
            }
        }
    }

    /// Makes the doors what the core says they are.
    pub(crate) fn set(&self, reachable: impl Iterator<Item = Reachable>) {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut doors = self.doors.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::with_capacity(doors.len());
        for Reachable { incarnation, serving, desired_version, state } in reachable {
            let before = doors
                .remove(&incarnation.sandbox_id)
                .filter(|door| door.incarnation == incarnation)
                .and_then(|door| door.open);
            let open = match (serving, before, secrets.get(&incarnation)) {
                (false, _, _) | (_, _, None) => None,
                (true, Some(open), Some(secret)) if open.secret == *secret => Some(open),
                (true, _, Some(secret)) => Some(OpenDoor {
                    secret: secret.clone(),
                    permits: Arc::new(Semaphore::new(self.connections_max)),
                }),
            };
            next.insert(incarnation.sandbox_id, Door { incarnation, open, desired_version, state });
        }
        secrets.retain(|incarnation, _| {
            next.get(&incarnation.sandbox_id).is_some_and(|door: &Door| door.incarnation == *incarnation)
        });
        *doors = next;
        drop(doors);
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) async fn dial(
        &self,
        runtime: &dyn Runtime,
        incarnation: Incarnation,
        target: Target,
    ) -> Result<ByteStream, RunnerDialError> {
        let door = {
            let doors = self.doors.read().unwrap_or_else(PoisonError::into_inner);
            doors.get(&incarnation.sandbox_id).cloned().ok_or(RunnerDialError::NotHere)?
        };
        let current = door.incarnation.generation;
        if incarnation.generation < current {
            return Err(RunnerDialError::Stale { current });
        }
        if incarnation.generation > current {
            return Err(RunnerDialError::NotHere);
        }
        let OpenDoor { secret, permits } = door.open.ok_or(RunnerDialError::NotRunning)?;
        let permit = permits.try_acquire_owned().map_err(|_| RunnerDialError::Overloaded)?;
        let stream =
            tokio::time::timeout(self.dial_deadline, dial_target(runtime, incarnation, target, &secret))
                .await
                .map_err(|_| RunnerDialError::TimedOut)??;
        Ok(Box::new(Counted { stream, _permit: permit }))
    }
}

/// Without deadline or count; for adoption, which has its own.
pub(crate) async fn dial_target(
    runtime: &dyn Runtime,
    incarnation: Incarnation,
    target: Target,
    secret: &Secret,
) -> Result<ByteStream, RunnerDialError> {
    let port = match target {
        Target::Daemon => DAEMON_PORT,
        // Without the preamble the daemon would hang up; nobody is to reach its port another way.
        Target::Port(DAEMON_PORT) => return Err(RunnerDialError::PortClosed),
        Target::Port(port) => port,
    };
    let mut stream: ByteStream = Box::new(runtime.dial(incarnation, port).await?);
    if target == Target::Daemon {
        let introduced = stream.write_all(preamble(secret.reveal()).as_bytes()).await;
        introduced.map_err(|_| RunnerDialError::PortClosed)?;
    }
    Ok(stream)
}

impl From<RuntimeError> for RunnerDialError {
    fn from(error: RuntimeError) -> RunnerDialError {
        match error {
            RuntimeError::Refused => RunnerDialError::PortClosed,
            RuntimeError::NotFound | RuntimeError::NotRunning => RunnerDialError::NotRunning,
            RuntimeError::TimedOut(_) => RunnerDialError::TimedOut,
            RuntimeError::Overloaded => RunnerDialError::Overloaded,
            RuntimeError::Spec(text) | RuntimeError::Host(text) => RunnerDialError::Host(text),
        }
    }
}

/// A connection that counts against its sandbox until it is dropped.
struct Counted {
    stream: ByteStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
