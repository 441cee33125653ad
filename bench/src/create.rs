//! From "I want a sandbox" to the first command's answer: through a node that has no room, so that another one becomes the owner,
//! and through one that keeps it, against Docker with the same image and limits.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::Effort;
use crate::cluster::{Cluster, Sandbox, remove};
use crate::docker::{self, Engine, Like};
use crate::measure::{Samples, timed};
use crate::report::Report;

const ROUNDS: usize = 200;
/// Docker is so much slower that its every second round must do.
const REFERENCE_EVERY: usize = 2;
/// Not counted: the first of everything opens connections and fills caches.
const WARM_UPS: usize = 4;
/// The node whose room is taken.
const FULL_NODE: usize = 0;

/// Those of one way to create, each with the part that the create itself took.
#[derive(Default)]
struct Creates {
    whole: Vec<Duration>,
    create: Vec<Duration>,
}

pub async fn measure(cluster: &Cluster, image: &str, effort: Effort, report: &mut Report) -> Result<()> {
    let filler = cluster.fill(FULL_NODE).await?;
    let measured = compare(cluster, image, &filler, effort, report).await;
    remove(cluster, &filler).await?;
    measured
}

async fn compare(
    cluster: &Cluster,
    image: &str,
    filler: &Sandbox,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let engine = Engine::open()?;
    let model = cluster.create(FULL_NODE).await?;
    let like = Like::sandbox(image, &model);
    remove(cluster, &model).await?;

    let (mut elsewhere, mut here) = (Creates::default(), Creates::default());
    let (mut by_command, mut by_api) = (vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let counts = round >= WARM_UPS;
        for asked in [FULL_NODE, cluster.another_than(filler.owner)] {
            let (took, (sandbox, created)) = timed(create_and_exec(cluster, asked)).await?;
            remove(cluster, &sandbox).await?;
            let creates = if sandbox.owner == asked { &mut here } else { &mut elsewhere };
            // The other node may be too busy at times, and give its own away.
            if counts {
                creates.whole.push(took);
                creates.create.push(created);
            }
        }
        if round % REFERENCE_EVERY == 0 {
            let (command, api) = docker_rounds(&engine, &like).await?;
            if counts {
                by_command.push(command);
                by_api.push(api);
            }
        }
    }
    ensure!(!here.whole.is_empty(), "no node kept a sandbox that it was asked for");
    let (elsewhere, elsewhere_create) = elsewhere.samples()?;
    let (here, here_create) = here.samples()?;
    let (by_command, by_api) = (Samples::of_latencies(by_command)?, Samples::of_latencies(by_api)?);

    let (through_other, through_owner) =
        ("create → first exec answer, through a node that is not the owner", "… through the owner");
    report.figure(
        through_other,
        &elsewhere,
        "≤ 50 ms / ≤ 150 ms, and ≤ 1/15 (0.067) of `docker run` + `exec`",
    );
    let docker_command = "`docker run -d` + `docker exec … true`";
    let docker_api = "the same by Docker's API on its Unix socket";
    report.compare(through_other, &elsewhere, docker_command, &by_command);
    report.compare(through_other, &elsewhere, docker_api, &by_api);
    report.compare("create → first exec answer, through the owner", &here, docker_command, &by_command);
    report.compare("of which the create, not the owner", &elsewhere_create, through_owner, &here_create);
    report.note(
        "Create: `POST /api/sandbox` and then `true` by `process/execute` through the same node. That another node became the \
         owner was arranged: one idle sandbox held all memory that the asked node promises. Docker: the same image, memory, \
         swap, CPU, pids and shm limits, default bridge, `sleep infinity`. Removing is not timed, and is waited for.",
    );
    Ok(())
}

async fn create_and_exec(cluster: &Cluster, node: usize) -> Result<(Sandbox, Duration)> {
    let (created, sandbox) = timed(cluster.create(node)).await?;
    cluster.exec(node, &sandbox.id, "true").await?;
    Ok((sandbox, created))
}

async fn docker_rounds(engine: &Engine, like: &Like) -> Result<(Duration, Duration)> {
    let name = docker::name("create");
    let command = timed(async {
        docker::run_detached(&name, like).await?;
        docker::exec(&name).await
    })
    .await;
    docker::remove(&name).await?;
    let api = timed(async {
        engine.run_detached(&name, like).await?;
        engine.exec(&name).await
    })
    .await;
    docker::remove(&name).await?;
    Ok((command?.0, api?.0))
}

impl Creates {
    fn samples(self) -> Result<(Samples, Samples)> {
        Ok((Samples::of_latencies(self.whole)?, Samples::of_latencies(self.create)?))
    }
}
