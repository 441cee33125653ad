//! What is made, given up and handed out, for small regions.

use super::*;
use crate::state::region::tests::world::{
    NOW_MS, SMALL, World, at, create, judge, new_sandbox, offer, organization, sandbox_id,
};
use crate::state::region::{RegionCommand, RegionOutcome};

const POOL: WarmPoolId = WarmPoolId(uuid::Uuid::from_u128(7));
const OTHER: WarmPoolId = WarmPoolId(uuid::Uuid::from_u128(8));

fn spec() -> SandboxSpec {
    new_sandbox("s", 1).spec
}

fn wanted(size: u32) -> WantedPool {
    WantedPool { organization_id: organization(1), size, member: Ok(spec()), not_before_ms: 0 }
}

fn heard(region: &RegionState) -> BTreeMap<NodeId, NodeLoadView> {
    let load = NodeLoadView { heard_ms_ago: Some(10), ..NodeLoadView::default() };
    region.nodes.keys().map(|node_id| (*node_id, load)).collect()
}

fn plan(region: &RegionState, pools: &[(WarmPoolId, WantedPool)]) -> WarmPlan {
    let pools = pools.iter().cloned().collect();
    plan_warm(&ClusterState::default(), region, &heard(region), &pools, NOW_MS)
}

fn creates(plan: &WarmPlan) -> Vec<(WarmPoolId, u64)> {
    let create = |step: &WarmStep| match step {
        WarmStep::Create { pool_id, node_id } => Some((*pool_id, node_id.0)),
        WarmStep::Retire { .. } => None,
    };
    plan.steps.iter().filter_map(create).collect()
}

fn retires(plan: &WarmPlan) -> Vec<(SandboxId, RetireCause)> {
    let retire = |step: &WarmStep| match step {
        WarmStep::Retire { sandbox_id, because, .. } => Some((*sandbox_id, because.clone())),
        WarmStep::Create { .. } => None,
    };
    plan.steps.iter().filter_map(retire).collect()
}

fn member(world: &mut World, pool_id: WarmPoolId, n: u8, node: u64, phase: Phase) {
    let sandbox = Box::new(new_sandbox(&sandbox_id(n).to_string(), node));
    world.accept(RegionCommand::CreateWarm {
        sandbox_id: sandbox_id(n),
        pool_id,
        sandbox,
        now_ms: NOW_MS + u64::from(n),
    });
    if phase != Phase::Pending {
        world.accept(world.report(n, phase));
    }
}

/// One node with members that run.
fn with_members(count: u8) -> World {
    let mut world = World::with_nodes(1);
    for n in 1..=count {
        member(&mut world, POOL, n, 1, Phase::Running);
    }
    world
}

#[test]
fn an_empty_pool_is_filled_over_the_nodes_a_few_at_a_time() {
    let world = World::with_nodes(2);

    let plan = plan(&world.state, &[(POOL, wanted(10))]);

    assert_eq!(creates(&plan), [(POOL, 1), (POOL, 2), (POOL, 1), (POOL, 2)]);
    assert_eq!(plan.troubles.len(), 0);
}

#[test]
fn what_is_on_its_way_counts() {
    let mut world = World::with_nodes(1);
    for n in 1..=2 {
        member(&mut world, POOL, n, 1, Phase::Pending);
    }

    assert_eq!(creates(&plan(&world.state, &[(POOL, wanted(3))])), [(POOL, 1)]);
    assert_eq!(creates(&plan(&world.state, &[(POOL, wanted(2))])), []);
}

#[test]
fn the_emptiest_pool_comes_first() {
    let mut world = World::with_nodes(2);
    member(&mut world, POOL, 1, 1, Phase::Running);

    let plan = plan(&world.state, &[(POOL, wanted(2)), (OTHER, wanted(2))]);

    let pools: Vec<_> = creates(&plan).into_iter().map(|(pool_id, _)| pool_id).collect();
    assert_eq!(pools, [OTHER, POOL, OTHER]);
}

#[test]
fn members_leave_a_part_of_each_node_free_and_the_pool_says_so() {
    // Of four CPUs one is kept: three members, and never a fourth.
    let world = with_members(3);

    let plan = plan(&world.state, &[(POOL, wanted(4))]);

    assert_eq!(plan.steps, []);
    let trouble = &plan.troubles[&POOL];
    assert!(trouble.contains("0 of 4 CPUs free"), "{trouble}");
}

#[test]
fn a_pool_that_fails_waits() {
    let world = World::with_nodes(1);
    let later = WantedPool { not_before_ms: NOW_MS + 1, ..wanted(1) };

    assert_eq!(plan(&world.state, &[(POOL, later)]).steps, []);
}

#[test]
fn what_is_of_no_use_goes_with_the_reason() {
    let mut world = World::with_nodes(3);
    member(&mut world, POOL, 1, 1, failed("no disk"));
    member(&mut world, POOL, 2, 2, Phase::Running);
    member(&mut world, POOL, 3, 3, Phase::Running);
    member(&mut world, POOL, 4, 1, Phase::Stopped);
    world.accept(judge(2, NodeHealth::Down));
    world.accept(judge(3, NodeHealth::Cordoned));

    let plan = plan(&world.state, &[(POOL, wanted(2))]);

    let expected = [
        (sandbox_id(1), RetireCause::Failed { reason: "no disk".into() }),
        (sandbox_id(2), RetireCause::NodeLeaves),
        (sandbox_id(3), RetireCause::NodeLeaves),
        (sandbox_id(4), RetireCause::NotRunning),
    ];
    assert_eq!(retires(&plan), expected);
    assert_eq!(plan.troubles[&POOL], "no disk");
    // What is going still has its room.
    assert_eq!(creates(&plan), [(POOL, 1)]);
}

fn failed(reason: &str) -> Phase {
    Phase::Failed { reason: reason.into() }
}

#[test]
fn a_pool_that_is_gone_smaller_or_of_another_snapshot_gives_its_members_up() {
    let world = with_members(3);
    let all =
        |because: RetireCause| -> Vec<_> { (1..=3).map(|n| (sandbox_id(n), because.clone())).collect() };

    assert_eq!(retires(&plan(&world.state, &[])), all(RetireCause::PoolGone));
    let gone = WantedPool { member: Err("the snapshot is gone".into()), ..wanted(3) };
    let without = plan(&world.state, &[(POOL, gone)]);
    assert_eq!(retires(&without), all(RetireCause::PoolGone));
    assert_eq!(without.troubles[&POOL], "the snapshot is gone");
    let other = WantedPool { member: Ok(SandboxSpec { image: "other".into(), ..spec() }), ..wanted(3) };
    assert_eq!(retires(&plan(&world.state, &[(POOL, other)])), all(RetireCause::Outdated));

    let smaller = plan(&world.state, &[(POOL, wanted(1))]);
    let youngest = [(sandbox_id(2), RetireCause::Surplus), (sandbox_id(3), RetireCause::Surplus)];
    assert_eq!(retires(&smaller), youngest);
    assert_eq!(retires(&plan(&world.state, &[(POOL, wanted(0))])), all(RetireCause::Surplus));
}

#[test]
fn what_is_going_already_is_left_alone() {
    let mut world = with_members(1);
    world.accept(RegionCommand::RetireWarm { sandbox_id: sandbox_id(1), now_ms: NOW_MS });

    assert_eq!(plan(&world.state, &[]).steps, []);
}

fn pick(region: &RegionState, asking: u64, taken: &[u8], asked: &SandboxSpec) -> Option<(SandboxId, NodeId)> {
    let taken = taken.iter().map(|n| sandbox_id(*n)).collect();
    let request =
        PickRequest { pool_id: POOL, asked, asking_node_id: NodeId(asking), taken: &taken, random: 0 };
    pick_member(region, &heard(region), &request)
}

#[test]
fn a_member_is_picked_that_is_free_and_fits() {
    let mut world = with_members(2);
    member(&mut world, POOL, 3, 1, Phase::Pending);
    let asked = SandboxSpec { user: "root".into(), ..spec() };

    assert_eq!(pick(&world.state, 1, &[], &asked), Some((sandbox_id(1), NodeId(1))));
    assert_eq!(pick(&world.state, 1, &[1], &asked), Some((sandbox_id(2), NodeId(1))));
    assert_eq!(pick(&world.state, 1, &[1, 2], &asked), None);
    let bigger = SandboxSpec { resources: Resources { cpu: 2, ..SMALL }, ..spec() };
    assert_eq!(pick(&world.state, 1, &[], &bigger), None);
}

#[test]
fn the_asking_node_is_preferred_and_a_much_emptier_one_more() {
    let mut world = World::with_nodes(2);
    member(&mut world, POOL, 1, 1, Phase::Running);
    member(&mut world, POOL, 2, 2, Phase::Running);

    assert_eq!(pick(&world.state, 1, &[], &spec()), Some((sandbox_id(1), NodeId(1))));
    assert_eq!(pick(&world.state, 2, &[], &spec()), Some((sandbox_id(2), NodeId(2))));
    world.accept(create(3, new_sandbox("s3", 1)));
    assert_eq!(pick(&world.state, 1, &[], &spec()), Some((sandbox_id(2), NodeId(2))));
}

#[test]
fn nothing_is_picked_on_a_silent_node() {
    let world = with_members(1);
    let silent = NodeLoadView { heard_ms_ago: Some(SILENT_AFTER_MS + 1), ..NodeLoadView::default() };
    let taken = BTreeSet::new();
    let request =
        PickRequest { pool_id: POOL, asked: &spec(), asking_node_id: NodeId(1), taken: &taken, random: 0 };

    assert_eq!(pick_member(&world.state, &[(NodeId(1), silent)].into(), &request), None);
    assert_eq!(pick_member(&world.state, &BTreeMap::new(), &request), None);
}

#[test]
fn a_create_without_room_takes_that_of_as_few_members_as_can_be() {
    let mut world = with_members(3);
    world.accept(create(9, new_sandbox("s9", 1)));
    let room = |resources| make_room(&world.state, &heard(&world.state), resources, &BTreeSet::new());

    assert_eq!(room(SMALL), Some((NodeId(1), vec![sandbox_id(1)])));
    let two = Resources { cpu: 2, ..SMALL };
    assert_eq!(room(two), Some((NodeId(1), vec![sandbox_id(1), sandbox_id(2)])));
    assert_eq!(room(Resources { cpu: 4, ..SMALL }), None, "one CPU is a sandbox's that somebody has");
    let refused = [NodeId(1)].into();
    assert_eq!(make_room(&world.state, &heard(&world.state), SMALL, &refused), None);
    assert_eq!(make_room_on(&world.state, NodeId(1), 1, 1), Some(vec![sandbox_id(1)]));
    assert_eq!(make_room_on(&world.state, NodeId(1), 4, 1), None);
}

#[test]
fn the_room_of_members_that_go_is_there_at_once() {
    let mut world = with_members(3);
    world.accept(create(9, new_sandbox("s9", 1)));
    let (_, members) = make_room(&world.state, &heard(&world.state), SMALL, &BTreeSet::new()).unwrap();

    for sandbox_id in members {
        world.accept(RegionCommand::RetireWarm { sandbox_id, now_ms: NOW_MS });
    }

    assert_eq!(world.apply(create(10, new_sandbox("s10", 1))), RegionOutcome::Applied);
    assert_eq!(world.record(10).placement, at(1, 1));
}

#[test]
fn a_node_that_takes_nothing_is_not_emptied() {
    let mut world = with_members(3);
    world.accept(create(9, new_sandbox("s9", 1)));
    world.accept(judge(1, NodeHealth::Cordoned));
    world.accept(offer(1));

    assert_eq!(make_room(&world.state, &heard(&world.state), SMALL, &BTreeSet::new()), None);
}
