//! Pause and resume.

use super::*;

fn nothing() -> Vec<String> {
    Vec::new()
}

impl World {
    fn paused(&mut self, number: u8) -> &mut World {
        self.running(number).wish(number, Desired::Paused).ok(number).recorded(number, Phase::Paused);
        self.done.clear();
        self
    }
}

#[test]
fn a_paused_sandbox_is_frozen_reported_and_not_dialled() {
    let mut world = World::new();
    world.running(1);

    world.wish(1, Desired::Paused);
    assert_eq!(world.operations(), ["Pause g1"]);
    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Pausing)]);
    world.ok(1);

    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Paused)]);
    assert!(world.core.reachable().all(|reachable| !reachable.serving));
    assert_eq!(world.later(BACKOFF_MAX).operations(), nothing());
}

#[test]
fn a_resumed_sandbox_serves_once_its_daemon_answers() {
    let mut world = World::new();
    world.paused(1);

    world.wish(1, Desired::Running).ok(1);
    assert_eq!(world.operations(), ["Resume g1", "Adopt g1"]);
    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Resuming)]);
    world.ok(1);

    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Running)]);
    assert!(world.core.reachable().all(|reachable| reachable.serving));
}

#[test]
fn a_paused_sandbox_is_stopped_or_removed_without_being_resumed() {
    let mut world = World::new();
    world.paused(1).wish(1, Desired::Stopped).ok(1);
    assert_eq!(world.operations(), ["Stop g1"]);
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(Phase::Stopped)));

    let mut world = World::new();
    world.paused(1).wish(1, Desired::Deleted);
    assert_eq!(world.operations(), ["Remove g1"]);
}

#[test]
fn a_paused_container_is_adopted_as_it_is_without_a_report() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Paused)]);

    world.wanted(1, 1, Desired::Paused, Phase::Paused).later(LIST_INTERVAL);

    assert_eq!((world.operations(), world.reports()), (nothing(), vec![]));
    assert_eq!(world.wish(1, Desired::Running).ok(1).operations(), ["SetEgress g1", "Resume g1"]);
}

#[test]
fn a_pause_and_a_resume_that_a_restart_cut_off_go_on() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running)]);
    world.wanted(1, 1, Desired::Paused, Phase::Pausing);
    assert_eq!(world.operations(), ["Pause g1"]);

    let mut world = World::finding(vec![found(1, 1, FoundState::Paused)]);
    world.wanted(1, 1, Desired::Running, Phase::Resuming).ok(1).ok(1);
    assert_eq!(world.operations(), ["SetEgress g1", "Resume g1", "Adopt g1"]);
    assert_eq!(world.ok(1).reports(), [ReportKind::Phase(Phase::Running)]);
}

#[test]
fn a_paused_sandbox_whose_memory_is_lost_has_failed_and_can_be_started() {
    for phase in [Phase::Paused, Phase::Pausing] {
        let mut world = World::finding(vec![found(1, 1, EXITED)]);

        world.wanted(1, 1, Desired::Paused, phase);
        assert_eq!(world.operations(), nothing());
        assert_eq!(world.reports(), [ReportKind::Phase(failed(MEMORY_LOST))]);

        assert_eq!(world.wish(1, Desired::Running).ok(1).operations(), ["SetEgress g1", "Start g1"]);
    }
    let mut world = World::finding(vec![found(1, 1, EXITED)]);
    world.wanted(1, 1, Desired::Running, Phase::Resuming);
    assert_eq!(world.reports(), [ReportKind::Phase(failed(MEMORY_LOST))]);
}

#[test]
fn a_paused_sandbox_that_is_killed_says_so() {
    let mut world = World::new();
    world.paused(1);

    world.exits(1, Exit { code: Some(137), out_of_memory: false });

    let killed = ReportKind::Phase(failed("the sandbox was killed (exit code 137)"));
    assert_eq!((world.reports(), world.operations()), (vec![killed], nothing()));
}

#[test]
fn what_cannot_be_paused_says_so_and_goes_on() {
    let mut world = World::new();
    world.running(1).wish(1, Desired::Paused);

    for _ in 0..ATTEMPTS_MAX {
        world.fails(1, OperationError::Passing("busy".into())).later(BACKOFF_MAX);
    }
    assert_eq!(world.operations(), ["Pause g1"; ATTEMPTS_MAX as usize]);
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(failed("busy"))));

    world.wish(1, Desired::Running).ok(1).ok(1);
    assert_eq!(world.operations(), ["Resume g1", "Adopt g1"]);
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(Phase::Running)));
}

#[test]
fn what_somebody_else_froze_or_thawed_is_set_right() {
    let mut world = World::new();
    world.running(1).paused(2).later(LIST_INTERVAL).done.clear();

    let listed = vec![found(1, 1, FoundState::Paused), found(2, 1, FoundState::Running)];
    world.handle(Event::Listed(Some(listed)));

    assert_eq!(world.operations(), ["Resume g1", "Pause g1"]);
}
