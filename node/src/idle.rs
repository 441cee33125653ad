//! What becomes of a sandbox that nobody uses: paused or stopped after its interval for that, whichever is shorter, and
//! archived or deleted when it has been stopped for its interval for that. What is archived is deleted when it has been so
//! for its auto-delete interval. One that is paused stays so.

use atoll_api::sandbox::{Desired, Phase};
use atoll_consensus::state::region::SandboxRecord;

const MINUTE_MS: u64 = 60_000;

/// The wish that an owner should propose now. `used_at_ms`: the last use that this node has seen, if any.
/// A change of the record counts as use.
pub fn idle_wish(record: &SandboxRecord, used_at_ms: Option<u64>, now_ms: u64) -> Option<Desired> {
    let used_at_ms = used_at_ms.unwrap_or(0).max(record.updated_at_ms);
    let idle_for = |minutes: u64| now_ms.saturating_sub(used_at_ms) >= minutes * MINUTE_MS;
    match (&record.phase, record.desired) {
        (Phase::Running, Desired::Running) => {
            let due = |minutes: u32| (minutes > 0 && idle_for(u64::from(minutes))).then_some(minutes);
            match (due(record.auto_pause_minutes), due(record.auto_stop_minutes)) {
                (Some(pause), Some(stop)) if stop < pause => Some(Desired::Stopped),
                (Some(_), _) => Some(Desired::Paused),
                (None, Some(_)) => Some(Desired::Stopped),
                (None, None) => None,
            }
        }
        (Phase::Stopped, Desired::Stopped) => {
            let archive = u64::from(record.auto_archive_minutes);
            let archive =
                (archive > 0 && !record.is_ephemeral() && idle_for(archive)).then_some(Desired::Archived);
            to_delete(record, idle_for).or(archive)
        }
        (Phase::Archived, Desired::Archived) => to_delete(record, idle_for),
        _ => None,
    }
}

fn to_delete(record: &SandboxRecord, idle_for: impl Fn(u64) -> bool) -> Option<Desired> {
    let minutes = u64::try_from(record.auto_delete_minutes).ok()?;
    idle_for(minutes).then_some(Desired::Deleted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_api::ids::{Generation, NodeId, OrganizationId};
    use atoll_api::sandbox::{Placement, Resources, SandboxSpec};
    use atoll_api::tokens::TokenHash;

    use super::*;

    fn record(
        phase: Phase,
        desired: Desired,
        auto_stop_minutes: u32,
        auto_delete_minutes: i32,
    ) -> SandboxRecord {
        SandboxRecord {
            organization_id: OrganizationId(uuid::Uuid::nil()),
            name: "s".into(),
            spec: SandboxSpec {
                snapshot: "base".into(),
                image: "base".into(),
                user: "daytona".into(),
                env: BTreeMap::new(),
                entrypoint: Vec::new(),
                resources: Resources { cpu: 1, memory_gib: 1, disk_gib: 1 },
                egress: Default::default(),
                allow_sudo: true,
            },
            labels: BTreeMap::new(),
            public: false,
            auto_stop_minutes,
            auto_pause_minutes: 0,
            auto_archive_minutes: 0,
            auto_delete_minutes,
            preview_token_hash: TokenHash::of(""),
            desired,
            phase,
            placement: Placement { node_id: NodeId(1), generation: Generation::FIRST },
            created_at_ms: 0,
            updated_at_ms: 0,
            desired_version: 1,
            disk: Default::default(),
            parent: None,
            captures: BTreeMap::new(),
            captures_asked: 0,
            snapshot_taken: None,
            archive_failure: None,
            restored_version: 0,
            warm: None,
            signing_key_version: 0,
            build: None,
        }
    }

    #[test]
    fn a_running_sandbox_stops_when_its_interval_has_passed_without_use() {
        let sandbox = record(Phase::Running, Desired::Running, 15, -1);

        assert_eq!(idle_wish(&sandbox, None, 15 * MINUTE_MS - 1), None);
        assert_eq!(idle_wish(&sandbox, None, 15 * MINUTE_MS), Some(Desired::Stopped));
        assert_eq!(idle_wish(&sandbox, Some(MINUTE_MS), 15 * MINUTE_MS), None);
    }

    #[test]
    fn an_interval_of_zero_never_stops() {
        assert_eq!(idle_wish(&record(Phase::Running, Desired::Running, 0, -1), None, u64::MAX), None);
    }

    #[test]
    fn a_stopped_sandbox_is_deleted_after_its_interval_and_never_when_that_is_negative() {
        assert_eq!(idle_wish(&record(Phase::Stopped, Desired::Stopped, 0, -1), None, u64::MAX), None);
        let sandbox = record(Phase::Stopped, Desired::Stopped, 0, 2);
        assert_eq!(idle_wish(&sandbox, None, 2 * MINUTE_MS - 1), None);
        assert_eq!(idle_wish(&sandbox, None, 2 * MINUTE_MS), Some(Desired::Deleted));
    }

    #[test]
    fn a_stopped_sandbox_is_archived_after_its_interval_unless_it_is_deleted_before() {
        let idle = |archive, delete, minutes: u64| {
            let mut sandbox = record(Phase::Stopped, Desired::Stopped, 0, delete);
            sandbox.auto_archive_minutes = archive;
            idle_wish(&sandbox, None, minutes * MINUTE_MS)
        };

        assert_eq!(idle(5, -1, 4), None);
        assert_eq!(idle(5, -1, 5), Some(Desired::Archived));
        assert_eq!(idle(5, 9, 8), Some(Desired::Archived));
        assert_eq!(idle(5, 3, 8), Some(Desired::Deleted));
        assert_eq!(idle(0, -1, 1_000_000), None);
        let mut archived = record(Phase::Archived, Desired::Archived, 0, 9);
        archived.auto_archive_minutes = 5;
        assert_eq!(idle_wish(&archived, None, 8 * MINUTE_MS), None);
        assert_eq!(idle_wish(&archived, None, 9 * MINUTE_MS), Some(Desired::Deleted));
    }

    #[test]
    fn a_sandbox_on_its_way_is_left_alone() {
        assert_eq!(idle_wish(&record(Phase::Starting, Desired::Running, 1, 1), None, u64::MAX), None);
        assert_eq!(idle_wish(&record(Phase::Stopped, Desired::Running, 1, 1), None, u64::MAX), None);
    }

    #[test]
    fn the_shorter_of_pause_and_stop_comes_first() {
        let idle = |pause, stop| {
            let mut sandbox = record(Phase::Running, Desired::Running, stop, -1);
            sandbox.auto_pause_minutes = pause;
            idle_wish(&sandbox, None, u64::MAX)
        };

        assert_eq!(idle(5, 0), Some(Desired::Paused));
        assert_eq!(idle(5, 15), Some(Desired::Paused));
        assert_eq!(idle(15, 5), Some(Desired::Stopped));
        assert_eq!(idle_wish(&record(Phase::Paused, Desired::Paused, 15, 0), None, u64::MAX), None);
    }
}
