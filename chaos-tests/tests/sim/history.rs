//! What clients asked and what they were answered, in the order in which it happened.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_api::ids::{NodeId, SandboxId};
use atoll_consensus::state::region::{RegionCommand, RegionOutcome, SandboxRecord};
use tokio::time::Instant;

#[derive(Debug, Clone)]
pub enum Asked {
    Write(RegionCommand),
    Read,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    Wrote(RegionOutcome),
    Read(Option<Box<SandboxRecord>>),
    /// No answer came: a write may have been done, or may still be.
    Nothing,
}

/// One call of one client.
#[derive(Debug, Clone)]
pub struct Call {
    pub client: u64,
    pub node: NodeId,
    pub sandbox: SandboxId,
    pub asked: Asked,
    /// Places in the order of all beginnings and ends.
    pub began: u64,
    pub ended: u64,
    pub answered: Answered,
}

#[derive(Default)]
pub struct History {
    pub calls: Vec<Call>,
    /// The same as text, with the virtual times and what went wrong between.
    pub lines: String,
}

/// Clones write the same history.
#[derive(Clone)]
pub struct Recorder {
    start: Instant,
    record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    clock: u64,
    history: History,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder { start: Instant::now(), record: Arc::default() }
    }

    pub fn begin(&self, client: u64, node: NodeId, sandbox: SandboxId, asked: Asked) -> Call {
        let began = self.note(&format!("{client}@{node} asks {sandbox} {asked:?}"));
        Call { client, node, sandbox, asked, began, ended: u64::MAX, answered: Answered::Nothing }
    }

    pub fn end(&self, mut call: Call, answered: Answered) {
        let now = self.note(&format!("{}@{} hears {answered:?}", call.client, call.node));
        call.ended = if answered == Answered::Nothing { u64::MAX } else { now };
        call.answered = answered;
        self.record.lock().unwrap_or_else(PoisonError::into_inner).history.calls.push(call);
    }

    pub fn note(&self, what: &str) -> u64 {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.clock += 1;
        let (clock, at_ms) = (record.clock, self.start.elapsed().as_millis());
        writeln!(record.history.lines, "{clock} {at_ms}ms {what}").expect("text can be written to a string");
        clock
    }

    pub fn finish(self) -> History {
        std::mem::take(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner).history)
    }
}

impl History {
    pub fn answered(&self) -> usize {
        self.calls.iter().filter(|call| call.answered != Answered::Nothing).count()
    }
}
