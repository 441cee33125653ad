//! A create that a warm pool answers, with `env` and `user` set, to the answer and to the first command's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::Effort;
use crate::cluster::{Cluster, good, remove};
use crate::measure::{Samples, timed};
use crate::report::Report;

const ROUNDS: usize = 200;
const WARM_UPS: usize = 2;
const MEMBERS: f64 = 4.0;
const FULL_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Prints both of what was asked for: a member that was started before can have them by the claim only.
const PROOF: &str = "echo \"$(id -un) $ATOLL_BENCH\"";

pub async fn measure(cluster: &Cluster, effort: Effort, report: &mut Report) -> Result<()> {
    let wish = json!({ "snapshot": cluster.default_snapshot(), "pool": MEMBERS });
    let made = cluster.api(0, Method::POST, "/warm-pools").json(&wish).send().await?;
    if made.status() == StatusCode::NOT_FOUND {
        eprintln!("   skipped: this build has no warm pools");
        report.note("Warm creates were not measured: these nodes answer 404 to `/warm-pools`.");
        return Ok(());
    }
    let (status, body) = (made.status(), made.text().await?);
    ensure!(status.is_success(), "making a warm pool was answered {status}: {body}");
    let pool: Value = serde_json::from_str(&body).context("parse the warm pool")?;
    let pool_id = pool["id"].as_str().context("the warm pool has no id")?;
    let measured = claims(cluster, pool_id, effort, report).await;
    good(cluster.api(0, Method::DELETE, &format!("/warm-pools/{pool_id}"))).await?;
    measured
}

async fn claims(cluster: &Cluster, pool_id: &str, effort: Effort, report: &mut Report) -> Result<()> {
    let (mut creates, mut wholes, mut elsewhere) = (vec![], vec![], 0);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        until_full(cluster, pool_id).await?;
        let node = round % cluster.nodes().len();
        let value = format!("round-{round}");
        let wish = json!({
            "snapshot": cluster.default_snapshot(),
            "user": "root",
            "env": { "ATOLL_BENCH": value },
        });
        let (whole, (created, sandbox, said)) = timed(async {
            let (created, sandbox) = timed(cluster.create_as(node, wish)).await?;
            let said = cluster.exec(node, &sandbox.id, PROOF).await?;
            Ok((created, sandbox, said))
        })
        .await?;
        remove(cluster, &sandbox).await?;
        ensure!(said.trim() == format!("root {value}"), "asked for root and {value}, got {said:?}");
        if round >= WARM_UPS {
            creates.push(created);
            wholes.push(whole);
            elsewhere += usize::from(sandbox.owner != node);
        }
    }
    let count = creates.len();
    report.figure("warm create with env and user", &Samples::of_latencies(creates)?, "≤ 10 ms / ≤ 30 ms");
    report.figure("… and to the first exec's answer", &Samples::of_latencies(wholes)?, "–");
    report.note(format!(
        "Warm: a pool of {MEMBERS}, full again before each claim; nodes asked in turn, {elsewhere} of {count} claims through one \
         that is not the owner. The first command prints the user and the variable, and both are checked."
    ));
    Ok(())
}

async fn until_full(cluster: &Cluster, pool_id: &str) -> Result<()> {
    let deadline = Instant::now() + FULL_DEADLINE;
    loop {
        let pools: Value = serde_json::from_str(&good(cluster.api(0, Method::GET, "/warm-pools")).await?)?;
        let pool = pools.as_array().and_then(|pools| pools.iter().find(|pool| pool["id"] == pool_id));
        let pool = pool.context("the warm pool is not in the list")?;
        if pool["currentSize"].as_f64() >= Some(MEMBERS) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the warm pool is not full within {FULL_DEADLINE:?}: {pool}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
