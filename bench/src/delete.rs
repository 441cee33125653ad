//! How soon a delete is answered, and how soon nothing of the sandbox is left on the host, against `docker rm --force`.

use anyhow::Result;

use crate::Effort;
use crate::cluster::Cluster;
use crate::docker::{self, Like};
use crate::measure::{Samples, timed};
use crate::report::Report;
use crate::traces::Traces;

const ROUNDS: usize = 100;
const REFERENCE_EVERY: usize = 2;
const WARM_UPS: usize = 2;

pub async fn measure(cluster: &Cluster, image: &str, effort: Effort, report: &mut Report) -> Result<()> {
    let (mut answered, mut gone, mut reference) = (vec![], vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let counts = round >= WARM_UPS;
        let sandbox = cluster.create(round % cluster.nodes().len()).await?;
        cluster.exec(sandbox.owner, &sandbox.id, "true").await?;
        let traces = Traces::of(cluster, &sandbox).await?;
        let (answer, ()) = timed(cluster.delete(&sandbox)).await?;
        let after = traces.until_gone().await?;
        if counts {
            answered.push(answer);
            gone.push(after);
        }
        if round % REFERENCE_EVERY == 0 {
            let name = docker::name("delete");
            docker::run_detached(&name, &Like::sandbox(image, &sandbox)).await?;
            let (took, ()) = timed(docker::remove(&name)).await?;
            if counts {
                reference.push(took);
            }
        }
    }
    let answered = Samples::of_latencies(answered)?;
    report.figure("delete, answered", &answered, "≤ 20 ms");
    report.figure("… and from then until everything is gone", &Samples::of_latencies(gone)?, "≤ 1 s");
    let reference = Samples::of_latencies(reference)?;
    report.compare("delete, answered", &answered, "`docker rm --force`", &reference);
    report.note(
        "Delete: through the owner, of a running sandbox. Gone: its processes, control groups, mounts, cable and folders, each \
         by its identity, looked for every 2 ms; docker's answer comes when the container is gone.",
    );
    Ok(())
}
