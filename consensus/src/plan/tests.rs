//! What a leader proposes, tick by tick.

use atoll_api::ids::NodeId;

use super::*;
use crate::state::region::RegionOutcome;
use crate::state::region::tests::world::{
    NOW_MS, ROOM, SMALL, World, at, create, judge, new_sandbox, offer, place, sandbox_id, ssh_token,
};

const CONFIG: PlanConfig = PlanConfig { node_down_after_ms: 6_000, leader_since_ms: 0 };

fn heard(ages_ms: &[(u64, u64)]) -> Liveness {
    ages_ms.iter().map(|(node, ms)| (NodeId(*node), Some(*ms))).collect()
}

fn judgements(
    state: &RegionState,
    liveness: &Liveness,
    now_ms: u64,
    config: &PlanConfig,
) -> Vec<(u64, NodeHealth)> {
    let health = |command| match command {
        RegionCommand::JudgeNode { node_id, health, .. } => Some((node_id.0, health)),
        _ => None,
    };
    plan(state, liveness, now_ms, config).into_iter().filter_map(health).collect()
}

#[test]
fn a_quiet_region_needs_nothing() {
    let world = World::with_nodes(2).running(1, 1);

    assert_eq!(plan(&world.state, &heard(&[(1, 0), (2, 500)]), NOW_MS, &CONFIG), []);
}

#[test]
fn a_node_is_down_when_it_was_silent_for_long_enough() {
    let state = World::with_nodes(3).health(3, NodeHealth::Cordoned).state;

    let judged = judgements(&state, &heard(&[(1, 5_999), (2, 6_000), (3, 6_001)]), NOW_MS, &CONFIG);

    assert_eq!(judged, [(2, NodeHealth::Down), (3, NodeHealth::Down)]);
}

#[test]
fn a_new_leader_judges_nobody_dead_before_it_has_listened() {
    let state = World::with_nodes(2).state;
    let config = PlanConfig { leader_since_ms: NOW_MS, ..CONFIG };
    let never_heard = Liveness::from([(NodeId(1), Some(0)), (NodeId(2), None)]);
    let no_entry = heard(&[(1, 0)]);

    for liveness in [never_heard, no_entry, heard(&[(1, 0), (2, 60_000)])] {
        assert_eq!(judgements(&state, &liveness, NOW_MS + 5_999, &config), []);
        assert_eq!(judgements(&state, &liveness, NOW_MS + 6_000, &config), [(2, NodeHealth::Down)]);
        assert_eq!(judgements(&state, &liveness, NOW_MS - 1, &config), [], "a clock that went back");
    }
}

#[test]
fn a_node_that_speaks_again_is_what_it_was() {
    let world = World::with_nodes(2).health(2, NodeHealth::Cordoned);
    let state = world.health(1, NodeHealth::Down).health(2, NodeHealth::Down).state;

    let judged = judgements(&state, &heard(&[(1, 100), (2, 100)]), NOW_MS, &CONFIG);

    assert_eq!(judged, [(1, NodeHealth::Ready), (2, NodeHealth::Cordoned)]);
}

#[test]
fn a_node_at_the_edge_does_not_flap() {
    let ready = World::with_nodes(1).state;
    let down = World::with_nodes(1).health(1, NodeHealth::Down).state;

    for ms in [3_000, 4_500, 5_999] {
        assert_eq!(judgements(&ready, &heard(&[(1, ms)]), NOW_MS, &CONFIG), []);
        assert_eq!(judgements(&down, &heard(&[(1, ms)]), NOW_MS, &CONFIG), []);
    }
}

#[test]
fn expired_tokens_are_dropped_many_at_a_time() {
    let mut world = World::with_nodes(1).running(1, 1);
    world.accept(ssh_token(1, 1, NOW_MS));
    let alive = heard(&[(1, 0)]);
    let drop_ms = NOW_MS + EXPIRE_LAG_MS;

    assert_eq!(plan(&world.state, &alive, drop_ms - 1, &CONFIG), []);
    assert_eq!(
        plan(&world.state, &alive, drop_ms, &CONFIG),
        [RegionCommand::ExpireTokens { now_ms: drop_ms }]
    );
}

#[test]
fn what_a_dead_node_never_started_goes_to_a_living_one() {
    let world = World::with_nodes(3).pending(1, 1).running(2, 2).health(1, NodeHealth::Down);

    let planned = plan(&world.state, &heard(&[(2, 0), (3, 0)]), NOW_MS + 4, &CONFIG);

    assert_eq!(planned, [place(1, at(3, 2))], "to the emptier of the two");
}

#[test]
fn what_a_dead_node_had_started_waits_for_it() {
    let mut doomed = World::with_nodes(2).pending(1, 1);
    doomed.accept(doomed.wish(1, Desired::Deleted));

    for world in [World::with_nodes(2).running(1, 1), World::with_nodes(2).stopped(1, 1), doomed] {
        let state = world.health(1, NodeHealth::Down).state;
        assert_eq!(plan(&state, &heard(&[(2, 0)]), NOW_MS, &CONFIG), []);
    }
}

#[test]
fn nothing_goes_to_a_node_that_is_not_heard_from() {
    let state = World::with_nodes(2).pending(1, 1).health(1, NodeHealth::Down).state;
    let config = PlanConfig { leader_since_ms: NOW_MS, ..CONFIG };

    assert_eq!(plan(&state, &heard(&[(2, 3_000)]), NOW_MS, &config), []);
    assert_eq!(plan(&state, &Liveness::new(), NOW_MS, &config), []);
}

#[test]
fn one_plan_does_not_fill_a_node_twice() {
    let mut world = World::with_nodes(1);
    for n in 1..=4 {
        world = world.pending(n, 1);
    }
    let mut world = world.health(1, NodeHealth::Down);
    world.accept(offer(2));
    let mut half = new_sandbox("half", 2);
    half.spec.resources.cpu = ROOM.cpu - 2;
    world.accept(create(9, half));

    let planned = plan(&world.state, &heard(&[(2, 0)]), NOW_MS, &CONFIG);

    assert_eq!(planned.len(), 2, "as many as fit");
    for command in planned {
        world.accept(command);
    }
}

#[test]
fn a_sandbox_that_fits_nowhere_does_not_hold_up_others() {
    let mut world = World::with_nodes(2);
    let mut huge = new_sandbox("huge", 1);
    huge.spec.resources = ROOM;
    world.accept(create(1, huge));
    let mut world = world.pending(3, 2).health(1, NodeHealth::Down);
    world.accept(offer(4));
    world.accept(create(4, new_sandbox("s4", 4)));
    world.accept(judge(4, NodeHealth::Down));

    let planned = plan(&world.state, &heard(&[(2, 0)]), NOW_MS + 4, &CONFIG);

    assert_eq!(planned, [place(4, at(2, 2))]);
}

#[test]
fn a_plan_is_bounded_and_the_next_one_goes_on() {
    let mut state = World::with_nodes(0).state;
    let total = Resources { cpu: 1_000, memory_gib: 1_000, disk_gib: 10_000 };
    for node in [1, 2] {
        let command =
            RegionCommand::OfferNode { node_id: NodeId(node), total, sandboxes_max: 1_000, now_ms: NOW_MS };
        assert_eq!(state.apply(command), RegionOutcome::Applied);
    }
    let count = REPLACEMENTS_MAX + 10;
    for n in 0..count as u8 {
        let mut sandbox = new_sandbox(&format!("s{n}"), 1);
        sandbox.spec.resources = SMALL;
        assert_eq!(state.apply(create(n, sandbox)), RegionOutcome::Applied);
    }
    state.apply(judge(1, NodeHealth::Down));
    let mut planned_counts = Vec::new();

    for _ in 0..3 {
        let planned = plan(&state, &heard(&[(2, 0)]), NOW_MS, &CONFIG);
        planned_counts.push(planned.len());
        for command in planned {
            assert_eq!(state.apply(command), RegionOutcome::Applied);
        }
    }

    assert_eq!(planned_counts, [REPLACEMENTS_MAX, 10, 0]);
    assert_eq!(state.sandboxes[&sandbox_id(0)].placement, at(2, 2));
}
