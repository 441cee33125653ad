//! The embedded runtime without a node: from the specification in hand to the daemon's hello, and where that time goes. Two
//! runtimes take turns: one with inits parked ahead, as nodes have it, and one that makes everything when it is asked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use atoll_runner::embedded::StartTimings;

use crate::Effort;
use crate::alone::{Alone, CPU, MEMORY_GIB, Parts};
use crate::docker::{self, Engine, Like};
use crate::measure::{Samples, timed};
use crate::report::{Breakdown, Report};

const ROUNDS: usize = 300;
const WARM_UPS: usize = 5;
const REFERENCE_EVERY: usize = 5;
/// As nodes have it by default.
const PARKED: usize = 16;
/// Until what was parked is replaced and what was deleted has gone, so that neither is measured beside a start.
const PAUSE: Duration = Duration::from_millis(60);
/// What one start took.
struct Start {
    hello: Duration,
    timings: StartTimings,
}

/// With an engine, Docker's starts are taken in turn.
pub async fn measure(
    parts: &Parts,
    engine: Option<&Engine>,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let mut parked = Alone::start(parts, 0, PARKED).await?;
    let mut in_line = match Alone::start(parts, 1, 0).await {
        Ok(in_line) => in_line,
        Err(error) => {
            parked.end().await?;
            return Err(error);
        }
    };
    let measured = compare(&mut parked, &mut in_line, engine, parts, effort, report).await;
    let ended = parked.end().await;
    in_line.end().await.and(ended).and(measured)
}

async fn compare(
    parked: &mut Alone,
    in_line: &mut Alone,
    engine: Option<&Engine>,
    parts: &Parts,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let like = Like::promised(&parts.image, CPU, MEMORY_GIB);
    let (mut ahead, mut all, mut reference) = (vec![], vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let counts = round >= WARM_UPS;
        for (alone, starts) in [(&mut *parked, &mut ahead), (&mut *in_line, &mut all)] {
            tokio::time::sleep(PAUSE).await;
            let start = start_once(alone, round).await?;
            if counts {
                starts.push(start);
            }
        }
        if let Some(engine) = engine.filter(|_| round % REFERENCE_EVERY == 0) {
            let name = docker::name("start");
            let started = timed(engine.run_detached(&name, &like)).await;
            docker::remove(&name).await?;
            if counts {
                reference.push(started?.0);
            }
        }
    }
    let hellos = |starts: &[Start]| Samples::of_latencies(starts.iter().map(|start| start.hello));
    let what = "the runtime alone: specification in hand → the daemon's hello";
    report.figure(what, &hellos(&ahead)?, "≤ 15 ms");
    report.figure("… when nothing was parked ahead", &hellos(&all)?, "–");
    if engine.is_some() {
        let reference = Samples::of_latencies(reference)?;
        report.compare(
            what,
            &hellos(&ahead)?,
            "create + start by Docker's API, no word from inside",
            &reference,
        );
    }
    report.break_down(breakdown(&ahead, &all)?);
    report.note(format!(
        "The runtime alone: the runner's library in this program, on the disk of the nodes, the daemon and the base image of the \
         nodes; {PARKED} inits and disks parked ahead as nodes do by default, {} ms between two starts. \"Parked ahead\" is what \
         the start waited for; namespaces, network and the rest of an init were made before it.",
        PAUSE.as_millis()
    ));
    Ok(())
}

fn breakdown(ahead: &[Start], all: &[Start]) -> Result<Breakdown> {
    type Part = (&'static str, fn(&Start) -> u64, Spent);
    let steps: [Part; 11] = [
        ("folder and disk", |start| start.timings.create_us, Spent::InStart),
        ("namespaces: clone, ids mapped", |start| start.timings.clone_us, Spent::WithInit),
        ("namespaces: /proc, /sys, /dev furnished", |start| start.timings.furnish_us, Spent::WithInit),
        ("control groups made and entered", |start| start.timings.cgroup_us, Spent::WithInit),
        ("network cable and address", |start| start.timings.network_us, Spent::WithInit),
        ("network rules of this sandbox", |start| start.timings.egress_us, Spent::InStart),
        ("limits written", |start| start.timings.limit_us, Spent::InStart),
        ("disk mounted, /etc written", |start| start.timings.disk_us, Spent::InStart),
        ("overlay stacked", |start| start.timings.mount_us, Spent::InStart),
        ("moved in, capabilities, seccomp, exec", |start| start.timings.exec_us, Spent::InStart),
        ("the daemon's way to its hello, and the runner around all this", Start::rest_us, Spent::InStart),
    ];
    let samples = |starts: &[Start], us: fn(&Start) -> u64| {
        Samples::of_latencies(starts.iter().map(|start| Duration::from_micros(us(start))))
    };
    let mut parts = Vec::new();
    for (name, us, spent) in steps {
        let name = match spent {
            Spent::InStart => name.to_owned(),
            Spent::WithInit => format!("{name} (parked: spent before)"),
        };
        parts.push((name, vec![samples(ahead, us)?, samples(all, us)?]));
    }
    let whole = |starts: &[Start]| Samples::of_latencies(starts.iter().map(|start| start.hello));
    parts.push(("**all that the start waited for**".to_owned(), vec![whole(ahead)?, whole(all)?]));
    let ways = vec!["parked ahead".to_owned(), "nothing parked".to_owned()];
    Ok(Breakdown { what: "step of a start".to_owned(), ways, parts })
}

/// Whose time a step takes.
#[derive(Clone, Copy)]
enum Spent {
    InStart,
    /// Before the start, where inits are parked.
    WithInit,
}

/// A sandbox from its specification to its hello, and then to nothing.
async fn start_once(alone: &mut Alone, number: usize) -> Result<Start> {
    let began = Instant::now();
    let sandbox = alone.bring_up(number).await?;
    let hello = began.elapsed();
    let timings = *alone.runtime.start_timings().last().context("the runtime has timed no start")?;
    alone.take_down(sandbox).await?;
    ensure!(timings.create_us > 0, "the create was not timed");
    Ok(Start { hello, timings })
}

impl Start {
    fn rest_us(&self) -> u64 {
        let known = self.timings.create_us + self.timings.total_us;
        u64::try_from(self.hello.as_micros()).unwrap_or(u64::MAX).saturating_sub(known)
    }
}
