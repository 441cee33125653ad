//! Reaches a sandbox wherever it is: here through the runner, elsewhere through one tunnel to its owner.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::access::{AuthorizedSandbox, DAEMON_PORT, Target};
use atoll_api::ids::RequestId;
use atoll_api::sandbox::Placement;
use atoll_mesh::dial::{ByteStream, DIAL_DEADLINE_MS, Dial, DialError};
use atoll_mesh::link::{Link, LinkError};
use atoll_mesh::stream::{StreamHeader, read_message};
use atoll_mesh::tunnel::{TUNNEL_ANSWER_BYTES_MAX, TunnelAnswer};
use atoll_runner::RunnerDialError;
use tracing::{Instrument, debug, info_span};

use crate::directory::{Freshness, MeshDirectory};
use crate::local::LocalSandboxes;

/// First as the replica says, once more after a linearizable look when the owner said that it moved.
const ATTEMPTS_MAX: usize = 2;

pub struct Dialer {
    pub directory: Arc<MeshDirectory>,
    pub sandboxes: LocalSandboxes,
    pub link: Arc<dyn Link>,
}

#[async_trait]
impl Dial for Dialer {
    async fn dial(
        &self,
        sandbox: &AuthorizedSandbox,
        request_id: &RequestId,
    ) -> Result<ByteStream, DialError> {
        let deadline = Duration::from_millis(DIAL_DEADLINE_MS);
        tokio::time::timeout(deadline, self.dial_owner(sandbox, request_id))
            .await
            .unwrap_or(Err(DialError::TimedOut))
    }
}

/// What came of one try at one owner.
enum Attempt {
    Connected(ByteStream),
    Moved,
}

impl Dialer {
    async fn dial_owner(
        &self,
        sandbox: &AuthorizedSandbox,
        request_id: &RequestId,
    ) -> Result<ByteStream, DialError> {
        let mut freshness = Freshness::Replica;
        for _ in 0..ATTEMPTS_MAX {
            let placement = self.directory.running_placement(sandbox.sandbox_id(), freshness).await?;
            let span = info_span!(
                "dial",
                sandbox_id = %sandbox.sandbox_id(),
                node_id = %placement.node_id,
                generation = %placement.generation,
                %request_id
            );
            match self.attempt(sandbox, placement, request_id).instrument(span).await? {
                Attempt::Connected(stream) => return Ok(stream),
                Attempt::Moved => {
                    debug!(sandbox_id = %sandbox.sandbox_id(), generation = %placement.generation, "owner says moved");
                    freshness = Freshness::Linearizable;
                }
            }
        }
        Err(DialError::Unreachable("it is moving to another node".into()))
    }

    async fn attempt(
        &self,
        sandbox: &AuthorizedSandbox,
        placement: Placement,
        request_id: &RequestId,
    ) -> Result<Attempt, DialError> {
        if placement.node_id != self.link.local_node() {
            return self.tunnel(sandbox, placement, request_id).await;
        }
        match self.sandboxes.dial(sandbox.sandbox_id(), placement.generation, sandbox.target()).await {
            Ok(stream) => Ok(Attempt::Connected(stream)),
            Err(RunnerDialError::Stale { .. } | RunnerDialError::NotHere) => Ok(Attempt::Moved),
            Err(error) => Err(dial_error(error, sandbox.target())),
        }
    }

    async fn tunnel(
        &self,
        sandbox: &AuthorizedSandbox,
        placement: Placement,
        request_id: &RequestId,
    ) -> Result<Attempt, DialError> {
        let header = StreamHeader::Tunnel {
            sandbox_id: sandbox.sandbox_id(),
            generation: placement.generation,
            target: sandbox.target(),
            request_id: request_id.clone(),
        };
        let deadline = Duration::from_millis(DIAL_DEADLINE_MS);
        let mut tunnel = self.link.open(placement.node_id, header, deadline).await.map_err(unreachable)?;
        match read_message(&mut tunnel, TUNNEL_ANSWER_BYTES_MAX).await {
            Ok(TunnelAnswer::Connected) => Ok(Attempt::Connected(tunnel)),
            Ok(TunnelAnswer::Moved { .. }) => Ok(Attempt::Moved),
            Ok(TunnelAnswer::Refused(fault)) => Err(fault.into()),
            Err(error) => {
                Err(DialError::Unreachable(format!("tunnel to node {}: {error}", placement.node_id)))
            }
        }
    }
}

fn unreachable(error: LinkError) -> DialError {
    match error {
        LinkError::TimedOut(_) => DialError::TimedOut,
        error => DialError::Unreachable(error.to_string()),
    }
}

pub fn dial_error(error: RunnerDialError, target: Target) -> DialError {
    match error {
        RunnerDialError::NotHere | RunnerDialError::Stale { .. } => {
            DialError::Unreachable("it is moving".into())
        }
        RunnerDialError::NotRunning => DialError::NotRunning { state: "not running".into() },
        RunnerDialError::PortClosed => DialError::PortClosed {
            port: match target {
                Target::Daemon => DAEMON_PORT,
                Target::Port(port) => port,
            },
        },
        RunnerDialError::TimedOut => DialError::TimedOut,
        RunnerDialError::Overloaded => DialError::Overloaded,
        // For the operator; it passes when the runner is back.
        RunnerDialError::Host(cause) => {
            tracing::warn!(cause, "cannot dial into a sandbox of this node");
            DialError::Unreachable("what runs its sandboxes does not answer now".to_owned())
        }
    }
}
