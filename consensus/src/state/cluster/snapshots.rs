//! The snapshot catalogue: what sandboxes can be made from, and who is making it ready.
//!
//! ```text
//!          claim                 ready                 deactivate
//! Pending ───────▶ Pulling ────────────────▶ Active ◀────────────▶ Inactive
//!            └───▶ Building      failed │             activate
//!                   ▲   │               ▼
//!                   └───┘      Error · BuildFailed ──retry──▶ Pending
//!              claim, attempt + 1
//! ```
//! A claim names the attempt that it begins, and only the newest attempt is listened to: a node that was thought dead and
//! comes back with a result is refused.

use std::collections::BTreeMap;
use std::fmt;

use atoll_api::ids::{NodeId, OrganizationId, RegionName, SandboxId};
use atoll_api::sandbox::Resources;
use serde::{Deserialize, Serialize};

use super::{ClusterRejection, ClusterState, Judged};

/// Of one organization, those that were made for a single sandbox's Dockerfile not counted.
pub const SNAPSHOTS_PER_ORGANIZATION_MAX: usize = 1_000;
/// Of one organization. Above it the one that was not used for longest is forgotten.
pub const UNLISTED_PER_ORGANIZATION_MAX: usize = 200;
/// A use is noted this often at the most.
pub const USE_RESOLUTION_MS: u64 = 60 * 60 * 1_000;

/// Those of one organization, by name.
pub type OwnSnapshots = BTreeMap<String, SnapshotRecord>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    pub id: uuid::Uuid,
    /// What a node's store or engine resolves, for ever the same image. Empty until it is known.
    pub image: String,
    pub entrypoint: Vec<String>,
    /// Empty until it is known: the image's own.
    pub default_user: String,
    pub default_resources: Resources,
    pub allow_sudo: bool,
    pub created_at_ms: u64,
    #[serde(default)]
    pub source: SnapshotSource,
    #[serde(default)]
    pub listing: Listing,
    #[serde(default)]
    pub state: SnapshotState,
    /// Whose it is; `None` is everybody's.
    #[serde(default)]
    pub organization_id: Option<OrganizationId>,
    /// Where it may be used; empty: everywhere.
    #[serde(default)]
    pub regions: Vec<RegionName>,
    /// The region whose nodes make it ready.
    #[serde(default)]
    pub made_in: Option<RegionName>,
    /// Of its layers as they are stored.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    #[serde(default)]
    pub updated_at_ms: u64,
    /// Not more exact than [`USE_RESOLUTION_MS`].
    #[serde(default)]
    pub last_used_at_ms: Option<u64>,
    /// How often somebody has begun to make it ready.
    #[serde(default)]
    pub attempt: u64,
    /// How many of these there were when somebody last asked for another try.
    #[serde(default)]
    pub attempts_before: u64,
    /// Who did so last; it has the log.
    #[serde(default)]
    pub worker: Option<NodeId>,
}

/// What it is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotSource {
    /// An image that nodes have already.
    #[default]
    Given,
    /// As the user wrote it.
    Image {
        name: String,
    },
    Build {
        dockerfile: String,
        #[serde(default)]
        context_hashes: Vec<String>,
    },
    Sandbox {
        sandbox_id: SandboxId,
    },
}

/// Whether lists show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listing {
    #[default]
    Listed,
    /// Made for sandboxes with this very Dockerfile, and named by its content.
    Unlisted,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotState {
    Pending,
    Pulling,
    Building,
    /// Its sandbox's layer is being taken.
    Snapshotting,
    #[default]
    Active,
    Inactive,
    Error {
        reason: String,
    },
    BuildFailed {
        reason: String,
    },
}

impl SnapshotState {
    /// In the public API's words.
    pub fn name(&self) -> &'static str {
        match self {
            SnapshotState::Pending => "pending",
            SnapshotState::Pulling => "pulling",
            SnapshotState::Building => "building",
            SnapshotState::Snapshotting => "snapshotting",
            SnapshotState::Active => "active",
            SnapshotState::Inactive => "inactive",
            SnapshotState::Error { .. } => "error",
            SnapshotState::BuildFailed { .. } => "build_failed",
        }
    }

    pub fn is_in_work(&self) -> bool {
        matches!(self, SnapshotState::Pulling | SnapshotState::Building | SnapshotState::Snapshotting)
    }

    pub fn reason(&self) -> Option<&str> {
        match self {
            SnapshotState::Error { reason } | SnapshotState::BuildFailed { reason } => Some(reason),
            _ => None,
        }
    }
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names one snapshot, and not another one that has got its name since.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotKey {
    pub organization_id: Option<OrganizationId>,
    pub name: String,
    pub id: uuid::Uuid,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotReport {
    Ready {
        image: String,
        size_bytes: u64,
        /// Of the image; what the user gave when the snapshot was made stays.
        user: String,
        entrypoint: Vec<String>,
    },
    Failed {
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    Active,
    Inactive,
}

impl SnapshotRecord {
    /// One of an image that nodes have: at once active.
    pub fn given(id: uuid::Uuid, image: String, default_resources: Resources, now_ms: u64) -> SnapshotRecord {
        SnapshotRecord {
            id,
            image,
            entrypoint: Vec::new(),
            default_user: String::new(),
            default_resources,
            allow_sudo: true,
            created_at_ms: now_ms,
            source: SnapshotSource::Given,
            listing: Listing::Listed,
            state: SnapshotState::Active,
            organization_id: None,
            regions: Vec::new(),
            made_in: None,
            size_bytes: None,
            updated_at_ms: now_ms,
            last_used_at_ms: None,
            attempt: 0,
            attempts_before: 0,
            worker: None,
        }
    }

    /// One that somebody has yet to make ready.
    pub fn pending(
        id: uuid::Uuid,
        organization_id: OrganizationId,
        source: SnapshotSource,
        default_resources: Resources,
        now_ms: u64,
    ) -> SnapshotRecord {
        SnapshotRecord {
            source,
            state: SnapshotState::Pending,
            organization_id: Some(organization_id),
            ..SnapshotRecord::given(id, String::new(), default_resources, now_ms)
        }
    }

    pub fn key(&self, name: &str) -> SnapshotKey {
        SnapshotKey { organization_id: self.organization_id, name: name.to_owned(), id: self.id }
    }

    fn is_usable_in(&self, region: &RegionName) -> bool {
        self.regions.is_empty() || self.regions.contains(region)
    }

    /// Why no sandbox can be made of it there now.
    pub fn why_unusable(&self, name: &str, region: &RegionName) -> Option<String> {
        match &self.state {
            SnapshotState::Active if self.is_usable_in(region) => None,
            SnapshotState::Active => {
                let regions: Vec<&str> = self.regions.iter().map(RegionName::as_str).collect();
                Some(format!("Snapshot {name} is available in {} only, not in {region}", regions.join(", ")))
            }
            SnapshotState::Inactive => Some(format!("Snapshot {name} is inactive: activate it first")),
            SnapshotState::Error { reason } | SnapshotState::BuildFailed { reason } => {
                Some(format!("Snapshot {name} is in state {}: {reason}", self.state))
            }
            state => Some(format!("Snapshot {name} is {state}: wait until it is active")),
        }
    }

    /// Whether a use at this time is noted.
    pub fn is_news(&self, now_ms: u64) -> bool {
        self.last_used_at_ms.is_none_or(|used_ms| now_ms >= used_ms.saturating_add(USE_RESOLUTION_MS))
    }

    /// `pulling`, `building` or `snapshotting`.
    fn work(&self) -> SnapshotState {
        match self.source {
            SnapshotSource::Given | SnapshotSource::Image { .. } => SnapshotState::Pulling,
            SnapshotSource::Build { .. } => SnapshotState::Building,
            SnapshotSource::Sandbox { .. } => SnapshotState::Snapshotting,
        }
    }

    fn failed(&self, reason: String) -> SnapshotState {
        match self.source {
            SnapshotSource::Build { .. } => SnapshotState::BuildFailed { reason },
            SnapshotSource::Given | SnapshotSource::Image { .. } | SnapshotSource::Sandbox { .. } => {
                SnapshotState::Error { reason }
            }
        }
    }

    /// When it was last of use to anybody.
    fn last_used_ms(&self) -> u64 {
        self.last_used_at_ms.unwrap_or(self.created_at_ms)
    }
}

impl ClusterState {
    pub(super) fn create_snapshot(&mut self, name: String, snapshot: SnapshotRecord) -> Judged {
        let Some(organization_id) = snapshot.organization_id else {
            return Err(ClusterRejection::NotFound);
        };
        if !self.organizations.contains_key(&organization_id) {
            return Err(ClusterRejection::NotFound);
        }
        let own = self.own_snapshots.get(&organization_id);
        match own.and_then(|own| own.get(&name)) {
            Some(there) if there.id == snapshot.id => return Ok(()),
            Some(_) => return Err(ClusterRejection::SnapshotNameTaken(name)),
            None if self.snapshots.contains_key(&name) => {
                return Err(ClusterRejection::SnapshotNameTaken(name));
            }
            None => {}
        }
        let count = |listing| own.map_or(0, |own| own.values().filter(|s| s.listing == listing).count());
        match snapshot.listing {
            Listing::Listed if count(Listing::Listed) >= SNAPSHOTS_PER_ORGANIZATION_MAX => {
                return Err(ClusterRejection::TooManySnapshots(SNAPSHOTS_PER_ORGANIZATION_MAX as u64));
            }
            Listing::Unlisted if count(Listing::Unlisted) >= UNLISTED_PER_ORGANIZATION_MAX => {
                let oldest = own.and_then(least_used_unlisted);
                let oldest =
                    oldest.ok_or(ClusterRejection::TooManySnapshots(UNLISTED_PER_ORGANIZATION_MAX as u64))?;
                self.forget_own_snapshot(organization_id, &oldest);
            }
            Listing::Listed | Listing::Unlisted => {}
        }
        self.own_snapshots.entry(organization_id).or_default().insert(name, snapshot);
        Ok(())
    }

    pub(super) fn claim_snapshot(
        &mut self,
        key: &SnapshotKey,
        attempt: u64,
        node_id: NodeId,
        now_ms: u64,
    ) -> Judged {
        if !self.nodes.contains_key(&node_id) {
            return Err(ClusterRejection::NodeUnknown);
        }
        let snapshot = self.snapshot_mut(key)?;
        let is_open = snapshot.state == SnapshotState::Pending || snapshot.state.is_in_work();
        if is_open && snapshot.attempt == attempt && snapshot.worker == Some(node_id) && attempt > 0 {
            return Ok(());
        }
        if !is_open {
            return Err(ClusterRejection::SnapshotIs(snapshot.state.name().to_owned()));
        }
        if snapshot.attempt.checked_add(1) != Some(attempt) {
            return Err(ClusterRejection::StaleAttempt { current: snapshot.attempt });
        }
        snapshot.state = snapshot.work();
        snapshot.attempt = attempt;
        snapshot.worker = Some(node_id);
        snapshot.updated_at_ms = now_ms;
        Ok(())
    }

    pub(super) fn report_snapshot(
        &mut self,
        key: &SnapshotKey,
        attempt: u64,
        report: SnapshotReport,
        now_ms: u64,
    ) -> Judged {
        let snapshot = self.snapshot_mut(key)?;
        if snapshot.attempt != attempt {
            return Err(ClusterRejection::StaleAttempt { current: snapshot.attempt });
        }
        let is_repeated = match &report {
            SnapshotReport::Ready { image, .. } => {
                snapshot.state == SnapshotState::Active && snapshot.image == *image
            }
            SnapshotReport::Failed { reason } => snapshot.state.reason() == Some(reason),
        };
        if is_repeated {
            return Ok(());
        }
        if !snapshot.state.is_in_work() {
            return Err(ClusterRejection::SnapshotIs(snapshot.state.name().to_owned()));
        }
        match report {
            SnapshotReport::Ready { image, size_bytes, user, entrypoint } => {
                snapshot.state = SnapshotState::Active;
                snapshot.image = image;
                snapshot.size_bytes = Some(size_bytes);
                if snapshot.default_user.is_empty() {
                    snapshot.default_user = user;
                }
                if snapshot.entrypoint.is_empty() {
                    snapshot.entrypoint = entrypoint;
                }
            }
            SnapshotReport::Failed { reason } => snapshot.state = snapshot.failed(reason),
        }
        snapshot.updated_at_ms = now_ms;
        Ok(())
    }

    pub(super) fn retry_snapshot(&mut self, key: &SnapshotKey, attempt: u64, now_ms: u64) -> Judged {
        let snapshot = self.snapshot_mut(key)?;
        if snapshot.state == SnapshotState::Pending && snapshot.attempt == attempt {
            return Ok(());
        }
        if snapshot.attempt != attempt {
            return Err(ClusterRejection::StaleAttempt { current: snapshot.attempt });
        }
        if snapshot.state.reason().is_none() {
            return Err(ClusterRejection::SnapshotIs(snapshot.state.name().to_owned()));
        }
        snapshot.state = SnapshotState::Pending;
        snapshot.attempts_before = attempt;
        snapshot.updated_at_ms = now_ms;
        Ok(())
    }

    pub(super) fn activate_snapshot(
        &mut self,
        key: &SnapshotKey,
        activation: Activation,
        now_ms: u64,
    ) -> Judged {
        let snapshot = self.snapshot_mut(key)?;
        let wanted = match activation {
            Activation::Active => SnapshotState::Active,
            Activation::Inactive => SnapshotState::Inactive,
        };
        if snapshot.state == wanted {
            return Ok(());
        }
        if !matches!(snapshot.state, SnapshotState::Active | SnapshotState::Inactive) {
            return Err(ClusterRejection::SnapshotIs(snapshot.state.name().to_owned()));
        }
        snapshot.state = wanted;
        snapshot.updated_at_ms = now_ms;
        Ok(())
    }

    pub(super) fn touch_snapshot(&mut self, key: &SnapshotKey, now_ms: u64) -> Judged {
        let snapshot = self.snapshot_mut(key)?;
        if snapshot.is_news(now_ms) {
            snapshot.last_used_at_ms = Some(now_ms);
        }
        Ok(())
    }

    /// Applied also when there is none.
    pub(super) fn remove_snapshot(&mut self, key: &SnapshotKey) -> Judged {
        if self.snapshot_mut(key).is_ok() {
            match key.organization_id {
                Some(organization_id) => self.forget_own_snapshot(organization_id, &key.name),
                None => {
                    self.snapshots.remove(&key.name);
                }
            }
        }
        Ok(())
    }

    fn forget_own_snapshot(&mut self, organization_id: OrganizationId, name: &str) {
        if let Some(own) = self.own_snapshots.get_mut(&organization_id) {
            own.remove(name);
            if own.is_empty() {
                self.own_snapshots.remove(&organization_id);
            }
        }
    }

    fn snapshot_mut(&mut self, key: &SnapshotKey) -> Result<&mut SnapshotRecord, ClusterRejection> {
        let all = match key.organization_id {
            Some(organization_id) => self.own_snapshots.get_mut(&organization_id),
            None => Some(&mut self.snapshots),
        };
        let found = all.and_then(|all| all.get_mut(&key.name));
        found.filter(|snapshot| snapshot.id == key.id).ok_or(ClusterRejection::NotFound)
    }

    /// As this organization sees it: its own, else everybody's.
    pub fn snapshot_named(&self, organization_id: OrganizationId, name: &str) -> Option<&SnapshotRecord> {
        let own = self.own_snapshots.get(&organization_id).and_then(|own| own.get(name));
        own.or_else(|| self.snapshots.get(name))
    }

    /// By name or by id, as this organization sees it: its own first, then everybody's.
    pub fn snapshot(
        &self,
        organization_id: OrganizationId,
        name_or_id: &str,
    ) -> Option<(&String, &SnapshotRecord)> {
        let own = self.own_snapshots.get(&organization_id);
        let all = || own.into_iter().chain([&self.snapshots]);
        if let Some(found) = all().find_map(|all| all.get_key_value(name_or_id)) {
            return Some(found);
        }
        let id: uuid::Uuid = name_or_id.parse().ok()?;
        all().find_map(|all| all.iter().find(|(_, snapshot)| snapshot.id == id))
    }

    /// Its own and everybody's, also unlisted ones.
    pub fn snapshots_of(
        &self,
        organization_id: OrganizationId,
    ) -> impl Iterator<Item = (&String, &SnapshotRecord)> {
        self.own_snapshots.get(&organization_id).into_iter().chain([&self.snapshots]).flatten()
    }

    /// All there are.
    pub fn all_snapshots(&self) -> impl Iterator<Item = (&String, &SnapshotRecord)> {
        self.own_snapshots.values().chain([&self.snapshots]).flatten()
    }

    /// The one that a key names.
    pub fn snapshot_by_key(&self, key: &SnapshotKey) -> Option<&SnapshotRecord> {
        let all = match key.organization_id {
            Some(organization_id) => self.own_snapshots.get(&organization_id)?,
            None => &self.snapshots,
        };
        all.get(&key.name).filter(|snapshot| snapshot.id == key.id)
    }
}

/// What is in work is of use to whoever waits for it.
fn least_used_unlisted(own: &OwnSnapshots) -> Option<String> {
    let forgettable = |(_, snapshot): &(&String, &SnapshotRecord)| {
        snapshot.listing == Listing::Unlisted
            && !snapshot.state.is_in_work()
            && snapshot.state != SnapshotState::Pending
    };
    let oldest = own.iter().filter(forgettable).min_by_key(|(name, s)| (s.last_used_ms(), (*name).clone()));
    oldest.map(|(name, _)| name.clone())
}
