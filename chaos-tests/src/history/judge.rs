//! Judges a history: is there one order of all calls, in which none takes effect before it began or after it ended, that
//! gives every answer? Sandboxes don't touch each other, so each is judged alone. Pure.
//!
//! The mistakes that have a name are looked for first, because a name says more than "no order". The search is Wing and
//! Gong's, with Lowe's memory of what was tried; a read that fits is taken at once, as that can never be wrong.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::time::Duration;

use super::{Answered, Asked, Call};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    /// The calls that contradict each other; for [`Rule::Unexplained`] those that were left when nothing fitted any more.
    pub evidence: Vec<Call>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A request without fault was called faulty.
    Refused,
    /// One name, two sandboxes.
    TwoIds,
    /// A label that nobody had asked for by then.
    Invented,
    /// Missing, although its create was acknowledged and nobody had asked to delete it.
    Lost,
    /// There again after its delete was acknowledged.
    Resurrected,
    /// The state before a write that was acknowledged before the read began.
    Stale,
    /// No order of the calls gives every answer.
    Unexplained,
}

const EVIDENCE_MAX: usize = 12;

/// Empty: the history is right.
pub fn judge(calls: &[Call]) -> Vec<Violation> {
    let mut by_sandbox: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        by_sandbox.entry(&call.sandbox).or_default().push(call);
    }
    by_sandbox.into_values().flat_map(judge_sandbox).collect()
}

fn judge_sandbox(mut calls: Vec<&Call>) -> Vec<Violation> {
    calls.sort_by_key(|call| call.began);
    let story = Story { calls };
    let named: Vec<Violation> = [
        story.refused(),
        story.two_ids(),
        story.invented(),
        story.lost(),
        story.resurrected(),
        story.stale(),
    ]
    .into_iter()
    .flatten()
    .collect();
    if named.is_empty() { story.unexplained().into_iter().collect() } else { named }
}

/// All calls about one sandbox, by their beginnings.
struct Story<'a> {
    calls: Vec<&'a Call>,
}

impl<'a> Story<'a> {
    fn refused(&self) -> Option<Violation> {
        let call = self.calls.iter().copied().find(|call| matches!(call.answered, Answered::Refused(_)))?;
        Some(violation(Rule::Refused, [call]))
    }

    fn two_ids(&self) -> Option<Violation> {
        let mut seen = self.seen();
        let (first, first_id, _) = seen.next()?;
        let (other, ..) = seen.find(|(_, id, _)| *id != first_id)?;
        Some(violation(Rule::TwoIds, [first, other]))
    }

    fn invented(&self) -> Option<Violation> {
        let (read, ..) = self
            .seen()
            .find(|(read, _, label)| self.writer(*label).is_none_or(|write| write.began > read.ended))?;
        Some(violation(Rule::Invented, [read]))
    }

    fn lost(&self) -> Option<Violation> {
        let create = self.done().find(|call| matches!(call.asked, Asked::Create { .. }))?;
        let perhaps_deleted = |call: &Call| {
            let others = self.calls.iter().filter(|other| !std::ptr::eq(**other, call));
            others.into_iter().any(|other| other.asked == Asked::Delete && other.began <= call.ended)
        };
        let missing = self.calls.iter().copied().find(|call| {
            call.answered == Answered::Missing && call.began > create.ended && !perhaps_deleted(call)
        })?;
        Some(violation(Rule::Lost, [create, missing]))
    }

    fn resurrected(&self) -> Option<Violation> {
        let delete = self.done().filter(|call| call.asked == Asked::Delete).min_by_key(|call| call.ended)?;
        let alive = self.calls.iter().copied().find(|call| {
            let shows_life = match call.answered {
                Answered::Saw { .. } => true,
                Answered::Done => matches!(call.asked, Asked::Label(_)),
                _ => false,
            };
            shows_life && call.began > delete.ended
        })?;
        Some(violation(Rule::Resurrected, [delete, alive]))
    }

    fn stale(&self) -> Option<Violation> {
        self.seen().find_map(|(read, _, label)| {
            let shown = self.writer(label)?;
            let shown_by = self.in_effect_by(shown)?;
            let newer = self
                .done()
                .filter(|call| matches!(call.asked, Asked::Label(_)))
                .find(|newer| newer.began > shown_by && newer.ended < read.began)?;
            Some(violation(Rule::Stale, [shown, newer, read]))
        })
    }

    fn unexplained(&self) -> Option<Violation> {
        let steps = self.steps();
        let stuck = explain(&steps).err()?;
        let evidence = stuck.into_iter().take(EVIDENCE_MAX).map(|step| steps[step].call);
        Some(violation(Rule::Unexplained, evidence))
    }

    fn done(&self) -> impl Iterator<Item = &'a Call> {
        self.calls.iter().copied().filter(|call| call.answered == Answered::Done)
    }

    fn seen(&self) -> impl Iterator<Item = (&'a Call, &'a str, u64)> {
        self.calls.iter().copied().filter_map(|call| match &call.answered {
            Answered::Saw { id, label } => Some((call, id.as_str(), *label)),
            _ => None,
        })
    }

    fn writer(&self, label: u64) -> Option<&'a Call> {
        let writes =
            |call: &&Call| matches!(call.asked, Asked::Create { label: l } | Asked::Label(l) if l == label);
        self.calls.iter().copied().find(writes)
    }

    /// When the write has been done at the latest, as far as its answer or others show. `None`: perhaps never.
    fn in_effect_by(&self, write: &Call) -> Option<Duration> {
        let shown = match write.asked {
            Asked::Label(written) => {
                self.seen().filter(|(.., label)| *label == written).map(|(read, ..)| read.ended).min()
            }
            // Whatever is done to a sandbox or seen of it shows that it had been created.
            Asked::Create { .. } => {
                let others = self.done().filter(|call| !matches!(call.asked, Asked::Create { .. }));
                others.chain(self.seen().map(|(read, ..)| read)).map(|call| call.ended).min()
            }
            Asked::Delete | Asked::Read => None,
        };
        let acknowledged = (write.answered == Answered::Done).then_some(write.ended);
        [acknowledged, shown].into_iter().flatten().min()
    }

    /// What must have happened at some moment, and what may have.
    fn steps(&self) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        for call in self.calls.iter().copied() {
            let mut step = |effect, by| steps.push(Step { call, effect, by });
            match call.asked {
                // A write that left no trace may as well not have been done.
                Asked::Create { label } => {
                    if let Some(by) = self.in_effect_by(call) {
                        step(Effect::Create(label), By(by));
                    }
                }
                Asked::Label(label) => {
                    if let Some(by) = self.in_effect_by(call) {
                        step(Effect::Label(label), By(by));
                    }
                }
                // Its trace is that something is missing, which has other reasons, too.
                Asked::Delete => match call.answered {
                    Answered::Done => step(Effect::Delete, By(call.ended)),
                    Answered::Unknown => step(Effect::Delete, MAYBE),
                    _ => {}
                },
                Asked::Read => {}
            }
            match call.answered {
                Answered::Saw { label, .. } => step(Effect::Saw(label), By(call.ended)),
                Answered::Missing => step(Effect::Missing, By(call.ended)),
                _ => {}
            }
        }
        steps
    }
}

fn violation<'a>(rule: Rule, evidence: impl IntoIterator<Item = &'a Call>) -> Violation {
    Violation { rule, evidence: evidence.into_iter().cloned().collect() }
}

#[derive(Debug)]
struct Step<'a> {
    call: &'a Call,
    effect: Effect,
    by: By,
}

/// The moment by which a step has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct By(Duration);

const MAYBE: By = By(Duration::MAX);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Create(u64),
    Label(u64),
    Delete,
    Saw(u64),
    Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    NotYet,
    Is(u64),
    Gone,
}

impl Effect {
    /// The state after it, if it can happen in this one.
    fn on(self, state: State) -> Option<State> {
        match (self, state) {
            (Effect::Create(label), State::NotYet) | (Effect::Label(label), State::Is(_)) => {
                Some(State::Is(label))
            }
            (Effect::Delete, State::Is(_)) => Some(State::Gone),
            (Effect::Saw(label), State::Is(is)) => (label == is).then_some(state),
            (Effect::Missing, State::NotYet | State::Gone) => Some(state),
            _ => None,
        }
    }

    fn is_read(self) -> bool {
        matches!(self, Effect::Saw(_) | Effect::Missing)
    }
}

/// `Err`: the steps that were left where most had been explained.
fn explain(steps: &[Step<'_>]) -> Result<(), Vec<usize>> {
    let everything: BTreeSet<usize> = (0..steps.len()).collect();
    let mut deepest = everything.clone();
    let mut tried = HashSet::new();
    let mut open = vec![(everything, State::NotYet)];
    while let Some((mut left, state)) = open.pop() {
        loop {
            let fits =
                |step: &usize| steps[*step].effect.is_read() && steps[*step].effect.on(state).is_some();
            let Some(read) = candidates(steps, &left).find(fits) else { break };
            left.remove(&read);
        }
        if left.iter().all(|step| steps[*step].by == MAYBE) {
            return Ok(());
        }
        if left.len() < deepest.len() {
            deepest.clone_from(&left);
        }
        for write in candidates(steps, &left).filter(|step| !steps[*step].effect.is_read()) {
            let Some(next) = steps[write].effect.on(state) else { continue };
            let mut left = left.clone();
            left.remove(&write);
            if tried.insert((left.clone(), next)) {
                open.push((left, next));
            }
        }
    }
    Err(deepest.into_iter().collect())
}

/// Whatever ended before a step began comes before it.
fn candidates<'a>(steps: &'a [Step<'_>], left: &'a BTreeSet<usize>) -> impl Iterator<Item = usize> + 'a {
    let first_end = left.iter().map(|step| steps[*step].by).min().unwrap_or(MAYBE);
    // Steps are in the order in which they began.
    left.iter().copied().take_while(move |step| By(steps[*step].call.began) <= first_end)
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}:", self.rule)?;
        self.evidence.iter().try_for_each(|call| writeln!(f, "  {call}"))
    }
}

#[cfg(test)]
mod tests;
