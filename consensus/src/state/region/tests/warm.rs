//! Sandboxes that run before anybody has asked for them.

use atoll_api::ids::{ClaimId, NodeId, WarmPoolId};
use atoll_api::sandbox::{Desired, Egress, Phase};
use atoll_api::tokens::TokenHash;

use super::world::*;
use crate::state::region::RegionRejection::*;
use crate::state::region::*;

const POOL: WarmPoolId = WarmPoolId(uuid::Uuid::from_u128(7));

pub(crate) fn claim_id(n: u128) -> ClaimId {
    ClaimId(uuid::Uuid::from_u128(n))
}

fn member(n: u8, node: u64) -> NewSandbox {
    NewSandbox {
        preview_token_hash: TokenHash::of(&sandbox_id(n).to_string()),
        ..new_sandbox(&sandbox_id(n).to_string(), node)
    }
}

fn create_warm(n: u8, node: u64) -> RegionCommand {
    RegionCommand::CreateWarm {
        sandbox_id: sandbox_id(n),
        pool_id: POOL,
        sandbox: Box::new(member(n, node)),
        now_ms: NOW_MS,
    }
}

fn retire(n: u8) -> RegionCommand {
    RegionCommand::RetireWarm { sandbox_id: sandbox_id(n), now_ms: NOW_MS + 5 }
}

/// The ask of somebody who wants the member `n`, which is on node 1, under a name and with an environment of their own.
fn asked(n: u8, name: &str) -> NewSandbox {
    let mut asked = NewSandbox { name: name.into(), ..member(n, 1) };
    asked.spec.user = "root".into();
    asked.spec.env = [("COLOR".into(), "blue".into())].into();
    asked.spec.egress = Egress { block_all: true, ..Egress::default() };
    asked.labels = [("a".into(), "b".into())].into();
    asked.public = true;
    asked.intervals.auto_stop_minutes = 3;
    asked
}

fn claim(n: u8, by: u128, asked: NewSandbox) -> RegionCommand {
    RegionCommand::ClaimWarm {
        sandbox_id: sandbox_id(n),
        claim_id: claim_id(by),
        sandbox: Box::new(asked),
        now_ms: NOW_MS + 10,
    }
}

fn world_with_member(n: u8) -> World {
    let mut world = World::with_nodes(2);
    world.accept(create_warm(n, 1));
    world.accept(world.report(n, Phase::Running));
    world
}

fn listed(world: &World) -> usize {
    world.state.list(organization(1), |_, _| true, None, usize::MAX).items.len()
}

#[test]
fn a_member_is_its_owners_to_run_and_nobodys_to_see() {
    let world = world_with_member(1);

    assert_eq!(world.state.assignments(NodeId(1)).count(), 1);
    assert_eq!(world.state.usage(NodeId(1)), NodeUsage::of(SMALL, Desired::Running));
    assert_eq!(world.state.ready_members(POOL), 1);
    assert_eq!(listed(&world), 0);
    assert_eq!(world.state.facts(sandbox_id(1)), None);
    assert_eq!(world.state.by_name(organization(1), &sandbox_id(1).to_string()), None);
}

#[test]
fn a_claimed_member_is_the_callers_as_if_made_now() {
    let mut world = world_with_member(1);

    world.accept(claim(1, 1, asked(1, "mine")));

    let record = world.record(1);
    let asked = asked(1, "mine");
    assert_eq!((&record.name, &record.spec, &record.labels), (&asked.name, &asked.spec, &asked.labels));
    assert_eq!((record.public, record.auto_stop_minutes), (true, 3));
    assert_eq!((record.created_at_ms, record.desired_version), (NOW_MS + 10, 2));
    assert_eq!(record.phase, Phase::Running);
    assert_eq!(record.member_of(), None);
    assert_eq!(world.state.ready_members(POOL), 0);
    assert_eq!(world.state.pools_with_members().count(), 0);
    assert_eq!(listed(&world), 1);
    assert!(world.state.facts(sandbox_id(1)).is_some());
    assert_eq!(world.state.by_name(organization(1), "mine").map(|(id, _)| id), Some(sandbox_id(1)));
    assert_eq!(world.state.usage(NodeId(1)), NodeUsage::of(SMALL, Desired::Running));
}

#[test]
fn one_of_two_claims_wins_and_may_say_it_again() {
    let mut world = world_with_member(1);
    world.accept(claim(1, 1, asked(1, "mine")));
    let before = world.state.clone();

    world.refuse(claim(1, 2, asked(1, "theirs")), Claimed);
    // Also when it looks the same: it is another create.
    world.refuse(claim(1, 2, asked(1, "mine")), Claimed);
    world.accept(claim(1, 1, asked(1, "mine")));

    assert_eq!(world.state, before);
}

#[test]
fn only_what_can_be_changed_while_it_runs_may_differ() {
    for change in [
        (|asked| asked.spec.image = "other".into()) as fn(&mut NewSandbox),
        |asked| asked.spec.snapshot = "other".into(),
        |asked| asked.spec.resources.cpu += 1,
        |asked| asked.spec.allow_sudo = false,
        |asked| asked.spec.entrypoint = vec!["serve".into()],
        |asked| asked.organization_id = organization(2),
        |asked| asked.node_id = NodeId(2),
        |asked| asked.preview_token_hash = TokenHash::of("other"),
    ] {
        let mut other = asked(1, "mine");
        change(&mut other);
        world_with_member(1).refuse(claim(1, 1, other), NotClaimable);
    }
}

#[test]
fn an_images_own_command_keeps_the_user_and_environment_that_it_began_with() {
    let mut with_command = asked(1, "s").spec;
    with_command.entrypoint = vec!["serve".into()];
    let same = SandboxSpec { egress: Egress::default(), ..with_command.clone() };
    let other_env = SandboxSpec { env: Default::default(), ..with_command.clone() };
    let other_user = SandboxSpec { user: "daytona".into(), ..with_command.clone() };

    assert!(is_claimable_as(&with_command, &same));
    assert!(!is_claimable_as(&with_command, &other_env));
    assert!(!is_claimable_as(&with_command, &other_user));
}

#[test]
fn only_what_runs_on_a_ready_node_is_claimed() {
    let mut starting = World::with_nodes(1);
    starting.accept(create_warm(1, 1));
    starting.refuse(claim(1, 1, asked(1, "mine")), NotClaimable);

    let mut lost = world_with_member(1).health(1, NodeHealth::Down);
    lost.refuse(claim(1, 1, asked(1, "mine")), NotClaimable);

    let mut cordoned = world_with_member(1).health(1, NodeHealth::Cordoned);
    cordoned.refuse(claim(1, 1, asked(1, "mine")), NodeNotReady);

    let mut doomed = world_with_member(1);
    doomed.accept(retire(1));
    doomed.refuse(claim(1, 1, asked(1, "mine")), Deleting);

    let mut ordinary = World::with_nodes(1).running(1, 1);
    ordinary.refuse(claim(1, 1, asked(1, "mine")), NotClaimable);
    ordinary.refuse(claim(2, 1, asked(2, "mine")), NotFound);
}

#[test]
fn a_name_that_is_taken_leaves_the_member_in_its_pool() {
    let mut world = world_with_member(1).running(2, 2);

    world.refuse(claim(1, 1, asked(1, "s2")), NameTaken("s2".into()));

    assert_eq!(world.state.ready_members(POOL), 1);
}

#[test]
fn a_report_about_the_member_says_nothing_about_the_claim() {
    let mut world = world_with_member(1);
    let late = world.report(1, failed("ended"));
    world.accept(claim(1, 1, asked(1, "mine")));

    world.refuse(late, StaleReport);
}

#[test]
fn a_member_is_retired_and_a_claimed_one_is_not() {
    let mut world = world_with_member(1);
    world.accept(retire(1));
    world.accept(retire(1));
    assert_eq!(world.record(1).desired, Desired::Deleted);
    assert_eq!(world.state.usage(NodeId(1)), NodeUsage::default());
    world.accept(report_deleted(1, at(1, 1)));
    world.refuse(retire(1), NotFound);

    let mut claimed = world_with_member(1);
    claimed.accept(claim(1, 1, asked(1, "mine")));
    claimed.refuse(retire(1), Claimed);
}

#[test]
fn of_a_member_nothing_is_wished_but_its_end() {
    let mut world = world_with_member(1);
    let fork = RegionCommand::ForkSandbox {
        parent: sandbox_id(1),
        sandbox_id: sandbox_id(2),
        sandbox: Box::new(new_sandbox("s2", 1)),
        now_ms: NOW_MS,
    };
    let id = uuid::Uuid::from_u128(9);
    let snapshot =
        RegionCommand::SnapshotSandbox { sandbox_id: sandbox_id(1), id, name: "s".into(), now_ms: NOW_MS };

    for desired in [Desired::Stopped, Desired::Paused, Desired::Archived] {
        world.refuse(world.wish(1, desired), Unclaimed);
    }
    world.refuse(fork, Unclaimed);
    world.refuse(snapshot, Unclaimed);
    world.accept(world.wish(1, Desired::Deleted));
}

#[test]
fn a_member_needs_room_like_any_other() {
    let mut world = World::with_nodes(1);
    for n in 1..=4 {
        world.accept(create_warm(n, 1));
    }
    world.refuse(create_warm(5, 1), NoRoom);
}

#[test]
fn a_creation_said_again_is_applied_only_for_the_same_pool() {
    let mut world = world_with_member(1);
    world.accept(create_warm(1, 1));

    let mut other = create_warm(1, 1);
    if let RegionCommand::CreateWarm { pool_id, .. } = &mut other {
        *pool_id = WarmPoolId(uuid::Uuid::nil());
    }
    world.refuse(other, IdTaken);
    world.refuse(create(1, member(1, 1)), IdTaken);
}
