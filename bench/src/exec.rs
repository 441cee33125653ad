//! One command in a running sandbox: by its daemon alone, through its owner, through another node, and by Docker in a container like
//! it.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::Effort;
use crate::alone::{Alone, Parts};
use crate::cluster::{Cluster, Sandbox, remove};
use crate::docker::{self, Engine, Like};
use crate::measure::{Samples, timed};
use crate::report::Report;

const ROUNDS: usize = 60;
/// Atoll's are so much shorter that each round has room for several.
const PER_ROUND: usize = 4;
const WARM_UPS: usize = 3;

pub async fn measure(cluster: &Cluster, parts: &Parts, effort: Effort, report: &mut Report) -> Result<()> {
    let sandbox = cluster.create(0).await?;
    let container = docker::name("exec");
    let mut alone = Alone::start(parts, 0, 0).await?;
    let measured = async {
        docker::run_detached(&container, &Like::sandbox(&parts.image, &sandbox)).await?;
        let mut daemon = Daemon::of(&mut alone).await?;
        compare(cluster, &sandbox, &container, &mut daemon, effort, report).await
    };
    let measured = measured.await;
    alone.end().await?;
    docker::remove(&container).await?;
    remove(cluster, &sandbox).await?;
    measured
}

/// The daemon of a sandbox that no node knows, by one connection that stays, as a node keeps one.
struct Daemon {
    requests: SendRequest<Full<Bytes>>,
}

impl Daemon {
    async fn of(alone: &mut Alone) -> Result<Daemon> {
        let sandbox = alone.bring_up(0).await?;
        let stream = TokioIo::new(alone.dial(&sandbox).await?);
        let (requests, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Daemon { requests })
    }

    async fn exec(&mut self, command: &str) -> Result<()> {
        let wish = serde_json::to_vec(&json!({ "command": command }))?;
        let request = Request::post("/process/execute")
            .header("host", "sandbox")
            .header("content-type", "application/json")
            .body(Full::new(wish.into()))?;
        let answer = self.requests.send_request(request).await?;
        ensure!(answer.status() == 200, "the daemon answers {}", answer.status());
        let answer: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
        ensure!(answer["exitCode"] == 0, "the command failed: {answer}");
        Ok(())
    }
}

async fn compare(
    cluster: &Cluster,
    sandbox: &Sandbox,
    container: &str,
    daemon: &mut Daemon,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let engine = Engine::open()?;
    let other_node = cluster.another_than(sandbox.owner);
    let (mut alone, mut owner, mut other) = (vec![], vec![], vec![]);
    let (mut by_command, mut by_api) = (vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let counts = round >= WARM_UPS;
        for _ in 0..PER_ROUND {
            let (by_daemon, ()) = timed(daemon.exec("true")).await?;
            let (through_owner, _) = timed(cluster.exec(sandbox.owner, &sandbox.id, "true")).await?;
            let (through_other, _) = timed(cluster.exec(other_node, &sandbox.id, "true")).await?;
            if counts {
                alone.push(by_daemon);
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
    let alone = Samples::of_latencies(alone)?;
    let (owner, other) = (Samples::of_latencies(owner)?, Samples::of_latencies(other)?);
    let (by_command, by_api) = (Samples::of_latencies(by_command)?, Samples::of_latencies(by_api)?);
    report.compare("exec `true`, by the daemon alone", &alone, "`docker exec`", &by_command);
    report.compare("exec `true`, through the owner", &owner, "by the daemon alone", &alone);
    report.compare("exec `true`, through the owner", &owner, "`docker exec`", &by_command);
    report.compare("exec `true`, through another node", &other, "`docker exec`", &by_command);
    report.compare("exec `true`, through the owner", &owner, "Docker's API, three calls", &by_api);
    report.compare("exec `true`, through another node", &other, "through the owner", &owner);
    report.note(format!(
        "Exec: a sandbox and a container of the same image and limits. Atoll runs the command by a login shell, Docker runs it \
         straight. The daemon alone: its HTTP on a connection from this program, without edge, key and node. Another node adds {:.2} ms to the median.",
        other.median() - owner.median()
    ));
    Ok(())
}
