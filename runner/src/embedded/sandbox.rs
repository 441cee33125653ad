//! One sandbox on this host, running or not.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::live::Live;
use super::record::{LastExit, Record};

pub(super) struct Sandbox {
    pub(super) dir: PathBuf,
    /// One verb at a time.
    pub(super) verb: tokio::sync::Mutex<()>,
    /// See [`super::timings::StartTimings`].
    pub(super) made_in_us: u64,
    state: Mutex<State>,
}

struct State {
    record: Record,
    live: Option<Arc<Live>>,
}

impl Sandbox {
    /// One that was not started yet.
    pub(super) fn made(dir: PathBuf, record: Record, made_in_us: u64) -> Sandbox {
        Sandbox { made_in_us, ..Sandbox::found(dir, record, None) }
    }

    /// One that an earlier process has made.
    pub(super) fn found(dir: PathBuf, record: Record, live: Option<Live>) -> Sandbox {
        let state = Mutex::new(State { record, live: live.map(Arc::new) });
        Sandbox { dir, verb: tokio::sync::Mutex::new(()), made_in_us: 0, state }
    }

    pub(super) fn record(&self) -> Record {
        self.state().record.clone()
    }

    pub(super) fn live(&self) -> Option<Arc<Live>> {
        self.state().live.clone()
    }

    pub(super) fn last_exit(&self) -> Option<LastExit> {
        self.state().record.last_exit
    }

    /// Changes the record, on disk first.
    pub(super) fn note(&self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut state = self.state();
        let mut record = state.record.clone();
        change(&mut record);
        record.save(&self.dir)?;
        state.record = record;
        Ok(())
    }

    /// It runs as far as anybody can tell from now on.
    pub(super) fn has_begun(&self, live: Arc<Live>) -> io::Result<()> {
        self.note(|record| {
            record.run = Some(live.run);
            record.last_exit = None;
        })?;
        self.state().live = Some(live);
        Ok(())
    }

    /// Nothing happens when a later run has begun already.
    pub(super) fn has_ended(&self, ended: &Arc<Live>, exit: LastExit) -> io::Result<()> {
        let mut state = self.state();
        if !state.live.as_ref().is_some_and(|live| Arc::ptr_eq(live, ended)) {
            return Ok(());
        }
        state.live = None;
        state.record.run = None;
        state.record.last_exit = Some(exit);
        state.record.save(&self.dir)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
