//! A hundred creates at the same moment, spread over the nodes: how many succeed, and how long each and all of them take.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;

use crate::Effort;
use crate::cluster::{Cluster, Sandbox, remove};
use crate::measure::{Samples, timed};
use crate::report::Report;

const AT_ONCE: usize = 100;
const ROUNDS: usize = 3;

pub async fn measure(cluster: &Cluster, effort: Effort, report: &mut Report) -> Result<()> {
    let at_once = effort.samples(AT_ONCE);
    let rounds = effort.samples(ROUNDS);
    let (mut latencies, mut walls, mut failures) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        let began = Instant::now();
        let creates = (0..at_once).map(|number| timed(cluster.create(number % cluster.nodes().len())));
        let made: Vec<Result<(Duration, Sandbox)>> = join_all(creates).await;
        walls.push(began.elapsed());
        let mut sandboxes = Vec::new();
        for made in made {
            match made {
                Ok((latency, sandbox)) => {
                    latencies.push(latency);
                    sandboxes.push(sandbox);
                }
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        for sandbox in &sandboxes {
            remove(cluster, sandbox).await?;
        }
    }
    let asked = at_once * rounds;
    let first_failure = failures.first().cloned();
    report.note(format!(
        "Creates at once: {rounds} rounds of {at_once}, through the nodes in turn; {} of {asked} succeeded (target: all){}. \
         Each answer says that the sandbox's daemon serves.",
        latencies.len(),
        first_failure.iter().map(|first| format!(", the first failure: {first}")).collect::<String>()
    ));
    let latencies = Samples::of_latencies(latencies);
    let latencies =
        latencies.with_context(|| first_failure.unwrap_or_else(|| "no create was asked for".into()))?;
    report.figure(&format!("{at_once} creates at once, each"), &latencies, "median ≤ 700 ms on 2 cores");
    report.figure(&format!("{at_once} creates at once, all"), &Samples::of_latencies(walls)?, "–");
    Ok(())
}
