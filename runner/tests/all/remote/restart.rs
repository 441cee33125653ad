//! A runner that goes and comes back while sandboxes run and the node works.

use std::sync::Arc;
use std::time::Duration;

use atoll_api::access::Target;
use atoll_api::ids::Generation;
use atoll_runner::fake::{FakeRuntime, FakeVerb};
use atoll_runner::{Exit, RemoteRuntime, Runtime, RuntimeError};

use crate::seam::Server;
use crate::world::{Folder, World, eventually, incarnation, sandbox, spec};

const DAEMON: &[u8] = b"not run by the fake";

struct Host {
    fake: FakeRuntime,
    folder: Folder,
}

impl Host {
    fn new() -> Host {
        Host { fake: FakeRuntime::new(), folder: Folder::new() }
    }

    /// Always at the same place.
    fn server(&self) -> Server {
        Server::start_at(self.folder.path().join("r.sock"), Arc::new(self.fake.clone()), &self.folder, |_| ())
    }

    async fn world(&self, server: &Server) -> World {
        let runtime = Arc::new(RemoteRuntime::new(server.client()));
        World::start(self.folder.config(DAEMON), runtime).await.unwrap()
    }
}

#[tokio::test]
async fn sandboxes_and_node_go_on_when_the_runner_is_restarted() {
    let host = Host::new();
    let server = host.server();
    let mut world = host.world(&server).await;
    for number in [1, 2] {
        world.place(number, spec("image"));
        world.until_running(number).await;
    }

    server.stop().await;
    let runner = world.runner.clone();
    let dialled =
        tokio::spawn(async move { runner.dial(sandbox(1), Generation(1), Target::Daemon).await.map(drop) });
    world.place(3, spec("image"));
    // While nobody watches.
    host.fake.end(incarnation(2, 1), Exit { code: Some(7), out_of_memory: false });
    let _server = host.server();

    assert_eq!(dialled.await.unwrap(), Ok(()), "a dial waits for the runner's return");
    let reason = world.until_failed(2).await;
    assert!(reason.contains("exit code 7"), "{reason}");
    eventually("what was placed meanwhile runs too", async || world.runner.status().counts.serving == 2)
        .await;
    assert_eq!(host.fake.calls(FakeVerb::Start), 3, "nothing was started twice");
    assert_eq!(world.runner.status().counts.failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_stays_away_is_named_and_says_nothing_about_sandboxes() {
    let host = Host::new();
    let server = host.server();
    let mut world = host.world(&server).await;
    world.place(1, spec("image"));
    world.until_running(1).await;
    let runtime = RemoteRuntime::new(server.client());

    server.stop().await;
    let refused = runtime.list().await.unwrap_err();
    let prepared = runtime.prepare().await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(600)).await;

    for error in [refused, prepared] {
        assert!(
            matches!(&error, RuntimeError::Host(text) if text.contains("start `atoll runner`")),
            "{error}"
        );
    }
    let status = world.runner.status();
    assert_eq!((status.counts.serving, status.counts.failed), (1, 0), "{status:?}");
    assert!(status.host_problem.is_some_and(|problem| problem.contains("no runner answers")));
    let _server = host.server();
    eventually("all is well again", async || {
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.runner.status().host_problem.is_none()
    })
    .await;
}
