//! Disks that are wanted as images.

use super::*;
use crate::assignment::CaptureWish;

fn kept() -> Kept {
    Kept { reference: "atoll.internal/o/s@sha256:1".into(), bytes: 5 }
}

fn nothing() -> Vec<String> {
    Vec::new()
}

fn captured(number: u64) -> ReportKind {
    ReportKind::Captured { number, result: Ok(kept()) }
}

impl World {
    fn wants_capture(&mut self, number: u8, capture: u64) -> &mut World {
        let wish = CaptureWish { number: capture, name: "atoll.internal/o/s".into() };
        self.wanted.get_mut(&sandbox(number)).unwrap().capture = Some(wish);
        self.tell()
    }

    fn no_capture(&mut self, number: u8) -> &mut World {
        self.wanted.get_mut(&sandbox(number)).unwrap().capture = None;
        self.tell()
    }

    fn captures(&mut self, number: u8, result: Result<Kept, OperationError>) -> &mut World {
        let incarnation = incarnation(number, 1);
        let operation_id = *self.core.operations.iter().find(|(_, of)| **of == incarnation).unwrap().0;
        self.handle(Event::Captured { operation_id, result })
    }

    fn stopped(&mut self, number: u8) -> &mut World {
        self.running(number).wish(number, Desired::Stopped).ok(number).recorded(number, Phase::Stopped);
        self.done.clear();
        self
    }

    fn how(&self) -> Vec<Stillness> {
        let how = |action: &Action| match action {
            Action::Begin { operation: Operation::Capture { how, .. }, .. } => Some(*how),
            _ => None,
        };
        self.done.iter().filter_map(how).collect()
    }
}

fn passing() -> OperationError {
    OperationError::Passing("disk full".into())
}

#[test]
fn a_running_sandbox_is_captured_by_freezing_and_serves_all_along() {
    let mut world = World::new();
    world.running(1).wants_capture(1, 1);
    assert_eq!(world.how(), [Stillness::ByFreezing]);
    assert!(world.core.reachable().all(|reachable| reachable.serving));

    world.captures(1, Ok(kept()));

    assert_eq!(world.reports(), [captured(1)]);
    assert_eq!(world.operations(), ["Capture g1"]);
    assert_eq!(world.no_capture(1).later(BACKOFF_MAX).operations(), nothing());
}

#[test]
fn what_is_at_rest_is_captured_as_it_is() {
    for desired in [Desired::Stopped, Desired::Paused] {
        let mut world = World::new();
        world.running(1).wish(1, desired).ok(1).done.clear();

        world.wants_capture(1, 1);

        assert_eq!(world.how(), [Stillness::Already], "{desired:?}");
    }
}

#[test]
fn a_capture_that_fails_leaves_nothing_frozen_and_is_tried_again() {
    let mut world = World::new();
    world.running(1).wants_capture(1, 1).captures(1, Err(passing()));

    assert_eq!(world.operations(), ["Capture g1", "Resume g1"]);
    world.ok(1).ok(1);
    assert_eq!(world.operations(), ["Adopt g1", "Capture g1"]);
    world.captures(1, Ok(kept()));

    assert!(world.reports().contains(&captured(1)));
    assert!(world.core.reachable().all(|reachable| reachable.serving));
}

#[test]
fn a_capture_that_never_works_is_answered_with_the_reason_and_the_sandbox_goes_on() {
    let mut world = World::new();
    world.stopped(1).wants_capture(1, 1);

    for _ in 0..ATTEMPTS_MAX {
        world.captures(1, Err(passing())).later(BACKOFF_MAX);
    }

    let answer = ReportKind::Captured { number: 1, result: Err("disk full".into()) };
    assert!(world.reports().contains(&answer));
    assert_eq!(world.operations(), ["Capture g1", "Capture g1", "Capture g1"]);
    world.wish(1, Desired::Running);
    assert_eq!(world.operations(), ["Start g1"]);
}

#[test]
fn an_answer_is_said_again_until_the_wish_is_gone() {
    let mut world = World::new();
    world.stopped(1).wants_capture(1, 1).captures(1, Ok(kept()));
    assert_eq!(world.reports(), [captured(1)]);

    world.later(REPORT_AGAIN_AFTER);
    assert_eq!(world.reports(), [captured(1)]);

    world.no_capture(1).later(REPORT_AGAIN_AFTER);
    assert_eq!(world.reports(), []);
}

#[test]
fn a_later_wish_is_answered_by_another_look_at_the_disk() {
    let mut world = World::new();
    world.running(1).wants_capture(1, 1).wants_capture(1, 2).captures(1, Ok(kept()));

    assert_eq!(world.operations(), ["Capture g1", "Capture g1"]);
    world.captures(1, Ok(kept()));

    assert_eq!(world.reports(), [captured(1), captured(2)]);
}

#[test]
fn the_wish_for_the_sandbox_comes_before_the_wish_for_its_disk() {
    let mut world = World::new();
    world.running(1).wants_capture(1, 1).wish(1, Desired::Stopped);
    assert_eq!(world.operations(), ["Capture g1", "Cancel"]);
    world.captures(1, Err(OperationError::Cancelled));
    assert_eq!(world.operations(), ["Stop g1"]);
    world.ok(1);
    assert_eq!(world.operations(), ["Capture g1"], "of the stopped one, then");

    let mut world = World::new();
    world.running(1).wants_capture(1, 1).wish(1, Desired::Deleted);
    world.captures(1, Err(OperationError::Cancelled));
    assert_eq!(world.operations(), ["Capture g1", "Cancel", "Remove g1"]);
}

#[test]
fn a_sandbox_that_ends_while_it_is_captured_is_reported_and_not_resumed() {
    let mut world = World::new();
    world.running(1).wants_capture(1, 1).exits(1, Exit { code: Some(137), out_of_memory: true });

    world.captures(1, Err(passing()));

    assert!(matches!(world.reports().first(), Some(ReportKind::Phase(Phase::Failed { .. }))));
    assert_eq!(world.operations(), ["Capture g1"]);
    assert_eq!(world.later(BACKOFF_MAX).operations(), ["Capture g1"], "its disk is there still");
}

#[test]
fn one_found_frozen_after_a_restart_amid_a_capture_is_resumed_and_captured_then() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Paused)]);

    world.wanted(1, 1, Desired::Running, Phase::Running).wants_capture(1, 1);
    let first = world.operations();
    assert!(first == ["SetEgress g1"] || first == ["Resume g1"], "{first:?}");
    let mut then = Vec::new();
    for _ in 0..3 {
        if world.core.slots[&incarnation(1, 1)].operation.as_ref().is_some_and(|o| o.kind != Kind::Capture) {
            then.extend(world.ok(1).operations());
        }
    }

    assert_eq!(then.last().map(String::as_str), Some("Capture g1"), "{then:?}");
}

#[test]
fn an_archive_is_captured_then_removed_and_only_when_the_record_has_it() {
    let mut world = World::new();
    world.stopped(1);
    let assignment = world.wanted.get_mut(&sandbox(1)).unwrap();
    (assignment.desired, assignment.phase) = (Desired::Archived, Phase::Archiving);
    assignment.desired_version += 1;
    world.wants_capture(1, 1);
    assert_eq!(world.operations(), ["Capture g1"]);
    world.captures(1, Ok(kept())).later(BACKOFF_MAX);
    assert_eq!(world.operations(), nothing(), "nothing is removed before the record has the checkpoint");
    world.reports();

    world.no_capture(1);
    assert_eq!(world.operations(), ["Remove g1"]);
    world.ok(1);

    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Archived)]);
    world.unwanted(1);
    assert_eq!(world.later(BACKOFF_MAX).operations(), nothing());
}

#[test]
fn a_capture_of_a_disk_that_is_gone_is_answered_so() {
    let mut world = World::new();
    world.wanted(1, 1, Desired::Archived, Phase::Archiving).wants_capture(1, 1);

    let reports = world.reports();

    let gone = |kind: &ReportKind| matches!(kind, ReportKind::Captured { number: 1, result: Err(_) });
    assert!(reports.iter().any(gone), "{reports:?}");
}

#[test]
fn a_capture_waits_for_rest_only_so_long() {
    let mut world = World::new();
    world.placed(1).wants_capture(1, 1);
    world.fails(1, passing());

    world.later(CAPTURE_PATIENCE);
    world.complete(incarnation(1, 1), Err(OperationError::Final("bad image".into())));

    let answered = |kind: &ReportKind| matches!(kind, ReportKind::Captured { result: Err(_), .. });
    assert!(world.reports().iter().any(answered));
}

#[test]
fn a_restored_sandbox_is_made_again_by_a_runner_that_was_away() {
    let mut world = World::new();
    let assignment = Assignment {
        sandbox_id: sandbox(1),
        generation: Generation(2),
        spec: spec(),
        desired: Desired::Running,
        desired_version: 4,
        phase: Phase::Starting,
        made_by_version: 4,
        capture: None,
        origin: Origin::Asked,
    };
    world.wanted.insert(sandbox(1), assignment);
    assert_eq!(world.tell().operations(), ["Create g2"]);
}
