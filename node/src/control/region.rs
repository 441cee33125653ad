//! The verbs on sandboxes of this node's own region: propose, then wait for the owner's report in the local replica.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_api::access::{Caller, Credential, Target, authorize};
use atoll_api::egress::Change;
use atoll_api::ids::{NodeId, RegionName, RegionOrdinal, RequestId, SandboxId};
use atoll_api::rest::{BuildProgress, SandboxState};
use atoll_api::sandbox::{Desired, Phase, Resources, SandboxSpec};
use atoll_api::tokens::{PreviewToken, SignedPreviewToken, SshToken};
use atoll_certs::seal::ClusterSecret;
use atoll_consensus::group::{ClusterGroup, GroupError, RegionGroup};
use atoll_consensus::place::{PlaceRequest, place};
use atoll_consensus::state::cluster::{
    ClusterCommand, ClusterState, SnapshotKey, SnapshotRecord, SnapshotState,
};
use atoll_consensus::state::region::{
    Cursor, Intervals, NewSandbox, RegionCommand, RegionOutcome, RegionRejection, SandboxFilter,
    SandboxRecord,
};
use atoll_mesh::dial::{Dial, DialError};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::build::progress;
use super::claim::Claiming;
use super::plane::not_found;
use super::verb::*;
use crate::claims::Claims;
use crate::clock::now_ms;
use crate::duties::SIGNING_KEYS_SINCE;
use crate::peers::Peers;
use crate::rest::public_state;
use crate::trust::signing_secret;

/// As the public API has it: a create or start answers within 30 s, whatever the state is by then.
const SETTLE_DEADLINE: Duration = Duration::from_secs(30);
/// A stop takes the sandbox's own grace first.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How often another node is looked for when one says no.
const PLACE_ATTEMPTS_MAX: usize = 4;
const SSH_EXPIRY_MINUTES_MAX: u64 = 60 * 24 * 30;
const AUTO_STOP_MINUTES: u32 = 15;
pub const AUTO_ARCHIVE_MINUTES: u32 = 7 * 24 * 60;

pub struct RegionVerbs {
    pub region: RegionName,
    pub group: RegionGroup,
    pub cluster: ClusterGroup,
    pub secret: Arc<ClusterSecret>,
    pub peers: Arc<Peers>,
    pub dial: Arc<dyn Dial>,
    /// Cancelled when the node stops: waiting ends, and what is known by then is answered.
    pub draining: CancellationToken,
    pub default_snapshot: String,
    pub claims: Arc<Claims>,
    pub claiming: Claiming,
}

impl RegionVerbs {
    pub async fn perform(&self, caller: &Caller, verb: Verb) -> Result<VerbAnswer, VerbError> {
        match verb {
            Verb::Create(create) => self.create(caller, create).await,
            Verb::Get { sandbox } => {
                self.linearize().await?;
                self.find(caller, &sandbox).map(answer)
            }
            Verb::List(list) => {
                self.linearize().await?;
                self.list(caller, list)
            }
            Verb::Start { sandbox } => self.start(caller, sandbox).await,
            Verb::Stop { sandbox, force: _ } => self.stop(caller, sandbox).await,
            Verb::Delete { sandbox } => self.delete(caller, sandbox).await,
            Verb::Pause { sandbox } => self.pause(caller, sandbox).await,
            Verb::SetEgress { sandbox, block_all, networks, domains } => {
                let change = Change { block_all, networks: networks.as_deref(), domains: domains.as_deref() };
                self.set_egress(caller, sandbox, &change).await
            }
            Verb::SetLabels { sandbox, labels } => {
                self.change(caller, sandbox, |sandbox_id, _| RegionCommand::SetLabels {
                    sandbox_id,
                    labels,
                    now_ms: now_ms(),
                })
                .await
            }
            Verb::SetPublic { sandbox, public } => {
                self.change(caller, sandbox, |sandbox_id, _| RegionCommand::SetPublic {
                    sandbox_id,
                    public,
                    now_ms: now_ms(),
                })
                .await
            }
            Verb::SetIntervals { sandbox, change } => {
                // The other intervals are said again, so they must be the newest.
                self.linearize().await?;
                self.change(caller, sandbox, |sandbox_id, record| RegionCommand::SetIntervals {
                    sandbox_id,
                    intervals: changed_intervals(record, change),
                    now_ms: now_ms(),
                })
                .await
            }
            Verb::PreviewToken { sandbox, port } => {
                let view = self.found(caller, &sandbox).await?;
                let token = PreviewToken::derive(self.secret.reveal(), view.sandbox_id);
                Ok(VerbAnswer::PreviewToken {
                    sandbox_id: view.sandbox_id,
                    port,
                    token: token.reveal().to_owned(),
                })
            }
            Verb::SignPreview { sandbox, port, expires_in_s } => {
                self.sign_preview(caller, sandbox, port, expires_in_s).await
            }
            Verb::ExpirePreview { sandbox, port, token } => {
                let view = self.found(caller, &sandbox).await?;
                let token: SignedPreviewToken = token.parse().map_err(bad_request)?;
                self.propose(RegionCommand::RevokePreviewToken {
                    sandbox_id: view.sandbox_id,
                    port,
                    token_hash: token.hash(),
                })
                .await?;
                Ok(VerbAnswer::Done)
            }
            Verb::SigningKey { sandbox } => {
                self.all_know_signing_keys()?;
                let view = self.found(caller, &sandbox).await?;
                Ok(self.signing_key(view.sandbox_id, view.record.signing_key_version))
            }
            Verb::RotateSigningKey { sandbox } => self.rotate_signing_key(caller, &sandbox).await,
            Verb::IssueSsh { sandbox, expires_in_minutes } => {
                self.issue_ssh(caller, sandbox, expires_in_minutes).await
            }
            Verb::RevokeSsh { sandbox, token } => {
                let token_hash = match token {
                    Some(token) => Some(token.parse::<SshToken>().map_err(bad_request)?.hash()),
                    None => None,
                };
                self.change(caller, sandbox, |sandbox_id, _| RegionCommand::RevokeSshTokens {
                    sandbox_id,
                    token_hash,
                })
                .await
            }
            Verb::ValidateSsh { token } => self.validate_ssh(caller, &token).await,
            Verb::Touch { sandbox } => self.touch(caller, sandbox).await,
            Verb::Snapshot { sandbox, name } => self.snapshot_of(caller, &sandbox, name).await,
            Verb::Fork { sandbox, name } => self.fork(caller, &sandbox, name).await,
            Verb::Forks { sandbox } => self.forks(caller, &sandbox).await,
            Verb::Ancestors { sandbox } => self.ancestors(caller, &sandbox).await,
            Verb::Archive { sandbox } => self.archive(caller, &sandbox).await,
            Verb::ListSnapshots
            | Verb::GetSnapshot { .. }
            | Verb::CreateSnapshot(_)
            | Verb::ActivateSnapshot { .. }
            | Verb::DeleteSnapshot { .. }
            | Verb::ListRegistries
            | Verb::GetRegistry { .. }
            | Verb::CreateRegistry(_)
            | Verb::UpdateRegistry { .. }
            | Verb::DeleteRegistry { .. }
            | Verb::ClusterStatus
            | Verb::CreateJoinToken { .. }
            | Verb::GrantPush
            | Verb::ListWarmPools
            | Verb::CreateWarmPool { .. }
            | Verb::ResizeWarmPool { .. }
            | Verb::DeleteWarmPool { .. }
            | Verb::RemoveNode { .. } => Err(VerbError::Internal("not a verb of a region".into())),
        }
    }

    async fn create(&self, caller: &Caller, create: CreateSandbox) -> Result<VerbAnswer, VerbError> {
        let (snapshot_name, snapshot) = match &create.build {
            Some(wish) => self.build(caller, wish).await?,
            None => self.snapshot(caller, create.snapshot.as_deref()).await?,
        };
        let used = snapshot.key(&snapshot_name);
        let is_news = snapshot.is_news(now_ms());
        let created = self.create_of(caller, create, snapshot_name, snapshot);
        tokio::pin!(created);
        tokio::select! {
            biased;
            created = &mut created => created,
            () = self.note_use(used), if is_news => created.await,
        }
    }

    async fn create_of(
        &self,
        caller: &Caller,
        create: CreateSandbox,
        snapshot_name: String,
        snapshot: SnapshotRecord,
    ) -> Result<VerbAnswer, VerbError> {
        let ordinal = self.group.read(|state| state.ordinal).ok_or_else(|| VerbError::Unavailable {
            message: format!("region {} is being founded", self.region),
            retry_after_s: 1,
        })?;
        let unbuilt = (snapshot.state != SnapshotState::Active).then_some(snapshot.id);
        let spec = spec_of(&create, snapshot_name, snapshot);
        let sandbox = |sandbox_id: SandboxId| NewSandbox {
            organization_id: caller.organization_id,
            name: create.name.clone().unwrap_or_else(|| sandbox_id.to_string()),
            labels: create.labels.clone(),
            public: create.public,
            intervals: Intervals {
                auto_stop_minutes: create.auto_stop_minutes.unwrap_or(AUTO_STOP_MINUTES),
                auto_pause_minutes: create.auto_pause_minutes.unwrap_or(0),
                auto_archive_minutes: create.auto_archive_minutes.unwrap_or(AUTO_ARCHIVE_MINUTES),
                auto_delete_minutes: create.auto_delete_minutes.unwrap_or(-1),
            },
            preview_token_hash: PreviewToken::derive(self.secret.reveal(), sandbox_id).hash(),
            node_id: self.peers.me(),
            spec: spec.clone(),
        };
        if let Some(snapshot_id) = unbuilt {
            return self.create_unbuilt(ordinal, snapshot_id, &sandbox).await;
        }
        if let Some(view) = self.claim(caller.organization_id, &spec, &sandbox).await? {
            return Ok(answer(view));
        }
        let sandbox_id = SandboxId::new(ordinal, rand::random());
        let new = sandbox(sandbox_id);
        let resources = new.spec.resources;
        self.place(resources, self.peers.me(), |node_id| RegionCommand::CreateSandbox {
            sandbox_id,
            sandbox: Box::new(NewSandbox { node_id, ..new.clone() }),
            now_ms: now_ms(),
        })
        .await?;
        self.made(sandbox_id).await
    }

    /// Answers at once: a build takes as long as it takes, and its log is there to be read.
    async fn create_unbuilt(
        &self,
        ordinal: RegionOrdinal,
        snapshot_id: uuid::Uuid,
        sandbox: impl Fn(SandboxId) -> NewSandbox,
    ) -> Result<VerbAnswer, VerbError> {
        let sandbox_id = SandboxId::new(ordinal, rand::random());
        let new = sandbox(sandbox_id);
        self.place(new.spec.resources, self.peers.me(), |node_id| RegionCommand::CreateUnbuilt {
            sandbox_id,
            snapshot_id,
            sandbox: Box::new(NewSandbox { node_id, ..new.clone() }),
            now_ms: now_ms(),
        })
        .await?;
        info!(%sandbox_id, %snapshot_id, "created, to be built");
        let view = self.settled(sandbox_id, Duration::ZERO, |_| true).await?;
        let mut view = view.ok_or_else(|| not_found(&sandbox_id))?;
        // However quick the builder was: SDKs show a build's log only when the create has answered that it is to come.
        if let Some(build) = &mut view.build {
            build.progress = BuildProgress::Waiting;
        }
        Ok(answer(view))
    }

    /// Waits for a new sandbox to run or fail.
    pub(super) async fn made(&self, sandbox_id: SandboxId) -> Result<VerbAnswer, VerbError> {
        let view = self.settled(sandbox_id, SETTLE_DEADLINE, |record| {
            matches!(record.phase, Phase::Running | Phase::Failed { .. })
        });
        let view = view
            .await?
            .ok_or_else(|| VerbError::Conflict(format!("sandbox {sandbox_id} was deleted meanwhile")))?;
        info!(%sandbox_id, node_id = %view.record.placement.node_id, phase = ?view.record.phase, "created");
        Ok(answer(view))
    }

    /// Proposes placements until one is accepted, `near` being better than others. The log judges; this only looks again
    /// when it said no.
    pub(super) async fn place(
        &self,
        resources: Resources,
        near: NodeId,
        command: impl Fn(NodeId) -> RegionCommand,
    ) -> Result<(), VerbError> {
        let mut refused = BTreeSet::new();
        for _ in 0..PLACE_ATTEMPTS_MAX {
            let request = PlaceRequest {
                resources,
                asking_node_id: near,
                refused_by: &refused,
                random: rand::random(),
            };
            let loads = self.peers.loads();
            let placed = self
                .cluster
                .read(|cluster| self.group.read(|region| place(cluster, region, &loads, &request)));
            let node_id = match placed {
                Ok(node_id) => node_id,
                Err(why_not) => {
                    let room = self.room_of_members(request.resources, &refused).await;
                    room.ok_or_else(|| VerbError::NoRoom(why_not.to_string()))?
                }
            };
            match self.group.propose(command(node_id)).await.map_err(unavailable)? {
                RegionOutcome::Applied => return Ok(()),
                RegionOutcome::Rejected(
                    rejection @ (RegionRejection::NodeNotReady
                    | RegionRejection::NoRoom
                    | RegionRejection::NodeUnknown),
                ) => {
                    warn!(%node_id, %rejection, "placement refused, looking again");
                    refused.insert(node_id);
                }
                RegionOutcome::Rejected(rejection) => return Err(rejected(rejection)),
            }
        }
        Err(VerbError::NoRoom(format!("{PLACE_ATTEMPTS_MAX} nodes refused the sandbox in turn; try again")))
    }

    async fn start(&self, caller: &Caller, sandbox: SandboxReference) -> Result<VerbAnswer, VerbError> {
        let view = self.found(caller, &sandbox).await?;
        if view.record.phase == Phase::Lost {
            return Err(VerbError::Unavailable {
                message: "the sandbox's node cannot be reached; it can be started when the node is back"
                    .into(),
                retry_after_s: 5,
            });
        }
        if view.record.desired == Desired::Archived {
            self.restore(&view).await?;
        } else if !(view.record.phase == Phase::Running && view.record.desired == Desired::Running) {
            match self.wish(view.sandbox_id, Desired::Running).await {
                Err(VerbError::NoRoom(_)) if self.room_of_members_for(&view).await => {
                    self.wish(view.sandbox_id, Desired::Running).await?;
                }
                wished => wished?,
            }
        }
        let settled = self
            .settled(view.sandbox_id, SETTLE_DEADLINE, |record| {
                matches!(record.phase, Phase::Running | Phase::Failed { .. } | Phase::Lost)
            })
            .await?;
        settled.map(answer).ok_or_else(|| not_found(&sandbox))
    }

    async fn stop(&self, caller: &Caller, sandbox: SandboxReference) -> Result<VerbAnswer, VerbError> {
        let view = self.found_to_change(caller, &sandbox).await?;
        self.wish(view.sandbox_id, Desired::Stopped).await?;
        let settled = self
            .settled(view.sandbox_id, STOP_DEADLINE, |record| {
                matches!(record.phase, Phase::Stopped | Phase::Failed { .. } | Phase::Lost)
            })
            .await?;
        // An ephemeral sandbox is gone once it is stopped: the caller sees it as it was, deleted.
        Ok(answer(settled.unwrap_or_else(|| deleted(view))))
    }

    async fn pause(&self, caller: &Caller, sandbox: SandboxReference) -> Result<VerbAnswer, VerbError> {
        let view = self.found_to_change(caller, &sandbox).await?;
        self.wish(view.sandbox_id, Desired::Paused).await?;
        let settled = self
            .settled(view.sandbox_id, STOP_DEADLINE, |record| {
                // Somebody may resume it before we have looked.
                record.desired != Desired::Paused
                    || matches!(record.phase, Phase::Paused | Phase::Failed { .. } | Phase::Lost)
            })
            .await?;
        settled.map(answer).ok_or_else(|| not_found(&sandbox))
    }

    /// What is left out is said again, so it must be the newest.
    async fn set_egress(
        &self,
        caller: &Caller,
        sandbox: SandboxReference,
        change: &Change<'_>,
    ) -> Result<VerbAnswer, VerbError> {
        let view = self.found(caller, &sandbox).await?;
        let sandbox_id = view.sandbox_id;
        let egress = change.applied_to(&view.record.spec.egress).map_err(bad_request)?;
        self.propose(RegionCommand::SetEgress { sandbox_id, egress, now_ms: now_ms() }).await?;
        self.find(caller, &sandbox_id.into()).map(answer)
    }

    async fn delete(&self, caller: &Caller, sandbox: SandboxReference) -> Result<VerbAnswer, VerbError> {
        let view = self.found_without_forks(caller, &sandbox).await?;
        self.wish(view.sandbox_id, Desired::Deleted).await?;
        info!(sandbox_id = %view.sandbox_id, "deleted");
        Ok(answer(deleted(view)))
    }

    pub(super) async fn wish(&self, sandbox_id: SandboxId, desired: Desired) -> Result<(), VerbError> {
        self.propose(RegionCommand::SetDesired { sandbox_id, desired, now_ms: now_ms() }).await
    }

    /// A change of the record that needs nothing from the owner.
    async fn change(
        &self,
        caller: &Caller,
        sandbox: SandboxReference,
        command: impl FnOnce(SandboxId, &SandboxRecord) -> RegionCommand,
    ) -> Result<VerbAnswer, VerbError> {
        let view = self.found_to_change(caller, &sandbox).await?;
        self.propose(command(view.sandbox_id, &view.record)).await?;
        self.find(caller, &SandboxReference::Id(view.sandbox_id)).map(answer)
    }

    async fn sign_preview(
        &self,
        caller: &Caller,
        sandbox: SandboxReference,
        port: u16,
        expires_in_s: u64,
    ) -> Result<VerbAnswer, VerbError> {
        let view = self.found_to_change(caller, &sandbox).await?;
        let token = SignedPreviewToken::from_random(view.sandbox_id.region(), rand::random());
        self.propose(RegionCommand::IssuePreviewToken {
            token_hash: token.hash(),
            sandbox_id: view.sandbox_id,
            port,
            expires_at_ms: now_ms() + expires_in_s * 1000,
        })
        .await?;
        Ok(VerbAnswer::SignedPreview { sandbox_id: view.sandbox_id, port, token: token.reveal().to_owned() })
    }

    fn all_know_signing_keys(&self) -> Result<(), VerbError> {
        if self.cluster.read(ClusterState::command_version) >= SIGNING_KEYS_SINCE {
            return Ok(());
        }
        Err(VerbError::Unavailable {
            message: "some nodes are of an older version that knows no signed links to files: update them"
                .into(),
            retry_after_s: 60,
        })
    }

    async fn rotate_signing_key(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
    ) -> Result<VerbAnswer, VerbError> {
        self.all_know_signing_keys()?;
        let view = self.found(caller, sandbox).await?;
        let version = view.record.signing_key_version.saturating_add(1);
        self.propose(RegionCommand::RotateSigningKey {
            sandbox_id: view.sandbox_id,
            version,
            now_ms: now_ms(),
        })
        .await?;
        Ok(self.signing_key(view.sandbox_id, version))
    }

    fn signing_key(&self, sandbox_id: SandboxId, version: u32) -> VerbAnswer {
        let key = signing_secret(&self.secret).key_of(sandbox_id, version);
        VerbAnswer::SigningKey(Password(key.reveal().to_owned()))
    }

    async fn issue_ssh(
        &self,
        caller: &Caller,
        sandbox: SandboxReference,
        expires_in_minutes: u64,
    ) -> Result<VerbAnswer, VerbError> {
        if !(1..=SSH_EXPIRY_MINUTES_MAX).contains(&expires_in_minutes) {
            return Err(VerbError::BadRequest(format!(
                "expiresInMinutes must be 1 to {SSH_EXPIRY_MINUTES_MAX}"
            )));
        }
        let view = self.found_to_change(caller, &sandbox).await?;
        let token = SshToken::from_random(view.sandbox_id.region(), rand::random());
        let created_at_ms = now_ms();
        let expires_at_ms = created_at_ms + expires_in_minutes * 60_000;
        self.propose(RegionCommand::IssueSshToken {
            token_hash: token.hash(),
            sandbox_id: view.sandbox_id,
            expires_at_ms,
            now_ms: created_at_ms,
        })
        .await?;
        Ok(VerbAnswer::SshAccess {
            id: uuid::Uuid::new_v4(),
            sandbox_id: view.sandbox_id,
            token: token.reveal().to_owned(),
            created_at_ms,
            expires_at_ms,
        })
    }

    /// A connection is use, and its owner sees it: there is no other way to say it.
    async fn touch(&self, caller: &Caller, sandbox: SandboxReference) -> Result<VerbAnswer, VerbError> {
        let view = self.found(caller, &sandbox).await?;
        let facts =
            self.group.read(|state| state.facts(view.sandbox_id)).ok_or_else(|| not_found(&sandbox))?;
        let credential = Credential::Caller(caller.clone());
        let authorized =
            authorize(&credential, &facts, Target::Daemon, now_ms()).map_err(|_| not_found(&sandbox))?;
        match self.dial.dial(&authorized, &RequestId::from_random(rand::random())).await {
            // What does not run cannot be idle.
            Ok(_) | Err(DialError::NotRunning { .. }) => Ok(VerbAnswer::Done),
            Err(error) => Err(VerbError::Unavailable { message: error.to_string(), retry_after_s: 1 }),
        }
    }

    async fn validate_ssh(&self, caller: &Caller, token: &str) -> Result<VerbAnswer, VerbError> {
        let Ok(token) = token.parse::<SshToken>() else {
            return Ok(VerbAnswer::SshValidity { sandbox_id: None });
        };
        self.linearize().await?;
        let sandbox_id = self.group.read(|state| {
            let grant = state.ssh_grant(token.hash(), now_ms())?;
            let record = state.sandboxes.get(&grant.sandbox_id)?;
            (record.organization_id == caller.organization_id).then_some(grant.sandbox_id)
        });
        Ok(VerbAnswer::SshValidity { sandbox_id })
    }

    fn list(&self, caller: &Caller, list: ListSandboxes) -> Result<VerbAnswer, VerbError> {
        let after = list.cursor.as_deref().map(str::parse::<Cursor>).transpose().map_err(bad_request)?;
        let filter = SandboxFilter {
            id_prefix: list.id_prefix,
            name_prefix: list.name_prefix,
            labels: list.labels,
            snapshots: list.snapshots,
            with_deleted: false,
        };
        // A state that this system does not have matches nothing.
        let any_state = list.states.is_empty();
        let states: BTreeSet<SandboxState> =
            list.states.iter().filter_map(|name| state_named(name)).collect();
        // The catalogue's lock always comes first.
        let (items, next_cursor) = self.cluster.read(|cluster| {
            let wanted = |sandbox_id, record: &SandboxRecord| {
                filter.matches(sandbox_id, record)
                    && (any_state || states.contains(&public_state(record, progress(cluster, record))))
            };
            self.group.read(|state| {
                let page = state.list(caller.organization_id, wanted, after, list.limit as usize);
                let items = page
                    .items
                    .into_iter()
                    .map(|(sandbox_id, record)| self.view(sandbox_id, record))
                    .collect();
                (items, page.next.map(|next| next.to_string()))
            })
        });
        Ok(VerbAnswer::Page(SandboxPage { items, next_cursor, unreachable_regions: Vec::new() }))
    }

    /// One that a sandbox can be made of now, here.
    async fn snapshot(
        &self,
        caller: &Caller,
        name: Option<&str>,
    ) -> Result<(String, SnapshotRecord), VerbError> {
        let name = name.unwrap_or(&self.default_snapshot);
        let look = || {
            self.cluster.read(|state| {
                let (name, snapshot) = state.snapshot(caller.organization_id, name)?;
                Some((name.clone(), snapshot.clone()))
            })
        };
        let why_not = |(name, snapshot): &(String, SnapshotRecord)| snapshot.why_unusable(name, &self.region);
        if let Some(found) = look().filter(|found| why_not(found).is_none()) {
            return Ok(found);
        }
        // It may have been made or activated on another node a moment ago.
        self.cluster.linearize().await.map_err(unavailable)?;
        let found = look().ok_or_else(|| VerbError::NotFound(format!("Snapshot {name} not found")))?;
        match why_not(&found) {
            None => Ok(found),
            Some(why_not) => Err(VerbError::BadRequest(why_not)),
        }
    }

    /// Beside the create, which does not wait for it.
    async fn note_use(&self, key: SnapshotKey) {
        let touch = ClusterCommand::TouchSnapshot { key, now_ms: now_ms() };
        if let Err(error) = self.cluster.propose(touch).await {
            debug!(%error, "a snapshot's use is not noted");
        }
    }

    pub(super) async fn found(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
    ) -> Result<SandboxView, VerbError> {
        self.linearize().await?;
        self.find(caller, sandbox)
    }

    /// For a change that does not depend on what the record says now: the log judges it. What was made on another node a
    /// moment ago may be missing here, and a name may have been given to another sandbox since; an id never is.
    async fn found_to_change(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
    ) -> Result<SandboxView, VerbError> {
        if let SandboxReference::Id(_) = sandbox
            && let Ok(view) = self.find(caller, sandbox)
        {
            return Ok(view);
        }
        self.found(caller, sandbox).await
    }

    pub(super) fn find(&self, caller: &Caller, sandbox: &SandboxReference) -> Result<SandboxView, VerbError> {
        self.group
            .read(|state| {
                let sandbox_id = match sandbox {
                    SandboxReference::Id(id) => *id,
                    SandboxReference::Name(name) => *state.names.get(&caller.organization_id)?.get(name)?,
                };
                let record = state.sandboxes.get(&sandbox_id)?;
                let theirs = record.organization_id == caller.organization_id
                    && record.desired != Desired::Deleted
                    && record.member_of().is_none();
                theirs.then(|| self.view(sandbox_id, record))
            })
            .map(|view| self.with_build(view))
            .ok_or_else(|| not_found(sandbox))
    }

    /// Waits in the local replica, which shows what this node has proposed; on the deadline the sandbox is answered as it is by then. `None`: it is gone.
    pub(super) async fn settled(
        &self,
        sandbox_id: SandboxId,
        deadline: Duration,
        settled: impl Fn(&SandboxRecord) -> bool,
    ) -> Result<Option<SandboxView>, VerbError> {
        let until = Instant::now() + deadline;
        let mut changes = self.group.changes();
        loop {
            changes.borrow_and_update();
            let seen = self.group.read(|state| {
                let record = state.sandboxes.get(&sandbox_id)?;
                (record.desired != Desired::Deleted).then(|| (settled(record), self.view(sandbox_id, record)))
            });
            match seen.map(|(is_settled, view)| (is_settled, self.with_build(view))) {
                None => return Ok(None),
                Some((true, view)) => return Ok(Some(view)),
                Some((false, view)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    let changed = tokio::select! {
                        changed = tokio::time::timeout(left, changes.changed()) => changed,
                        _ = self.draining.cancelled() => return Ok(Some(view)),
                    };
                    match changed {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => {
                            return Err(VerbError::Unavailable {
                                message: "node is stopping".into(),
                                retry_after_s: 1,
                            });
                        }
                        Err(_) => return Ok(Some(view)),
                    }
                }
            }
        }
    }

    pub(super) fn view(&self, sandbox_id: SandboxId, record: &SandboxRecord) -> SandboxView {
        SandboxView {
            sandbox_id,
            region: self.region.clone(),
            record: record.clone(),
            last_activity_at_ms: record.updated_at_ms,
            build: None,
        }
    }

    pub(super) async fn propose(&self, command: RegionCommand) -> Result<(), VerbError> {
        match self.group.propose(command).await.map_err(unavailable)? {
            RegionOutcome::Applied => Ok(()),
            RegionOutcome::Rejected(rejection) => Err(rejected(rejection)),
        }
    }

    async fn linearize(&self) -> Result<(), VerbError> {
        self.group.linearize().await.map_err(unavailable)
    }
}

/// What a create that says nothing but the snapshot gets.
pub fn spec_of_default(snapshot_name: String, snapshot: SnapshotRecord) -> SandboxSpec {
    spec_of(&CreateSandbox::default(), snapshot_name, snapshot)
}

fn spec_of(create: &CreateSandbox, snapshot_name: String, snapshot: SnapshotRecord) -> SandboxSpec {
    let default = snapshot.default_resources;
    SandboxSpec {
        snapshot: snapshot_name,
        image: snapshot.image,
        user: create.user.clone().unwrap_or(snapshot.default_user),
        env: create.env.clone(),
        entrypoint: snapshot.entrypoint,
        resources: Resources {
            cpu: create.cpu.unwrap_or(default.cpu),
            memory_gib: create.memory_gib.unwrap_or(default.memory_gib),
            disk_gib: create.disk_gib.unwrap_or(default.disk_gib),
        },
        egress: create.egress.clone(),
        allow_sudo: snapshot.allow_sudo,
    }
}

fn changed_intervals(record: &SandboxRecord, change: IntervalChange) -> Intervals {
    let mut intervals = Intervals {
        auto_stop_minutes: record.auto_stop_minutes,
        auto_pause_minutes: record.auto_pause_minutes,
        auto_archive_minutes: record.auto_archive_minutes,
        auto_delete_minutes: record.auto_delete_minutes,
    };
    match change {
        IntervalChange::Stop(minutes) => intervals.auto_stop_minutes = minutes,
        IntervalChange::Pause(minutes) => intervals.auto_pause_minutes = minutes,
        IntervalChange::Archive(minutes) => intervals.auto_archive_minutes = minutes,
        IntervalChange::Delete(minutes) => intervals.auto_delete_minutes = minutes,
    }
    intervals
}

fn state_named(name: &str) -> Option<SandboxState> {
    SandboxState::deserialize(IntoDeserializer::<serde::de::value::Error>::into_deserializer(name)).ok()
}

fn deleted(mut view: SandboxView) -> SandboxView {
    view.record.desired = Desired::Deleted;
    view
}

pub(super) fn answer(view: SandboxView) -> VerbAnswer {
    VerbAnswer::Sandbox(Box::new(view))
}

fn bad_request(error: impl std::fmt::Display) -> VerbError {
    VerbError::BadRequest(error.to_string())
}

pub fn unavailable(error: GroupError) -> VerbError {
    let message = error.to_string();
    match error {
        // The same one will never fit.
        GroupError::TooLarge { .. } => VerbError::BadRequest(message),
        GroupError::NoLeader { .. } | GroupError::Overloaded { .. } | GroupError::Stopped { .. } => {
            VerbError::Unavailable { message, retry_after_s: 1 }
        }
    }
}

pub(super) fn rejected(rejection: RegionRejection) -> VerbError {
    let message = rejection.to_string();
    match rejection {
        RegionRejection::NotFound => VerbError::NotFound(message),
        RegionRejection::NameTaken(_) | RegionRejection::Deleting | RegionRejection::TooManyTokens(_) => {
            VerbError::Conflict(message)
        }
        RegionRejection::NotRunning
        | RegionRejection::NotStopped
        | RegionRejection::Ephemeral
        | RegionRejection::Archived
        | RegionRejection::NotBuilt
        | RegionRejection::NoDisk => VerbError::BadRequest(message),
        RegionRejection::InTransition
        | RegionRejection::NotArchived
        | RegionRejection::StaleSigningKey { .. }
        | RegionRejection::TooManyCaptures(_) => VerbError::Conflict(message),
        RegionRejection::NoRoom | RegionRejection::NodeNotReady => VerbError::NoRoom(message),
        other => VerbError::Internal(other.to_string()),
    }
}
