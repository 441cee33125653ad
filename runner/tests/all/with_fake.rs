//! The task, the mounts, the hello and the doors, over a runtime without containers.

use std::sync::Arc;
use std::time::Duration;

use atoll_api::access::Target;
use atoll_api::ids::Generation;
use atoll_api::sandbox::{Desired, Phase, SandboxSpec};
use atoll_runner::fake::{FakeDaemon, FakeLayer, FakeRuntime, FakeVerb, Fault};
use atoll_runner::store::{ConfigChange, Registries, Store, StoreConfig};
use atoll_runner::{Exit, NotGranted, Origin, ReportKind, RunnerConfig, RunnerDialError, RuntimeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::through;
use crate::world::{Folder, World, eventually, incarnation, sandbox, spec};

const DAEMON: &[u8] = b"not run by the fake";

fn a_spec() -> SandboxSpec {
    spec("image")
}

async fn world(fake: &FakeRuntime, folder: &Folder) -> World {
    World::start(folder.config(DAEMON), through(Arc::new(fake.clone()), folder)).await.unwrap()
}

fn exit(code: i64) -> Exit {
    Exit { code: Some(code), out_of_memory: false }
}

#[tokio::test]
async fn a_placed_sandbox_runs_and_its_daemon_can_be_dialled() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;

    world.place(1, a_spec());
    world.until_running(1).await;

    let mut stream = world.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn who_may_not_be_dialled_is_told_apart() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let config = RunnerConfig { connections_per_sandbox_max: 1, ..folder.config(DAEMON) };
    let mut world = World::start(config, through(Arc::new(fake.clone()), &folder)).await.unwrap();
    fake.serve(3000, Arc::new(|_, stream| Box::pin(async move { drop(stream) })));
    world.place_as(1, 5, a_spec(), Desired::Running, Phase::Pending);
    world.place_as(2, 1, a_spec(), Desired::Stopped, Phase::Pending);
    world.until_running(1).await;
    let runner = world.runner.clone();
    let dial = |number, generation, port| {
        let runner = runner.clone();
        async move { runner.dial(sandbox(number), Generation(generation), Target::port(port)).await.map(drop) }
    };

    assert_eq!(dial(9, 1, 3000).await, Err(RunnerDialError::NotHere));
    assert_eq!(dial(1, 4, 3000).await, Err(RunnerDialError::Stale { current: Generation(5) }));
    assert_eq!(dial(1, 6, 3000).await, Err(RunnerDialError::NotHere));
    assert_eq!(dial(2, 1, 3000).await, Err(RunnerDialError::NotRunning));
    assert_eq!(dial(1, 5, 3001).await, Err(RunnerDialError::PortClosed));
    let held = runner.dial(sandbox(1), Generation(5), Target::Port(3000)).await.unwrap();
    assert_eq!(dial(1, 5, 3000).await, Err(RunnerDialError::Overloaded));
    drop(held);
    assert_eq!(dial(1, 5, 3000).await, Ok(()));
    // The daemon's port is the daemon's, by whatever name.
    let disguised = runner.dial(sandbox(1), Generation(5), Target::Port(2280)).await.map(drop);
    assert_eq!(disguised, Err(RunnerDialError::PortClosed));
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_hangs_ends_at_its_deadline() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    world.place(1, a_spec());
    world.until_running(1).await;

    fake.set_fault(FakeVerb::Dial, Some(Fault::Hang));

    let dialled = world.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.map(drop);
    assert_eq!(dialled, Err(RunnerDialError::TimedOut));
}

#[tokio::test]
async fn stop_start_and_delete_leave_nothing() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    world.place(1, a_spec());
    world.until_running(1).await;

    world.wish(1, Desired::Stopped);
    world.until_stopped(1).await;
    assert!(!fake.is_running(incarnation(1, 1)));
    assert_eq!(
        world.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.map(drop),
        Err(RunnerDialError::NotRunning)
    );

    world.wish(1, Desired::Running);
    world.until_running(1).await;
    assert_eq!(fake.calls(FakeVerb::Create), 1, "the disk is kept");

    world.wish(1, Desired::Deleted);
    world.until_deleted(1).await;
    assert_eq!(fake.existing(), []);
    assert_eq!(folder.sandbox_folders(), 0);
}

#[tokio::test]
async fn secret_and_socket_are_away_once_the_daemon_has_spoken() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    world.place(1, a_spec());

    world.until_running(1).await;

    let run = folder.path().join(format!("data/sandboxes/{}/g1/mount/run", sandbox(1)));
    assert_eq!(std::fs::read_dir(run).unwrap().count(), 0);
}

#[tokio::test]
async fn a_sandbox_that_ends_by_itself_has_failed_with_the_reason() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    for number in [1, 2] {
        world.place(number, a_spec());
        world.until_running(number).await;
    }

    fake.end(incarnation(1, 1), Exit { code: Some(137), out_of_memory: true });
    fake.end(incarnation(2, 1), exit(4));

    // Whichever report comes first, both are recorded on the way.
    assert!(world.until_failed(1).await.contains("out of memory"));
    eventually("the exit code is in the status", async || world.runner.status().counts.failed == 2).await;
    world.wish(1, Desired::Running);
    world.until_running(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_never_speaks_fails_the_start_and_is_stopped() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    fake.set_daemon(FakeDaemon::Silent);

    world.place(1, a_spec());

    let reason = world.until_failed(1).await;
    assert!(reason.contains("not ready within 30 s"), "{reason}");
    eventually("it is stopped", async || !fake.is_running(incarnation(1, 1))).await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_with_a_wrong_secret_is_none() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    fake.set_daemon(FakeDaemon::SaysHelloWithWrongSecret);

    world.place(1, a_spec());

    world.until_failed(1).await;
}

#[tokio::test]
async fn a_daemon_that_exits_at_once_fails_the_start_at_once() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    fake.set_daemon(FakeDaemon::Exits(exit(3)));

    world.place(1, a_spec());

    let reason = world.until_failed(1).await;
    assert!(reason.contains("exit code 3") && reason.contains("before it was ready"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_away_for_a_moment_only_delays() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    fake.set_fault(FakeVerb::Create, Some(Fault::Error(RuntimeError::Host("engine down".into()))));
    world.place(1, a_spec());
    eventually("one try has failed", async || fake.calls(FakeVerb::Create) == 1).await;

    fake.set_fault(FakeVerb::Create, None);

    world.until_running(1).await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_stays_away_fails_the_sandbox_with_its_words() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    fake.set_fault(FakeVerb::Create, Some(Fault::Error(RuntimeError::Host("the disk is full".into()))));

    world.place(1, a_spec());

    assert!(world.until_failed(1).await.contains("the disk is full"));
    assert_eq!(fake.calls(FakeVerb::Create), 3);
}

#[tokio::test]
async fn delete_wins_over_a_start_that_hangs() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    fake.set_fault(FakeVerb::Start, Some(Fault::Hang));
    world.place(1, a_spec());
    eventually("the start hangs", async || fake.calls(FakeVerb::Start) == 1).await;

    world.wish(1, Desired::Deleted);

    world.until_deleted(1).await;
    assert_eq!(fake.existing(), []);
}

#[tokio::test]
async fn a_restarted_runner_adopts_without_a_restart() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut first = world(&fake, &folder).await;
    first.place(1, a_spec());
    first.until_running(1).await;
    first.runner.shutdown().await;
    assert!(fake.is_running(incarnation(1, 1)));

    let mut second = world(&fake, &folder).await;
    second.place_as(1, 1, a_spec(), Desired::Running, Phase::Running);

    let runner = second.runner.clone();
    eventually("it can be dialled", async || {
        runner.dial(sandbox(1), Generation(1), Target::Daemon).await.is_ok()
    })
    .await;
    assert_eq!(fake.calls(FakeVerb::Start), 1);
    fake.end(incarnation(1, 1), exit(1));
    second.until_failed(1).await;
}

#[tokio::test]
async fn a_paused_sandbox_stays_so_over_a_restart_of_the_runner_and_goes_on_when_resumed() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut first = world(&fake, &folder).await;
    first.place(1, a_spec());
    first.until_running(1).await;
    first.wish(1, Desired::Paused);
    first.until(1, |kind| *kind == ReportKind::Phase(Phase::Paused)).await;
    let dialled = first.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.map(drop);
    assert_eq!(dialled, Err(RunnerDialError::NotRunning));
    first.runner.shutdown().await;

    let mut second = world(&fake, &folder).await;
    second.place_as(1, 1, a_spec(), Desired::Paused, Phase::Paused);
    second.wish(1, Desired::Running);
    second.until_running(1).await;

    second.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.unwrap();
    assert_eq!((fake.calls(FakeVerb::Start), fake.calls(FakeVerb::Resume)), (1, 1));
}

/// A store with an image of one empty layer in it, and its name.
async fn store_with_image(folder: &Folder) -> (Store, String) {
    let (dir, seeds, registries) = (folder.path().join("store"), Vec::new(), Registries::default());
    let store = Store::open(StoreConfig { dir, seeds, registries }).unwrap();
    let mut layer = store.writer().unwrap();
    layer.write(&[0; 1024]).await.unwrap();
    let layer = store.finish_layer(layer).await.unwrap();
    let (digest, _) = store.commit_image(None, &[layer], ConfigChange::Keep).await.unwrap();
    (store, digest.to_string())
}

#[tokio::test]
async fn a_running_sandboxs_disk_becomes_an_image_and_the_sandbox_goes_on() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let (store, image) = store_with_image(&folder).await;
    let runtime = through(Arc::new(fake.clone()), &folder);
    let mut world = World::start_with(folder.config(DAEMON), runtime, Arc::new(store.clone())).await.unwrap();
    let mut written = vec![7; 512];
    written.resize(4096, 0);
    fake.set_layer(FakeLayer::Whole(written.into()));
    world.place(1, spec(&image));
    world.until_running(1).await;

    world.wants_capture(1, 1);
    let kept = world.until_captured(1).await.unwrap();

    assert!(!fake.is_paused(incarnation(1, 1)));
    assert_eq!(kept.bytes, 4096);
    assert!(kept.reference.starts_with("atoll.internal/o/s@sha256:"), "{}", kept.reference);
    let image = store.resolve(&kept.reference).await.unwrap();
    assert_eq!(image.layers.len(), 2, "the image it was made from, and what it has written");
    world.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.unwrap();
}

#[tokio::test]
async fn whatever_breaks_off_a_capture_the_sandbox_is_not_left_frozen() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let (store, image) = store_with_image(&folder).await;
    let runtime = through(Arc::new(fake.clone()), &folder);
    let mut first =
        World::start_with(folder.config(DAEMON), runtime.clone(), Arc::new(store.clone())).await.unwrap();
    first.place(1, spec(&image));
    first.until_running(1).await;

    // The layer breaks off, again and again.
    fake.set_layer(FakeLayer::BreaksOff(vec![1; 100].into()));
    first.wants_capture(1, 1);
    let reason = first.until_captured(1).await.unwrap_err();
    assert!(reason.contains("disk"), "{reason}");
    eventually("it goes on", async || !fake.is_paused(incarnation(1, 1))).await;
    first.until_running(1).await;

    // The node's process dies while the sandbox is frozen.
    fake.set_fault(FakeVerb::Commit, Some(Fault::Hang));
    first.wants_capture(1, 2);
    eventually("it is frozen", async || fake.is_paused(incarnation(1, 1))).await;
    first.runner.shutdown().await;
    fake.set_fault(FakeVerb::Commit, None);
    fake.set_layer(FakeLayer::default());
    let mut second = World::start_with(folder.config(DAEMON), runtime, Arc::new(store)).await.unwrap();
    second.place_as(1, 1, spec(&image), Desired::Running, Phase::Running);
    second.wants_capture(1, 2);
    second.until_captured(1).await.unwrap();

    assert!(!fake.is_paused(incarnation(1, 1)));
    assert_eq!(fake.calls(FakeVerb::Start), 1, "it was never started anew");
}

#[tokio::test]
async fn an_archived_sandbox_is_removed_once_its_checkpoint_is_recorded() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let (store, image) = store_with_image(&folder).await;
    let runtime = through(Arc::new(fake.clone()), &folder);
    let mut world = World::start_with(folder.config(DAEMON), runtime, Arc::new(store)).await.unwrap();
    world.place(1, spec(&image));
    world.until_running(1).await;
    world.wish(1, Desired::Stopped);
    world.until_stopped(1).await;

    let assignment = world.wanted.get_mut(&1).unwrap();
    (assignment.desired, assignment.phase) = (Desired::Archived, Phase::Archiving);
    assignment.desired_version += 1;
    world.wants_capture(1, 1);
    world.until_captured(1).await.unwrap();
    assert_eq!(fake.existing(), [incarnation(1, 1)]);
    world.wanted.get_mut(&1).unwrap().capture = None;
    world.tell();
    world.until(1, |kind| *kind == ReportKind::Phase(Phase::Archived)).await;

    assert_eq!((fake.existing(), folder.sandbox_folders()), (vec![], 0));
}

#[tokio::test]
async fn what_a_running_sandbox_may_reach_is_changed_without_a_restart() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    world.place(1, a_spec());
    world.until_running(1).await;

    let mut spec = a_spec();
    spec.egress.cidrs = vec!["10.0.0.0/8".into()];
    world.wanted.get_mut(&1).unwrap().spec = spec.clone().into();
    world.tell();

    eventually("the runtime holds it", async || fake.spec(incarnation(1, 1)) == Some(spec.clone())).await;
    assert_eq!(fake.calls(FakeVerb::Start), 1);
}

#[tokio::test]
async fn a_restarted_runner_removes_an_older_generation_first() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    fake.plant(incarnation(1, 1), a_spec());
    let mut world = world(&fake, &folder).await;

    world.place_as(1, 2, a_spec(), Desired::Running, Phase::Pending);
    world.until_running(1).await;

    assert_eq!(fake.existing(), [incarnation(1, 2)]);
}

#[tokio::test(start_paused = true)]
async fn an_orphan_goes_after_its_grace_and_not_before_the_first_list() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    fake.plant(incarnation(7, 1), a_spec());
    let world = world(&fake, &folder).await;

    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.existing(), [incarnation(7, 1)]);
    world.tell();

    eventually("the orphan goes", async || fake.existing().is_empty()).await;
}

#[tokio::test]
async fn destroy_all_leaves_nothing_behind() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    for number in 1..=3 {
        world.place(number, a_spec());
        world.until_running(number).await;
    }

    world.runner.destroy_all().await.unwrap();

    assert_eq!(fake.existing(), []);
    assert_eq!(folder.sandbox_folders(), 0);
    assert_eq!(
        world.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.map(drop),
        Err(RunnerDialError::NotHere)
    );
}

#[tokio::test]
async fn a_host_that_cannot_hold_sandboxes_stops_the_start() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    fake.set_fault(FakeVerb::Prepare, Some(Fault::Error(RuntimeError::Host("no iptables".into()))));

    let started = World::start(folder.config(DAEMON), through(Arc::new(fake.clone()), &folder)).await;

    assert_eq!(started.err(), Some(RuntimeError::Host("no iptables".into())));
}

#[tokio::test]
async fn many_sandboxes_are_made_side_by_side_and_all_run() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let config = RunnerConfig { operations_max: 4, ..folder.config(DAEMON) };
    let mut world = World::start(config, through(Arc::new(fake.clone()), &folder)).await.unwrap();

    for number in 1..=60 {
        world.place(number, a_spec());
    }

    world.until_running(60).await;
    eventually("all run", async || world.runner.status().counts.serving == 60).await;
}

fn claim(world: &mut World, number: u8, user: &str) -> u64 {
    let assignment = world.wanted.get_mut(&number).unwrap();
    let mut spec = SandboxSpec::clone(&assignment.spec);
    spec.user = user.into();
    spec.env = [("COLOR".to_owned(), "blue".to_owned())].into();
    spec.egress.block_all = true;
    assignment.spec = Arc::new(spec);
    assignment.origin = Origin::Claimed;
    assignment.desired_version += 1;
    let version = assignment.desired_version;
    world.tell();
    version
}

#[tokio::test]
async fn a_claimed_sandbox_is_the_callers_before_the_claim_is_answered_and_after_a_restart() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    world.place(1, a_spec());
    world.until_running(1).await;

    let version = claim(&mut world, 1, "daytona");
    world.runner.until_granted(sandbox(1), Generation(1), version).await.unwrap();

    let expected = || {
        let env = [("COLOR".to_owned(), "blue".to_owned())].into();
        Some(atoll_api::daemon::Identity { user: "daytona".into(), env })
    };
    assert_eq!(fake.identity(incarnation(1, 1)), expected());
    assert!(fake.spec(incarnation(1, 1)).unwrap().egress.block_all);
    world.wish(1, Desired::Stopped);
    world.until_stopped(1).await;
    world.wish(1, Desired::Running);
    world.until_running(1).await;
    assert_eq!(fake.identity(incarnation(1, 1)), expected());
}

#[tokio::test]
async fn a_claim_that_cannot_be_carried_out_is_answered_with_the_reason() {
    let (fake, folder) = (FakeRuntime::new(), Folder::new());
    let mut world = world(&fake, &folder).await;
    world.place(1, a_spec());
    world.until_running(1).await;

    let version = claim(&mut world, 1, "ghost");
    let answer = world.runner.until_granted(sandbox(1), Generation(1), version).await;

    assert_eq!(answer, Err(NotGranted::Failed("the image has no user \"ghost\"".into())));
}
