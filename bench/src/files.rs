//! Files into a sandbox and out of it, through a node that does not own it, beside `docker cp` with a container like it: one of
//! 200 MB, and 2,000 small ones in one request.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::json;

use crate::Effort;
use crate::cluster::{Cluster, Sandbox, good, remove};
use crate::docker::{self, Like};
use crate::measure::{Samples, timed};
use crate::report::Report;

const ROUNDS: usize = 10;
const WARM_UPS: usize = 1;
const BIG_BYTES: usize = 200_000_000;
const SMALL_FILES: usize = 2_000;
const SMALL_BYTES: usize = 4_096;

pub async fn measure(
    cluster: &Cluster,
    image: &str,
    work_dir: &Path,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let sandbox = cluster.create(0).await?;
    let container = docker::name("files");
    let dir = tempfile::Builder::new().prefix("files-").tempdir_in(work_dir)?;
    let measured = async {
        docker::run_detached(&container, &Like::sandbox(image, &sandbox)).await?;
        compare(cluster, &sandbox, &container, dir.path(), effort, report).await
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
    dir: &Path,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let node = cluster.another_than(sandbox.owner);
    let big = dir.join("big");
    // Nothing on the way may make it smaller.
    std::fs::write(&big, noise(BIG_BYTES)).context("write a file of 200 MB")?;
    let small = dir.join("small");
    std::fs::create_dir(&small)?;
    for number in 0..SMALL_FILES {
        std::fs::write(small.join(number.to_string()), noise(SMALL_BYTES))?;
    }
    let (mut up, mut down, mut many_up, mut many_down) = (vec![], vec![], vec![], vec![]);
    let (mut cp_in, mut cp_out, mut cp_many_in, mut cp_many_out) = (vec![], vec![], vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let counts = round >= WARM_UPS;
        let keep = |of: &mut Vec<_>, took| {
            if counts {
                of.push(took);
            }
        };
        keep(&mut up, timed(upload(cluster, node, sandbox, &big)).await?.0);
        keep(&mut cp_in, timed(docker::copy_in(container, &big, "/tmp/big")).await?.0);
        keep(&mut down, timed(download(cluster, node, sandbox)).await?.0);
        keep(&mut cp_out, timed(docker::copy_out(container, "/tmp/big", &dir.join("out"))).await?.0);
        keep(&mut many_up, timed(upload_many(cluster, node, sandbox, &small)).await?.0);
        keep(&mut cp_many_in, timed(docker::copy_in(container, &small, "/tmp/")).await?.0);
        keep(&mut many_down, timed(download_many(cluster, node, sandbox)).await?.0);
        let _ = std::fs::remove_dir_all(dir.join("many"));
        keep(&mut cp_many_out, timed(docker::copy_out(container, "/tmp/small", &dir.join("many"))).await?.0);
    }
    for (what, ours, reference, theirs) in [
        ("upload of 200 MB", up, "`docker cp` into it", cp_in),
        ("download of 200 MB", down, "`docker cp` out of it", cp_out),
        ("upload of 2,000 files of 4 KiB, one request", many_up, "`docker cp` of the folder", cp_many_in),
        ("download of 2,000 files, one request", many_down, "`docker cp` of the folder", cp_many_out),
    ] {
        let (ours, theirs) = (Samples::of_latencies(ours)?, Samples::of_latencies(theirs)?);
        report.compare(&format!("{what}, through another node"), &ours, reference, &theirs);
    }
    report.note(
        "Files: this program has the content in memory or takes it from the same disk as `docker cp`, and drops what it \
         downloads; `docker cp` writes it to that disk. The content is noise. The daemon writes beside the file and renames.",
    );
    Ok(())
}

async fn upload(cluster: &Cluster, node: usize, sandbox: &Sandbox, file: &Path) -> Result<()> {
    let content = tokio::fs::read(file).await?;
    let request = cluster.toolbox(node, &sandbox.id, Method::POST, "/files/upload-v2?path=/tmp/big");
    let request = request.header("content-type", "application/octet-stream").body(content);
    good(request).await.map(drop)
}

async fn download(cluster: &Cluster, node: usize, sandbox: &Sandbox) -> Result<()> {
    let request = cluster.toolbox(node, &sandbox.id, Method::GET, "/files/download?path=/tmp/big");
    let mut answer = request.send().await?.error_for_status()?;
    let mut bytes = 0;
    while let Some(chunk) = answer.chunk().await? {
        bytes += chunk.len();
    }
    ensure!(bytes == BIG_BYTES, "{bytes} bytes came back");
    Ok(())
}

async fn upload_many(cluster: &Cluster, node: usize, sandbox: &Sandbox, dir: &Path) -> Result<()> {
    let mut form = Form::new();
    for number in 0..SMALL_FILES {
        let content = std::fs::read(dir.join(number.to_string()))?;
        form = form
            .text(format!("files[{number}].path"), format!("/tmp/small/{number}"))
            .part(format!("files[{number}].file"), Part::bytes(content).file_name(number.to_string()));
    }
    let request = cluster.toolbox(node, &sandbox.id, Method::POST, "/files/bulk-upload").multipart(form);
    good(request).await.map(drop)
}

async fn download_many(cluster: &Cluster, node: usize, sandbox: &Sandbox) -> Result<()> {
    let paths: Vec<String> = (0..SMALL_FILES).map(|number| format!("/tmp/small/{number}")).collect();
    let request = cluster.toolbox(node, &sandbox.id, Method::POST, "/files/bulk-download");
    let answer = request.json(&json!({ "paths": paths })).send().await?.error_for_status()?;
    let bytes = answer.bytes().await?.len();
    ensure!(bytes > SMALL_FILES * SMALL_BYTES, "{bytes} bytes came back");
    Ok(())
}

/// Bytes that no compression makes fewer, the same every time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}
