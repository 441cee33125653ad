//! Many sandboxes that do nothing: the memory that each costs, and whether the last create is slower than the first.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::Effort;
use crate::cluster::{Cluster, Sandbox, remove};
use crate::measure::{Samples, timed};
use crate::process::{Process, memory_available};
use crate::report::Report;
use crate::traces::Traces;

/// Not counted, and removed before: the first of everything fills caches.
const WARM_UPS: usize = 6;
/// Until what a create or a delete leaves to do is done.
const SETTLE: Duration = Duration::from_secs(3);

pub async fn measure(cluster: &Cluster, many: usize, effort: Effort, report: &mut Report) -> Result<()> {
    for number in 0..WARM_UPS {
        let sandbox = cluster.create(number % cluster.nodes().len()).await?;
        remove(cluster, &sandbox).await?;
    }
    let mut sandboxes = Vec::new();
    let measured = fill(cluster, effort.samples(many), &mut sandboxes, report).await;
    for sandbox in &sandboxes {
        remove(cluster, sandbox).await?;
    }
    measured
}

async fn fill(
    cluster: &Cluster,
    many: usize,
    sandboxes: &mut Vec<Sandbox>,
    report: &mut Report,
) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let (ours_before, available_before) = (supervisors(cluster)?, memory_available()?);
    let mut latencies = Vec::new();
    for number in 0..many {
        let (took, sandbox) = timed(cluster.create(number % cluster.nodes().len()))
            .await
            .with_context(|| format!("create number {} of {many}", number + 1))?;
        latencies.push(took);
        sandboxes.push(sandbox);
    }
    tokio::time::sleep(SETTLE).await;
    let (ours_after, available_after) = (supervisors(cluster)?, memory_available()?);
    let (mut resident, mut proportional) = (vec![], vec![]);
    for sandbox in sandboxes.iter() {
        let memory = Traces::of(cluster, sandbox).await?.daemon().await?.memory()?;
        resident.push(memory.resident);
        proportional.push(memory.proportional);
    }
    let last = sandboxes.last().context("no sandbox was made")?;
    cluster.exec(cluster.another_than(last.owner), &last.id, "true").await.context("exec in the last one")?;

    let share = (ours_after - ours_before) / many as f64;
    let one = |mebibytes: f64| Samples::of_mebibytes(vec![mebibytes]);
    let whole: Vec<f64> = resident.iter().map(|resident| resident + share).collect();
    report.figure("memory of ours per idle sandbox", &Samples::of_mebibytes(whole)?, "≤ 5 MB");
    report.figure("… of which the daemon, resident", &Samples::of_mebibytes(resident)?, "–");
    report.figure("… the same, shared pages divided", &Samples::of_mebibytes(proportional)?, "–");
    report.figure("… of which runner, zygote and node", &one(share)?, "–");
    let host = (available_before - available_after) / many as f64;
    report.figure("memory that the host has less, per idle sandbox", &one(host)?, "–");

    let decile = (many / 10).max(1);
    let (first, last) = (&latencies[..decile], &latencies[many - decile..]);
    let (first, last) =
        (Samples::of_latencies(first.iter().copied())?, Samples::of_latencies(last.iter().copied())?);
    report.compare(&format!("create, the last tenth of {many}"), &last, "the first tenth", &first);
    report.note(format!(
        "Idle: {many} sandboxes one after the other through the nodes in turn, all kept, nothing run in them. Target: the last \
         create ≤ 1.3 × the first. Runner, zygote (with parked inits) and node: what the processes of all nodes hold more than \
         before, shared pages divided, by sandbox. The host has less: `MemAvailable`, so with what the kernel needs for \
         them. Between before and after: {available_before:.0} → {available_after:.0} MiB."
    ));
    Ok(())
}

/// What the processes that are ours, and no sandbox's, hold. In MiB, shared pages divided.
fn supervisors(cluster: &Cluster) -> Result<f64> {
    let mut total = 0.0;
    for node in cluster.nodes() {
        let pid_file = node.state_dir().join("runner.pid");
        let runner =
            std::fs::read_to_string(&pid_file).with_context(|| format!("read {}", pid_file.display()))?;
        let runner = Process::of(runner.trim().parse().context("parse the runner's pid")?)?;
        let zygotes = runner.children_with("zygote")?;
        for process in [Process::of(node.pid)?, runner].into_iter().chain(zygotes) {
            total += process.memory()?.proportional;
        }
    }
    Ok(total)
}
