//! Raft commits through the API against etcd: latency of one client, throughput of many. Same disk, same client, same size.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::Effort;
use crate::cluster::{Cluster, Sandbox, good, remove};
use crate::etcd::Etcd;
use crate::measure::{Load, Request, Samples, drive, timed};
use crate::report::Report;

const ROUNDS: usize = 300;
const WARM_UPS: usize = 20;
const CLIENTS: usize = 64;
const SLICES: usize = 4;
/// Four of them make the ten seconds of each side.
const SLICE: Duration = Duration::from_millis(2_500);
const WARM_UP: Duration = Duration::from_secs(1);
const SYNC_BYTES: usize = 4096;

pub async fn measure(cluster: &Cluster, work_dir: &Path, effort: Effort, report: &mut Report) -> Result<()> {
    let etcd = Arc::new(Etcd::start(work_dir).await?);
    let sandbox = cluster.create(0).await?;
    let measured = async {
        latency(cluster, &etcd, &sandbox, work_dir, effort, report).await?;
        throughput(cluster, &etcd, &sandbox, effort, report).await
    };
    let measured = measured.await;
    remove(cluster, &sandbox).await?;
    report.note(
        "Commit: `PUT /api/sandbox/{id}/labels` against etcd 3.4's `PUT` by its HTTP/JSON gateway (not gRPC), three members \
         each, on the same disk, by the same HTTP client with connections kept open, values of the same size. Atoll's \
         answer to a PUT waits until the asked node has applied it.",
    );
    measured
}

async fn latency(
    cluster: &Cluster,
    etcd: &Etcd,
    sandbox: &Sandbox,
    work_dir: &Path,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let leader = cluster.region_leader().await?;
    let follower = cluster.another_than(leader);
    let mut file = tempfile::tempfile_in(work_dir).context("make a file to sync")?;
    let [mut atoll_leader, mut etcd_leader, mut atoll_follower, mut etcd_follower] =
        [const { Load::new() }; 4];
    let mut syncs = Load::new();
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let value = value_of(0, round);
        let turns = [
            (timed(put_labels(cluster, leader, sandbox, &value)).await, &mut atoll_leader),
            (timed(etcd.put(etcd.leader, "labels", &labels(&value))).await, &mut etcd_leader),
            (timed(put_labels(cluster, follower, sandbox, &value)).await, &mut atoll_follower),
            (timed(etcd.put(etcd.follower(), "labels", &labels(&value))).await, &mut etcd_follower),
            (timed(async { sync_once(&mut file) }).await, &mut syncs),
        ];
        for (ended, load) in turns {
            if round >= WARM_UPS {
                load.add(ended);
            }
        }
    }
    report.note(format!(
        "One client: requests that failed and are in no figure: {} of ours, {} of etcd's.",
        atoll_leader.failed + atoll_follower.failed,
        etcd_leader.failed + etcd_follower.failed
    ));
    let [atoll_leader, etcd_leader, atoll_follower, etcd_follower, syncs] =
        [atoll_leader, etcd_leader, atoll_follower, etcd_follower, syncs]
            .map(|load| load.sound().map(|()| load.latencies));
    let etcd_leader = Samples::of_latencies(etcd_leader?)?;
    let atoll_leader = Samples::of_latencies(atoll_leader?)?;
    report.compare(
        "commit, 1 client, through the leader",
        &atoll_leader,
        "etcd, through the leader",
        &etcd_leader,
    );
    report.compare(
        "commit, 1 client, through another node",
        &Samples::of_latencies(atoll_follower?)?,
        "etcd, through a follower",
        &Samples::of_latencies(etcd_follower?)?,
    );
    let floor = format!("one {SYNC_BYTES} byte append + fdatasync here");
    report.compare(
        "commit, 1 client, through the leader",
        &atoll_leader,
        &floor,
        &Samples::of_latencies(syncs?)?,
    );
    Ok(())
}

async fn throughput(
    cluster: &Cluster,
    etcd: &Arc<Etcd>,
    sandbox: &Sandbox,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let requests: Vec<RequestBuilder> =
        (0..cluster.nodes().len()).map(|node| labels_request(cluster, node, sandbox)).collect();
    let atoll: Arc<Request> = Arc::new(move |client, number| {
        let request = requests[client % requests.len()].try_clone().expect("a request without a body");
        let body = json!({ "labels": { "bench": value_of(client, number) } });
        Box::pin(async move { good(request.json(&body)).await.map(drop) })
    });
    let etcd = etcd.clone();
    let reference: Arc<Request> = Arc::new(move |client, number| {
        let etcd = etcd.clone();
        Box::pin(async move {
            etcd.put(client % etcd.members(), "labels", &labels(&value_of(client, number))).await
        })
    });
    for side in [&atoll, &reference] {
        drive(CLIENTS, WARM_UP, side.clone()).await?;
    }
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for _ in 0..effort.samples(SLICES) {
        ours.add(drive(CLIENTS, SLICE, atoll.clone()).await?)?;
        theirs.add(drive(CLIENTS, SLICE, reference.clone()).await?)?;
    }
    let name = format!("etcd, {CLIENTS} clients over all members");
    report.compare(
        &format!("commits, {CLIENTS} clients over all nodes"),
        &Samples::of_rates(ours.rates)?,
        &name,
        &Samples::of_rates(theirs.rates)?,
    );
    report.compare(
        "latency of each of those",
        &Samples::of_latencies(ours.latencies)?,
        &name,
        &Samples::of_latencies(theirs.latencies)?,
    );
    report.note(format!(
        "Throughput: {SLICES} slices of {} s on each side in turn; failed requests: {} of ours, {} of etcd's.",
        SLICE.as_secs_f64(),
        ours.failed,
        theirs.failed
    ));
    Ok(())
}

#[derive(Default)]
struct Side {
    rates: Vec<f64>,
    latencies: Vec<Duration>,
    failed: usize,
}

impl Side {
    fn add(&mut self, load: Load) -> Result<()> {
        load.sound()?;
        self.rates.push(load.per_second());
        self.failed += load.failed;
        self.latencies.extend(load.latencies);
        Ok(())
    }
}

fn labels_request(cluster: &Cluster, node: usize, sandbox: &Sandbox) -> RequestBuilder {
    cluster.api(node, Method::PUT, &format!("/sandbox/{}/labels", sandbox.id))
}

async fn put_labels(cluster: &Cluster, node: usize, sandbox: &Sandbox, value: &str) -> Result<()> {
    let body = json!({ "labels": { "bench": value } });
    good(labels_request(cluster, node, sandbox).json(&body)).await.map(drop)
}

/// What etcd stores: the same text that Atoll is sent.
fn labels(value: &str) -> String {
    json!({ "labels": { "bench": value } }).to_string()
}

/// 40 characters, another each time, so that every commit changes something.
fn value_of(client: usize, number: usize) -> String {
    format!("{client:08}{number:032}")
}

fn sync_once(file: &mut File) -> Result<()> {
    file.write_all(&[7; SYNC_BYTES]).context("append")?;
    file.sync_data().context("sync")
}
