//! The way into a group from anywhere: packs proposals into batches and readers into rounds, and takes both to the
//! leader, wherever it is now.
//!
//! ```text
//! propose ─▶ queue ─▶ batches (≤ 4 in flight) ─▶ here, if this node leads, else one question to the leader ─▶ outcomes
//! linearize ─▶ queue ─▶ one round for all that wait ─▶ read index ─▶ wait until applied here
//! ```
//! A leader never passes on what a peer asked of it, so a question travels one hop.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::stream::StreamError;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::calls::{Caller, answer_all};
use crate::duties::{Leader, Leadership};
use crate::group::GroupError;
use crate::raft::{Batch, NotDecided, Proposal, Replica, random};
use crate::sessions::{Bytes, ProposalId};

pub const COMMAND_BYTES_MAX: usize = 256 * 1024;
const BATCH_PROPOSALS_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 512 * 1024;
const BATCHES_IN_FLIGHT_MAX: usize = 4;
const PROPOSALS_QUEUED_MAX: usize = 4096;
const READERS_QUEUED_MAX: usize = 4096;
/// Between two tries, unless the leader changes before.
const RETRY_AFTER: Duration = Duration::from_millis(50);

pub struct Front {
    name: String,
    replica: Replica,
    leadership: Arc<Leadership>,
    caller: Caller,
    /// Sets this process's proposals apart from all others'.
    run: u64,
    /// How long a question is tried before [`GroupError::NoLeader`].
    answer_within: Duration,
    is_command: fn(&[u8]) -> bool,
    numbers: Mutex<Numbers>,
    proposals: mpsc::Sender<Waiting<Proposal, Decided>>,
    readers: mpsc::Sender<Waiting<(), u64>>,
}

/// The tasks' ends of the queues.
pub struct Queues {
    proposals: mpsc::Receiver<Waiting<Proposal, Decided>>,
    readers: mpsc::Receiver<Waiting<(), u64>>,
}

pub struct FrontSetup {
    pub name: String,
    pub replica: Replica,
    pub leadership: Arc<Leadership>,
    pub caller: Caller,
    pub answer_within: Duration,
    pub is_command: fn(&[u8]) -> bool,
}

struct Waiting<Q, A> {
    question: Q,
    asker: Asker,
    reply: oneshot::Sender<Result<A, NotDecided>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Here,
    Peer,
}

#[derive(Serialize, Deserialize)]
enum Question {
    Propose(Batch),
    ReadIndex,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Outcomes {
        outcomes: Vec<Bytes>,
        /// A replica that has applied so far has applied all of them.
        index: u64,
    },
    ReadIndex(u64),
    NotLeader {
        leader: Option<NodeId>,
    },
    NotDecided(String),
}

/// What became of a proposal, and the entry that a replica must have applied to show it.
#[derive(Debug, Clone)]
pub struct Decided {
    pub outcome: Bytes,
    pub index: u64,
}

#[derive(Default)]
struct Numbers {
    next: u64,
    open: BTreeSet<u64>,
}

/// A command that somebody here waits for.
struct Numbered<'a> {
    numbers: &'a Mutex<Numbers>,
    number: u64,
}

impl Front {
    pub fn new(setup: FrontSetup) -> (Front, Queues) {
        let FrontSetup { name, replica, leadership, caller, answer_within, is_command } = setup;
        let (proposals, proposals_queue) = mpsc::channel(PROPOSALS_QUEUED_MAX);
        let (readers, readers_queue) = mpsc::channel(READERS_QUEUED_MAX);
        let numbers = Mutex::default();
        let run = random();
        let front = Front {
            name,
            replica,
            leadership,
            caller,
            run,
            answer_within,
            is_command,
            numbers,
            proposals,
            readers,
        };
        (front, Queues { proposals: proposals_queue, readers: readers_queue })
    }

    pub async fn propose(&self, command: Vec<u8>) -> Result<Decided, GroupError> {
        if command.len() > COMMAND_BYTES_MAX {
            let group = self.name.clone();
            return Err(GroupError::TooLarge { group, bytes: command.len(), bytes_max: COMMAND_BYTES_MAX });
        }
        let numbered = Numbered::new(&self.numbers);
        self.until_answered(&self.proposals, || {
            let id = ProposalId { run: self.run, number: numbered.number, done_below: numbered.done_below() };
            Proposal { version: Proposal::VERSION, id, command: Bytes(command.clone()) }
        })
        .await
    }

    /// What the local replica must have applied for a linearizable read.
    pub async fn read_index(&self) -> Result<u64, GroupError> {
        self.until_answered(&self.readers, || ()).await
    }

    pub fn no_leader(&self) -> GroupError {
        GroupError::NoLeader { group: self.name.clone() }
    }

    pub fn answer_within(&self) -> Duration {
        self.answer_within
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    async fn until_answered<Q, A>(
        &self,
        queue: &mpsc::Sender<Waiting<Q, A>>,
        question: impl Fn() -> Q,
    ) -> Result<A, GroupError> {
        let deadline = Instant::now() + self.answer_within;
        let mut refused = Err(GroupError::Overloaded { group: self.name.clone() });
        loop {
            let leader = self.leadership.now();
            match tokio::time::timeout_at(deadline, enqueue(queue, question(), Asker::Here)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(NotAnswered::QueueFull)) => return refused,
                Ok(Err(NotAnswered::NotDecided(NotDecided::Stopped(cause)))) => {
                    return Err(GroupError::Stopped { group: self.name.clone(), cause });
                }
                Ok(Err(NotAnswered::NotDecided(cause))) => {
                    tracing::debug!(group = self.name, ?cause, "the group did not decide; trying again");
                    // From here on something may have been proposed.
                    refused = Err(self.no_leader());
                    // Too late is as good as changed.
                    let _ = timeout(RETRY_AFTER, self.leadership.changed_from(leader)).await;
                }
                Err(_elapsed) => return Err(self.no_leader()),
            }
        }
    }

    /// Packs and carries proposals and readers until it is dropped.
    pub async fn carry_all(self: Arc<Front>, queues: Queues) {
        let Queues { proposals, readers } = queues;
        tokio::join!(Arc::clone(&self).carry_proposals(proposals), self.carry_readers(readers));
    }

    async fn carry_proposals(self: Arc<Front>, mut queue: mpsc::Receiver<Waiting<Proposal, Decided>>) {
        let mut flights = JoinSet::new();
        let mut next: Option<Waiting<Proposal, Decided>> = None;
        loop {
            while flights.len() >= BATCHES_IN_FLIGHT_MAX {
                flights.join_next().await;
            }
            let Some(first) = (match next.take() {
                Some(waiting) => Some(waiting),
                None => queue.recv().await,
            }) else {
                return;
            };
            let mut bytes = first.question.command.0.len();
            let mut batch = vec![first];
            while batch.len() < BATCH_PROPOSALS_MAX {
                let Ok(waiting) = queue.try_recv() else { break };
                bytes += waiting.question.command.0.len();
                if bytes > BATCH_BYTES_MAX {
                    next = Some(waiting);
                    break;
                }
                batch.push(waiting);
            }
            batch.retain(|waiting| !waiting.reply.is_closed());
            while flights.try_join_next().is_some() {}
            flights.spawn(Arc::clone(&self).carry_batch(batch));
        }
    }

    async fn carry_batch(self: Arc<Front>, batch: Vec<Waiting<Proposal, Decided>>) {
        let leader = self.leadership.now();
        let (batch, refused) = split_by_leader(batch, leader);
        for waiting in refused {
            waiting.answer(Err(NotDecided::NotLeader { leader: leader.node }));
        }
        if batch.is_empty() {
            return;
        }
        let (proposals, replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|waiting| (waiting.question, waiting.reply)).unzip();
        let expected = proposals.len();
        let batch = Batch { proposals };
        let decided = async {
            if leader.here {
                return self.replica.write(batch).await;
            }
            match self.ask_leader(leader.node, Question::Propose(batch)).await? {
                Answer::Outcomes { outcomes, index } if outcomes.len() == expected => Ok((outcomes, index)),
                other => Err(other.not_decided()),
            }
        };
        match self.while_led_by(leader, decided).await {
            Ok((outcomes, index)) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // Who has gone away misses nothing.
                    let _ = reply.send(Ok(Decided { outcome, index }));
                }
            }
            Err(cause) => {
                for reply in replies {
                    let _ = reply.send(Err(cause.clone()));
                }
            }
        }
    }

    async fn carry_readers(&self, mut queue: mpsc::Receiver<Waiting<(), u64>>) {
        let mut round = Vec::new();
        // Whoever comes during a round waits for the next: this one may have begun too early for it.
        while queue.recv_many(&mut round, READERS_QUEUED_MAX).await > 0 {
            let leader = self.leadership.now();
            let (readers, refused) = split_by_leader(std::mem::take(&mut round), leader);
            for waiting in refused {
                waiting.answer(Err(NotDecided::NotLeader { leader: leader.node }));
            }
            if readers.is_empty() {
                continue;
            }
            let index = async {
                if leader.here {
                    return self.replica.read_index().await;
                }
                match self.ask_leader(leader.node, Question::ReadIndex).await? {
                    Answer::ReadIndex(index) => Ok(index),
                    other => Err(other.not_decided()),
                }
            };
            let index = self.while_led_by(leader, index).await;
            for waiting in readers {
                waiting.answer(index.clone());
            }
        }
    }

    /// Gives up when the leader changes, as the answer may never come then.
    async fn while_led_by<T>(
        &self,
        leader: Leader,
        decided: impl Future<Output = Result<T, NotDecided>>,
    ) -> Result<T, NotDecided> {
        let decided = timeout(self.answer_within, decided);
        tokio::select! {
            biased;
            decided = decided => {
                decided.unwrap_or_else(|_elapsed| Err(NotDecided::Unknown("no answer in time".to_owned())))
            }
            () = self.leadership.changed_from(leader) => Err(NotDecided::Unknown("the leader changed".to_owned())),
        }
    }

    async fn ask_leader(&self, leader: Option<NodeId>, question: Question) -> Result<Answer, NotDecided> {
        let Some(leader) = leader else { return Err(NotDecided::NotLeader { leader: None }) };
        self.caller.ask(leader, &question).await.map_err(|error| NotDecided::Unknown(error.to_string()))
    }

    /// Answers what peers ask of this node as the leader.
    pub async fn serve(&self, stream: ByteStream) -> Result<(), StreamError> {
        answer_all(stream, |question| self.answer(question)).await
    }

    async fn answer(&self, question: Question) -> Answer {
        match question {
            Question::ReadIndex => match enqueue(&self.readers, (), Asker::Peer).await {
                Ok(index) => Answer::ReadIndex(index),
                Err(cause) => cause.into_answer(),
            },
            Question::Propose(batch) => {
                let known = |proposal: &Proposal| {
                    proposal.version == Proposal::VERSION && (self.is_command)(&proposal.command.0)
                };
                if !batch.proposals.iter().all(known) {
                    return Answer::NotDecided("a command is unknown to this version".to_owned());
                }
                let answers = batch
                    .proposals
                    .into_iter()
                    .map(|proposal| enqueue(&self.proposals, proposal, Asker::Peer));
                match futures_util::future::try_join_all(answers).await {
                    Ok(decided) => Answer::Outcomes {
                        index: decided.iter().map(|decided| decided.index).max().unwrap_or(0),
                        outcomes: decided.into_iter().map(|decided| decided.outcome).collect(),
                    },
                    Err(cause) => cause.into_answer(),
                }
            }
        }
    }
}

enum NotAnswered {
    QueueFull,
    NotDecided(NotDecided),
}

async fn enqueue<Q, A>(
    queue: &mpsc::Sender<Waiting<Q, A>>,
    question: Q,
    asker: Asker,
) -> Result<A, NotAnswered> {
    let (reply, answer) = oneshot::channel();
    let ended = || NotAnswered::NotDecided(NotDecided::Stopped("this node shuts down".to_owned()));
    match queue.try_send(Waiting { question, asker, reply }) {
        Ok(()) => answer.await.map_err(|_| ended())?.map_err(NotAnswered::NotDecided),
        Err(TrySendError::Full(_)) => Err(NotAnswered::QueueFull),
        Err(TrySendError::Closed(_)) => Err(ended()),
    }
}

type Carried<Q, A> = Vec<Waiting<Q, A>>;
type Refused<Q, A> = Vec<Waiting<Q, A>>;

/// A node that does not lead carries its own questions to the leader, and refuses those of peers.
fn split_by_leader<Q, A>(waiting: Vec<Waiting<Q, A>>, leader: Leader) -> (Carried<Q, A>, Refused<Q, A>) {
    waiting.into_iter().partition(|waiting| leader.here || waiting.asker == Asker::Here)
}

impl<Q, A> Waiting<Q, A> {
    fn answer(self, answer: Result<A, NotDecided>) {
        // Who has gone away misses nothing.
        let _ = self.reply.send(answer);
    }
}

impl NotAnswered {
    fn into_answer(self) -> Answer {
        match self {
            NotAnswered::QueueFull => Answer::NotDecided("the leader is overloaded".to_owned()),
            NotAnswered::NotDecided(NotDecided::NotLeader { leader }) => Answer::NotLeader { leader },
            NotAnswered::NotDecided(NotDecided::Unknown(cause) | NotDecided::Stopped(cause)) => {
                Answer::NotDecided(cause)
            }
        }
    }
}

impl Answer {
    fn not_decided(self) -> NotDecided {
        match self {
            Answer::NotLeader { leader } => NotDecided::NotLeader { leader },
            Answer::NotDecided(cause) => NotDecided::Unknown(cause),
            Answer::Outcomes { .. } | Answer::ReadIndex(_) => {
                NotDecided::Unknown("the leader answered something else".to_owned())
            }
        }
    }
}

impl Numbered<'_> {
    fn new(numbers: &Mutex<Numbers>) -> Numbered<'_> {
        let mut all = locked(numbers);
        let number = all.next;
        all.next += 1;
        all.open.insert(number);
        drop(all);
        Numbered { numbers, number }
    }

    fn done_below(&self) -> u64 {
        locked(self.numbers).open.first().copied().unwrap_or(self.number)
    }
}

impl Drop for Numbered<'_> {
    fn drop(&mut self) {
        locked(self.numbers).open.remove(&self.number);
    }
}

fn locked(numbers: &Mutex<Numbers>) -> MutexGuard<'_, Numbers> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}
