//! What sandboxes may reach, while they run and before.

use super::*;

fn nothing() -> Vec<String> {
    Vec::new()
}

impl World {
    fn may_reach(&mut self, number: u8, cidr: &str) -> &mut World {
        let assignment = self.wanted.get_mut(&sandbox(number)).unwrap();
        let mut spec = SandboxSpec::clone(&assignment.spec);
        spec.egress.cidrs = vec![cidr.to_owned()];
        assignment.spec = Arc::new(spec);
        self.tell()
    }
}

#[test]
fn a_change_is_carried_out_once_while_the_sandbox_serves() {
    let mut world = World::new();
    world.running(1).may_reach(1, "10.0.0.0/8");
    assert_eq!(world.operations(), ["SetEgress g1"]);
    assert!(world.core.reachable().all(|reachable| reachable.serving), "it serves meanwhile");

    world.ok(1).tell();

    assert_eq!((world.operations(), world.reports()), (nothing(), vec![]));
}

#[test]
fn a_change_during_a_change_is_carried_out_next() {
    let mut world = World::new();
    world.running(1).may_reach(1, "10.0.0.0/8").may_reach(1, "10.1.0.0/16");
    assert_eq!(world.operations(), ["SetEgress g1"]);

    assert_eq!(world.ok(1).operations(), ["SetEgress g1"]);
    assert_eq!(world.ok(1).operations(), nothing());
}

#[test]
fn what_changed_while_stopped_or_paused_holds_before_it_runs_again() {
    for at_rest in [Desired::Stopped, Desired::Paused] {
        let mut world = World::new();
        world.running(1).wish(1, at_rest).ok(1).may_reach(1, "10.0.0.0/8").operations();

        world.wish(1, Desired::Running).ok(1);

        let then = if at_rest == Desired::Stopped { "Start g1" } else { "Resume g1" };
        assert_eq!(world.operations(), ["SetEgress g1", then]);
    }
}

#[test]
fn an_adopted_sandbox_is_told_anew_and_serves_meanwhile() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running)]);

    world.wanted(1, 1, Desired::Running, Phase::Running).ok(1);

    assert_eq!(world.operations(), ["Adopt g1", "SetEgress g1"]);
    assert!(world.core.reachable().all(|reachable| reachable.serving));
}

#[test]
fn a_failure_passes_or_ends_the_sandbox_as_it_may_not_reach_more_than_allowed() {
    let mut world = World::new();
    world.running(1).may_reach(1, "10.0.0.0/8");

    world.fails(1, OperationError::Passing("busy".into())).later(BACKOFF_FIRST);
    assert_eq!(world.operations(), ["SetEgress g1", "SetEgress g1"]);
    world.fails(1, OperationError::Passing("busy".into())).later(BACKOFF_MAX);
    world.fails(1, OperationError::Passing("busy".into())).later(BACKOFF_MAX);

    assert_eq!(world.operations(), ["SetEgress g1", "Stop g1"]);
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(failed("busy"))));
}

#[test]
fn an_end_during_a_change_is_heard() {
    let mut world = World::new();
    world.running(1).may_reach(1, "10.0.0.0/8").exits(1, Exit { code: Some(1), out_of_memory: false });

    world.fails(1, OperationError::Passing("the sandbox stopped running".into()));

    let ended = failed("the sandbox ended by itself (exit code 1)");
    assert_eq!(world.reports(), [ReportKind::Phase(ended)]);
    assert_eq!(world.later(BACKOFF_MAX).operations(), ["SetEgress g1"]);
}
