//! From "I want a sandbox" to the first command's answer: Atoll through any node, against Docker with the same image and limits.

use anyhow::Result;

use crate::Effort;
use crate::cluster::{Cluster, Sandbox, until_gone};
use crate::docker::{self, Engine};
use crate::measure::{Samples, timed};
use crate::report::Report;

const ROUNDS: usize = 30;
/// Not counted: the first of everything opens connections and fills caches.
const WARM_UPS: usize = 2;

pub async fn measure(cluster: &Cluster, effort: Effort, report: &mut Report) -> Result<()> {
    let engine = Engine::open()?;
    let model = cluster.create(0).await?;
    let container = docker::inspect_container_of(&model.id).await?;
    cluster.delete(&model).await?;
    until_gone(&model).await?;

    let (mut atoll, mut first_half, mut by_command, mut by_api) = (vec![], vec![], vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let node = round % cluster.nodes().len();
        let (took, (sandbox, created)) = timed(create_and_exec(cluster, node)).await?;
        cluster.delete(&sandbox).await?;
        until_gone(&sandbox).await?;

        let name = format!("atoll-bench-{}-{round}", std::process::id());
        let command = timed(async {
            docker::run_detached(&name, &container.image, &container.limits).await?;
            docker::exec(&name).await
        })
        .await;
        docker::remove(&name).await?;

        let api = timed(async {
            engine.run_detached(&name, &container.image, &container.limits).await?;
            engine.exec(&name).await
        })
        .await;
        docker::remove(&name).await?;

        if round >= WARM_UPS {
            atoll.push(took);
            first_half.push(created);
            by_command.push(command?.0);
            by_api.push(api?.0);
        }
    }
    let atoll = Samples::of_latencies(atoll)?;
    let by_api = Samples::of_latencies(by_api)?;
    let what = "create → first exec answer, any node";
    report.compare(
        what,
        &atoll,
        "`docker run -d` + `docker exec … true`",
        &Samples::of_latencies(by_command)?,
    );
    report.compare(what, &atoll, "the same by Docker's API on its Unix socket", &by_api);
    report.compare(
        "of which the create",
        &Samples::of_latencies(first_half)?,
        "create + start + exec by Docker's API",
        &by_api,
    );
    report.note(
        "Create: `POST /api/sandbox` and then `true` by `process/execute` through the same node, nodes in turn; runtime \
         docker. Docker: the same image, memory, swap, CPU, pids and shm limits, default bridge, `sleep infinity`. Removing \
         is not timed, and is waited for.",
    );
    Ok(())
}

async fn create_and_exec(cluster: &Cluster, node: usize) -> Result<(Sandbox, std::time::Duration)> {
    let (created, sandbox) = timed(cluster.create(node)).await?;
    cluster.exec(node, &sandbox.id, "true").await?;
    Ok((sandbox, created))
}
