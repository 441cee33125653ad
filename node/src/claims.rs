//! Whether a claimed sandbox is by now what it was claimed as. Only its owner knows: it is asked while the claim is still being
//! decided, and answers as soon as its runner has changed the sandbox.
//!
//!   asked ──── ClaimWarm ────▶ Raft ──▶ owner's replica ─▶ runner: egress, identity
//!     └─────── Claim stream ──────────▶ owner ◀── granted ────┘

use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{ClaimId, NodeId, SandboxId};
use atoll_consensus::group::RegionGroup;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{StreamHeader, answer, call, read_message};
use atoll_runner::{NotGranted, RunnerHandle};
use serde::{Deserialize, Serialize};

/// An owner that has not carried a claim out by then is not waited for: a new sandbox is made instead.
pub const CLAIM_DEADLINE: Duration = Duration::from_secs(3);
const CLAIM_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ClaimQuestion {
    pub sandbox_id: SandboxId,
    pub claim_id: ClaimId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimAnswer {
    /// It is what it was claimed as, and can be reached.
    Granted,
    /// It will not be.
    Failed(String),
}

pub struct Claims {
    pub region: RegionGroup,
    pub runner: RunnerHandle,
    pub link: Arc<dyn Link>,
}

impl Claims {
    /// Asks the owner, which may be this node, and waits at most [`CLAIM_DEADLINE`].
    pub async fn until_granted(&self, node_id: NodeId, question: ClaimQuestion) -> ClaimAnswer {
        if node_id == self.link.local_node() {
            return self.here(question).await;
        }
        let asked: Result<ClaimAnswer, _> =
            call(self.link.as_ref(), node_id, StreamHeader::Claim, &question, CLAIM_DEADLINE).await;
        asked.unwrap_or_else(|error| ClaimAnswer::Failed(format!("its node was not reached: {error}")))
    }

    pub async fn serve(&self, mut stream: ByteStream) -> anyhow::Result<()> {
        let question: ClaimQuestion = read_message(&mut stream, CLAIM_BYTES_MAX).await?;
        Ok(answer(&mut stream, &self.here(question).await).await?)
    }

    async fn here(&self, question: ClaimQuestion) -> ClaimAnswer {
        let granted = tokio::time::timeout(CLAIM_DEADLINE, self.carried_out(question)).await;
        granted.unwrap_or_else(|_| ClaimAnswer::Failed("its node did not change it in time".into()))
    }

    async fn carried_out(&self, question: ClaimQuestion) -> ClaimAnswer {
        let ClaimQuestion { sandbox_id, claim_id } = question;
        let mut changes = self.region.changes();
        let (generation, desired_version) = loop {
            changes.borrow_and_update();
            let claimed = self.region.read(|state| {
                let record = state.sandboxes.get(&sandbox_id)?;
                let is_claimed = record.warm?.claim_id == Some(claim_id);
                is_claimed.then_some((record.placement.generation, record.desired_version))
            });
            if let Some(claimed) = claimed {
                break claimed;
            }
            if changes.changed().await.is_err() {
                return ClaimAnswer::Failed("its node is stopping".into());
            }
        };
        match self.runner.until_granted(sandbox_id, generation, desired_version).await {
            Ok(()) => ClaimAnswer::Granted,
            Err(error @ (NotGranted::Failed(_) | NotGranted::Elsewhere)) => {
                ClaimAnswer::Failed(error.to_string())
            }
        }
    }
}
