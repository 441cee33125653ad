//! Nodes come, are judged, and go.

use atoll_api::ids::NodeId;
use atoll_api::sandbox::{Desired, Phase, Resources};

use super::world::*;
use crate::state::region::RegionRejection::*;
use crate::state::region::*;

#[test]
fn an_offer_makes_an_unknown_node_ready_and_leaves_the_health_of_a_known_one() {
    let mut world = World::with_nodes(1).health(1, NodeHealth::Cordoned);
    let smaller = Resources { cpu: 1, ..ROOM };

    world.accept(RegionCommand::OfferNode {
        node_id: NodeId(1),
        total: smaller,
        sandboxes_max: 1,
        now_ms: NOW_MS + 50,
    });

    let node = &world.state.nodes[&NodeId(1)];
    assert_eq!((node.total, node.sandboxes_max, node.health), (smaller, 1, NodeHealth::Cordoned));
}

#[test]
fn a_node_that_shrank_below_its_promises_takes_nothing_and_keeps_what_it_has() {
    let mut world = World::with_nodes(1).running(1, 1).running(2, 1);
    let total = Resources { cpu: 1, memory_gib: 1, disk_gib: 1 };
    world.accept(RegionCommand::OfferNode { node_id: NodeId(1), total, sandboxes_max: 1, now_ms: NOW_MS });

    world.refuse(create(3, new_sandbox("s3", 1)), NoRoom);

    assert_eq!(world.state.assignments(NodeId(1)).count(), 2);
}

#[test]
fn a_node_judged_down_loses_its_sandboxes_but_not_what_is_wanted_of_them() {
    let check = |world: World, expected: Phase| {
        let desired = world.record(1).desired;

        let world = world.health(1, NodeHealth::Down);

        assert_eq!(*world.phase(1), expected);
        assert_eq!(world.record(1).desired, desired);
    };
    let mut broken = World::with_nodes(1).running(1, 1);
    broken.accept(broken.report(1, failed("exited")));

    check(World::with_nodes(1).running(1, 1), Phase::Lost);
    check(World::with_nodes(1).stopped(1, 1), Phase::Lost);
    check(World::with_nodes(1).pending(1, 1), Phase::Pending);
    check(broken, failed("exited"));
}

#[test]
fn another_nodes_sandboxes_are_not_lost() {
    let world = World::with_nodes(2).running(1, 1).running(2, 2).health(1, NodeHealth::Down);

    assert_eq!(*world.phase(2), Phase::Running);
}

#[test]
fn what_a_returning_node_has_only_its_own_report_tells() {
    let down = World::with_nodes(1).running(1, 1).health(1, NodeHealth::Down);

    let mut world = down.health(1, NodeHealth::Ready);
    assert_eq!(*world.phase(1), Phase::Lost);

    world.accept(world.report(1, Phase::Running));
    assert_eq!(*world.phase(1), Phase::Running);
}

#[test]
fn an_owner_that_still_owns_is_believed_while_it_is_judged_down() {
    let mut world = World::with_nodes(1).running(1, 1).health(1, NodeHealth::Down);

    world.accept(world.report(1, Phase::Running));

    assert_eq!(*world.phase(1), Phase::Running);
}

#[test]
fn a_judgement_said_again_changes_nothing() {
    let mut world = World::with_nodes(1).running(1, 1).health(1, NodeHealth::Down);
    world.accept(world.report(1, Phase::Running));
    let before = world.state.clone();

    world.accept(judge(1, NodeHealth::Down));

    assert_eq!(world.state, before);
}

#[test]
fn a_cordon_outlives_death() {
    let world = World::with_nodes(1).health(1, NodeHealth::Cordoned).health(1, NodeHealth::Down);
    assert!(world.state.nodes[&NodeId(1)].cordoned);

    let world = world.health(1, NodeHealth::Ready);
    assert!(!world.state.nodes[&NodeId(1)].cordoned, "only Ready, said by someone, lifts it");
}

#[test]
fn an_unknown_node_cannot_be_judged() {
    World::with_nodes(0).refuse(judge(1, NodeHealth::Down), NodeUnknown);
}

#[test]
fn a_node_with_sandboxes_cannot_be_withdrawn() {
    let used = || World::with_nodes(1).running(1, 1);

    used().refuse(withdraw(1), NodeInUse { sandboxes: 1 });
    used().health(1, NodeHealth::Down).refuse(withdraw(1), NodeInUse { sandboxes: 1 });
    World::with_nodes(1).stopped(1, 1).refuse(withdraw(1), NodeInUse { sandboxes: 1 });
}

#[test]
fn an_empty_node_can_be_withdrawn_twice() {
    let mut world = World::with_nodes(2);

    world.accept(withdraw(1));
    world.accept(withdraw(1));

    assert_eq!(world.state.nodes.keys().collect::<Vec<_>>(), [&NodeId(2)]);
}

#[test]
fn a_living_node_removes_what_is_doomed_before_it_is_withdrawn() {
    let mut world = World::with_nodes(1).doomed(1, 1);

    world.refuse(withdraw(1), NodeInUse { sandboxes: 1 });
    world.accept(report_deleted(1, at(1, 1)));
    world.accept(withdraw(1));
}

#[test]
fn what_is_doomed_goes_with_a_dead_node() {
    let mut world = World::with_nodes(1).doomed(1, 1).health(1, NodeHealth::Down);

    world.accept(withdraw(1));

    assert!(world.state.sandboxes.is_empty());
}

#[test]
fn a_doomed_sandbox_of_a_dead_node_waits_for_its_owner() {
    let mut world = World::with_nodes(1).running(1, 1).health(1, NodeHealth::Down);

    world.accept(world.wish(1, Desired::Deleted));

    assert_eq!(world.state.assignments(NodeId(1)).count(), 1);
    assert!(
        world
            .state
            .list(organization(1), |id, r| SandboxFilter::default().matches(id, r), None, 9)
            .items
            .is_empty()
    );
}
