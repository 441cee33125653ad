//! What protects the daemon from the sandbox, and the node from waiting: the door, the reaper, the stop, the size.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::processes::status_kib;
use crate::world::{DEADLINE, Setup, World, eventually};

/// What the daemon may take when nothing happens, built as it is shipped.
const IDLE_RSS_KIB_MAX: u64 = 5 * 1024;
const BINARY_BYTES_MAX: u64 = 12 * 1024 * 1024;

#[tokio::test]
async fn who_does_not_know_the_secret_is_closed_without_a_byte() {
    let world = World::new().await;
    let wrong = format!("ATOLL/1 {}\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n", "0".repeat(64));
    let plain = format!("GET /version HTTP/1.1\r\nHost: x\r\nX-Pad: {}\r\n\r\n", "x".repeat(100));

    for bytes in [wrong, plain] {
        let mut stream = world.stranger().await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Closed with bytes of ours unread, the end may be a reset.
        let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer, b"");
    }
}

#[tokio::test]
async fn silent_strangers_neither_stay_nor_keep_the_node_out() {
    let world = World::new().await;
    let begin = Instant::now();
    let mut strangers = Vec::new();
    for _ in 0..200 {
        strangers.push(world.stranger().await);
    }

    world.get("/version").await.expect(200);

    let mut last = strangers.pop().unwrap();
    let closed = tokio::time::timeout(DEADLINE, last.read(&mut [0])).await.unwrap();
    assert_eq!(closed.unwrap_or(0), 0);
    assert!(begin.elapsed() > Duration::from_secs(4), "closed by the deadline and not before");
}

#[tokio::test]
async fn the_user_can_neither_kill_nor_read_the_daemon() {
    let world = World::new().await;
    let pid = world.pid();

    for command in [
        format!("kill -KILL {pid}"),
        format!(
            "for thread in /proc/{pid}/task/*; do kill -KILL $(basename $thread) && exit 0; done; exit 1"
        ),
        format!("cat /proc/{pid}/environ"),
        format!("head -c1 /proc/{pid}/mem"),
        "cat ../config.json".to_owned(),
        "ls ../state".to_owned(),
    ] {
        assert_ne!(world.execute(&command).await["exitCode"], 0, "{command}");
    }
    world.get("/version").await.expect(200);
}

/// tgkill reaches single threads, of which the file workers act as the user.
#[tokio::test]
async fn the_user_cannot_kill_a_thread_of_the_daemon() {
    let world = World::new().await;
    let script = format!(
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nfor tid in os.listdir('/proc/{0}/task'):\n    print(libc.syscall(234, {0}, int(tid), 9), ctypes.get_errno())",
        world.pid()
    );

    let request = serde_json::json!({ "language": "python", "code": script });
    let ended = world.post("/process/code-run", request).await.expect(200).json();

    let result = ended["result"].as_str().unwrap();
    assert!(result.lines().count() > 3 && result.lines().all(|line| line == "-1 1"), "{result}");
}

#[tokio::test]
async fn a_child_gets_no_descriptor_and_no_protection_of_ours() {
    let world = World::new().await;

    // The fourth is the folder that `ls` reads.
    assert_eq!(world.execute("exec ls /proc/self/fd").await["result"], "0\n1\n2\n3\n");
    assert_eq!(world.execute("exec cat /proc/self/oom_score_adj").await["result"], "500\n");
    let blocked = world.execute("exec grep SigBlk /proc/self/status").await;
    assert_eq!(blocked["result"], "SigBlk:\t0000000000000000\n");
}

#[tokio::test]
async fn orphans_are_reaped_and_own_children_keep_their_exit_codes() {
    let world = World::new().await;
    // Each leaves a grandchild that ends later, below the daemon.
    let orphan = "(setsid sh -c 'sleep 0.0$$; exit 9' >/dev/null 2>&1 </dev/null &)";

    let runs = (0..20).map(|number| {
        let command = format!("{orphan}; {orphan}; exit {number}");
        let world = &world;
        async move { (number, world.execute(&command).await["exitCode"].as_i64()) }
    });
    for (number, exit_code) in futures_util::future::join_all(runs).await {
        assert_eq!(exit_code, Some(number));
    }

    let children = format!("/proc/{0}/task/{0}/children", world.pid());
    eventually("no child is left", async || std::fs::read_to_string(&children).unwrap().trim().is_empty())
        .await;
}

#[tokio::test]
async fn a_stop_ends_everything_in_the_sandbox() {
    let entrypoint = ["sleep", "300"].map(str::to_owned).into();
    let mut world = World::with(Setup { entrypoint, ..Setup::default() }).await;
    world
        .execute(
            "(trap '' TERM HUP; echo $BASHPID > stubborn; while :; do sleep 300; done) >/dev/null 2>&1 &",
        )
        .await;
    world.execute("setsid sh -c 'echo $$ > gentle; exec sleep 300' >/dev/null 2>&1 &").await;
    world.post("/process/pty", serde_json::json!({ "id": "t" })).await.expect(201);
    let pid =
        |name: &str| std::fs::read_to_string(world.home().join(name)).unwrap_or_default().trim().to_owned();
    eventually("both run", async || !pid("stubborn").is_empty() && !pid("gentle").is_empty()).await;
    let pids = [pid("stubborn"), pid("gentle")];
    let begin = Instant::now();

    world.signal(Signal::TERM);

    assert_eq!(world.wait(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(6));
    for pid in pids {
        let process = format!("/proc/{pid}/stat");
        let is_gone = || std::fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "));
        eventually("it is gone", async || is_gone()).await;
    }
    assert!(!world.dir.path().join("state").exists());
}

/// Of the binary that is shipped: `ATOLL_DAEMON_BINARY` names a static build with the profile `daemon`.
#[tokio::test]
async fn idle_rss_and_size_of_the_shipped_binary_are_within_bounds() {
    let Some(binary) = std::env::var_os("ATOLL_DAEMON_BINARY") else {
        eprintln!(
            "SKIPPED: ATOLL_DAEMON_BINARY is not set, so the shipped daemon's size and memory were NOT checked"
        );
        return;
    };
    let binary = std::path::PathBuf::from(binary);
    assert!(std::fs::metadata(&binary).unwrap().len() <= BINARY_BYTES_MAX);
    let world = World::with(Setup { binary, ..Setup::default() }).await;
    world.execute("echo once").await;
    world.post("/process/session", serde_json::json!({ "sessionId": "s" })).await.expect(201);
    world.delete("/process/session/s").await.expect(204);

    let rss = status_kib(world.pid(), "VmRSS");

    assert!(rss <= IDLE_RSS_KIB_MAX, "{rss} KiB");
}
