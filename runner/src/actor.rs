//! The runner's one task: hears, sleeps, sends, and asks the core what to do. The only place that knows both the
//! core and the tasks that carry out what it says.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::assignment::{Assignment, Report, ReportKind};
use crate::handle::{PREPARE_DEADLINE, RunnerStatus};
use crate::operations::Operations;
use crate::reconcile::{Action, Event, Operation, OperationError, OperationId, Reconciler, Watch};
use crate::runtime::{Incarnation, RuntimeError};

/// `None` until the node has given its first list.
pub(crate) type WantedList = Option<Arc<Vec<Assignment>>>;

/// Completions that may wait for the task. A full channel makes the operation's own task wait, never the actor.
const EVENTS_MAX: usize = 256;

pub(crate) struct Actor {
    core: Reconciler,
    operations: Operations,
    wanted: watch::Receiver<WantedList>,
    reports: mpsc::Sender<Report>,
    status: watch::Sender<RunnerStatus>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    running: HashMap<OperationId, CancellationToken>,
    /// One per sandbox that serves; replaced (and so ended) by the watch of its next run.
    watches: HashMap<Incarnation, tokio_util::sync::DropGuard>,
    events: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
}

/// Every cause of waking.
enum Heard {
    Core(Event),
    /// The half-minute look: what the host lacks, then the list.
    Looked {
        host_problem: Option<String>,
        listed: Event,
    },
}

impl Actor {
    pub(crate) fn new(
        core: Reconciler,
        operations: Operations,
        wanted: watch::Receiver<WantedList>,
        reports: mpsc::Sender<Report>,
        status: watch::Sender<RunnerStatus>,
        stopping: CancellationToken,
        tasks: TaskTracker,
    ) -> Actor {
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let (running, watches) = (HashMap::new(), HashMap::new());
        Actor { core, operations, wanted, reports, status, stopping, tasks, running, watches, events, heard }
    }

    pub(crate) async fn run(mut self) {
        while let Some(heard) = self.next_heard().await {
            let event = match heard {
                Heard::Core(event) => event,
                Heard::Looked { host_problem, listed } => {
                    self.status.send_modify(|status| status.host_problem = host_problem);
                    listed
                }
            };
            if let Event::Completed { operation_id, .. } | Event::Captured { operation_id, .. } = &event {
                self.running.remove(operation_id);
            }
            let actions = self.core.handle(event, Instant::now().into_std());
            // Doors first: whoever hears that a sandbox runs may dial it at once.
            self.operations.doors.set(self.core.reachable());
            self.status.send_if_modified(|status| {
                let counts = self.core.counts();
                std::mem::replace(&mut status.counts, counts) != counts
            });
            for action in actions {
                self.perform(action);
            }
        }
        // Sandboxes go on without us; only what is under way here breaks off.
        self.operations.doors.set(std::iter::empty());
    }

    /// `None` when the runner is to end.
    async fn next_heard(&mut self) -> Option<Heard> {
        let wake = self.core.next_wake(Instant::now().into_std());
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => None,
            heard = self.heard.recv() => heard,
            changed = self.wanted.changed() => {
                changed.ok()?;
                let wanted = self.wanted.borrow_and_update().clone();
                Some(Heard::Core(match wanted {
                    Some(wanted) => Event::Wanted(wanted.to_vec()),
                    None => Event::Tick,
                }))
            }
            () = tokio::time::sleep_until(wake.into()) => Some(Heard::Core(Event::Tick)),
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Begin { operation_id, incarnation, operation, deadline } => {
                self.begin(operation_id, incarnation, operation, deadline);
            }
            Action::Cancel { operation_id } => {
                if let Some(cancel) = self.running.get(&operation_id) {
                    cancel.cancel();
                }
            }
            Action::Watch(watch) => self.watch(watch),
            Action::Send(report) => {
                log_report(&report);
                if let Err(error) = self.reports.try_send(report) {
                    tracing::debug!(%error, "the report did not fit; it is said again later");
                }
            }
            Action::List => self.look(),
        }
    }

    fn begin(
        &mut self,
        operation_id: OperationId,
        incarnation: Incarnation,
        operation: Operation,
        deadline: std::time::Instant,
    ) {
        let cancel = self.stopping.child_token();
        self.running.insert(operation_id, cancel.clone());
        if matches!(operation, Operation::Remove) {
            self.watches.remove(&incarnation);
        }
        let name = operation.name();
        let span = tracing::info_span!(
            "operation",
            name,
            sandbox_id = %incarnation.sandbox_id,
            generation = %incarnation.generation
        );
        let (operations, events) = (self.operations.clone(), self.events.clone());
        let work = async move {
            let began = Instant::now();
            let event = match operation {
                Operation::Capture { name: image, how } => {
                    let captured = operations.capture(incarnation, &image, how);
                    let result = in_bounds(captured, deadline, &cancel, name).await;
                    log_end(&result, began);
                    Event::Captured { operation_id, result }
                }
                operation => {
                    let performed = operations.perform(incarnation, operation);
                    let result = in_bounds(performed, deadline, &cancel, name).await;
                    log_end(&result, began);
                    Event::Completed { operation_id, result }
                }
            };
            // Fails only when the actor has ended.
            let _ = events.send(Heard::Core(event)).await;
        };
        self.tasks.spawn(work.instrument(span));
    }

    fn watch(&mut self, watch: Watch) {
        let cancel = self.stopping.child_token();
        self.watches.insert(watch.incarnation, cancel.clone().drop_guard());
        let (operations, events) = (self.operations.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                ended = operations.watch(watch.incarnation) => ended,
            };
            let _ = events.send(Heard::Core(Event::Ended { watch, ended })).await;
        });
    }

    fn look(&self) {
        let (runtime, events) = (self.operations.runtime.clone(), self.events.clone());
        let stopping = self.stopping.clone();
        let look = async move {
            let host_problem = in_time(runtime.prepare()).await.err();
            if let Some(problem) = &host_problem {
                tracing::error!(%problem, "the runtime cannot work");
            }
            let listed = in_time(runtime.list()).await;
            if let Err(error) = &listed {
                tracing::warn!(%error, "cannot list sandboxes");
            }
            let host_problem = host_problem.map(|problem| problem.to_string());
            let _ = events.send(Heard::Looked { host_problem, listed: Event::Listed(listed.ok()) }).await;
        };
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                () = look => {}
            }
        });
    }
}

async fn in_bounds<T>(
    work: impl Future<Output = Result<T, OperationError>>,
    deadline: std::time::Instant,
    cancel: &CancellationToken,
    name: &'static str,
) -> Result<T, OperationError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(OperationError::Cancelled),
        done = tokio::time::timeout_at(deadline.into(), work) => {
            done.unwrap_or_else(|_| Err(OperationError::Passing(overdue(name).into())))
        }
    }
}

fn log_end<T>(result: &Result<T, OperationError>, began: Instant) {
    let took_ms = began.elapsed().as_millis();
    match result {
        Ok(_) => tracing::debug!(took_ms, "done"),
        Err(OperationError::Cancelled) => tracing::debug!(took_ms, "broken off"),
        Err(error) => tracing::warn!(took_ms, ?error, "failed"),
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, RuntimeError>>) -> Result<T, RuntimeError> {
    let done = tokio::time::timeout(PREPARE_DEADLINE, work).await;
    done.unwrap_or_else(|_| Err(RuntimeError::TimedOut("the container runtime does not answer".into())))
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Operation::Provide(_) => "provide",
            Operation::Create(_) => "create",
            Operation::Start(_) => "start",
            Operation::Adopt => "adopt",
            Operation::Pause => "pause",
            Operation::Resume => "resume",
            Operation::SetEgress(_) => "set egress",
            Operation::Capture { .. } => "capture",
            Operation::Identify(_) => "identify",
            Operation::Stop => "stop",
            Operation::Remove => "remove",
        }
    }
}

/// For users: what did not happen in time.
fn overdue(name: &str) -> &'static str {
    match name {
        "start" => "the sandbox was not ready within 30 s",
        "provide" => "the sandbox's image could not be fetched in time",
        "create" => "the sandbox could not be made within 30 s",
        "stop" => "the sandbox did not stop in time",
        "adopt" => "the sandbox's daemon did not answer in time",
        "pause" => "the sandbox could not be paused in time",
        "resume" => "the sandbox could not be resumed in time",
        "capture" => "the sandbox's disk could not be copied in time",
        "identify" => "user and environment of the sandbox could not be changed in time",
        "set egress" => "what the sandbox may reach could not be changed in time",
        _ => "the sandbox could not be removed in time",
    }
}

fn log_report(report: &Report) {
    let (sandbox_id, generation) = (report.sandbox_id, report.generation);
    match &report.kind {
        ReportKind::Phase(phase) => tracing::info!(%sandbox_id, %generation, ?phase, "phase"),
        ReportKind::Deleted => tracing::info!(%sandbox_id, %generation, "deleted"),
        ReportKind::Captured { number, result } => {
            tracing::info!(%sandbox_id, %generation, number, ?result, "captured")
        }
    }
}
