//! Judges a history: is there one order of all calls, in which none takes effect before it began or after it ended, that
//! gives every answer? The model is the state machine itself. Sandboxes do not touch each other, so each is judged alone.
//!
//! The search is Wing and Gong's, with Lowe's memory of what was tried.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};

use atoll_api::ids::{Generation, NodeId, RegionOrdinal, SandboxId};
use atoll_api::wire;
use atoll_consensus::state::region::{RegionCommand, RegionOutcome, RegionState};

use crate::clients::everything_of;
use crate::history::{Answered, Asked, Call, History};

const STATES_MAX: usize = 2_000_000;

pub fn judge(history: &History, ordinal: RegionOrdinal) {
    let mut by_sandbox: BTreeMap<SandboxId, Vec<&Call>> = BTreeMap::new();
    for call in &history.calls {
        by_sandbox.entry(call.sandbox).or_default().push(call);
    }
    for (sandbox, calls) in by_sandbox {
        one_owner_per_generation(sandbox, &calls);
        let calls = that_matter(calls);
        let mut search = Search::new(sandbox, &calls);
        if !search.explains(initial(ordinal), Done::default()) {
            let calls: Vec<String> = calls.iter().map(|call| format!("{call:?}")).collect();
            panic!("no order explains what {sandbox} answered:\n{}", calls.join("\n"));
        }
    }
}

/// A read without an answer says nothing.
fn that_matter(mut calls: Vec<&Call>) -> Vec<&Call> {
    calls.retain(|call| !matches!((&call.asked, &call.answered), (Asked::Read, Answered::Nothing)));
    calls.sort_by_key(|call| call.began);
    calls
}

fn initial(ordinal: RegionOrdinal) -> RegionState {
    let mut state = RegionState::default();
    state.apply(RegionCommand::FoundRegion { ordinal });
    for command in everything_of(5) {
        state.apply(command);
    }
    state
}

/// Implied by the search; said apart because it is the promise that matters most.
fn one_owner_per_generation(sandbox: SandboxId, calls: &[&Call]) {
    let mut owners: BTreeMap<Generation, NodeId> = BTreeMap::new();
    let placed = calls.iter().filter_map(|call| match (&call.asked, &call.answered) {
        (
            Asked::Write(RegionCommand::PlaceSandbox { placement, .. }),
            Answered::Wrote(RegionOutcome::Applied),
        ) => Some(*placement),
        (Asked::Read, Answered::Read(Some(record))) => Some(record.placement),
        _ => None,
    });
    for placement in placed {
        let owner = *owners.entry(placement.generation).or_insert(placement.node_id);
        assert_eq!(
            owner, placement.node_id,
            "{sandbox} had two owners in generation {}",
            placement.generation
        );
    }
}

/// Which calls have taken effect, one bit each.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn has(&self, call: usize) -> bool {
        self.0.get(call / 64).is_some_and(|bits| bits & (1 << (call % 64)) != 0)
    }

    fn with(&self, call: usize) -> Done {
        let mut done = self.clone();
        if done.0.len() <= call / 64 {
            done.0.resize(call / 64 + 1, 0);
        }
        done.0[call / 64] |= 1 << (call % 64);
        done
    }
}

struct Search<'a> {
    sandbox: SandboxId,
    calls: &'a [&'a Call],
    tried: HashSet<(Done, u64)>,
}

impl<'a> Search<'a> {
    fn new(sandbox: SandboxId, calls: &'a [&'a Call]) -> Search<'a> {
        Search { sandbox, calls, tried: HashSet::new() }
    }

    fn explains(&mut self, state: RegionState, done: Done) -> bool {
        let open = || (0..self.calls.len()).filter(|call| !done.has(*call));
        // A call that ended before another began comes before it.
        let Some(first_end) = open().map(|call| self.calls[call].ended).min().filter(|end| *end != u64::MAX)
        else {
            return true;
        };
        let candidates: Vec<usize> = open().filter(|call| self.calls[*call].began < first_end).collect();
        assert!(self.tried.len() < STATES_MAX, "the history of {} is too hard to judge", self.sandbox);
        for call in candidates {
            let Some(next) = self.effect(call, &state) else { continue };
            let done = done.with(call);
            if self.tried.insert((done.clone(), fingerprint(&next))) && self.explains(next, done) {
                return true;
            }
        }
        false
    }

    /// The state after the call, if its answer fits.
    fn effect(&self, call: usize, state: &RegionState) -> Option<RegionState> {
        let Call { asked, answered, .. } = self.calls[call];
        match (asked, answered) {
            (Asked::Read, Answered::Read(seen)) => {
                (state.sandboxes.get(&self.sandbox) == seen.as_deref()).then(|| state.clone())
            }
            (Asked::Write(command), answered) => {
                let mut next = state.clone();
                let outcome = next.apply(command.clone());
                let fits = match answered {
                    Answered::Wrote(heard) => *heard == outcome,
                    Answered::Nothing => true,
                    Answered::Read(_) => false,
                };
                fits.then_some(next)
            }
            (Asked::Read, _) => None,
        }
    }
}

fn fingerprint(state: &RegionState) -> u64 {
    let mut hasher = DefaultHasher::new();
    wire::encode(state).expect("a state can be encoded").hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::{create, labels, sandbox_id};

    struct Told(Vec<Call>);

    impl Told {
        fn call(mut self, began: u64, ended: u64, asked: Asked, answered: Answered) -> Told {
            let (client, node, sandbox) = (0, NodeId(1), sandbox_id(0));
            self.0.push(Call { client, node, sandbox, asked, began, ended, answered });
            self
        }

        fn wrote(self, began: u64, ended: u64, command: RegionCommand) -> Told {
            self.call(began, ended, Asked::Write(command), Answered::Wrote(RegionOutcome::Applied))
        }

        fn read(self, began: u64, ended: u64, after: &[RegionCommand]) -> Told {
            let mut state = initial(RegionOrdinal::new(0).unwrap());
            for command in after {
                assert_eq!(state.apply(command.clone()), RegionOutcome::Applied);
            }
            let seen = state.sandboxes.get(&sandbox_id(0)).cloned();
            self.call(began, ended, Asked::Read, Answered::Read(seen.map(Box::new)))
        }

        fn judged_right(self) -> bool {
            let history = History { calls: self.0, ..History::default() };
            std::panic::catch_unwind(|| judge(&history, RegionOrdinal::new(0).unwrap())).is_ok()
        }
    }

    fn written() -> [RegionCommand; 3] {
        [create(0, 1, 1), labels(0, 1, 2), labels(0, 2, 3)]
    }

    #[test]
    fn a_read_of_the_newest_write_is_right_and_of_an_older_one_is_stale() {
        let [a, b, c] = written();
        let told = || Told(vec![]).wrote(1, 2, a.clone()).wrote(3, 4, b.clone()).wrote(5, 6, c.clone());

        assert!(told().read(7, 8, &[a.clone(), b.clone(), c.clone()]).judged_right());
        assert!(!told().read(7, 8, &[a.clone(), b.clone()]).judged_right());
    }

    #[test]
    fn a_lost_write_is_found() {
        let [a, ..] = written();

        assert!(!Told(vec![]).wrote(1, 2, a).read(3, 4, &[]).judged_right());
    }

    #[test]
    fn a_write_without_an_answer_may_or_may_not_be_seen_but_not_come_and_go() {
        let [a, b, _] = written();
        let told = || {
            Told(vec![]).wrote(1, 2, a.clone()).call(3, u64::MAX, Asked::Write(b.clone()), Answered::Nothing)
        };

        assert!(told().read(4, 5, std::slice::from_ref(&a)).judged_right());
        assert!(told().read(4, 5, &[a.clone(), b.clone()]).judged_right());
        assert!(
            !told().read(4, 5, &[a.clone(), b.clone()]).read(6, 7, std::slice::from_ref(&a)).judged_right()
        );
    }
}
