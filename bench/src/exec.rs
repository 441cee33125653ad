//! One command in a running sandbox: through its owner, through another node, and by Docker in a container like it.

use anyhow::Result;

use crate::Effort;
use crate::cluster::{Cluster, Sandbox, remove};
use crate::docker::{self, Engine, Like};
use crate::measure::{Samples, timed};
use crate::report::Report;

const ROUNDS: usize = 60;
/// Atoll's are so much shorter that each round has room for several.
const PER_ROUND: usize = 4;
const WARM_UPS: usize = 3;

pub async fn measure(cluster: &Cluster, image: &str, effort: Effort, report: &mut Report) -> Result<()> {
    let sandbox = cluster.create(0).await?;
    let container = docker::name("exec");
    let measured = async {
        docker::run_detached(&container, &Like::sandbox(image, &sandbox)).await?;
        compare(cluster, &sandbox, &container, effort, report).await
    };
    let measured = measured.await;
    docker::remove(&container).await?;
    remove(cluster, &sandbox).await?;
    measured
}

async fn compare(
    cluster: &Cluster,
    sandbox: &Sandbox,
    container: &str,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let engine = Engine::open()?;
    let other_node = cluster.another_than(sandbox.owner);
    let (mut owner, mut other, mut by_command, mut by_api) = (vec![], vec![], vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let counts = round >= WARM_UPS;
        for _ in 0..PER_ROUND {
            let (through_owner, _) = timed(cluster.exec(sandbox.owner, &sandbox.id, "true")).await?;
            let (through_other, _) = timed(cluster.exec(other_node, &sandbox.id, "true")).await?;
            if counts {
                owner.push(through_owner);
                other.push(through_other);
            }
        }
        let (command, ()) = timed(docker::exec(container)).await?;
        let (api, ()) = timed(engine.exec(container)).await?;
        if counts {
            by_command.push(command);
            by_api.push(api);
        }
    }
    let (owner, other) = (Samples::of_latencies(owner)?, Samples::of_latencies(other)?);
    let (by_command, by_api) = (Samples::of_latencies(by_command)?, Samples::of_latencies(by_api)?);
    report.compare("exec `true`, through the owner", &owner, "`docker exec`", &by_command);
    report.compare("exec `true`, through another node", &other, "`docker exec`", &by_command);
    report.compare("exec `true`, through the owner", &owner, "Docker's API, three calls", &by_api);
    report.compare("exec `true`, through another node", &other, "through the owner", &owner);
    report.note(format!(
        "Exec: a sandbox and a container of the same image and limits. Atoll runs the command by a login shell, Docker runs it \
         straight. Another node adds {:.2} ms to the median.",
        other.median() - owner.median()
    ));
    Ok(())
}
