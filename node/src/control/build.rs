//! Sandboxes that are asked for with a Dockerfile: the catalogue builds it once, under a name that its content gives, and every
//! later create with the same content is one from a snapshot.

use atoll_api::access::Caller;
use atoll_api::ids::OrganizationId;
use atoll_api::rest::BuildProgress;
use atoll_consensus::state::cluster::{
    Activation, ClusterCommand, ClusterOutcome, ClusterState, Listing, SnapshotKey, SnapshotRecord,
    SnapshotSource, SnapshotState,
};
use atoll_consensus::state::region::SandboxRecord;
use tracing::info;

use super::catalogue::rejected;
use super::region::{RegionVerbs, unavailable};
use super::verb::{BuildView, BuildWish, SandboxView, VerbError};
use crate::clock::now_ms;
use crate::duties::BUILDS_SINCE;
use crate::founding::DEFAULT_RESOURCES;

/// Of a wish to be said again because somebody else was faster.
const TRIES_MAX: usize = 4;
/// No name that a user may give begins so.
const NAME_PREFIX: &str = "@build/";

impl RegionVerbs {
    /// The snapshot of this Dockerfile: made, being made, or to be made from now on.
    pub(super) async fn build(
        &self,
        caller: &Caller,
        wish: &BuildWish,
    ) -> Result<(String, SnapshotRecord), VerbError> {
        let organization_id = caller.organization_id;
        let name = name_of(wish);
        let look =
            || self.cluster.read(|state| state.own_snapshots.get(&organization_id)?.get(&name).cloned());
        if let Some(snapshot) = look().filter(|snapshot| snapshot.state == SnapshotState::Active) {
            return Ok((name, snapshot));
        }
        self.cluster.linearize().await.map_err(unavailable)?;
        if self.cluster.read(ClusterState::command_version) < BUILDS_SINCE {
            return Err(VerbError::Unavailable {
                message: "some nodes are of an older version that does not build images: update them".into(),
                retry_after_s: 60,
            });
        }
        for _ in 0..TRIES_MAX {
            let command = match look() {
                None => self.first_build(organization_id, &name, wish),
                Some(snapshot) => match again(snapshot.key(&name), &snapshot) {
                    Some(command) => command,
                    None => return Ok((name, snapshot)),
                },
            };
            match self.cluster.propose(command).await.map_err(unavailable)? {
                ClusterOutcome::Applied => {
                    if let Some(snapshot) = look() {
                        info!(snapshot_id = %snapshot.id, state = %snapshot.state, "an image is to be built");
                    }
                }
                // Somebody was faster: what is there now counts.
                ClusterOutcome::Rejected(rejection) if look().is_none() => return Err(rejected(rejection)),
                ClusterOutcome::Rejected(_) => {}
            }
        }
        Err(VerbError::Conflict("others change this build all the time; try again".into()))
    }

    fn first_build(&self, organization_id: OrganizationId, name: &str, wish: &BuildWish) -> ClusterCommand {
        let source = SnapshotSource::Build {
            dockerfile: wish.dockerfile.clone(),
            context_hashes: wish.context_hashes.clone(),
        };
        let id = uuid::Uuid::new_v4();
        let pending = SnapshotRecord::pending(id, organization_id, source, DEFAULT_RESOURCES, now_ms());
        let snapshot =
            SnapshotRecord { listing: Listing::Unlisted, made_in: Some(self.region.clone()), ..pending };
        ClusterCommand::CreateSnapshot { name: name.to_owned(), snapshot: Box::new(snapshot) }
    }

    /// With what the catalogue says of its build.
    pub(super) fn with_build(&self, view: SandboxView) -> SandboxView {
        match is_build(&view.record.spec.snapshot) {
            true => SandboxView { build: self.cluster.read(|state| build_of(state, &view.record)), ..view },
            false => view,
        }
    }
}

/// What it takes to have it again; `None`: nothing.
fn again(key: SnapshotKey, snapshot: &SnapshotRecord) -> Option<ClusterCommand> {
    match snapshot.state {
        SnapshotState::Error { .. } | SnapshotState::BuildFailed { .. } => {
            Some(ClusterCommand::RetrySnapshot { key, attempt: snapshot.attempt, now_ms: now_ms() })
        }
        SnapshotState::Inactive => {
            let activation = Activation::Active;
            Some(ClusterCommand::ActivateSnapshot { key, activation, now_ms: now_ms() })
        }
        SnapshotState::Pending
        | SnapshotState::Pulling
        | SnapshotState::Building
        | SnapshotState::Snapshotting
        | SnapshotState::Active => None,
    }
}

/// The same for the same content, whoever asks in whichever region.
fn name_of(wish: &BuildWish) -> String {
    let mut sha256 = ring::digest::Context::new(&ring::digest::SHA256);
    for part in std::iter::once(&wish.dockerfile).chain(&wish.context_hashes) {
        sha256.update(&(part.len() as u64).to_be_bytes());
        sha256.update(part.as_bytes());
    }
    format!("{NAME_PREFIX}{}", hex::encode(sha256.finish()))
}

/// Whether a snapshot of this name is a build that nobody gave a name.
pub fn is_build(snapshot: &str) -> bool {
    snapshot.starts_with(NAME_PREFIX)
}

/// What the catalogue says of the build that a sandbox was made from; `None`: there was none, or it has been forgotten.
pub fn build_of(state: &ClusterState, record: &SandboxRecord) -> Option<BuildView> {
    if !is_build(&record.spec.snapshot) {
        return None;
    }
    let snapshot = state.snapshot_named(record.organization_id, &record.spec.snapshot)?;
    let SnapshotSource::Build { dockerfile, context_hashes } = &snapshot.source else { return None };
    Some(BuildView {
        snapshot_id: snapshot.id,
        dockerfile: dockerfile.clone(),
        context_hashes: context_hashes.clone(),
        created_at_ms: snapshot.created_at_ms,
        updated_at_ms: snapshot.updated_at_ms,
        image: snapshot.image.clone(),
        progress: progress_of(snapshot),
    })
}

/// How far a sandbox's build is, for its public state. Also `Waiting` where that says nothing.
pub fn progress(state: &ClusterState, record: &SandboxRecord) -> BuildProgress {
    let waiting = record.build.filter(|_| record.is_disk_awaited());
    let snapshot =
        waiting.and_then(|snapshot_id| state.snapshot(record.organization_id, &snapshot_id.to_string()));
    snapshot.map_or(BuildProgress::Waiting, |(_, snapshot)| progress_of(snapshot))
}

fn progress_of(snapshot: &SnapshotRecord) -> BuildProgress {
    match snapshot.state {
        SnapshotState::Pending => BuildProgress::Waiting,
        _ => BuildProgress::Building,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_named_by_all_that_it_is_made_of() {
        let wish = |dockerfile: &str, hashes: &[&str]| BuildWish {
            dockerfile: dockerfile.into(),
            context_hashes: hashes.iter().map(|hash| (*hash).into()).collect(),
        };
        let name = name_of(&wish("FROM a", &["b", "c"]));

        assert_eq!(name, name_of(&wish("FROM a", &["b", "c"])));
        for other in [wish("FROM a", &["c", "b"]), wish("FROM a", &["bc"]), wish("FROM ab", &["c"])] {
            assert_ne!(name, name_of(&other));
        }
    }
}
