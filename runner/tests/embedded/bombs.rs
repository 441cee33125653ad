//! Sandboxes that take all they get of something: each hurts only itself, and a neighbour goes on answering.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use atoll_api::sandbox::{Resources, SandboxSpec};
use atoll_runner::{Finding, RunnerHandle, Runtime};

use crate::Rule;
use crate::host::{Host, IMAGE, run, try_run};
use crate::world::spec;

pub const RULES: &[Rule] = &[
    ("bombs_of_processes_hurt_nobody_else", |host| explode(host, PROCESSES)),
    ("bombs_of_memory_hurt_nobody_else", |host| explode(host, MEMORY)),
    ("bombs_of_files_hurt_nobody_else", |host| explode(host, FILES)),
    ("a_full_disk_is_the_sandboxs_own", full_disk),
    ("a_sandbox_that_ends_for_lack_of_memory_says_so", out_of_memory),
];

struct Bomb {
    name: &'static str,
    script: &'static str,
    /// What it must have run into, in its output.
    limit: &'static str,
}

const PROCESSES: &[Bomb] = &[
    Bomb { name: "forks", script: "f() { f | f & }; f; sleep 3", limit: "" },
    Bomb {
        name: "threads",
        script: "for i in 1 2 3; do timeout 3 probe -hold threads 100000 & done; wait",
        limit: "EAGAIN",
    },
    Bomb { name: "loops", script: "for i in $(seq 40); do while :; do :; done & done; sleep 3", limit: "" },
    Bomb {
        name: "starts",
        script: "end=$(($(date +%s)+3)); while [ $(date +%s) -lt $end ]; do /bin/true; done",
        limit: "",
    },
];
const MEMORY: &[Bomb] = &[
    Bomb { name: "memory", script: "tail /dev/zero; echo $?", limit: "137" },
    Bomb {
        name: "many small ones",
        script: "for i in $(seq 60); do (head -c 40m /dev/zero | tail) > /dev/null 2>&1 & done; wait",
        limit: "",
    },
    Bomb { name: "shared memory", script: "dd if=/dev/zero of=/dev/shm/big bs=1M", limit: "No space left" },
    Bomb { name: "segments", script: "timeout 5 probe -hold segments 100000", limit: "ENOSPC" },
    Bomb { name: "pipes", script: "(ulimit -n $(ulimit -Hn); timeout 5 probe -hold pipes 50000)", limit: "" },
];
const FILES: &[Bomb] = &[
    Bomb {
        name: "open files",
        script: "ulimit -n $(ulimit -Hn); for i in $(seq 30); do timeout 6 probe -hold files 100000 & done; wait",
        limit: "held",
    },
    Bomb { name: "inodes", script: "timeout 30 probe -hold inodes 1000000", limit: "ENOSPC" },
    Bomb { name: "watches", script: "timeout 40 probe -hold watches 10000", limit: "held 10000 all" },
    Bomb { name: "syncs", script: "timeout 6 probe -hold syncs 4", limit: "" },
    Bomb { name: "flows", script: "timeout 6 probe -hold flows 400000", limit: "" },
];

/// The promise, where the neighbour gets its share of a processor.
const NEIGHBOUR_MEDIAN_MAX: Duration = Duration::from_millis(50);
/// On a machine that is busy with other work an exec takes longer before the bomb too; this many times as long during it.
const SLOWER_THAN_BEFORE_MAX: u32 = 5;
/// Other work on the machine may begin just then; what hurts does so each time.
const TRIES_MAX: usize = 3;
const ASKED: usize = 15;

/// Median and slowest of some commands, each answered right.
async fn asked(runner: &RunnerHandle, number: u8) -> (Duration, Duration) {
    let mut took = Vec::new();
    for _ in 0..ASKED {
        let began = Instant::now();
        assert_eq!(run(runner, number, "echo fine").await.output, "fine\n");
        took.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    took.sort();
    (took[ASKED / 2], took[ASKED - 1])
}

fn small() -> SandboxSpec {
    SandboxSpec { resources: Resources { cpu: 1, memory_gib: 1, disk_gib: 1 }, ..spec(IMAGE) }
}

fn explode(host: &Host, bombs: &'static [Bomb]) {
    host.tokio.block_on(async {
        let mut world = host.world(host.runtime()).await;
        for number in [1, 2] {
            world.place(number, small());
            world.until_running(number).await;
        }
        for bomb in bombs {
            let mut answered = Vec::new();
            while answered.len() < TRIES_MAX && !answered.last().is_some_and(Answered::is_prompt) {
                answered.push(blow_up(&world.runner, bomb).await);
            }
            assert!(answered.last().unwrap().is_prompt(), "{}: {answered:?}", bomb.name);
        }
    });
}

/// How a neighbour answered.
#[derive(Debug)]
struct Answered {
    before: Duration,
    during: Duration,
}

impl Answered {
    fn is_prompt(&self) -> bool {
        self.during < NEIGHBOUR_MEDIAN_MAX.max(self.before * SLOWER_THAN_BEFORE_MAX)
    }
}

/// In the first sandbox, with the second as its neighbour. Afterwards the first is clean, and its daemon answers.
async fn blow_up(runner: &RunnerHandle, Bomb { name, script, limit }: &'static Bomb) -> Answered {
    let (before, _) = asked(runner, 2).await;
    let first = runner.clone();
    let bursting = tokio::spawn(async move { try_run(&first, 1, script).await });
    tokio::time::sleep(Duration::from_millis(200)).await;

    let (during, slowest) = asked(runner, 2).await;
    println!(
        "{name}: a neighbour's exec took {before:?} before; {during:?} (median), {slowest:?} (slowest) during it"
    );
    let done = tokio::time::timeout(Duration::from_secs(60), bursting).await;
    let said = format!("{done:?}");
    println!("{name}: {}", said.chars().take(200).collect::<String>());
    assert!(said.contains(limit), "{name} never met its limit: {said}");

    let _ = try_run(runner, 1, "kill -9 -1").await;
    let clean = "rm -rf /dev/shm/* /big /var/i* /tmp/watched; ipcrm -a 2>/dev/null; echo alive";
    assert_eq!(run(runner, 1, clean).await.output, "alive\n", "{name}");
    Answered { before, during }
}

fn full_disk(host: &Host) {
    host.tokio.block_on(async {
        let runtime = host.runtime();
        let mut world = host.world(runtime.clone()).await;
        for number in [1, 2] {
            world.place(number, small());
            world.until_running(number).await;
        }
        let findings = format!("{:?}", runtime.check().await.unwrap());
        if findings.contains("disk limit of sandboxes is not enforced") {
            // Said by the doctor, the API and here; there is nothing to try.
            println!("not enforced on this host: {findings}");
            assert!(
                runtime
                    .check()
                    .await
                    .unwrap()
                    .iter()
                    .any(|finding| matches!(finding, Finding::Limitation(_)))
            );
            return;
        }
        let (before, _) = asked(&world.runner, 2).await;
        let runner = world.runner.clone();
        let filling = tokio::spawn(async move {
            run(
                &runner,
                1,
                "dd if=/dev/zero of=/big bs=1M; echo more > /more; stat -c %s /big; df -k / | tail -1",
            )
            .await
        });
        let (median, slowest) = asked(&world.runner, 2).await;
        println!(
            "a neighbour's exec took {before:?} before; {median:?} (median), {slowest:?} (slowest) during it"
        );
        let said = filling.await.unwrap().output;

        assert!(said.contains("No space left on device"), "{said}");
        assert!(
            median < NEIGHBOUR_MEDIAN_MAX.max(before * SLOWER_THAN_BEFORE_MAX),
            "{before:?}, then {median:?}"
        );
        for dir in std::fs::read_dir(host.config.state_dir.join("sandboxes")).unwrap() {
            let image = std::fs::metadata(dir.unwrap().path().join("disk.img")).unwrap();
            assert!(
                image.blocks() * 512 <= (1 << 30) + (16 << 20),
                "{} blocks on the host's disk",
                image.blocks()
            );
        }
        // What it has no room for is its own trouble; it can still tidy up, and its neighbour has all of its own.
        assert_eq!(run(&world.runner, 1, "rm /big && echo room > /more && cat /more").await.output, "room\n");
        let other =
            run(&world.runner, 2, "dd if=/dev/zero of=/some bs=1M count=100 2>/dev/null; stat -c %s /some")
                .await
                .output;
        assert_eq!(other, "104857600\n");
    });
}

/// Messages of System V queues stay when whoever sent them is killed, so in the end there is nobody left to kill but the daemon.
fn out_of_memory(host: &Host) {
    host.tokio.block_on(async {
        let mut world = host.world(host.runtime()).await;
        for number in [1, 2] {
            world.place(number, small());
            world.until_running(number).await;
        }
        let runner = world.runner.clone();
        let filling = tokio::spawn(async move {
            for _ in 0..50 {
                if try_run(&runner, 1, "probe -hold messages 100000000").await.is_err() {
                    return;
                }
            }
        });

        let reason = world.until_failed(1).await;

        assert!(reason.contains("out of memory"), "{reason}");
        filling.abort();
        assert_eq!(run(&world.runner, 2, "echo fine").await.output, "fine\n");
    });
}
