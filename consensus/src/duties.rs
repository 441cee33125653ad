//! What every replica watches in itself, and what a leader does for its group. Nothing is handed over: all of it is
//! worked out anew from what the replica sees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_api::ids::NodeId;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::consensus::Timings;
use crate::membership::{self, GroupMembers, Member, MembershipChange};
use crate::raft::{Replica, View};

const WATCH_EVERY: Duration = Duration::from_millis(50);
const COMPARE_EVERY: Duration = Duration::from_millis(200);
const COMPARE_AT_MOST_EVERY: Duration = Duration::from_millis(10);
const CHANGE_WITHIN: Duration = Duration::from_secs(5);
/// A leader that no quorum answers speaks again after this many of the longest election timeouts: time for the others
/// to elect, and a bound for when they cannot because only this leader's log is complete.
const SILENCE_ELECTIONS: u32 = 5;

/// Since when this node leads, and in which term.
#[derive(Clone, Default)]
pub struct Reign(Arc<Mutex<Option<(u64, Instant)>>>);

impl Reign {
    pub fn since(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|(_, since)| since)
    }

    fn update(&self, view: &View, now: Instant) {
        let mut reign = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *reign = match *reign {
            _ if !view.leading => None,
            Some((term, since)) if term == view.term => Some((term, since)),
            _ => Some((view.term, now)),
        };
    }
}

/// Who leads, as far as this replica knows. One task keeps it up to date and wakes all others in order: openraft's own
/// `watch` would wake them in random order.
#[derive(Default)]
pub struct Leadership {
    known: Mutex<Leader>,
    changed: Notify,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leader {
    pub node: Option<NodeId>,
    /// It is this node.
    pub here: bool,
    term: u64,
    ended: bool,
}

impl Leadership {
    pub fn now(&self) -> Leader {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves as soon as the leader is another than `before`.
    pub async fn changed_from(&self, before: Leader) {
        loop {
            let changed = self.changed.notified();
            if self.now() != before {
                return;
            }
            changed.await;
        }
    }

    fn update(&self, view: &View) {
        let now =
            Leader { node: view.leader, here: view.leading, term: view.term, ended: view.ended.is_some() };
        let before = std::mem::replace(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner), now);
        if before != now {
            self.changed.notify_waiters();
        }
    }
}

/// Keeps the reign and the leadership up to date, silences a leader that has lost its quorum, and tells when the replica has ended.
pub async fn watch_replica(
    name: String,
    replica: Replica,
    reign: Reign,
    leadership: Arc<Leadership>,
    timings: Timings,
    ended: watch::Sender<Option<String>>,
) {
    let election_max = Duration::from_millis(timings.election_max_ms);
    let mut watchdog = Watchdog::new(election_max);
    let mut changes = replica.watch();
    loop {
        let (view, now) = (replica.view(), Instant::now());
        leadership.update(&view);
        if let Some(cause) = view.ended {
            let cause = format!("the replica of {name} has ended: {cause}");
            ended.send_modify(|ended| *ended = ended.take().or(Some(cause)));
            return;
        }
        reign.update(&view, now);
        let silent_for = view.quorum_silent_for.or_else(|| reign.since().map(|since| now - since));
        match watchdog.observe(view.leading, silent_for.unwrap_or_default(), now) {
            Some(Verdict::Silence) => {
                tracing::warn!(
                    group = name,
                    term = view.term,
                    "no quorum answers this leader: it falls silent"
                );
                replica.silence(view.term);
            }
            Some(Verdict::Speak) => replica.speak(),
            None => {}
        }
        // Too late is as good as changed.
        let _ = timeout(WATCH_EVERY, changes.changed()).await;
    }
}

/// A partial partition can leave an old leader in touch with too few voters to commit, but with enough to keep the
/// others from electing: each append renews a voter's lease (openraft#2080). So such a leader falls silent for a while.
///
/// ```text
/// speaking ──no quorum for 2 elections──▶ silent ──5 elections, or no leader any more──▶ speaking
/// ```
struct Watchdog {
    patience: Duration,
    silence: Duration,
    silent_until: Option<Instant>,
    /// After a silence the leader gets as much patience as a new one.
    patient_until: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Silence,
    Speak,
}

impl Watchdog {
    fn new(election_max: Duration) -> Watchdog {
        let (patience, silence) = (election_max * 2, election_max * SILENCE_ELECTIONS);
        Watchdog { patience, silence, silent_until: None, patient_until: None }
    }

    fn observe(&mut self, leading: bool, quorum_silent_for: Duration, now: Instant) -> Option<Verdict> {
        match self.silent_until {
            Some(until) if !leading || now >= until => {
                self.silent_until = None;
                self.patient_until = Some(now + self.patience);
                Some(Verdict::Speak)
            }
            Some(_) => None,
            None => {
                let impatient = self.patient_until.is_none_or(|until| now >= until);
                if leading && impatient && quorum_silent_for > self.patience {
                    self.silent_until = Some(now + self.silence);
                    return Some(Verdict::Silence);
                }
                None
            }
        }
    }
}

/// While this node leads, brings the group's membership to what the cluster's nodes call for, one step at a time.
pub async fn keep_membership(name: String, replica: Replica, wanted: impl WantedMembers) {
    let mut log_before = 0;
    loop {
        let view = replica.view();
        let members = wanted.members();
        let changed = match next_step(&view, &members, log_before) {
            Some(step) => timeout(CHANGE_WITHIN, take_step(&name, &replica, step)).await == Ok(Ok(())),
            None => false,
        };
        // After a step there may be another to take at once; what did not work is tried again later.
        if !changed {
            log_before = view.last_log.unwrap_or(0);
            // On each change and on each tick.
            let _ = timeout(COMPARE_EVERY, wanted.changed()).await;
            sleep(COMPARE_AT_MOST_EVERY).await;
        }
    }
}

/// Where a group learns who should be in it.
pub trait WantedMembers: Send + Sync + 'static {
    fn members(&self) -> BTreeMap<NodeId, Member>;
    /// Resolves at the next change after the call; a change may be missed.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Change(MembershipChange),
    /// An earlier leader ended between two sets of voters.
    Finish(BTreeSet<NodeId>),
}

fn next_step(view: &View, members: &BTreeMap<NodeId, Member>, log_before: u64) -> Option<Step> {
    // Without members the local replica of the cluster has not arrived yet, and knows nobody.
    if !view.leading || members.is_empty() {
        return None;
    }
    let has_caught_up =
        |node: &&NodeId| view.matched.get(node).is_some_and(|matched| *matched >= Some(log_before));
    let caught_up: BTreeSet<NodeId> = view.learners.iter().filter(has_caught_up).copied().collect();
    if view.changing {
        let mut able = members.clone();
        able.retain(|node, _| view.voters.contains(node) || caught_up.contains(node));
        let voters = membership::wanted_voters(&able, &view.voters);
        return (!voters.is_empty()).then_some(Step::Finish(voters));
    }
    let group = GroupMembers { voters: view.voters.clone(), learners: view.learners.clone(), caught_up };
    membership::next_change(&group, members).map(Step::Change)
}

async fn take_step(name: &str, replica: &Replica, step: Step) -> Result<(), String> {
    tracing::info!(group = name, ?step, "changing the membership");
    let taken = match &step {
        Step::Change(MembershipChange::AddLearner(node)) => {
            replica.add_learners(&BTreeSet::from([*node])).await
        }
        Step::Change(MembershipChange::ChangeVoters(voters)) | Step::Finish(voters) => {
            replica.set_voters(voters).await
        }
        Step::Change(MembershipChange::Remove(node)) => replica.drop_learners(&BTreeSet::from([*node])).await,
    };
    if let Err(cause) = &taken {
        tracing::warn!(group = name, ?step, cause, "the membership did not change");
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELECTION_MAX: Duration = Duration::from_millis(600);

    #[test]
    fn a_leader_without_quorum_falls_silent_and_speaks_again_in_bounded_time() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(ELECTION_MAX);

        assert_eq!(watchdog.observe(true, ELECTION_MAX * 2, start), None);
        assert_eq!(watchdog.observe(true, ELECTION_MAX * 3, start), Some(Verdict::Silence));
        assert_eq!(watchdog.observe(true, ELECTION_MAX * 7, start + ELECTION_MAX * 4), None);
        assert_eq!(watchdog.observe(true, ELECTION_MAX * 8, start + ELECTION_MAX * 5), Some(Verdict::Speak));
        assert_eq!(watchdog.observe(true, ELECTION_MAX * 9, start + ELECTION_MAX * 6), None);
        assert_eq!(
            watchdog.observe(true, ELECTION_MAX * 10, start + ELECTION_MAX * 7),
            Some(Verdict::Silence)
        );
    }

    #[test]
    fn a_leader_that_steps_down_may_speak_at_once() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(ELECTION_MAX);
        watchdog.observe(true, ELECTION_MAX * 3, start);

        assert_eq!(watchdog.observe(false, Duration::ZERO, start), Some(Verdict::Speak));
    }

    #[test]
    fn a_follower_is_never_silenced() {
        let mut watchdog = Watchdog::new(ELECTION_MAX);

        assert_eq!(watchdog.observe(false, ELECTION_MAX * 9, Instant::now()), None);
    }
}
