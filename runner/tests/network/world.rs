//! A host, an internet and sandboxes, each a network namespace that goes when its descriptor does. The host's is the
//! test's own too: nothing of the machine that the tests run on is touched.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use atoll_api::ids::NodeId;
use atoll_runner::embedded::network::{Layout, link};
use nix::sched::{CloneFlags, setns, unshare};

pub fn layout(node: u64, range: &str) -> Layout {
    Layout::new(NodeId(node << 32 | node), range.parse().unwrap()).unwrap()
}

/// Runs `body` on a thread in a new network namespace; threads and processes that it starts are in there too.
pub fn in_new_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        body()
    })
}

pub struct Namespace(OwnedFd);

impl Namespace {
    pub fn new() -> Namespace {
        in_new_namespace(|| Namespace(File::open("/proc/thread-self/ns/net").unwrap().into()))
    }

    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }

    pub fn attach(&self, layout: &Layout, slot: u16) -> link::Lease {
        link::attach(layout, slot, self.0.as_fd()).unwrap()
    }
}

fn on_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` and fails with its words.
pub fn ip(arguments: &str) -> String {
    command("ip", arguments)
}

pub fn command(program: &str, arguments: &str) -> String {
    let output = std::process::Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {words}");
    String::from_utf8(output.stdout).unwrap()
}
