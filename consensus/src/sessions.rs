//! Exactly once: what each proposer has had applied, so that saying a command again does not do it again.
//!
//! A proposer numbers its commands and, with each, tells below which number it waits for no answer any more. The
//! replicas keep the outcomes from there on, in the state, so that all of them judge a repetition alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Of how many runs outcomes are kept at most: far more than nodes that propose at the same time.
const RUNS_MAX: usize = 4096;

/// Names one command of one run of a node's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalId {
    /// Drawn at random at every start.
    pub run: u64,
    pub number: u64,
    /// The run waits for nothing below this number.
    pub done_below: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    by_run: BTreeMap<u64, Session>,
    /// Counts uses, to find the run that has said nothing for longest.
    uses: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    used: u64,
    done_below: u64,
    outcomes: BTreeMap<u64, Bytes>,
}

/// Encoded bytes, written as such and not as a list of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Never,
    /// It was applied, and this came of it.
    Before(Bytes),
    /// A late copy of something that nobody waits for: it must not be applied.
    TooLate,
}

impl Sessions {
    pub fn look_up(&mut self, id: &ProposalId) -> Seen {
        self.uses += 1;
        if !self.by_run.contains_key(&id.run) {
            self.make_room();
        }
        let session = self.by_run.entry(id.run).or_default();
        session.used = self.uses;
        if id.number < session.done_below {
            return Seen::TooLate;
        }
        if id.done_below > session.done_below {
            session.done_below = id.done_below;
            session.outcomes = session.outcomes.split_off(&id.done_below);
        }
        session.outcomes.get(&id.number).cloned().map_or(Seen::Never, Seen::Before)
    }

    pub fn remember(&mut self, id: &ProposalId, outcome: Bytes) {
        if let Some(session) = self.by_run.get_mut(&id.run) {
            session.outcomes.insert(id.number, outcome);
        }
    }

    fn make_room(&mut self) {
        while self.by_run.len() >= RUNS_MAX {
            let Some(oldest) =
                self.by_run.iter().min_by_key(|(_, session)| session.used).map(|(run, _)| *run)
            else {
                return;
            };
            self.by_run.remove(&oldest);
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(run: u64, number: u64, done_below: u64) -> ProposalId {
        ProposalId { run, number, done_below }
    }

    fn sessions_with(ids: &[ProposalId]) -> Sessions {
        let mut sessions = Sessions::default();
        for id in ids {
            assert_eq!(sessions.look_up(id), Seen::Never);
            sessions.remember(id, Bytes(vec![id.number as u8]));
        }
        sessions
    }

    #[test]
    fn a_repetition_gets_the_first_outcome() {
        let mut sessions = sessions_with(&[id(1, 5, 5)]);

        assert_eq!(sessions.look_up(&id(1, 5, 5)), Seen::Before(Bytes(vec![5])));
    }

    #[test]
    fn a_copy_that_nobody_waits_for_is_not_applied() {
        let mut sessions = sessions_with(&[id(1, 5, 5), id(1, 6, 6)]);

        assert_eq!(sessions.look_up(&id(1, 5, 5)), Seen::TooLate);
    }

    #[test]
    fn outcomes_are_kept_only_while_somebody_waits() {
        let mut sessions = sessions_with(&[id(1, 1, 1), id(1, 2, 1), id(1, 3, 1)]);

        sessions.look_up(&id(1, 4, 3));

        assert_eq!(sessions.by_run[&1].outcomes.keys().collect::<Vec<_>>(), [&3]);
    }

    #[test]
    fn the_run_that_said_nothing_for_longest_makes_room() {
        let ids: Vec<ProposalId> = (0..RUNS_MAX as u64).map(|run| id(run, 0, 0)).collect();
        let mut sessions = sessions_with(&ids);
        sessions.look_up(&id(0, 0, 0));

        sessions.look_up(&id(u64::MAX, 0, 0));

        assert_eq!(sessions.by_run.len(), RUNS_MAX);
        assert!(sessions.by_run.contains_key(&0));
        assert!(!sessions.by_run.contains_key(&1));
    }
}
