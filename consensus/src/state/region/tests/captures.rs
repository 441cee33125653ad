//! Snapshots of sandboxes, forks, archives: what is asked of the owner, and what its answer does.

use atoll_api::ids::NodeId;
use atoll_api::sandbox::{Desired, Phase};

use super::world::*;
use crate::state::region::RegionRejection::*;
use crate::state::region::*;

fn fork(parent: u8, child: u8) -> RegionCommand {
    let sandbox = Box::new(new_sandbox(&format!("s{child}"), 2));
    RegionCommand::ForkSandbox {
        parent: sandbox_id(parent),
        sandbox_id: sandbox_id(child),
        sandbox,
        now_ms: NOW_MS,
    }
}

fn snapshot(n: u8, id: u128) -> RegionCommand {
    let (id, name) = (uuid::Uuid::from_u128(id), format!("snapshot{id}"));
    RegionCommand::SnapshotSandbox { sandbox_id: sandbox_id(n), id, name, now_ms: NOW_MS }
}

fn restore(n: u8, node: u64, generation: u64) -> RegionCommand {
    let placement = at(node, generation);
    RegionCommand::RestoreSandbox { sandbox_id: sandbox_id(n), placement, now_ms: NOW_MS }
}

fn nothing(reason: &str) -> CaptureOutcome {
    CaptureOutcome::Failed { reason: reason.into() }
}

impl World {
    /// The owner's answer to all captures so far.
    fn answer(&self, n: u8, outcome: CaptureOutcome) -> RegionCommand {
        let record = self.record(n);
        RegionCommand::ReportCapture {
            sandbox_id: sandbox_id(n),
            placement: record.placement,
            number: record.captures_asked,
            outcome,
            refused: Default::default(),
            now_ms: NOW_MS,
        }
    }

    fn refuse_wish(mut self, n: u8, desired: Desired, rejection: RegionRejection) {
        self.refuse(self.wish(n, desired), rejection);
    }

    fn archived(self, n: u8, node: u64) -> World {
        let mut world = self.stopped(n, node);
        world.accept(world.wish(n, Desired::Archived));
        world.accept(world.answer(n, CaptureOutcome::Taken(checkpoint(7))));
        world.accept(world.report(n, Phase::Archived));
        world
    }
}

#[test]
fn a_fork_waits_for_its_parents_disk_and_then_begins_with_it() {
    let mut world = World::with_nodes(2).running(1, 1);

    world.accept(fork(1, 2));
    assert_eq!((world.record(2).image(), world.phase(2)), (None, &Phase::Pending));
    assert_eq!(world.record(1).capture_wanted(), Some(1));
    world.refuse(world.report(2, Phase::Running), NotReportable);
    world.accept(world.answer(1, CaptureOutcome::Taken(checkpoint(1))));

    assert_eq!(world.record(2).image(), Some(checkpoint(1).image.as_str()));
    assert_eq!(world.record(1).capture_wanted(), None);
    assert_eq!(world.record(1).phase, Phase::Running, "the parent goes on");
    assert_eq!(world.state.forks(sandbox_id(1)).map(|(id, _)| id).collect::<Vec<_>>(), [sandbox_id(2)]);
    world.accept(world.report(2, Phase::Running));
}

#[test]
fn one_answer_serves_all_that_was_asked_before_and_nothing_later() {
    let mut world = World::with_nodes(2).running(1, 1);
    world.accept(fork(1, 2));
    world.accept(snapshot(1, 9));
    let early = world.answer(1, CaptureOutcome::Taken(checkpoint(1)));
    world.accept(fork(1, 3));

    world.accept(early);

    assert_eq!(world.record(2).disk, Disk::Checkpoint(checkpoint(1)));
    assert_eq!(world.record(1).snapshot_taken.as_ref().unwrap().failure, None);
    assert_eq!(world.record(3).disk, Disk::Awaited);
    assert_eq!(world.record(1).capture_wanted(), Some(3));
}

#[test]
fn a_fork_whose_parents_disk_was_not_taken_fails_with_the_reason_and_can_only_be_deleted() {
    let failed_fork = |fail: &dyn Fn(&mut World)| {
        let mut world = World::with_nodes(2).running(1, 1);
        world.accept(fork(1, 2));
        fail(&mut world);
        assert!(matches!(world.phase(2), Phase::Failed { reason } if reason.contains("parent")));
        world
    };
    for mut world in [
        failed_fork(&|world| world.accept(world.answer(1, nothing("disk full")))),
        failed_fork(&|world| world.accept(world.wish(1, Desired::Deleted))),
        failed_fork(&|world| world.accept(judge(1, NodeHealth::Down))),
    ] {
        for desired in [Desired::Running, Desired::Stopped] {
            world.refuse(world.wish(2, desired), NoDisk);
        }
        world.accept(world.wish(2, Desired::Deleted));
        world.accept(report_deleted(2, world.record(2).placement));
    }
}

#[test]
fn a_fork_that_is_said_again_is_the_same_fork() {
    let mut world = World::with_nodes(2).running(1, 1);
    world.accept(fork(1, 2));

    world.accept(fork(1, 2));

    assert_eq!(world.record(1).captures.len(), 1);
    world.refuse(create(2, new_sandbox("s2", 2)), IdTaken);
    world.refuse(fork(2, 2), IdTaken);
}

#[test]
fn only_a_sandbox_at_rest_in_its_wish_is_captured() {
    let check = |mut world: World, rejection: RegionRejection| {
        world.refuse(fork(1, 2), rejection.clone());
        world.refuse(snapshot(1, 9), rejection);
    };
    check(World::with_nodes(2).pending(1, 1), InTransition);
    check(World::with_nodes(2).doomed(1, 1), Deleting);
    check(World::with_nodes(2).running(1, 1).health(1, NodeHealth::Down), NoDisk);
    check(World::with_nodes(2), NotFound);
    let mut paused = World::with_nodes(2).running(1, 1);
    paused.accept(paused.wish(1, Desired::Paused));
    paused.accept(paused.report(1, Phase::Paused));
    paused.accept(snapshot(1, 9));
    World::with_nodes(2).stopped(1, 1).accept(fork(1, 2));
}

#[test]
fn another_organizations_sandbox_is_not_forked() {
    let mut world = World::with_nodes(2).running(1, 1);
    let mut foreign = new_sandbox("x", 1);
    foreign.organization_id = organization(2);

    let fork = RegionCommand::ForkSandbox {
        parent: sandbox_id(1),
        sandbox_id: sandbox_id(2),
        sandbox: Box::new(foreign),
        now_ms: NOW_MS,
    };

    world.refuse(fork, NotFound);
}

#[test]
fn the_number_of_captures_under_way_has_a_bound() {
    let mut world = World::with_nodes(1).running(1, 1);
    for id in 0..CAPTURES_MAX {
        world.accept(snapshot(1, id as u128));
    }

    world.refuse(snapshot(1, 1_000), TooManyCaptures(CAPTURES_MAX as u64));
}

#[test]
fn a_snapshot_that_is_said_again_after_it_was_made_is_not_made_again() {
    let mut world = World::with_nodes(1).running(1, 1);
    world.accept(snapshot(1, 9));
    world.accept(world.answer(1, nothing("disk full")));

    world.accept(snapshot(1, 9));

    assert_eq!(world.record(1).capture_wanted(), None);
    let taken = world.record(1).snapshot_taken.clone().unwrap();
    assert_eq!(taken.failure.as_deref(), Some("disk full"));
}

#[test]
fn an_answer_of_an_earlier_owner_counts_for_nothing() {
    let mut world = World::with_nodes(2).archived(1, 1);
    world.accept(restore(1, 2, 2));
    let current = world.record(1).placement.generation;

    let late = RegionCommand::ReportCapture {
        sandbox_id: sandbox_id(1),
        placement: at(1, 1),
        number: 9,
        outcome: nothing("late"),
        refused: Default::default(),
        now_ms: NOW_MS,
    };

    world.refuse(late, StaleGeneration { current });
}

#[test]
fn an_archive_is_of_what_has_stopped_and_is_over_when_the_owner_has_removed_its_copy() {
    let mut world = World::with_nodes(1).stopped(1, 1);

    world.accept(world.wish(1, Desired::Archived));
    assert_eq!((world.phase(1), world.record(1).capture_wanted()), (&Phase::Archiving, Some(1)));
    world.refuse(world.report(1, Phase::Archived), NotReportable);
    world.refuse(world.wish(1, Desired::Running), InTransition);
    world.accept(world.answer(1, CaptureOutcome::Taken(checkpoint(7))));
    assert_eq!(world.state.usage(NodeId(1)).disk_gib, 3, "the owner still has it");
    world.accept(world.report(1, Phase::Archived));

    assert_eq!(world.record(1).disk, Disk::Checkpoint(checkpoint(7)));
    assert_eq!(world.state.usage(NodeId(1)), NodeUsage::default());
    assert_eq!(world.state.assignments(NodeId(1)).count(), 0);
    for desired in [Desired::Running, Desired::Stopped, Desired::Paused] {
        world.refuse(world.wish(1, desired), Archived);
    }
    world.accept(world.wish(1, Desired::Archived));
}

#[test]
fn what_runs_or_lives_until_it_stops_is_not_archived() {
    World::with_nodes(1).running(1, 1).refuse_wish(1, Desired::Archived, NotStopped);
    World::with_nodes(1).pending(1, 1).refuse_wish(1, Desired::Archived, NotStopped);
    let mut ephemeral = World::with_nodes(1).stopped(1, 1);
    let intervals = Intervals {
        auto_stop_minutes: 1,
        auto_pause_minutes: 0,
        auto_archive_minutes: 1,
        auto_delete_minutes: 0,
    };
    let now_ms = NOW_MS;
    ephemeral.accept(RegionCommand::SetIntervals { sandbox_id: sandbox_id(1), intervals, now_ms });
    ephemeral.refuse_wish(1, Desired::Archived, Ephemeral);
}

#[test]
fn an_archive_that_fails_leaves_the_sandbox_stopped_as_it_was() {
    let mut world = World::with_nodes(1).stopped(1, 1);
    world.accept(world.wish(1, Desired::Archived));
    let version = world.record(1).desired_version;

    world.accept(world.answer(1, nothing("disk full")));

    let record = world.record(1);
    assert_eq!(
        (record.desired, &record.phase, &record.disk),
        (Desired::Stopped, &Phase::Stopped, &Disk::Image)
    );
    assert_eq!(record.archive_failure.as_deref(), Some("disk full"));
    assert_eq!(record.desired_version, version + 1, "reports of the archive are stale");
    world.accept(world.wish(1, Desired::Archived));
    assert_eq!(world.record(1).archive_failure, None);
}

#[test]
fn a_restored_sandbox_is_the_same_one_on_any_node_with_a_higher_generation() {
    let mut world = World::with_nodes(2).archived(1, 1);
    let before = world.record(1).clone();

    world.refuse(restore(1, 2, 1), StaleGeneration { current: before.placement.generation });
    world.accept(restore(1, 2, 2));
    world.accept(restore(1, 2, 2));

    let record = world.record(1);
    assert_eq!(
        (record.desired, &record.phase, record.placement),
        (Desired::Running, &Phase::Pending, at(2, 2))
    );
    assert_eq!(record.image(), Some(checkpoint(7).image.as_str()));
    assert_eq!((&record.name, record.preview_token_hash), (&before.name, before.preview_token_hash));
    assert_eq!(record.restored_version, record.desired_version);
    assert_eq!(world.state.usage(NodeId(2)).cpu, 1);
    world.refuse(restore(1, 1, 3), NotArchived);
}

#[test]
fn a_node_that_is_full_or_down_restores_nothing() {
    World::with_nodes(2).archived(1, 1).health(2, NodeHealth::Down).refuse(restore(1, 2, 2), NodeNotReady);
    let mut full = World::with_nodes(1).archived(1, 1);
    for n in 2..=5 {
        full.accept(create(n, new_sandbox(&format!("s{n}"), 1)));
    }
    full.refuse(restore(1, 1, 2), NoRoom);
}

#[test]
fn an_archived_sandbox_outlives_its_node() {
    let mut world = World::with_nodes(2).archived(1, 1).health(1, NodeHealth::Down);
    assert_eq!(world.phase(1), &Phase::Archived);

    world.accept(withdraw(1));
    world.accept(restore(1, 2, 2));

    assert_eq!(world.record(1).placement, at(2, 2));
}

#[test]
fn a_node_that_dies_with_the_checkpoint_taken_has_archived_the_sandbox() {
    let mut world = World::with_nodes(1).stopped(1, 1);
    world.accept(world.wish(1, Desired::Archived));
    let mut undone = World::with_nodes(1).stopped(1, 1);
    undone.accept(undone.wish(1, Desired::Archived));
    world.accept(world.answer(1, CaptureOutcome::Taken(checkpoint(7))));

    assert_eq!(world.health(1, NodeHealth::Down).phase(1), &Phase::Archived);
    let undone = undone.health(1, NodeHealth::Down);
    assert_eq!((undone.phase(1), undone.record(1).capture_wanted()), (&Phase::Lost, Some(1)));
}

#[test]
fn an_archived_sandbox_is_deleted_at_once_as_nobody_has_anything_of_it() {
    let mut world = World::with_nodes(1).archived(1, 1);

    world.accept(world.wish(1, Desired::Deleted));

    assert!(world.state.sandboxes.is_empty() && world.state.names.is_empty());
}

#[test]
fn a_fork_of_an_archived_sandbox_begins_with_its_checkpoint_at_once() {
    let mut world = World::with_nodes(2).archived(1, 1);

    world.accept(fork(1, 2));

    assert_eq!(world.record(2).disk, Disk::Checkpoint(checkpoint(7)));
    world.refuse(snapshot(1, 9), Archived);
}

#[test]
fn a_fork_that_waits_moves_with_its_node() {
    let mut world = World::with_nodes(2).running(1, 1);
    world.accept(fork(1, 2));
    let mut world = world.health(2, NodeHealth::Down);

    world.accept(place(2, at(1, 2)));
    world.accept(world.answer(1, CaptureOutcome::Taken(checkpoint(1))));

    assert_eq!((world.record(2).placement, world.phase(2)), (at(1, 2), &Phase::Pending));
}
