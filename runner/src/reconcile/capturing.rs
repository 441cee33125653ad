//! Disks that are wanted as images: when one is taken, and what is said of it.
//!
//! ```text
//!  wished ──(at rest)──▶ taken ──▶ said, until the wish is gone from the assignment
//!     └── tries used up, no disk, patience over ──▶ failed ──▶ said
//! ```

use std::time::Instant;

use super::{
    ATTEMPTS_MAX, Action, BACKOFF_FIRST, CAPTURE_PATIENCE, CAPTURES_AT_ONCE, Container, GONE, Goal, Kind,
    Operation, OperationError, OperationId, REPORT_AGAIN_AFTER, Reconciler, Stillness, backoff,
};
use crate::assignment::{CaptureWish, Report, ReportKind};
use crate::image::Kept;

/// What is known of one sandbox's captures.
#[derive(Debug, Default)]
pub(super) struct Capturing {
    wish: Option<Wish>,
    /// What the capture under way will answer.
    running: Option<u64>,
    answer: Option<Answer>,
    attempts: u32,
}

#[derive(Debug)]
struct Wish {
    wish: CaptureWish,
    since: Instant,
}

#[derive(Debug, Clone)]
struct Answer {
    number: u64,
    result: Result<Kept, String>,
}

/// Whether a disk can go on being read although the sandbox is to be so.
pub(super) fn fits(container: Container, goal: Goal) -> bool {
    matches!(
        (container, goal),
        (Container::Stopped, Goal::Down | Goal::Frozen)
            | (Container::Serving, Goal::Serving)
            | (Container::Frozen, Goal::Frozen)
    )
}

impl Capturing {
    /// A later wish takes the place of an earlier one: its answer is the answer to both.
    pub(super) fn adopt(&mut self, wish: Option<&CaptureWish>, now: Instant) {
        let Some(wish) = wish else {
            *self = Capturing { running: self.running, ..Capturing::default() };
            return;
        };
        if self.wish.as_ref().is_none_or(|known| known.wish != *wish) {
            self.wish = Some(Wish { wish: wish.clone(), since: now });
            self.attempts = 0;
        }
    }

    pub(super) fn due(&self) -> Option<Kind> {
        self.unanswered().map(|_| Kind::Capture)
    }

    pub(super) fn begin(&mut self, container: Container) -> Option<Operation> {
        let CaptureWish { number, name } = self.unanswered()?.wish.clone();
        let how = match container {
            Container::Serving => Stillness::ByFreezing,
            _ => Stillness::Already,
        };
        self.running = Some(number);
        Some(Operation::Capture { name, how })
    }

    /// When its patience ends.
    pub(super) fn wake(&self, now: Instant) -> Instant {
        let unanswered = self.unanswered().map(|wish| wish.since + CAPTURE_PATIENCE);
        unanswered.map_or(now + CAPTURE_PATIENCE, |over| over.max(now + BACKOFF_FIRST))
    }

    fn unanswered(&self) -> Option<&Wish> {
        let answered = self.answer.as_ref().map_or(0, |answer| answer.number);
        self.wish.as_ref().filter(|wish| wish.wish.number > answered)
    }

    fn fail(&mut self, reason: &str) {
        if let Some(number) = self.unanswered().map(|wish| wish.wish.number) {
            self.answer = Some(Answer { number, result: Err(reason.to_owned()) });
        }
    }
}

impl Reconciler {
    pub(super) fn may_capture(&self) -> bool {
        let running = self
            .slots
            .values()
            .filter(|slot| slot.operation.as_ref().is_some_and(|running| running.kind == Kind::Capture));
        running.count() < CAPTURES_AT_ONCE
    }

    pub(super) fn captured(
        &mut self,
        operation_id: OperationId,
        result: Result<Kept, OperationError>,
        now: Instant,
    ) {
        let Some(incarnation) = self.operations.remove(&operation_id) else { return };
        self.touch(incarnation);
        let Some(slot) = self.slots.get_mut(&incarnation) else { return };
        let Some(running) = slot.operation.take() else { return };
        slot.waiting_since = now;
        let number = slot.capturing.running.take();
        let error = match (result, number) {
            (Ok(kept), Some(number)) => {
                slot.not_before = now;
                slot.capturing.answer = Some(Answer { number, result: Ok(kept) });
                slot.capturing.attempts = 0;
                return;
            }
            (Ok(_), None) => return,
            (Err(error), _) => error,
        };
        slot.container = slot.after_failed(running.kind);
        match error {
            // Only a create lacks an image.
            OperationError::Cancelled | OperationError::ImageMissing => {}
            OperationError::Vanished => {
                slot.container = Container::Absent;
                slot.capturing.fail(GONE);
                let desired_version = slot.desired_version;
                slot.fail(desired_version, GONE);
            }
            OperationError::Final(reason) => slot.capturing.fail(&reason),
            OperationError::Passing(reason) => {
                slot.capturing.attempts += 1;
                if slot.capturing.attempts >= ATTEMPTS_MAX {
                    slot.capturing.fail(&reason);
                // It does not stay frozen for as long as the next try waits.
                } else if slot.container != Container::HalfFrozen {
                    slot.not_before = now + backoff(slot.capturing.attempts);
                }
            }
        }
    }

    /// Answers what is taken and what will never be, and says it again until the wish is gone.
    pub(super) fn report_captured(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(wanted) = &self.wanted else { return };
        self.said_captured.retain(|sandbox_id, _| {
            wanted.get(sandbox_id).is_some_and(|assignment| assignment.capture.is_some())
        });
        for assignment in wanted.values().filter(|assignment| assignment.capture.is_some()) {
            let Some(slot) = self.slots.get_mut(&assignment.incarnation()) else { continue };
            let idle = slot.operation.is_none();
            let over = slot.capturing.wish.as_ref().is_some_and(|wish| now >= wish.since + CAPTURE_PATIENCE);
            if idle && slot.container == Container::Absent {
                slot.capturing.fail(GONE);
            } else if idle && over {
                slot.capturing.fail("the sandbox was not at rest for long enough to copy its disk");
            }
            let Some(Answer { number, result }) = slot.capturing.answer.clone() else { continue };
            let said = self.said_captured.get(&assignment.sandbox_id);
            if said.is_some_and(|(said, at)| *said == number && now < *at + REPORT_AGAIN_AFTER) {
                continue;
            }
            self.said_captured.insert(assignment.sandbox_id, (number, now));
            actions.push(Action::Send(Report {
                sandbox_id: assignment.sandbox_id,
                generation: assignment.generation,
                desired_version: assignment.desired_version,
                kind: ReportKind::Captured { number, result },
            }));
        }
    }
}
