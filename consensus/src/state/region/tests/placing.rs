//! A sandbox gets another owner.

use atoll_api::ids::NodeId;
use atoll_api::sandbox::{Phase, Resources};

use super::world::*;
use crate::state::region::RegionRejection::*;
use crate::state::region::*;

#[test]
fn what_nobody_has_started_can_go_elsewhere() {
    let mut world = World::with_nodes(2).pending(1, 1);

    world.accept(place(1, at(2, 2)));

    assert_eq!(world.record(1).placement, at(2, 2));
    assert_eq!(*world.phase(1), Phase::Pending);
    assert_eq!(world.state.assignments(NodeId(1)).count(), 0);
    assert_eq!(world.state.assignments(NodeId(2)).count(), 1);
    assert_eq!(world.state.usage(NodeId(1)), NodeUsage::default());
}

#[test]
fn what_a_live_node_may_have_started_stays() {
    for world in [World::with_nodes(2).running(1, 1), World::with_nodes(2).stopped(1, 1)] {
        { world }.refuse(place(1, at(2, 2)), OwnerAlive);
    }
    let mut cordoned = World::with_nodes(2).running(1, 1).health(1, NodeHealth::Cordoned);
    cordoned.refuse(place(1, at(2, 2)), OwnerAlive);
}

#[test]
fn a_dead_nodes_sandbox_moves_with_the_next_generation() {
    let mut world = World::with_nodes(2).running(1, 1).health(1, NodeHealth::Down);

    world.accept(place(1, at(2, 2)));

    assert_eq!(world.record(1).placement, at(2, 2));
    world.refuse(report(1, at(1, 1), 1, Phase::Running), StaleGeneration { current: at(2, 2).generation });
}

#[test]
fn only_the_next_generation_is_accepted() {
    let mut world = World::with_nodes(3).pending(1, 1);
    world.accept(place(1, at(2, 2)));
    let stale = StaleGeneration { current: at(2, 2).generation };

    for placement in [at(3, 0), at(3, 1), at(3, 2), at(3, 4), at(3, u64::MAX)] {
        world.refuse(place(1, placement), stale.clone());
    }
    world.accept(place(1, at(3, 3)));
}

#[test]
fn a_placement_said_again_is_applied_even_after_the_start() {
    let mut world = World::with_nodes(2).pending(1, 1);
    world.accept(place(1, at(2, 2)));
    world.accept(world.report(1, Phase::Running));
    let before = world.state.clone();

    world.accept(place(1, at(2, 2)));

    assert_eq!(world.state, before);
}

#[test]
fn the_new_node_must_be_ready_and_have_room() {
    let mut full = World::with_nodes(2).pending(1, 1);
    let mut greedy = new_sandbox("greedy", 2);
    greedy.spec.resources = Resources { cpu: ROOM.cpu, ..SMALL };
    full.accept(create(2, greedy));

    full.refuse(place(1, at(2, 2)), NoRoom);
    full.refuse(place(1, at(9, 2)), NodeUnknown);
    World::with_nodes(2).pending(1, 1).health(2, NodeHealth::Down).refuse(place(1, at(2, 2)), NodeNotReady);
    World::with_nodes(2)
        .pending(1, 1)
        .health(2, NodeHealth::Cordoned)
        .refuse(place(1, at(2, 2)), NodeNotReady);
    full.refuse(place(7, at(2, 2)), NotFound);
}

#[test]
fn a_sandbox_does_not_stand_in_its_own_way() {
    let mut world = World::with_nodes(1);
    let mut whole = new_sandbox("whole", 1);
    whole.spec.resources = ROOM;
    world.accept(create(1, whole));

    world.accept(place(1, at(1, 2)));

    assert_eq!(world.record(1).placement, at(1, 2));
}
