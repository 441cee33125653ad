//! What clients asked of a cluster and what they were answered, on one monotonic clock. It only remembers; [`judge`] and
//! [`containers`] say whether it was right.

pub mod containers;
pub mod judge;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One call of one client. A sandbox is known by its name, because a create without an answer has one, too; no name is
/// used twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Index of the node that was asked.
    pub node: usize,
    pub sandbox: String,
    pub asked: Asked,
    /// Since the history began.
    pub began: Duration,
    pub ended: Duration,
    pub answered: Answered,
}

/// Every label that is written is a number of its own, so that a read says which write it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Create { label: u64 },
    Label(u64),
    Read,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The write is acknowledged.
    Done,
    /// What a read showed.
    Saw { id: String, label: u64 },
    /// There is no such sandbox, or it is being deleted.
    Missing,
    /// No answer, or one that promises nothing: a write may have been done, or may still be.
    Unknown,
    /// A request without fault was called faulty; the answer.
    Refused(String),
}

/// Takes down calls of concurrent clients.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    calls: Mutex<Vec<Call>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder { start: Instant::now(), calls: Mutex::default() }
    }
}

impl Recorder {
    /// The time on the history's clock.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes down a call that ends now.
    pub fn end(&self, node: usize, sandbox: &str, asked: Asked, began: Duration, answered: Answered) {
        let ended = self.now();
        let call = Call { node, sandbox: sandbox.to_owned(), asked, began, ended, answered };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the first `count` of the acknowledged writes that began after `after` had ended.
    pub fn acknowledged_after(&self, after: Duration, count: usize) -> Option<Duration> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let acknowledged = calls.iter().filter(|call| call.answered == Answered::Done && call.began > after);
        let mut ends: Vec<Duration> = acknowledged.map(|call| call.ended).collect();
        ends.sort();
        ends.get(count.saturating_sub(1)).copied()
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (began, ended) = (self.began.as_secs_f64() * 1e3, self.ended.as_secs_f64() * 1e3);
        write!(
            f,
            "{began:.3}–{ended:.3} ms  n{} {} {:?} → {:?}",
            self.node + 1,
            self.sandbox,
            self.asked,
            self.answered
        )
    }
}
