//! From what the inside knows to what the public API shows.

use atoll_api::ids::{Generation, RegionName};
use atoll_api::rest::{
    BuildInfo, BuildProgress, Sandbox, SandboxState, SnapshotDto, SnapshotState, Start, Timestamp, WarmPool,
};
use atoll_api::sandbox::{Desired, Phase};
use atoll_consensus::state::cluster::{SnapshotRecord, SnapshotSource, SnapshotState as State};
use atoll_consensus::state::region::{Disk, SandboxRecord};
use http::HeaderValue;

use super::door::Door;
use crate::control::build::is_build;
use crate::control::verb::{BuildView, SandboxView, WarmPoolView};

/// Names regions whose sandboxes are missing from a list.
pub(super) const UNREACHABLE_REGIONS_HEADER: &str = "x-atoll-unreachable-regions";
/// What a browser may let a page read.
pub(super) const EXPOSED_HEADERS: &str = "X-Request-Id, X-Atoll-Unreachable-Regions, Retry-After";

/// The one class there is.
pub(super) const SANDBOX_CLASS: &str = "container";

/// The public state of a sandbox, which is also what a list filters by.
/// `progress` is that of the build that it waits for, if it waits for one.
pub fn public_state(record: &SandboxRecord, progress: BuildProgress) -> SandboxState {
    // The wish is still the first one, that of the create, and it has not moved.
    let untouched = record.desired_version <= 1 && record.placement.generation == Generation::FIRST;
    let start = if record.is_disk_awaited() && record.build.is_some() {
        Start::OfBuild(progress)
    } else if record.is_disk_awaited() {
        Start::OfFork
    } else if record.restored_version == record.desired_version {
        Start::FromArchive
    } else if untouched {
        Start::First
    } else {
        Start::Again
    };
    match SandboxState::of(record.desired, &record.phase, start) {
        SandboxState::Started | SandboxState::Stopped | SandboxState::Paused
            if record.is_being_snapshotted() =>
        {
            SandboxState::Snapshotting
        }
        state => state,
    }
}

/// Of a sandbox as a verb has answered it.
pub fn state_of(view: &SandboxView) -> SandboxState {
    let progress = view.build.as_ref().map_or(BuildProgress::Waiting, |build| build.progress);
    public_state(&view.record, progress)
}

fn build_info(build: BuildView) -> BuildInfo {
    BuildInfo {
        dockerfile_content: build.dockerfile,
        context_hashes: build.context_hashes,
        created_at: Timestamp(build.created_at_ms),
        updated_at: Timestamp(build.updated_at_ms),
        snapshot_ref: build.image,
    }
}

/// How far its archive is, since when, and how many nodes hold it.
fn backup(record: &SandboxRecord) -> (&'static str, Option<Timestamp>, Option<u32>) {
    match (record.desired, &record.disk) {
        (Desired::Archived, Disk::Checkpoint(checkpoint)) if !record.is_archive_awaited() => {
            let copies = u32::try_from(checkpoint.holders.len()).unwrap_or(u32::MAX);
            ("Completed", Some(Timestamp(checkpoint.taken_at_ms)), Some(copies))
        }
        (Desired::Archived, _) => ("InProgress", None, None),
        _ => ("None", None, None),
    }
}

pub(super) fn sandbox(view: SandboxView, door: &Door) -> Sandbox {
    let state = state_of(&view);
    let SandboxView { sandbox_id, region, record, last_activity_at_ms, build } = view;
    let (backup_state, backup_created_at, backup_copies) = backup(&record);
    let (error_reason, recoverable) = match &record.phase {
        _ if !matches!(state, SandboxState::Error | SandboxState::BuildFailed) => (None, None),
        Phase::Lost => (
            Some(
                "the node that runs this sandbox cannot be reached; it goes on when the node returns"
                    .to_owned(),
            ),
            Some(true),
        ),
        Phase::Failed { reason } => (Some(reason.clone()), Some(false)),
        _ => (None, None),
    };
    Sandbox {
        id: sandbox_id,
        organization_id: record.organization_id,
        name: record.name,
        snapshot: Some(record.spec.snapshot).filter(|name| !is_build(name)),
        user: record.spec.user,
        env: record.spec.env,
        labels: record.labels,
        public: record.public,
        network_block_all: record.spec.egress.block_all,
        network_allow_list: listed(&record.spec.egress.cidrs),
        domain_allow_list: listed(&record.spec.egress.domains),
        kvm: false,
        target: region.as_str().to_owned(),
        cpu: record.spec.resources.cpu,
        gpu: 0,
        memory: record.spec.resources.memory_gib,
        disk: record.spec.resources.disk_gib,
        state,
        desired_state: record.desired.into(),
        error_reason,
        recoverable,
        warm_pool_id: record.warm.map(|warm| warm.pool_id.0),
        backup_state: backup_state.to_owned(),
        backup_created_at,
        backup_copies,
        parent_id: record.parent,
        build_info: build.map(build_info),
        auto_stop_interval: record.auto_stop_minutes,
        auto_pause_interval: record.auto_pause_minutes,
        auto_archive_interval: record.auto_archive_minutes,
        auto_delete_interval: record.auto_delete_minutes,
        created_at: Timestamp(record.created_at_ms),
        updated_at: Timestamp(record.updated_at_ms),
        last_activity_at: Timestamp(last_activity_at_ms.max(record.created_at_ms)),
        sandbox_class: SANDBOX_CLASS.to_owned(),
        runner_id: record.placement.node_id.to_string(),
        toolbox_proxy_url: door.toolbox(),
    }
}

fn listed(entries: &[String]) -> Option<String> {
    (!entries.is_empty()).then(|| entries.join(","))
}

pub fn snapshot_state(state: &State) -> SnapshotState {
    match state {
        State::Pending => SnapshotState::Pending,
        State::Pulling => SnapshotState::Pulling,
        State::Building => SnapshotState::Building,
        State::Snapshotting => SnapshotState::Snapshotting,
        State::Active => SnapshotState::Active,
        State::Inactive => SnapshotState::Inactive,
        State::Error { .. } => SnapshotState::Error,
        State::BuildFailed { .. } => SnapshotState::BuildFailed,
    }
}

pub(super) fn snapshot(name: String, record: SnapshotRecord) -> SnapshotDto {
    let created_at = Timestamp(record.created_at_ms);
    let updated_at = Timestamp(record.updated_at_ms.max(record.created_at_ms));
    let reference = Some(record.image).filter(|image| !image.is_empty());
    let (image_name, build_info, source_sandbox_id) = match record.source {
        SnapshotSource::Given => (reference.clone(), None, None),
        SnapshotSource::Image { name } => (Some(name), None, None),
        SnapshotSource::Build { dockerfile, context_hashes } => {
            let build_info = BuildInfo {
                dockerfile_content: dockerfile,
                context_hashes,
                created_at,
                updated_at,
                snapshot_ref: reference.clone().unwrap_or_default(),
            };
            (None, Some(build_info), None)
        }
        SnapshotSource::Sandbox { sandbox_id } => (None, None, Some(sandbox_id.to_string())),
    };
    SnapshotDto {
        id: record.id,
        organization_id: record.organization_id,
        general: record.organization_id.is_none(),
        name,
        image_name,
        state: snapshot_state(&record.state),
        size: record.size_bytes.map(gib),
        entrypoint: Some(record.entrypoint).filter(|words| !words.is_empty()),
        cpu: record.default_resources.cpu,
        gpu: 0,
        mem: record.default_resources.memory_gib,
        disk: record.default_resources.disk_gib,
        error_reason: record.state.reason().map(str::to_owned),
        created_at,
        updated_at,
        last_used_at: record.last_used_at_ms.map(Timestamp),
        build_info,
        region_ids: Some(record.regions)
            .filter(|regions| !regions.is_empty())
            .map(|regions| regions.iter().map(RegionName::to_string).collect()),
        initial_runner_id: record.worker.map(|node_id| node_id.to_string()),
        reference,
        source_sandbox_id,
        sandbox_class: SANDBOX_CLASS.to_owned(),
    }
}

pub(super) fn warm_pool(view: WarmPoolView) -> WarmPool {
    let WarmPoolView { pool_id, record, resources, user, current_size } = view;
    WarmPool {
        id: pool_id.0,
        organization_id: record.organization_id,
        snapshot: record.snapshot,
        target: record.region.to_string(),
        pool: record.size,
        current_size,
        cpu: resources.cpu,
        mem: resources.memory_gib,
        disk: resources.disk_gib,
        os_user: user,
        // A claim brings its own.
        env: Default::default(),
        error_reason: record.error_reason,
        created_at: Timestamp(record.created_at_ms),
        updated_at: Timestamp(record.updated_at_ms),
    }
}

/// To a millionth, which is a KiB.
fn gib(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1u32 << 30) * 1e6).ceil() / 1e6
}

/// `None` when every region answered.
pub(super) fn unreachable_regions(regions: &[RegionName]) -> Option<HeaderValue> {
    let names: Vec<&str> = regions.iter().map(RegionName::as_str).collect();
    (!names.is_empty()).then(|| {
        HeaderValue::from_str(&names.join(",")).expect("a region's name is letters, digits and hyphens")
    })
}
