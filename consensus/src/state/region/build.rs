//! Sandboxes whose image is made from a Dockerfile while they wait. The catalogue has the build; here is who waits for it.
//!
//! ```text
//!  CreateUnbuilt ─▶ Pending, no image ── ReportBuild ─┬ Built ──▶ Pending, with its image: the owner makes it
//!                                                     └ Failed ─▶ Failed for good
//! ```

use atoll_api::ids::SandboxId;
use atoll_api::sandbox::{Phase, SandboxSpec};
use serde::{Deserialize, Serialize};

use super::apply::Judged;
use super::{Disk, NewSandbox, RegionRejection, RegionState, SandboxRecord};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildOutcome {
    /// User and entrypoint are the image's: what the create asked for stays.
    Built {
        image: String,
        user: String,
        entrypoint: Vec<String>,
    },
    Failed {
        reason: String,
    },
}

impl RegionState {
    pub(super) fn create_unbuilt(
        &mut self,
        sandbox_id: SandboxId,
        snapshot_id: uuid::Uuid,
        sandbox: NewSandbox,
        now_ms: u64,
    ) -> Judged {
        if let Some(record) = self.sandboxes.get(&sandbox_id) {
            let said_again = record.build == Some(snapshot_id) && record.is_built_from(sandbox);
            return if said_again { Ok(()) } else { Err(RegionRejection::IdTaken) };
        }
        let spec = SandboxSpec { image: String::new(), ..sandbox.spec };
        self.create_sandbox(sandbox_id, None, NewSandbox { spec, ..sandbox }, now_ms)?;
        self.revise(sandbox_id, |record| {
            record.build = Some(snapshot_id);
            record.disk = Disk::Awaited;
        });
        Ok(())
    }

    pub(super) fn report_build(
        &mut self,
        sandbox_id: SandboxId,
        snapshot_id: uuid::Uuid,
        outcome: BuildOutcome,
        now_ms: u64,
    ) -> Judged {
        let record = self.live_record(sandbox_id)?;
        if record.build != Some(snapshot_id) {
            return Err(RegionRejection::OtherBuild);
        }
        if !record.is_disk_awaited() || record.will_have_no_disk() {
            return Ok(());
        }
        self.revise(sandbox_id, |record| {
            match outcome {
                BuildOutcome::Built { image, user, entrypoint } => {
                    record.disk = Disk::Image;
                    record.spec.image = image;
                    if record.spec.user.is_empty() {
                        record.spec.user = user;
                    }
                    if record.spec.entrypoint.is_empty() {
                        record.spec.entrypoint = entrypoint;
                    }
                }
                BuildOutcome::Failed { reason } => record.phase = Phase::Failed { reason },
            }
            record.touch(now_ms);
        });
        Ok(())
    }

    /// Those that wait for a build and can still get its image, of one node.
    pub fn unbuilt(
        &self,
        node_id: atoll_api::ids::NodeId,
    ) -> impl Iterator<Item = (SandboxId, &SandboxRecord, uuid::Uuid)> {
        let waiting = self
            .assignments(node_id)
            .filter(|(_, record)| record.is_disk_awaited() && !matches!(record.phase, Phase::Failed { .. }));
        waiting.filter_map(|(sandbox_id, record)| Some((sandbox_id, record, record.build?)))
    }
}

impl SandboxRecord {
    /// Whether a create with these words would have made it, whatever its build has added since.
    fn is_built_from(&self, sandbox: NewSandbox) -> bool {
        let asked = sandbox.spec;
        let spec = SandboxSpec {
            image: self.spec.image.clone(),
            user: if asked.user.is_empty() { self.spec.user.clone() } else { asked.user },
            entrypoint: if asked.entrypoint.is_empty() {
                self.spec.entrypoint.clone()
            } else {
                asked.entrypoint
            },
            ..asked
        };
        self.is_made_of(&NewSandbox { spec, ..sandbox })
    }
}
