//! A sandbox that runs before anybody has asked for it becomes somebody's.

use super::*;

impl World {
    fn claimed(&mut self, number: u8, user: &str) -> &mut World {
        let assignment = self.wanted.get_mut(&sandbox(number)).unwrap();
        let mut spec = SandboxSpec::clone(&assignment.spec);
        spec.user = user.to_owned();
        assignment.spec = Arc::new(spec);
        assignment.origin = Origin::Claimed;
        assignment.desired_version += 1;
        self.tell()
    }

    fn door(&self) -> Reachable {
        self.core.reachable().next().unwrap()
    }
}

#[test]
fn it_is_told_whom_it_is_for_and_reached_by_nobody_before() {
    let mut world = World::new();
    world.running(1).claimed(1, "root");

    assert_eq!(world.operations(), ["Identify g1"]);
    assert_eq!((world.door().serving, world.door().state), (false, WishState::UnderWay));
    world.ok(1);

    assert_eq!((world.door().serving, world.door().state), (true, WishState::Granted));
    assert_eq!(world.door().desired_version, 2);
    assert_eq!(world.reports(), [], "the record says all along that it runs");
    assert_eq!(world.tell().operations(), Vec::<String>::new());
}

#[test]
fn what_it_may_reach_is_changed_before_it_is_anybodys() {
    let mut world = World::new();
    world.running(1);
    let assignment = world.wanted.get_mut(&sandbox(1)).unwrap();
    let mut spec = SandboxSpec::clone(&assignment.spec);
    spec.egress.block_all = true;
    assignment.spec = Arc::new(spec);
    world.claimed(1, "root");

    assert_eq!(world.operations(), ["SetEgress g1"]);
    assert_eq!(world.ok(1).operations(), ["Identify g1"]);
    assert_eq!(world.door().state, WishState::UnderWay);
    assert_eq!(world.ok(1).door().state, WishState::Granted);
}

#[test]
fn a_claim_does_not_queue_behind_creates() {
    let mut world = World::new();
    world.running(1);
    for number in 2..=6 {
        world.placed(number);
    }
    world.operations();

    world.claimed(1, "root");

    assert_eq!(world.operations(), ["Identify g1"]);
}

#[test]
fn a_user_whom_the_image_does_not_know_is_a_failure() {
    let mut world = World::new();
    world.running(1).claimed(1, "ghost");

    world.fails(1, OperationError::Final("the image has no user".into()));

    assert_eq!(world.operations(), ["Identify g1", "Stop g1"]);
    assert_eq!(world.door().state, WishState::Failed("the image has no user".into()));
    assert_eq!(world.reports(), [ReportKind::Phase(failed("the image has no user"))]);
}

#[test]
fn a_new_process_tells_it_again_and_a_started_one_knows() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running)]);
    world.wanted(1, 1, Desired::Running, Phase::Running).claimed(1, "root");
    assert_eq!(world.ok(1).ok(1).operations(), ["Adopt g1", "SetEgress g1", "Identify g1"]);
    assert!(!world.door().serving, "it may still be as it was before it was claimed");
    assert!(world.ok(1).door().serving);

    world.wish(1, Desired::Stopped).ok(1).wish(1, Desired::Running).ok(1);

    assert_eq!(world.operations(), ["Stop g1", "Start g1"]);
    assert!(world.door().serving);
}

#[test]
fn one_that_was_asked_for_is_never_told() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running)]);

    world.wanted(1, 1, Desired::Running, Phase::Running).ok(1).ok(1);

    assert_eq!(world.operations(), ["Adopt g1", "SetEgress g1"]);
}
