//! The core as a list of calls: what was wanted, what happened, what it did.

use atoll_api::ids::RegionOrdinal;
use atoll_api::sandbox::Resources;

use super::*;

mod capturing;
mod claiming;
mod pausing;
mod providing;
mod reaching;

struct World {
    core: Reconciler,
    now: Instant,
    wanted: BTreeMap<SandboxId, Assignment>,
    /// Every action since the last look.
    done: Vec<Action>,
}

fn sandbox(number: u8) -> SandboxId {
    SandboxId::new(RegionOrdinal::new(0).unwrap(), [number; 14])
}

fn incarnation(number: u8, generation: u64) -> Incarnation {
    Incarnation { sandbox_id: sandbox(number), generation: Generation(generation) }
}

fn spec() -> Arc<SandboxSpec> {
    Arc::new(SandboxSpec {
        snapshot: "s".into(),
        image: "i".into(),
        user: "u".into(),
        env: BTreeMap::new(),
        entrypoint: Vec::new(),
        resources: Resources { cpu: 1, memory_gib: 1, disk_gib: 1 },
        egress: Default::default(),
        allow_sudo: true,
    })
}

fn found(number: u8, generation: u64, state: FoundState) -> Found {
    Found { incarnation: incarnation(number, generation), state }
}

const EXITED: FoundState = FoundState::Stopped { exit_code: Some(1) };

fn failed(reason: &str) -> Phase {
    Phase::Failed { reason: reason.to_owned() }
}

impl World {
    fn new() -> World {
        World::finding(Vec::new())
    }

    fn finding(found: Vec<Found>) -> World {
        let now = Instant::now();
        World { core: Reconciler::new(4, found, now), now, wanted: BTreeMap::new(), done: Vec::new() }
    }

    fn handle(&mut self, event: Event) -> &mut World {
        let actions = self.core.handle(event, self.now);
        self.done.extend(actions);
        self
    }

    fn tell(&mut self) -> &mut World {
        self.handle(Event::Wanted(self.wanted.values().cloned().collect()))
    }

    fn wanted(&mut self, number: u8, generation: u64, desired: Desired, phase: Phase) -> &mut World {
        let desired_version = self.wanted.get(&sandbox(number)).map_or(1, |a| a.desired_version);
        let assignment = Assignment {
            sandbox_id: sandbox(number),
            generation: Generation(generation),
            spec: spec(),
            desired,
            desired_version,
            phase,
            made_by_version: 1,
            capture: None,
            origin: Origin::Asked,
        };
        self.wanted.insert(sandbox(number), assignment);
        self.tell()
    }

    fn placed(&mut self, number: u8) -> &mut World {
        self.wanted(number, 1, Desired::Running, Phase::Pending)
    }

    fn wish(&mut self, number: u8, desired: Desired) -> &mut World {
        let assignment = self.wanted.get_mut(&sandbox(number)).unwrap();
        assignment.desired = desired;
        assignment.desired_version += 1;
        self.tell()
    }

    fn recorded(&mut self, number: u8, phase: Phase) -> &mut World {
        self.wanted.get_mut(&sandbox(number)).unwrap().phase = phase;
        self.tell()
    }

    fn unwanted(&mut self, number: u8) -> &mut World {
        self.wanted.remove(&sandbox(number));
        self.tell()
    }

    fn later(&mut self, by: Duration) -> &mut World {
        self.now += by;
        self.handle(Event::Tick)
    }

    /// Completes what runs for the incarnation.
    fn complete(&mut self, incarnation: Incarnation, result: Result<(), OperationError>) -> &mut World {
        let running = self.core.operations.iter().find(|(_, of)| **of == incarnation);
        let operation_id = *running.unwrap_or_else(|| panic!("nothing runs for {incarnation:?}")).0;
        self.handle(Event::Completed { operation_id, result })
    }

    fn ok(&mut self, number: u8) -> &mut World {
        self.complete(incarnation(number, 1), Ok(()))
    }

    fn fails(&mut self, number: u8, error: OperationError) -> &mut World {
        self.complete(incarnation(number, 1), Err(error))
    }

    fn running(&mut self, number: u8) -> &mut World {
        self.placed(number).ok(number).ok(number).recorded(number, Phase::Running);
        self.done.clear();
        self
    }

    fn exits(&mut self, number: u8, exit: Exit) -> &mut World {
        let incarnation = incarnation(number, 1);
        let since = self.core.slots[&incarnation].proven_by.unwrap();
        self.handle(Event::Ended { watch: Watch { incarnation, since }, ended: Ended::Exited(exit) })
    }

    /// Operations begun and broken off since the last look, in words.
    fn operations(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        self.done.retain(|action| {
            match action {
                Action::Begin { incarnation, operation, .. } => {
                    let name = format!("{operation:?}");
                    let name = name.split(['(', ' ']).next().unwrap().to_owned();
                    words.push(format!("{name} g{}", incarnation.generation));
                }
                Action::Cancel { .. } => words.push("Cancel".into()),
                Action::Watch(_) => {}
                Action::List => {}
                Action::Send(_) => return true,
            }
            false
        });
        words
    }

    fn reports(&mut self) -> Vec<ReportKind> {
        let mut kinds = Vec::new();
        self.done.retain(|action| match action {
            Action::Send(report) => {
                kinds.push(report.kind.clone());
                false
            }
            _ => true,
        });
        kinds
    }
}

#[test]
fn a_placed_sandbox_is_created_started_and_reported() {
    let mut world = World::new();

    world.placed(1);
    assert_eq!(world.operations(), ["Create g1"]);
    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Starting)]);
    world.ok(1);
    assert_eq!(world.operations(), ["Start g1"]);
    world.ok(1);

    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Running)]);
    assert!(world.core.reachable().all(|reachable| reachable.serving));
}

#[test]
fn nothing_is_done_before_the_first_wanted_list() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running), found(2, 1, EXITED)]);

    world.later(ORPHAN_GRACE * 10);

    assert_eq!(world.operations(), Vec::<String>::new());
}

#[test]
fn what_nobody_wants_goes_after_its_grace() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running)]);
    world.tell();
    assert_eq!(world.operations(), Vec::<String>::new());

    world.later(ORPHAN_GRACE);

    assert_eq!(world.operations(), ["Remove g1"]);
}

#[test]
fn what_was_wanted_and_is_no_more_goes_at_once() {
    let mut world = World::new();
    world.running(1);

    world.unwanted(1);

    assert_eq!(world.operations(), ["Remove g1"]);
}

#[test]
fn an_older_generation_ends_before_the_newer_begins() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running)]);

    world.wanted(1, 2, Desired::Running, Phase::Pending);
    assert_eq!(world.operations(), ["Remove g1"]);
    world.ok(1);

    assert_eq!(world.operations(), ["Create g2"]);
}

#[test]
fn a_newer_generation_than_the_replica_knows_is_left_alone() {
    let mut world = World::finding(vec![found(1, 3, FoundState::Running)]);

    world.wanted(1, 2, Desired::Running, Phase::Running).later(ORPHAN_GRACE * 2);

    assert_eq!(world.operations(), Vec::<String>::new());
}

#[test]
fn a_running_container_is_adopted_without_a_report() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running)]);

    world.wanted(1, 1, Desired::Running, Phase::Running);
    assert_eq!(world.operations(), ["Adopt g1"]);
    assert!(world.core.reachable().all(|reachable| !reachable.serving));
    world.ok(1);

    assert_eq!(world.reports(), []);
    assert!(world.core.reachable().all(|reachable| reachable.serving));
}

#[test]
fn a_container_that_does_not_answer_is_stopped_and_failed() {
    let mut world = World::finding(vec![found(1, 1, FoundState::Running)]);
    world.wanted(1, 1, Desired::Running, Phase::Running);

    for _ in 0..ATTEMPTS_MAX {
        world.fails(1, OperationError::Passing("mute".into())).later(BACKOFF_MAX);
    }

    assert_eq!(world.operations(), ["Adopt g1", "Adopt g1", "Adopt g1", "Stop g1"]);
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(failed("mute"))));
}

#[test]
fn a_container_that_ended_while_nobody_watched_has_failed() {
    let mut world = World::finding(vec![found(1, 1, EXITED)]);

    world.wanted(1, 1, Desired::Running, Phase::Running);

    assert_eq!(world.operations(), Vec::<String>::new());
    assert_eq!(world.reports(), [ReportKind::Phase(failed("the sandbox ended by itself (exit code 1)"))]);
}

#[test]
fn a_launch_that_a_restart_of_the_node_cut_off_goes_on() {
    for phase in [Phase::Pending, Phase::Starting, Phase::Stopped] {
        let mut world = World::finding(vec![found(1, 1, FoundState::Stopped { exit_code: None })]);

        world.wanted(1, 1, Desired::Running, phase).ok(1);

        assert_eq!(world.operations(), ["SetEgress g1", "Start g1"]);
    }
}

#[test]
fn a_sandbox_whose_container_is_lost_has_failed_and_starts_anew_only_when_asked() {
    let mut world = World::new();
    world.wanted(1, 1, Desired::Running, Phase::Running);
    assert_eq!(world.operations(), Vec::<String>::new());
    assert_eq!(world.reports(), [ReportKind::Phase(failed(GONE))]);

    world.wish(1, Desired::Running);

    assert_eq!(world.operations(), ["Create g1"]);
}

#[test]
fn an_exit_while_running_is_a_failure_with_words_and_no_restart() {
    for (exit, words) in [
        (Exit { code: Some(2), out_of_memory: false }, "the sandbox ended by itself (exit code 2)"),
        (Exit { code: Some(137), out_of_memory: true }, "the sandbox ran out of memory"),
        (Exit { code: Some(137), out_of_memory: false }, "the sandbox was killed (exit code 137)"),
        (Exit { code: None, out_of_memory: false }, "the sandbox ended by itself"),
    ] {
        let mut world = World::new();
        world.running(1);

        world.exits(1, exit);

        assert_eq!(world.reports(), [ReportKind::Phase(failed(words))]);
        assert_eq!(world.later(BACKOFF_MAX).operations(), Vec::<String>::new());
    }
}

#[test]
fn an_exit_that_was_asked_for_is_no_failure() {
    let mut world = World::new();
    world.running(1);

    world.wish(1, Desired::Stopped).exits(1, Exit { code: Some(143), out_of_memory: false }).ok(1);

    let expected = [ReportKind::Phase(Phase::Stopping), ReportKind::Phase(Phase::Stopped)];
    assert_eq!(world.reports(), expected);
}

#[test]
fn the_end_of_an_earlier_run_says_nothing_of_this_one() {
    let mut world = World::new();
    world.running(1);
    let since = world.core.slots[&incarnation(1, 1)].proven_by.unwrap();
    world.wish(1, Desired::Stopped).ok(1).wish(1, Desired::Running).ok(1).recorded(1, Phase::Running);
    world.done.clear();

    let ended = Ended::Exited(Exit { code: Some(143), out_of_memory: false });
    world.handle(Event::Ended { watch: Watch { incarnation: incarnation(1, 1), since }, ended });

    assert_eq!(world.reports(), []);
}

#[test]
fn a_passing_failure_is_tried_again_after_a_growing_pause() {
    let mut world = World::new();
    world.placed(1).fails(1, OperationError::Passing("busy".into()));
    assert_eq!(world.operations(), ["Create g1"]);

    world.later(BACKOFF_FIRST / 2);
    assert_eq!(world.operations(), Vec::<String>::new());
    world.later(BACKOFF_FIRST / 2);
    assert_eq!(world.operations(), ["Create g1"]);
    world.fails(1, OperationError::Passing("busy".into())).later(BACKOFF_FIRST);

    assert_eq!(world.operations(), Vec::<String>::new());
    assert_eq!(world.later(BACKOFF_FIRST).operations(), ["Create g1"]);
}

#[test]
fn a_failed_start_is_stopped_before_it_is_tried_again() {
    let mut world = World::new();
    world.placed(1).ok(1).fails(1, OperationError::Passing("no hello".into())).later(BACKOFF_MAX);
    world.ok(1);

    assert_eq!(world.operations(), ["Create g1", "Start g1", "Stop g1", "Start g1"]);
}

#[test]
fn tries_are_bounded_and_the_last_words_reported() {
    let mut world = World::new();
    world.placed(1);

    for _ in 0..ATTEMPTS_MAX {
        world.fails(1, OperationError::Passing("engine down".into())).later(Duration::from_secs(1));
    }

    assert_eq!(world.operations().len(), ATTEMPTS_MAX as usize);
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(failed("engine down"))));
}

#[test]
fn a_start_that_outlives_the_launch_deadline_fails_and_is_stopped() {
    let mut world = World::new();
    world.placed(1).ok(1);
    let deadline = world.now + LAUNCH_DEADLINE;
    let start = world.done.iter().rev().find_map(|action| match action {
        Action::Begin { deadline, .. } => Some(*deadline),
        _ => None,
    });
    assert_eq!(start, Some(deadline));

    world.now = deadline;
    world.fails(1, OperationError::Passing("not ready within 30 s".into())).later(BACKOFF_MAX);

    assert_eq!(world.operations(), ["Create g1", "Start g1", "Stop g1"]);
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(failed("not ready within 30 s"))));
}

#[test]
fn a_fault_of_the_spec_is_not_tried_again_until_the_wish_is_new() {
    let mut world = World::new();
    world.placed(1).fails(1, OperationError::Final("no such image".into())).later(BACKOFF_MAX);
    assert_eq!(world.operations(), ["Create g1"]);

    world.wish(1, Desired::Running);

    assert_eq!(world.operations(), ["Create g1"]);
}

#[test]
fn delete_wins_over_everything() {
    // While it is created: what appears is removed.
    let mut world = World::new();
    world.placed(1).wish(1, Desired::Deleted).ok(1);
    assert_eq!(world.operations(), ["Create g1", "Remove g1"]);

    // While it starts: the start is broken off.
    let mut world = World::new();
    world.placed(1).ok(1).wish(1, Desired::Deleted).fails(1, OperationError::Cancelled);
    assert_eq!(world.operations(), ["Create g1", "Start g1", "Cancel", "Remove g1"]);

    // While it cannot be removed: for ever, with a pause.
    for _ in 0..10 {
        world.fails(1, OperationError::Passing("engine down".into())).later(BACKOFF_MAX);
        assert_eq!(world.operations(), ["Remove g1"]);
    }
    world.reports();
    world.ok(1);
    assert_eq!(world.reports(), [ReportKind::Deleted]);
}

#[test]
fn deleting_what_is_not_here_is_done_at_once() {
    let mut world = World::new();

    world.wanted(1, 1, Desired::Deleted, Phase::Pending);

    assert_eq!(world.operations(), Vec::<String>::new());
    assert_eq!(world.reports(), [ReportKind::Deleted]);
}

#[test]
fn a_report_is_repeated_until_the_record_agrees() {
    let mut world = World::new();
    world.placed(1).ok(1).ok(1).reports();

    assert_eq!(world.later(REPORT_AGAIN_AFTER / 2).reports(), []);
    assert_eq!(world.later(REPORT_AGAIN_AFTER).reports(), [ReportKind::Phase(Phase::Running)]);
    world.recorded(1, Phase::Running).later(REPORT_AGAIN_AFTER * 5);

    assert_eq!(world.reports(), []);
}

#[test]
fn a_record_that_somebody_else_changed_is_set_right() {
    let mut world = World::new();
    world.running(1);

    world.recorded(1, Phase::Lost);

    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Running)]);
}

#[test]
fn a_new_wish_is_answered_even_if_nothing_has_to_be_done() {
    let mut world = World::new();
    world.running(1);

    world.wish(1, Desired::Running);

    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Running)]);
    assert_eq!(world.operations(), Vec::<String>::new());
}

#[test]
fn operations_at_once_are_bounded_and_removals_go_first() {
    let mut world = World::new();
    for number in 1..=6 {
        world.placed(number);
    }
    assert_eq!(world.operations(), ["Create g1"; 4]);
    assert_eq!(world.core.counts().operations_waiting, 2);
    world.wish(1, Desired::Deleted);

    world.ok(1);

    assert_eq!(world.operations(), ["Remove g1"], "before the creates that have waited longer");
}

#[test]
fn a_list_finds_what_no_watch_has_told() {
    let mut world = World::new();
    world.running(1).running(2).running(3);
    world.later(LIST_INTERVAL);
    assert!(world.done.contains(&Action::List));
    // Sandbox 3 changes while the list is under way, so the list is not believed about it.
    world.wish(3, Desired::Stopped).ok(3).wish(3, Desired::Running).ok(3).recorded(3, Phase::Running);
    world.done.clear();

    world.handle(Event::Listed(Some(vec![found(1, 1, EXITED), found(3, 1, EXITED)])));

    let expected = [
        ReportKind::Phase(failed("the sandbox ended by itself (exit code 1)")),
        ReportKind::Phase(failed(GONE)),
    ];
    assert_eq!(world.reports(), expected);
}

#[test]
fn a_list_that_failed_is_asked_again_later() {
    let mut world = World::new();
    world.running(1).later(LIST_INTERVAL).done.clear();

    world.handle(Event::Listed(None)).later(LIST_INTERVAL);

    assert!(world.done.contains(&Action::List));
    assert_eq!(world.reports(), []);
}

#[test]
fn a_sandbox_that_failed_to_stop_says_so_and_is_tried_on() {
    let mut world = World::new();
    world.running(1).wish(1, Desired::Stopped);

    for _ in 0..ATTEMPTS_MAX {
        world.fails(1, OperationError::Passing("stuck".into())).later(BACKOFF_MAX);
    }
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(failed("stuck"))));
    world.ok(1);

    assert_eq!(world.reports(), [ReportKind::Phase(Phase::Stopped)]);
}

#[test]
fn what_runs_a_step_of_a_build_is_left_alone() {
    let of_build = |number| Incarnation::of_build([number; 14]);
    let step = |number| Found { incarnation: of_build(number), state: FoundState::Running };
    let mut world = World::finding(vec![step(1), found(2, 1, FoundState::Running)]);
    world.tell().later(LIST_INTERVAL).handle(Event::Listed(Some(vec![step(1), step(3)])));

    world.later(ORPHAN_GRACE).later(ORPHAN_GRACE);

    assert!(world.core.slots.keys().all(|incarnation| !incarnation.is_of_build()));
    assert_eq!(world.operations(), ["Remove g1"]);
}
