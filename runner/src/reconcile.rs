//! Decides what to do next for every sandbox of this node: wanted against actual, on each change and each tick.
//! Pure: it is told things and answers with actions; it has no clock, no I/O, and knows nothing of Raft.
//!
//! A sandbox's container is in one of seven states, and its assignment sets the goal. The operation is
//! read off a table (`-` = nothing to do), so a lost message can only delay:
//!
//! ```text
//!              Serving   Frozen   Down    Gone        (a goal "as is" does nothing at all)
//!  Absent      Create    -        -       (forgotten)     or Provide, when a create has found no image
//!                                       (a goal "stored" is like Gone, but remembered)
//!  Stopped     Start     -        -       Remove
//!  Unproven    Adopt     Pause    Stop    Remove    runs, but its daemon has not answered this process
//!  Serving     -         Pause    Stop    Remove    runs, and its daemon has said hello or answered
//!  Frozen      Resume    -        Stop    Remove
//!  HalfFrozen  Resume    Pause    Stop    Remove    a pause or a resume broke off
//!  Uncertain   Stop      Stop     Stop    Remove    another operation broke off: it may run or not
//! ```
//!
//! Before a sandbox starts or resumes, and when what it may reach has changed while it serves, SetEgress comes first.
//! Where nothing else is to be done, a disk that is wanted as an image is captured: of what serves by a short freeze,
//! and whatever comes of that, a sandbox that was frozen for it is resumed. See `reconcile/capturing.rs`.
//! One that serves and was started before somebody claimed it is told whom it is for (Identify), and reached by nobody before.
//! A failure turns the goal Serving into Down until the user wishes anew (`desired_version` grows). A sandbox that could
//! not be paused goes on running; one that is to be paused and has ended has lost its memory, which is a failure.
//!
//! What runs steps of builds is not its business: `build` makes those, and removes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_api::ids::{Generation, SandboxId};
use atoll_api::sandbox::{Desired, Egress, Phase, SandboxSpec};

use crate::assignment::{Assignment, Origin, Report, ReportKind};
use crate::image::Kept;
use crate::runtime::{Exit, Found, FoundState, Incarnation};

mod capturing;

use capturing::Capturing;

/// From the first create or start of a wish until the daemon's hello.
pub const LAUNCH_DEADLINE: Duration = Duration::from_secs(30);
/// For an image to be fetched and unpacked. It counts for no launch: that begins when the image is here.
pub const PROVIDE_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// For one stop (grace included), one removal or one adoption.
pub const STOP_DEADLINE: Duration = Duration::from_secs(30);
pub const REMOVE_DEADLINE: Duration = Duration::from_secs(60);
pub const ADOPT_DEADLINE: Duration = Duration::from_secs(5);
/// For one pause, resume or change of what may be reached or of whom it is for.
pub const CHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// For one capture of a disk, which may be large.
pub const CAPTURE_DEADLINE: Duration = Duration::from_secs(600);
/// Since a capture was wished. Then the answer is that it could not be.
pub const CAPTURE_PATIENCE: Duration = Duration::from_secs(1200);
/// At once; each keeps a disk and a CPU busy.
pub const CAPTURES_AT_ONCE: usize = 2;
/// Tries of one operation before the sandbox is reported as failed. Removal is tried for ever: delete always wins.
pub const ATTEMPTS_MAX: u32 = 3;
pub const BACKOFF_FIRST: Duration = Duration::from_millis(200);
pub const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Sandboxes whose images are being fetched at once. Those of one image share its download.
pub const PROVIDES_MAX: usize = 256;
/// A report is said again when the record still differs after this.
pub const REPORT_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How long something of ours that nobody ever wanted is left alone: the node's replica may still be catching up.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(10);
/// How often what really exists is listed.
pub const LIST_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Every sandbox that is placed on this node; the whole list each time.
    Wanted(Vec<Assignment>),
    Completed {
        operation_id: OperationId,
        result: Result<(), OperationError>,
    },
    /// A capture has completed.
    Captured {
        operation_id: OperationId,
        result: Result<Kept, OperationError>,
    },
    /// What was being watched has ended.
    Ended {
        watch: Watch,
        ended: Ended,
    },
    /// The answer to [`Action::List`]; `None` when it failed.
    Listed(Option<Vec<Found>>),
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Exited(Exit),
    /// The container is not there any more.
    Vanished,
}

/// What the core concludes from an operation's failure; the words are for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationError {
    /// Trying again cannot help.
    Final(String),
    /// May pass: engine restarting, host busy, deadline missed.
    Passing(String),
    /// The container that should be there is not.
    Vanished,
    /// A create needs the image to be brought here first.
    ImageMissing,
    /// As [`Action::Cancel`] asked.
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Completes with [`Event::Completed`] at `deadline` at the latest; a capture with [`Event::Captured`].
    Begin {
        operation_id: OperationId,
        incarnation: Incarnation,
        operation: Operation,
        deadline: Instant,
    },
    /// Break off; it still completes.
    Cancel {
        operation_id: OperationId,
    },
    /// Say [`Event::Ended`] when the container ends.
    Watch(Watch),
    Send(Report),
    List,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Fetch the image and unpack it.
    Provide(Arc<SandboxSpec>),
    Create(Arc<SandboxSpec>),
    /// New secret, start, hello.
    Start(Arc<SandboxSpec>),
    /// Ask the daemon of a running container whether it knows us.
    Adopt,
    Pause,
    Resume,
    SetEgress(Arc<SandboxSpec>),
    /// The disk as an image of this name.
    Capture {
        name: String,
        how: Stillness,
    },
    /// Tell the daemon the user and the environment.
    Identify(Arc<SandboxSpec>),
    Stop,
    Remove,
}

/// What keeps a disk from changing while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stillness {
    /// Nothing of the sandbox runs.
    Already,
    /// It is frozen for as long as it takes, and then goes on.
    ByFreezing,
}

/// One run of a sandbox: the end of an earlier one must not be taken for the end of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    pub incarnation: Incarnation,
    /// The start or adoption that proved it.
    pub since: OperationId,
}

/// Whether a sandbox can be dialled here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reachable {
    pub incarnation: Incarnation,
    pub serving: bool,
    pub desired_version: u64,
    pub state: WishState,
}

/// What has become of the newest wish for a sandbox to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WishState {
    /// It serves as whom it is for, and reaches what it may.
    Granted,
    UnderWay,
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    pub wanted: usize,
    pub serving: usize,
    pub stopped: usize,
    pub failed: usize,
    pub operations_running: usize,
    pub operations_waiting: usize,
}

#[derive(Debug)]
pub struct Reconciler {
    operations_max: usize,
    /// `None` until the node has given its first full list. Until then nothing is done and nothing is an orphan.
    wanted: Option<BTreeMap<SandboxId, Assignment>>,
    slots: BTreeMap<Incarnation, Slot>,
    said: BTreeMap<SandboxId, Said>,
    said_captured: BTreeMap<SandboxId, (u64, Instant)>,
    operations: BTreeMap<OperationId, Incarnation>,
    next_operation_id: u64,
    /// Set while a list is under way: slots touched since then know better than it.
    listing: Option<Listing>,
    next_list_at: Instant,
}

#[derive(Debug)]
struct Listing {
    touched_since: Vec<Incarnation>,
}

#[derive(Debug)]
struct Slot {
    container: Container,
    operation: Option<Running>,
    proven_by: Option<OperationId>,
    /// Of the wish that the fields below are about.
    desired_version: Option<u64>,
    failure: Option<Failure>,
    attempts: u32,
    not_before: Instant,
    /// When the launch for the current wish began.
    launch_since: Option<Instant>,
    waiting_since: Instant,
    ownership: Ownership,
    /// What the runtime was told last that the sandbox may reach; `None`: not known.
    egress: Option<Egress>,
    image: ImageHere,
    capturing: Capturing,
    /// Whom the daemon was told last that the sandbox is for; `None`: not known.
    identity: Option<Identity>,
    /// How it was found at start, until the first wanted list says what to make of it.
    found: Option<FoundState>,
}

/// What is known of the sandbox's image on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ImageHere {
    /// A create will say.
    Unknown,
    Missing,
    Provided,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Absent,
    Stopped,
    Unproven,
    Serving,
    Frozen,
    HalfFrozen,
    Uncertain,
}

#[derive(Debug)]
struct Running {
    operation_id: OperationId,
    kind: Kind,
    /// What the assignment said about these when the operation began.
    egress: Option<Egress>,
    identity: Option<Identity>,
    cancelled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Provide,
    Create,
    Start,
    Adopt,
    Pause,
    Resume,
    SetEgress,
    Capture,
    Identify,
    Stop,
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    desired_version: u64,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ownership {
    /// Never in a wanted list of this process; found here at this time.
    NeverWanted {
        since: Instant,
    },
    Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Serving,
    Frozen,
    Down,
    /// Nothing of it stays here, and it is not deleted.
    Stored,
    Gone,
    /// Newer than the node's replica knows: leave it alone until the replica has caught up.
    AsIs,
}

/// The last thing that was reported of a sandbox.
#[derive(Debug)]
struct Said {
    report: Report,
    at: Option<Instant>,
}

impl Reconciler {
    /// `found` is what the runtime has of this node already. `operations_max` bounds operations at once.
    pub fn new(operations_max: usize, found: Vec<Found>, now: Instant) -> Reconciler {
        let mut reconciler = Reconciler {
            operations_max,
            wanted: None,
            slots: BTreeMap::new(),
            said: BTreeMap::new(),
            said_captured: BTreeMap::new(),
            operations: BTreeMap::new(),
            next_operation_id: 1,
            listing: None,
            next_list_at: now + LIST_INTERVAL,
        };
        for found in found.into_iter().filter(|found| !found.incarnation.is_of_build()) {
            reconciler.slots.insert(found.incarnation, Slot::of_found(found.state, now));
        }
        reconciler
    }

    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Wanted(assignments) => self.set_wanted(assignments, now),
            Event::Completed { operation_id, result } => {
                self.completed(operation_id, result, now, &mut actions)
            }
            Event::Captured { operation_id, result } => self.captured(operation_id, result, now),
            Event::Ended { watch, ended } => {
                let proven = self.slots.get(&watch.incarnation).and_then(|slot| slot.proven_by);
                if proven == Some(watch.since) {
                    self.ended(watch.incarnation, ended, now);
                }
            }
            Event::Listed(found) => self.listed(found, now),
            Event::Tick => {}
        }
        if self.listing.is_none() && now >= self.next_list_at {
            self.listing = Some(Listing { touched_since: Vec::new() });
            actions.push(Action::List);
        }
        self.begin_operations(now, &mut actions);
        self.report(now, &mut actions);
        self.report_captured(now, &mut actions);
        actions
    }

    /// When [`Event::Tick`] is due next, if nothing else happens before.
    pub fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = self.next_list_at.max(now + BACKOFF_FIRST);
        for (incarnation, slot) in &self.slots {
            if slot.operation.is_none() && slot.not_before > now {
                wake = wake.min(slot.not_before);
            }
            wake = wake.min(slot.capturing.wake(now));
            if let Ownership::NeverWanted { since } = slot.ownership
                && slot.operation.is_none()
                && self.wanted.as_ref().is_some_and(|w| !w.contains_key(&incarnation.sandbox_id))
            {
                wake = wake.min((since + ORPHAN_GRACE).max(now + BACKOFF_FIRST));
            }
        }
        let said_at = self.said.values().filter_map(|said| said.at);
        for at in said_at.chain(self.said_captured.values().map(|(_, at)| *at)) {
            wake = wake.min((at + REPORT_AGAIN_AFTER).max(now + BACKOFF_FIRST));
        }
        wake
    }

    /// What may be dialled, one entry for every wanted sandbox.
    pub fn reachable(&self) -> impl Iterator<Item = Reachable> {
        self.wanted.iter().flat_map(|wanted| wanted.values()).map(|assignment| {
            let incarnation = assignment.incarnation();
            let slot = self.slots.get(&incarnation);
            let serving = slot.is_some_and(|slot| {
                slot.container == Container::Serving && !slot.is_moving() && !is_for_another(assignment, slot)
            });
            let failure = slot.and_then(|slot| slot.failed_at(assignment.desired_version));
            let reaches = slot.is_some_and(|slot| slot.egress.as_ref() == Some(&assignment.spec.egress));
            let state = match failure {
                Some(failure) => WishState::Failed(failure.reason.clone()),
                None if serving && reaches => WishState::Granted,
                None => WishState::UnderWay,
            };
            Reachable { incarnation, serving, desired_version: assignment.desired_version, state }
        })
    }

    pub fn counts(&self) -> Counts {
        let phases = self.wanted.iter().flat_map(|wanted| wanted.values()).map(|a| self.phase_of(a));
        let mut counts = Counts {
            operations_running: self.operations.len(),
            operations_waiting: self
                .slots
                .iter()
                .filter(|(i, slot)| slot.operation.is_none() && self.next_kind(**i, slot).is_some())
                .count(),
            ..Counts::default()
        };
        for phase in phases {
            counts.wanted += 1;
            match phase {
                Phase::Running => counts.serving += 1,
                Phase::Stopped => counts.stopped += 1,
                Phase::Failed { .. } => counts.failed += 1,
                Phase::Pending
                | Phase::Starting
                | Phase::Stopping
                | Phase::Pausing
                | Phase::Paused
                | Phase::Resuming
                | Phase::Archiving
                | Phase::Archived
                | Phase::Lost => {}
            }
        }
        counts
    }

    fn set_wanted(&mut self, assignments: Vec<Assignment>, now: Instant) {
        let wanted: BTreeMap<_, _> = assignments.into_iter().map(|a| (a.sandbox_id, a)).collect();
        self.said.retain(|sandbox_id, _| wanted.contains_key(sandbox_id));
        let first = self.wanted.is_none();
        for assignment in wanted.values() {
            let incarnation = assignment.incarnation();
            let slot = self.slots.entry(incarnation).or_insert_with(|| match first {
                true => Slot::missing_at_start(assignment, now),
                false => Slot::fresh(Container::Absent, Ownership::Wanted, now),
            });
            slot.adopt_wish(assignment);
            slot.capturing.adopt(assignment.capture.as_ref(), now);
            self.said.entry(assignment.sandbox_id).or_insert_with(|| Said::as_recorded(assignment));
        }
        self.wanted = Some(wanted);
    }

    fn completed(
        &mut self,
        operation_id: OperationId,
        result: Result<(), OperationError>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(incarnation) = self.operations.remove(&operation_id) else { return };
        self.touch(incarnation);
        let assignment = self.assignment_of(incarnation).map(|a| (a.desired, a.desired_version));
        let desired_version = assignment.map(|(_, version)| version);
        let Some(slot) = self.slots.get_mut(&incarnation) else { return };
        let Some(running) = slot.operation.take() else { return };
        slot.waiting_since = now;

        match result {
            Ok(()) => {
                slot.not_before = now;
                match running.kind {
                    Kind::Provide => slot.image = ImageHere::Provided,
                    Kind::Create => {
                        slot.container = Container::Stopped;
                        slot.egress = running.egress;
                    }
                    Kind::SetEgress => {
                        slot.egress = running.egress;
                        slot.attempts = 0;
                    }
                    Kind::Identify => {
                        slot.identity = running.identity;
                        slot.attempts = 0;
                    }
                    Kind::Pause => {
                        slot.container = Container::Frozen;
                        slot.attempts = 0;
                    }
                    // It runs again; whether its daemon answers, and with which secret, is asked next.
                    Kind::Resume => {
                        slot.container = Container::Unproven;
                        slot.attempts = 0;
                    }
                    Kind::Start | Kind::Adopt => {
                        slot.container = Container::Serving;
                        if running.kind == Kind::Start {
                            slot.identity = running.identity;
                        }
                        slot.proven_by = Some(operation_id);
                        slot.attempts = 0;
                        slot.launch_since = None;
                        actions.push(Action::Watch(Watch { incarnation, since: operation_id }));
                    }
                    // It completes as `Captured`.
                    Kind::Capture => {}
                    Kind::Stop => {
                        slot.container = Container::Stopped;
                        // A stop amid a launch is part of trying again, and counts on.
                        if slot.launch_since.is_none() {
                            slot.attempts = 0;
                        }
                        if assignment.is_some_and(|(desired, _)| desired == Desired::Stopped) {
                            slot.failure = None;
                        }
                    }
                    Kind::Remove => {
                        self.slots.remove(&incarnation);
                        // Wanted again in the meantime, or still on the list to be reported as deleted.
                        self.respawn(incarnation, now);
                    }
                }
            }
            Err(OperationError::Cancelled) => slot.container = slot.after_failed(running.kind),
            Err(OperationError::ImageMissing) if slot.image != ImageHere::Provided => {
                slot.container = slot.after_failed(running.kind);
                slot.image = ImageHere::Missing;
                slot.launch_since = None;
            }
            Err(OperationError::Vanished) if running.kind == Kind::Remove => {
                self.slots.remove(&incarnation);
                self.respawn(incarnation, now);
            }
            Err(OperationError::Vanished) => {
                slot.container = Container::Absent;
                slot.fail(desired_version, GONE);
            }
            Err(OperationError::Final(reason)) => {
                slot.container = slot.after_failed(running.kind);
                slot.fail(desired_version, &reason);
            }
            Err(OperationError::ImageMissing) => {
                slot.image = ImageHere::Unknown;
                slot.failed_passing(running.kind, desired_version, IMAGE_GONE, now);
            }
            Err(OperationError::Passing(reason)) => {
                slot.failed_passing(running.kind, desired_version, &reason, now);
            }
        }
    }

    fn ended(&mut self, incarnation: Incarnation, ended: Ended, now: Instant) {
        self.touch(incarnation);
        let desired_version = self
            .assignment_of(incarnation)
            .filter(|assignment| matches!(assignment.desired, Desired::Running | Desired::Paused))
            .map(|assignment| assignment.desired_version);
        let Some(slot) = self.slots.get_mut(&incarnation) else { return };
        // While an operation moves it, its completion says what is.
        if slot.is_moving() || !matches!(slot.container, Container::Serving | Container::Frozen) {
            return;
        }
        slot.waiting_since = now;
        match ended {
            Ended::Exited(exit) => {
                slot.container = Container::Stopped;
                slot.fail(desired_version, &exit_words(&exit));
            }
            Ended::Vanished => {
                slot.container = Container::Absent;
                slot.fail(desired_version, GONE);
            }
        }
    }

    fn listed(&mut self, found: Option<Vec<Found>>, now: Instant) {
        let Some(listing) = self.listing.take() else { return };
        self.next_list_at = now + LIST_INTERVAL;
        let Some(found) = found else { return };
        let found = found.into_iter().filter(|found| !found.incarnation.is_of_build());
        let found: BTreeMap<_, _> = found.map(|f| (f.incarnation, f.state)).collect();

        for (incarnation, state) in &found {
            if !listing.touched_since.contains(incarnation) && !self.slots.contains_key(incarnation) {
                self.slots.insert(*incarnation, Slot::of_found(state.clone(), now));
            }
        }
        let overtaken: Vec<(Incarnation, Ended)> = self
            .slots
            .iter()
            .filter(|(incarnation, slot)| {
                slot.operation.is_none()
                    && matches!(slot.container, Container::Serving | Container::Frozen)
                    && !listing.touched_since.contains(incarnation)
            })
            .filter_map(|(incarnation, _)| match found.get(incarnation) {
                Some(FoundState::Running | FoundState::Paused) => None,
                Some(FoundState::Stopped { exit_code }) => {
                    let exit = Exit { code: *exit_code, out_of_memory: false };
                    Some((*incarnation, Ended::Exited(exit)))
                }
                None => Some((*incarnation, Ended::Vanished)),
            })
            .collect();
        for (incarnation, ended) in overtaken {
            self.ended(incarnation, ended, now);
        }
        // Somebody froze or thawed it behind our back.
        for (incarnation, slot) in &mut self.slots {
            if slot.operation.is_some() || listing.touched_since.contains(incarnation) {
                continue;
            }
            slot.container = match (slot.container, found.get(incarnation)) {
                (Container::Serving, Some(FoundState::Paused)) => Container::Frozen,
                (Container::Frozen, Some(FoundState::Running)) => Container::Unproven,
                (container, _) => container,
            };
        }
    }

    fn begin_operations(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.wanted.is_none() {
            return;
        }
        self.forget_absent();
        self.cancel_pointless(actions);

        let mut due: Vec<(Kind, Instant, Incarnation)> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.operation.is_none() && slot.not_before <= now)
            .filter(|(incarnation, slot)| !self.in_grace(**incarnation, slot, now))
            .filter_map(|(i, slot)| self.next_kind(*i, slot).map(|kind| (kind, slot.waiting_since, *i)))
            .collect();
        // What somebody waits for and what frees the host go first; then who has waited longest.
        due.sort_by_key(|(kind, since, incarnation)| (kind.rank(), *since, *incarnation));
        // Fetching takes long and keeps nobody's turn but that of others who fetch.
        let providing = self.slots.values().filter_map(|slot| slot.operation.as_ref());
        let mut providing = providing.filter(|running| running.kind == Kind::Provide).count();
        for (kind, _, incarnation) in due {
            let others = self.operations.len() - providing;
            match kind {
                Kind::Provide if providing >= PROVIDES_MAX => continue,
                Kind::Provide => providing += 1,
                // A claim is answered when this is done, and it costs next to nothing: it does not queue behind creates.
                Kind::Identify if others >= self.operations_max * 2 => continue,
                Kind::Identify => {}
                _ if others >= self.operations_max => continue,
                _ => {}
            }
            if kind == Kind::Capture && !self.may_capture() {
                continue;
            }
            self.begin(kind, incarnation, now, actions);
        }
    }

    fn begin(&mut self, kind: Kind, incarnation: Incarnation, now: Instant, actions: &mut Vec<Action>) {
        let spec = self.assignment_of(incarnation).map(|assignment| assignment.spec.clone());
        let slot = self.slots.get_mut(&incarnation).expect("only slots are due");
        let egress = spec.as_ref().map(|spec| spec.egress.clone());
        let identity = spec.as_ref().map(|spec| Identity::of(spec));
        let operation = match (kind, spec) {
            (Kind::Provide, Some(spec)) => Operation::Provide(spec),
            (Kind::Create, Some(spec)) => Operation::Create(spec),
            (Kind::Start, Some(spec)) => Operation::Start(spec),
            // Without an assignment the goal is Gone, and nothing is created or started for it.
            (Kind::Provide | Kind::Create | Kind::Start | Kind::SetEgress | Kind::Identify, None) => return,
            (Kind::SetEgress, Some(spec)) => Operation::SetEgress(spec),
            (Kind::Capture, _) => match slot.capturing.begin(slot.container) {
                Some(operation) => operation,
                None => return,
            },
            (Kind::Identify, Some(spec)) => Operation::Identify(spec),
            (Kind::Adopt, _) => Operation::Adopt,
            (Kind::Pause, _) => Operation::Pause,
            (Kind::Resume, _) => Operation::Resume,
            (Kind::Stop, _) => Operation::Stop,
            (Kind::Remove, _) => Operation::Remove,
        };
        let deadline = match kind {
            Kind::Create | Kind::Start => *slot.launch_since.get_or_insert(now) + LAUNCH_DEADLINE,
            Kind::Provide => now + PROVIDE_DEADLINE,
            Kind::Adopt => now + ADOPT_DEADLINE,
            Kind::Pause | Kind::Resume | Kind::SetEgress | Kind::Identify => now + CHANGE_DEADLINE,
            Kind::Stop => now + STOP_DEADLINE,
            Kind::Remove => now + REMOVE_DEADLINE,
            Kind::Capture => now + CAPTURE_DEADLINE,
        };
        let operation_id = OperationId(self.next_operation_id);
        self.next_operation_id += 1;
        slot.operation = Some(Running { operation_id, kind, egress, identity, cancelled: false });
        self.operations.insert(operation_id, incarnation);
        self.touch(incarnation);
        actions.push(Action::Begin { operation_id, incarnation, operation, deadline });
    }

    /// A start or adoption whose sandbox is to stop or go is broken off. A create is short and is let end, so that
    /// nothing appears after its removal.
    fn cancel_pointless(&mut self, actions: &mut Vec<Action>) {
        let pointless: Vec<Incarnation> = self
            .slots
            .iter()
            .filter(|(incarnation, slot)| {
                let goal = self.goal(**incarnation, slot);
                let running = slot.operation.as_ref().filter(|running| !running.cancelled);
                running.is_some_and(|running| match running.kind {
                    Kind::Provide | Kind::Start | Kind::Adopt => {
                        !matches!(goal, Goal::Serving | Goal::Frozen)
                    }
                    // Whoever waits for the disk waits on; the user's wish for the sandbox itself comes first.
                    Kind::Capture => !capturing::fits(slot.container, goal),
                    _ => false,
                })
            })
            .map(|(incarnation, _)| *incarnation)
            .collect();
        for incarnation in pointless {
            let slot = self.slots.get_mut(&incarnation).expect("collected just above");
            if let Some(running) = &mut slot.operation {
                running.cancelled = true;
                actions.push(Action::Cancel { operation_id: running.operation_id });
            }
        }
    }

    /// The table at the top of this file.
    fn next_kind(&self, incarnation: Incarnation, slot: &Slot) -> Option<Kind> {
        let kind = match (slot.container, self.goal(incarnation, slot)) {
            (_, Goal::AsIs) => return None,
            (Container::Absent, Goal::Gone | Goal::Stored | Goal::Down | Goal::Frozen) => return None,
            (Container::Stopped, Goal::Down | Goal::Frozen) => slot.capturing.due()?,
            (_, Goal::Gone | Goal::Stored) => Kind::Remove,
            (Container::Absent, Goal::Serving) if slot.image == ImageHere::Missing => Kind::Provide,
            (Container::Absent, Goal::Serving) => Kind::Create,
            (Container::Uncertain, Goal::Serving | Goal::Frozen | Goal::Down) => Kind::Stop,
            (Container::Stopped | Container::Serving | Container::Frozen, Goal::Serving)
                if self.is_behind_on_egress(incarnation, slot) =>
            {
                Kind::SetEgress
            }
            (Container::Serving, Goal::Serving) if self.is_slot_for_another(incarnation, slot) => {
                Kind::Identify
            }
            (Container::Serving, Goal::Serving) | (Container::Frozen, Goal::Frozen) => {
                slot.capturing.due()?
            }
            (Container::Stopped, Goal::Serving) => Kind::Start,
            (Container::Unproven, Goal::Serving) => Kind::Adopt,
            (Container::Frozen | Container::HalfFrozen, Goal::Serving) => Kind::Resume,
            (Container::Unproven | Container::Serving | Container::HalfFrozen, Goal::Frozen) => Kind::Pause,
            (
                Container::Unproven | Container::Serving | Container::Frozen | Container::HalfFrozen,
                Goal::Down,
            ) => Kind::Stop,
        };
        // An older incarnation of the same sandbox ends before the newer one begins.
        // Nor does one begin while a newer one is here that the replica has not heard of yet.
        let fenced = self.generations(incarnation.sandbox_id).any(|other| other != incarnation);
        (!fenced || kind == Kind::Remove || kind == Kind::Stop).then_some(kind)
    }

    fn goal(&self, incarnation: Incarnation, slot: &Slot) -> Goal {
        let Some(assignment) = self.wanted.as_ref().and_then(|wanted| wanted.get(&incarnation.sandbox_id))
        else {
            return Goal::Gone;
        };
        if incarnation.generation < assignment.generation {
            return Goal::Gone;
        }
        if incarnation.generation > assignment.generation {
            return Goal::AsIs;
        }
        match assignment.desired {
            Desired::Deleted => Goal::Gone,
            Desired::Stopped => Goal::Down,
            // The disk stays until the record says that there is a checkpoint of it.
            Desired::Archived if assignment.capture.is_some() => Goal::Down,
            Desired::Archived => Goal::Stored,
            Desired::Running if slot.failed_at(assignment.desired_version).is_some() => Goal::Down,
            Desired::Running => Goal::Serving,
            Desired::Paused if slot.failed_at(assignment.desired_version).is_some() => Goal::AsIs,
            Desired::Paused => Goal::Frozen,
        }
    }

    fn is_behind_on_egress(&self, incarnation: Incarnation, slot: &Slot) -> bool {
        let wanted = self.assignment_of(incarnation).map(|assignment| &assignment.spec.egress);
        wanted.is_some() && slot.egress.as_ref() != wanted
    }

    fn is_slot_for_another(&self, incarnation: Incarnation, slot: &Slot) -> bool {
        self.assignment_of(incarnation).is_some_and(|assignment| is_for_another(assignment, slot))
    }

    fn in_grace(&self, incarnation: Incarnation, slot: &Slot, now: Instant) -> bool {
        let unknown = self.wanted.as_ref().is_none_or(|wanted| !wanted.contains_key(&incarnation.sandbox_id));
        match slot.ownership {
            Ownership::NeverWanted { since } => unknown && now < since + ORPHAN_GRACE,
            Ownership::Wanted => false,
        }
    }

    fn forget_absent(&mut self) {
        let forgotten: Vec<Incarnation> = self
            .slots
            .iter()
            .filter(|(incarnation, slot)| {
                slot.container == Container::Absent
                    && slot.operation.is_none()
                    && self.goal(**incarnation, slot) == Goal::Gone
            })
            .map(|(incarnation, _)| *incarnation)
            .collect();
        for incarnation in forgotten {
            self.slots.remove(&incarnation);
        }
    }

    fn respawn(&mut self, incarnation: Incarnation, now: Instant) {
        if let Some(assignment) = self.assignment_of(incarnation) {
            let slot = Slot::fresh(Container::Absent, Ownership::Wanted, now);
            debug_assert_eq!(assignment.incarnation(), incarnation);
            self.slots.insert(incarnation, slot);
        }
    }

    fn report(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(wanted) = &self.wanted else { return };
        for assignment in wanted.values() {
            let kind = match assignment.desired {
                Desired::Deleted if self.generations(assignment.sandbox_id).next().is_none() => {
                    ReportKind::Deleted
                }
                // The record says already that it is being deleted.
                Desired::Deleted => continue,
                Desired::Running | Desired::Stopped | Desired::Paused | Desired::Archived => {
                    ReportKind::Phase(self.phase_of(assignment))
                }
            };
            let recorded = kind == ReportKind::Phase(assignment.phase.clone());
            let report = Report {
                sandbox_id: assignment.sandbox_id,
                generation: assignment.generation,
                desired_version: assignment.desired_version,
                kind,
            };
            let said = self.said.get_mut(&assignment.sandbox_id).expect("set with the wanted list");
            // A claim changes nothing that the record does not say already: it costs one decision, not two.
            if recorded && said.report.kind == report.kind && assignment.origin == Origin::Claimed {
                *said = Said { report, at: None };
                continue;
            }
            let repeat = !recorded && said.at.is_none_or(|at| now >= at + REPORT_AGAIN_AFTER);
            if said.report != report || repeat {
                *said = Said { report: report.clone(), at: (!recorded).then_some(now) };
                actions.push(Action::Send(report));
            } else if recorded {
                said.at = None;
            }
        }
    }

    fn phase_of(&self, assignment: &Assignment) -> Phase {
        let slot = self.slots.get(&assignment.incarnation());
        let container = slot.map_or(Container::Absent, |slot| slot.container);
        let failure = slot.and_then(|slot| slot.failed_at(assignment.desired_version));
        if let Some(failure) = failure {
            return Phase::Failed { reason: failure.reason.clone() };
        }
        let busy = slot.is_some_and(Slot::is_moving);
        let was_frozen = matches!(assignment.phase, Phase::Pausing | Phase::Paused | Phase::Resuming);
        match (assignment.desired, container) {
            // Being adopted: it ran while this process was away, and nobody should hear that it stopped.
            (Desired::Running, Container::Unproven) if assignment.phase == Phase::Running => Phase::Running,
            (Desired::Running, Container::Serving) if !busy => Phase::Running,
            (Desired::Running, Container::Frozen | Container::HalfFrozen) => Phase::Resuming,
            (Desired::Running, Container::Unproven) if was_frozen => Phase::Resuming,
            (Desired::Running, _) => Phase::Starting,
            (Desired::Paused, Container::Frozen) if !busy => Phase::Paused,
            (Desired::Paused, Container::Absent | Container::Stopped) => {
                Phase::Failed { reason: MEMORY_LOST.to_owned() }
            }
            (Desired::Paused, _) => Phase::Pausing,
            (Desired::Stopped, Container::Absent | Container::Stopped) if !busy => Phase::Stopped,
            (Desired::Archived, Container::Absent) if !busy && assignment.capture.is_none() => {
                Phase::Archived
            }
            (Desired::Archived, _) => Phase::Archiving,
            (Desired::Stopped | Desired::Deleted, _) => Phase::Stopping,
        }
    }

    fn assignment_of(&self, incarnation: Incarnation) -> Option<&Assignment> {
        let assignment = self.wanted.as_ref()?.get(&incarnation.sandbox_id)?;
        (assignment.generation == incarnation.generation).then_some(assignment)
    }

    fn generations(&self, sandbox_id: SandboxId) -> impl Iterator<Item = Incarnation> {
        let from = Incarnation { sandbox_id, generation: Generation(0) };
        let to = Incarnation { sandbox_id, generation: Generation(u64::MAX) };
        self.slots.range(from..=to).map(|(incarnation, _)| *incarnation)
    }

    fn touch(&mut self, incarnation: Incarnation) {
        if let Some(listing) = &mut self.listing {
            listing.touched_since.push(incarnation);
        }
    }
}

/// Its daemon still has the user and environment of before it was claimed, for all that is known.
fn is_for_another(assignment: &Assignment, slot: &Slot) -> bool {
    assignment.origin == Origin::Claimed
        && slot.identity.as_ref().is_none_or(|identity| !identity.is_of(&assignment.spec))
}

const GONE: &str = "the sandbox's container is no longer on its node; starting it again makes an empty one";
const IMAGE_GONE: &str = "the image was removed from the node while the sandbox was being made";
const MEMORY_LOST: &str =
    "the paused sandbox has ended, so what was in its memory is lost; its files are kept, start it again";

/// Whom a sandbox is for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    user: String,
    env: BTreeMap<String, String>,
}

impl Identity {
    fn of(spec: &SandboxSpec) -> Identity {
        Identity { user: spec.user.clone(), env: spec.env.clone() }
    }

    fn is_of(&self, spec: &SandboxSpec) -> bool {
        self.user == spec.user && self.env == spec.env
    }
}

impl Kind {
    /// The lower, the sooner.
    fn rank(self) -> u8 {
        match self {
            Kind::Identify => 0,
            Kind::Remove | Kind::Stop | Kind::SetEgress => 1,
            Kind::Provide | Kind::Create | Kind::Start | Kind::Adopt | Kind::Pause | Kind::Resume => 2,
            Kind::Capture => 3,
        }
    }
}

impl Slot {
    fn fresh(container: Container, ownership: Ownership, now: Instant) -> Slot {
        Slot {
            container,
            operation: None,
            proven_by: None,
            desired_version: None,
            failure: None,
            attempts: 0,
            not_before: now,
            launch_since: None,
            waiting_since: now,
            ownership,
            egress: None,
            image: ImageHere::Unknown,
            capturing: Capturing::default(),
            identity: None,
            found: None,
        }
    }

    fn of_found(state: FoundState, now: Instant) -> Slot {
        let container = match state {
            FoundState::Running => Container::Unproven,
            FoundState::Paused => Container::Frozen,
            FoundState::Stopped { .. } => Container::Stopped,
        };
        Slot { found: Some(state), ..Slot::fresh(container, Ownership::NeverWanted { since: now }, now) }
    }

    /// The record says that the sandbox has been here, and the runtime does not have it: its disk is lost.
    /// One that failed stays failed. Any other is new.
    fn missing_at_start(assignment: &Assignment, now: Instant) -> Slot {
        let mut slot = Slot::fresh(Container::Absent, Ownership::Wanted, now);
        slot.desired_version = Some(assignment.desired_version);
        match &assignment.phase {
            Phase::Running
            | Phase::Stopping
            | Phase::Stopped
            | Phase::Pausing
            | Phase::Paused
            | Phase::Resuming
            | Phase::Lost => slot.fail(Some(assignment.desired_version), GONE),
            // Its disk is a checkpoint by now, or the capture will fail, which is said by itself.
            Phase::Archiving | Phase::Archived => {}
            // A start that was wished later than the create: there was a disk, and an empty one must not take its place.
            Phase::Starting if assignment.desired_version > assignment.made_by_version => {
                slot.fail(Some(assignment.desired_version), GONE)
            }
            Phase::Failed { reason } => slot.fail(Some(assignment.desired_version), reason),
            Phase::Pending | Phase::Starting => {}
        }
        slot
    }

    fn adopt_wish(&mut self, assignment: &Assignment) {
        self.ownership = Ownership::Wanted;
        if self.desired_version != Some(assignment.desired_version) {
            self.desired_version = Some(assignment.desired_version);
            self.failure = None;
            self.attempts = 0;
            self.launch_since = None;
        }
        // It ended while nobody watched, and the record still says that it runs: that is a failure, not a restart.
        if let Some(FoundState::Stopped { exit_code }) = self.found.take()
            && assignment.desired == Desired::Running
        {
            match &assignment.phase {
                Phase::Resuming => self.fail(Some(assignment.desired_version), MEMORY_LOST),
                Phase::Running => {
                    let exit = Exit { code: exit_code, out_of_memory: false };
                    self.fail(Some(assignment.desired_version), &exit_words(&exit));
                }
                Phase::Failed { reason } => self.fail(Some(assignment.desired_version), reason),
                Phase::Pending
                | Phase::Starting
                | Phase::Stopping
                | Phase::Stopped
                | Phase::Pausing
                | Phase::Paused
                | Phase::Archiving
                | Phase::Archived
                | Phase::Lost => {}
            }
        }
    }

    /// An operation changes its container: what is known of it holds no longer. Who dials a sandbox that is frozen for a
    /// capture waits a little.
    fn is_moving(&self) -> bool {
        let changes =
            |running: &Running| !matches!(running.kind, Kind::SetEgress | Kind::Identify | Kind::Capture);
        self.operation.as_ref().is_some_and(changes)
    }

    /// `None`: nobody wishes it to run, so its end is no failure.
    fn fail(&mut self, desired_version: Option<u64>, reason: &str) {
        self.failure =
            desired_version.map(|desired_version| Failure { desired_version, reason: reason.to_owned() });
        self.launch_since = None;
    }

    /// Tried again later, or given up.
    fn failed_passing(&mut self, kind: Kind, desired_version: Option<u64>, reason: &str, now: Instant) {
        self.container = self.after_failed(kind);
        self.attempts += 1;
        self.not_before = now + backoff(self.attempts);
        let launch_over = self.launch_since.is_some_and(|since| now >= since + LAUNCH_DEADLINE);
        let given_up = match kind {
            Kind::Create | Kind::Start => launch_over || self.attempts >= ATTEMPTS_MAX,
            Kind::Provide
            | Kind::Adopt
            | Kind::Pause
            | Kind::Resume
            | Kind::SetEgress
            | Kind::Identify
            | Kind::Stop => self.attempts >= ATTEMPTS_MAX,
            Kind::Remove | Kind::Capture => false,
        };
        // The first reason stands: what fails while cleaning up after it explains nothing.
        if given_up && self.failure.is_none() {
            self.fail(desired_version, reason);
        }
    }

    fn failed_at(&self, desired_version: u64) -> Option<&Failure> {
        self.failure.as_ref().filter(|failure| failure.desired_version == desired_version)
    }

    fn after_failed(&self, kind: Kind) -> Container {
        match kind {
            Kind::Provide | Kind::Create => Container::Absent,
            Kind::Start | Kind::Stop | Kind::Remove => Container::Uncertain,
            Kind::Adopt => Container::Unproven,
            Kind::Pause | Kind::Resume => Container::HalfFrozen,
            Kind::SetEgress | Kind::Identify => self.container,
            // It was frozen and may still be; unless it has ended meanwhile.
            Kind::Capture if self.container == Container::Serving => Container::HalfFrozen,
            Kind::Capture => self.container,
        }
    }
}

impl Said {
    /// The record counts as said, so that a node that starts again does not repeat what is known.
    fn as_recorded(assignment: &Assignment) -> Said {
        Said {
            report: Report {
                sandbox_id: assignment.sandbox_id,
                generation: assignment.generation,
                desired_version: assignment.desired_version,
                kind: ReportKind::Phase(assignment.phase.clone()),
            },
            at: None,
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(BACKOFF_MAX)
}

/// For users: why a sandbox ended by itself.
pub(crate) fn exit_words(exit: &Exit) -> String {
    match exit {
        Exit { out_of_memory: true, .. } => "the sandbox ran out of memory".to_owned(),
        Exit { code: Some(137), .. } => "the sandbox was killed (exit code 137)".to_owned(),
        Exit { code: Some(code), .. } => format!("the sandbox ended by itself (exit code {code})"),
        Exit { code: None, .. } => "the sandbox ended by itself".to_owned(),
    }
}

#[cfg(test)]
mod tests;
