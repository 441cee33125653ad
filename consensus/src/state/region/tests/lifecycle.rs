//! Create, wish, report, delete.

use atoll_api::ids::{NodeId, SandboxId};
use atoll_api::sandbox::{Desired, Phase, Resources};

use super::world::*;
use crate::state::region::RegionRejection::*;
use crate::state::region::*;

#[test]
fn a_new_sandbox_is_pending_in_its_first_generation() {
    let world = World::with_nodes(1).pending(1, 1);

    let record = world.record(1);

    assert_eq!(record.phase, Phase::Pending);
    assert_eq!(record.desired, Desired::Running);
    assert_eq!(record.desired_version, 1);
    assert_eq!(record.placement, at(1, 1));
    assert_eq!(world.state.by_name(organization(1), "s1").unwrap().0, sandbox_id(1));
    assert_eq!(world.state.usage(NodeId(1)), NodeUsage { cpu: 1, memory_gib: 1, disk_gib: 3, sandboxes: 1 });
}

#[test]
fn a_create_said_again_is_applied_whatever_became_of_it() {
    let mut world = World::with_nodes(2).stopped(1, 1);
    world.accept(RegionCommand::SetPublic { sandbox_id: sandbox_id(1), public: true, now_ms: NOW_MS });
    let before = world.state.clone();

    // The proposer that heard nothing looked again and chose another node.
    world.accept(create(1, new_sandbox("s1", 2)));

    assert_eq!(world.state, before);
}

#[test]
fn an_id_belongs_to_one_sandbox() {
    let mut world = World::with_nodes(1).pending(1, 1);
    let foreign = NewSandbox { organization_id: organization(2), ..new_sandbox("s1", 1) };
    let mut other_spec = new_sandbox("s1", 1);
    other_spec.spec.user = "root".into();

    world.refuse(create(1, foreign), IdTaken);
    world.refuse(create(1, new_sandbox("other", 1)), IdTaken);
    world.refuse(create(1, other_spec), IdTaken);
}

#[test]
fn an_id_of_another_region_is_refused() {
    let mut world = World::with_nodes(1);
    let foreign = RegionCommand::CreateSandbox {
        sandbox_id: SandboxId::new(region(1), [1; 14]),
        sandbox: Box::new(new_sandbox("s", 1)),
        now_ms: NOW_MS,
    };

    world.refuse(foreign.clone(), WrongRegion);

    let mut unfounded = World::default();
    unfounded.accept(offer(1));
    unfounded.refuse(foreign, WrongRegion);
}

#[test]
fn a_region_is_founded_once() {
    let mut world = World::with_nodes(0);

    world.accept(RegionCommand::FoundRegion { ordinal: region(0) });
    world.refuse(RegionCommand::FoundRegion { ordinal: region(1) }, WrongRegion);
}

#[test]
fn a_name_is_unique_within_its_organization_only() {
    let mut world = World::with_nodes(1).pending(1, 1);
    let elsewhere = NewSandbox { organization_id: organization(2), ..new_sandbox("s1", 1) };

    world.refuse(create(2, new_sandbox("s1", 1)), NameTaken("s1".into()));
    world.accept(create(3, elsewhere));

    assert_eq!(world.state.by_name(organization(2), "s1").unwrap().0, sandbox_id(3));
}

#[test]
fn a_taken_name_is_named_before_anything_about_the_node() {
    let mut world = World::with_nodes(1).pending(1, 1);

    world.refuse(create(2, new_sandbox("s1", 99)), NameTaken("s1".into()));
}

#[test]
fn a_node_takes_only_what_it_has_room_for() {
    let with = |resources| {
        let mut sandbox = new_sandbox("big", 1);
        sandbox.spec.resources = resources;
        create(9, sandbox)
    };
    let Resources { cpu, memory_gib, disk_gib } = ROOM;

    World::with_nodes(1).accept(with(ROOM));
    World::with_nodes(1).refuse(with(Resources { cpu: cpu + 1, ..SMALL }), NoRoom);
    World::with_nodes(1).refuse(with(Resources { memory_gib: memory_gib + 1, ..SMALL }), NoRoom);
    World::with_nodes(1).refuse(with(Resources { disk_gib: disk_gib + 1, ..SMALL }), NoRoom);
    World::with_nodes(1)
        .refuse(with(Resources { cpu: u32::MAX, memory_gib: u32::MAX, disk_gib: u32::MAX }), NoRoom);
    World::with_nodes(1).pending(1, 1).refuse(with(ROOM), NoRoom);
}

#[test]
fn a_node_holds_no_more_sandboxes_than_it_offered() {
    let mut world = World::with_nodes(1);
    let nothing = Resources { cpu: 0, memory_gib: 0, disk_gib: 0 };
    let tiny = |n: u8| {
        let mut sandbox = new_sandbox(&format!("t{n}"), 1);
        sandbox.spec.resources = nothing;
        create(n, sandbox)
    };

    for n in 0..SANDBOXES_MAX as u8 {
        world.accept(tiny(n));
    }

    world.refuse(tiny(100), NoRoom);
}

#[test]
fn only_a_ready_node_takes_a_new_sandbox() {
    let sandbox = || create(1, new_sandbox("s", 1));

    World::with_nodes(1).health(1, NodeHealth::Cordoned).refuse(sandbox(), NodeNotReady);
    World::with_nodes(1).health(1, NodeHealth::Down).refuse(sandbox(), NodeNotReady);
    World::with_nodes(0).refuse(sandbox(), NodeUnknown);
}

#[test]
fn a_stopped_sandbox_gives_up_cpu_and_memory_and_keeps_disk_and_place() {
    let world = World::with_nodes(1).stopped(1, 1);

    assert_eq!(world.state.usage(NodeId(1)), NodeUsage { cpu: 0, memory_gib: 0, disk_gib: 3, sandboxes: 1 });
}

#[test]
fn a_start_needs_the_room_that_the_stop_gave_up() {
    let mut world = World::with_nodes(1).stopped(1, 1);
    let mut greedy = new_sandbox("greedy", 1);
    greedy.spec.resources = Resources { cpu: ROOM.cpu, ..SMALL };
    world.accept(create(2, greedy));

    world.refuse(world.wish(1, Desired::Running), NoRoom);
    world.accept(world.wish(2, Desired::Deleted));
    world.accept(world.wish(1, Desired::Running));
}

#[test]
fn a_cordoned_node_starts_its_own_sandboxes_again() {
    let mut world = World::with_nodes(1).stopped(1, 1).health(1, NodeHealth::Cordoned);

    world.accept(world.wish(1, Desired::Running));
}

#[test]
fn a_new_wish_is_under_way_at_once() {
    let check = |mut world: World, wish: Desired, expected: Phase| {
        let version = world.record(1).desired_version;

        world.accept(world.wish(1, wish));

        assert_eq!(*world.phase(1), expected);
        assert_eq!(world.record(1).desired_version, version + 1);
    };
    let down = |world: World| world.health(1, NodeHealth::Down);

    check(World::with_nodes(1).running(1, 1), Desired::Stopped, Phase::Stopping);
    check(World::with_nodes(1).stopped(1, 1), Desired::Running, Phase::Starting);
    check(World::with_nodes(1).pending(1, 1), Desired::Stopped, Phase::Pending);
    check(down(World::with_nodes(1).running(1, 1)), Desired::Stopped, Phase::Lost);
    check(down(World::with_nodes(1).stopped(1, 1)), Desired::Running, Phase::Lost);
}

#[test]
fn a_wish_said_again_is_the_same_wish() {
    for (mut world, wish) in [
        (World::with_nodes(1).pending(1, 1), Desired::Running),
        (World::with_nodes(1).running(1, 1), Desired::Running),
        (World::with_nodes(1).running(1, 1).health(1, NodeHealth::Down), Desired::Running),
        (World::with_nodes(1).stopped(1, 1), Desired::Stopped),
        (World::with_nodes(1).doomed(1, 1), Desired::Deleted),
    ] {
        let before = world.state.clone();

        world.accept(world.wish(1, wish));

        assert_eq!(world.state, before);
    }
}

#[test]
fn a_wish_that_came_to_nothing_can_be_made_again() {
    let check = |mut world: World, came_to: Phase, wish: Desired, under_way: Phase| {
        world.accept(world.report(1, came_to));
        let version = world.record(1).desired_version;

        world.accept(world.wish(1, wish));
        assert_eq!(world.record(1).desired_version, version + 1);
        assert_eq!(*world.phase(1), under_way);

        world.accept(world.wish(1, wish));
        assert_eq!(world.record(1).desired_version, version + 1, "once");
    };
    let running = || World::with_nodes(1).running(1, 1);
    let stopped = || World::with_nodes(1).stopped(1, 1);

    check(running(), failed("exited"), Desired::Running, Phase::Starting);
    check(running(), Phase::Stopped, Desired::Running, Phase::Starting);
    check(stopped(), failed("stuck"), Desired::Stopped, Phase::Stopping);
}

#[test]
fn a_failure_of_an_earlier_wish_is_not_the_answer_to_a_new_one() {
    let mut world = World::with_nodes(1).running(1, 1);
    world.accept(world.report(1, failed("exited")));

    world.accept(world.wish(1, Desired::Stopped));
    world.accept(world.wish(1, Desired::Running));

    assert_eq!(*world.phase(1), Phase::Starting);
}

#[test]
fn a_late_report_of_an_earlier_wish_is_ignored() {
    let mut world = World::with_nodes(1).running(1, 1);
    let late = world.report(1, Phase::Running);
    world.accept(world.wish(1, Desired::Stopped));

    world.refuse(late, StaleReport);
    world.refuse(report(1, at(1, 1), 99, Phase::Running), StaleReport);

    world.accept(world.report(1, Phase::Stopped));
    assert_eq!(*world.phase(1), Phase::Stopped);
}

#[test]
fn only_the_owner_of_the_current_generation_reports() {
    let mut world = World::with_nodes(2).pending(1, 1);
    world.accept(place(1, at(2, 2)));
    let stale = StaleGeneration { current: at(2, 2).generation };

    for stranger in [at(1, 1), at(1, 2), at(2, 1), at(2, 3)] {
        world.refuse(report(1, stranger, 1, Phase::Running), stale.clone());
    }
    world.accept(report(1, at(2, 2), 1, Phase::Running));
}

#[test]
fn what_is_decided_here_is_never_reported() {
    let mut world = World::with_nodes(1).running(1, 1);

    world.refuse(world.report(1, Phase::Pending), NotReportable);
    world.refuse(world.report(1, Phase::Lost), NotReportable);
}

#[test]
fn a_report_about_an_unknown_sandbox_is_not_found() {
    let mut world = World::with_nodes(1);

    world.refuse(report(1, at(1, 1), 1, Phase::Running), NotFound);
    world.refuse(world.wish(1, Desired::Deleted), NotFound);
}

#[test]
fn a_delete_frees_name_room_and_tokens_at_once() {
    let mut world = World::with_nodes(1).running(1, 1);
    world.accept(ssh_token(1, 1, NOW_MS + 100));
    world.accept(preview_token(1, 2, 3000, NOW_MS + 100));

    world.accept(world.wish(1, Desired::Deleted));

    assert!(world.state.by_name(organization(1), "s1").is_none());
    assert!(world.state.ssh_tokens.is_empty() && world.state.preview_tokens.is_empty());
    assert_eq!(world.state.usage(NodeId(1)), NodeUsage::default());
    assert_eq!(world.state.facts(sandbox_id(1)), None);
    assert_eq!(world.state.assignments(NodeId(1)).count(), 1, "the owner still has to remove it");
    world.accept(create(2, new_sandbox("s1", 1)));
}

#[test]
fn nothing_brings_a_doomed_sandbox_back() {
    let mut world = World::with_nodes(2).doomed(1, 1);
    let sandbox_id = sandbox_id(1);
    let intervals = Intervals {
        auto_stop_minutes: 1,
        auto_pause_minutes: 0,
        auto_archive_minutes: 1,
        auto_delete_minutes: 1,
    };

    for command in [
        world.wish(1, Desired::Running),
        world.wish(1, Desired::Stopped),
        world.report(1, Phase::Running),
        world.report(1, failed("cannot remove")),
        place(1, at(2, 2)),
        RegionCommand::SetLabels { sandbox_id, labels: Default::default(), now_ms: NOW_MS },
        RegionCommand::SetPublic { sandbox_id, public: true, now_ms: NOW_MS },
        RegionCommand::SetIntervals { sandbox_id, intervals, now_ms: NOW_MS },
        RegionCommand::RotateSigningKey { sandbox_id, version: 1, now_ms: NOW_MS },
        ssh_token(1, 1, NOW_MS + 100),
        preview_token(1, 2, 3000, NOW_MS + 100),
    ] {
        world.refuse(command, Deleting);
    }
}

#[test]
fn the_owners_word_that_all_is_removed_ends_the_record() {
    let mut world = World::with_nodes(2).doomed(1, 1);
    let stale = StaleGeneration { current: at(1, 1).generation };

    world.refuse(report_deleted(1, at(2, 1)), stale.clone());
    world.refuse(report_deleted(1, at(1, 2)), stale);
    world.accept(report_deleted(1, at(1, 1)));
    assert!(world.state.sandboxes.is_empty());
    world.accept(report_deleted(1, at(1, 1)));

    let mut wanted = World::with_nodes(1).running(1, 1);
    wanted.refuse(report_deleted(1, at(1, 1)), StaleReport);
}

#[test]
fn a_create_repeated_after_the_delete_does_not_bring_the_sandbox_back() {
    let mut world = World::with_nodes(1).doomed(1, 1);
    let repeated = create(1, new_sandbox("s1", 1));
    world.accept(repeated.clone());
    world.accept(report_deleted(1, at(1, 1)));

    world.refuse(repeated.clone(), Deleting);

    world.accept(RegionCommand::ExpireTokens { now_ms: NOW_MS + REPEAT_WINDOW_MS - 1 });
    world.refuse(repeated, Deleting);
    world.accept(RegionCommand::ExpireTokens { now_ms: NOW_MS + REPEAT_WINDOW_MS });
    assert!(world.state.tombstones.is_empty(), "and is forgotten when nobody repeats it any more");
}

#[test]
fn an_old_sandbox_leaves_no_tombstone() {
    let mut world = World::with_nodes(1).running(1, 1);
    let now_ms = NOW_MS + REPEAT_WINDOW_MS;
    world.accept(RegionCommand::SetDesired { sandbox_id: sandbox_id(1), desired: Desired::Deleted, now_ms });

    world.accept(report_deleted(1, at(1, 1)));

    assert!(world.state.tombstones.is_empty());
}

fn ephemeral() -> World {
    let mut world = World::with_nodes(1);
    let mut sandbox = new_sandbox("s1", 1);
    sandbox.intervals.auto_delete_minutes = 0;
    world.accept(create(1, sandbox));
    world.accept(world.report(1, Phase::Running));
    world
}

#[test]
fn a_stop_of_an_ephemeral_sandbox_deletes_it() {
    let mut world = ephemeral();

    world.accept(world.wish(1, Desired::Stopped));
    world.accept(world.wish(1, Desired::Stopped));

    assert_eq!(world.record(1).desired, Desired::Deleted);
    assert!(world.state.names.is_empty());
}

#[test]
fn an_ephemeral_sandbox_that_stops_by_itself_is_deleted() {
    let mut world = ephemeral();

    world.accept(world.report(1, Phase::Stopped));

    assert_eq!(world.record(1).desired, Desired::Deleted);
}

#[test]
fn an_ephemeral_sandbox_that_failed_stays_to_say_why() {
    let mut world = ephemeral();

    world.accept(world.report(1, failed("out of memory")));

    assert_eq!(world.record(1).desired, Desired::Running);
    assert_eq!(*world.phase(1), failed("out of memory"));
}

#[test]
fn settings_replace_each_other_wholly() {
    let mut world = World::with_nodes(1).running(1, 1);
    let set = |key: &str| RegionCommand::SetLabels {
        sandbox_id: sandbox_id(1),
        labels: [(key.to_owned(), "1".to_owned())].into(),
        now_ms: NOW_MS + 9,
    };
    let intervals = Intervals {
        auto_stop_minutes: 1,
        auto_pause_minutes: 4,
        auto_archive_minutes: 2,
        auto_delete_minutes: 3,
    };

    world.accept(set("a"));
    world.accept(set("b"));
    world.accept(RegionCommand::SetIntervals { sandbox_id: sandbox_id(1), intervals, now_ms: NOW_MS });

    let record = world.record(1);
    assert_eq!(record.labels.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(
        (record.auto_stop_minutes, record.auto_archive_minutes, record.auto_delete_minutes),
        (1, 2, 3)
    );
    assert_eq!(record.updated_at_ms, NOW_MS + 9, "an earlier clock does not turn time back");
    assert_eq!(record.desired_version, 1, "a setting is no wish");
}

#[test]
fn only_what_runs_is_paused() {
    let mut world = World::with_nodes(1).running(1, 1);

    world.accept(world.wish(1, Desired::Paused));
    assert_eq!(world.phase(1), &Phase::Pausing);
    world.accept(world.report(1, Phase::Paused));
    world.accept(world.wish(1, Desired::Paused));
    assert_eq!(world.phase(1), &Phase::Paused);

    World::with_nodes(1).pending(1, 1).refuse(world.wish(1, Desired::Paused), InTransition);
    World::with_nodes(1).stopped(1, 1).refuse(world.wish(1, Desired::Paused), NotRunning);
    let mut failed_one = World::with_nodes(1).running(1, 1);
    failed_one.accept(failed_one.report(1, failed("out of memory")));
    failed_one.refuse(world.wish(1, Desired::Paused), NotRunning);
}

#[test]
fn a_paused_sandbox_keeps_its_memory_and_gives_up_its_cpus() {
    let mut world = World::with_nodes(1).running(1, 1);

    world.accept(world.wish(1, Desired::Paused));

    assert_eq!(world.state.usage(NodeId(1)), NodeUsage { cpu: 0, memory_gib: 1, disk_gib: 3, sandboxes: 1 });
}

#[test]
fn a_paused_sandbox_is_resumed_stopped_or_deleted() {
    let paused = || {
        let mut world = World::with_nodes(1).running(1, 1);
        world.accept(world.wish(1, Desired::Paused));
        world.accept(world.report(1, Phase::Paused));
        world
    };
    for (desired, phase) in [
        (Desired::Running, Phase::Resuming),
        (Desired::Stopped, Phase::Stopping),
        (Desired::Deleted, Phase::Paused),
    ] {
        let mut world = paused();
        world.accept(world.wish(1, desired));
        assert_eq!((world.record(1).desired, world.phase(1)), (desired, &phase));
    }
    let mut resumed = paused();
    resumed.accept(resumed.wish(1, Desired::Running));
    resumed.accept(resumed.report(1, Phase::Running));
    assert_eq!(resumed.state.usage(NodeId(1)).cpu, 1);
}

#[test]
fn a_paused_sandbox_whose_node_dies_is_lost_until_its_owner_reports_again() {
    let mut world = World::with_nodes(1).running(1, 1);
    world.accept(world.wish(1, Desired::Paused));
    world.accept(world.report(1, Phase::Paused));

    let mut world = world.health(1, NodeHealth::Down);
    assert_eq!(world.phase(1), &Phase::Lost);

    world.accept(world.report(1, Phase::Paused));
    assert_eq!((world.record(1).desired, world.phase(1)), (Desired::Paused, &Phase::Paused));
}

#[test]
fn what_a_sandbox_may_reach_changes_without_a_new_wish() {
    let mut world = World::with_nodes(1).running(1, 1);
    let egress = atoll_api::sandbox::Egress { block_all: true, ..Default::default() };
    let set =
        RegionCommand::SetEgress { sandbox_id: sandbox_id(1), egress: egress.clone(), now_ms: NOW_MS + 5 };

    world.accept(set.clone());

    assert_eq!(world.record(1).spec.egress, egress);
    assert_eq!((world.record(1).desired_version, world.phase(1)), (1, &Phase::Running));
    // A create that is said again still counts as the same.
    world.accept(create(1, new_sandbox("s1", 1)));
    World::with_nodes(1).doomed(1, 1).refuse(set.clone(), Deleting);
    World::with_nodes(1).refuse(set, NotFound);
}
