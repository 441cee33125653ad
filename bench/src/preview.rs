//! Requests per second through a preview host, by the owner and by another node, against nginx leading to the same server in a
//! container like the sandbox's. wrk drives both: no client of ours is on the scales.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::json;
use tokio::process::Command;

use crate::Effort;
use crate::background::{Background, until_listening};
use crate::cluster::{Cluster, Sandbox, good, remove};
use crate::docker::Like;
use crate::measure::Samples;
use crate::report::Report;
use crate::{docker, ports};

pub const SERVER_PORT: u16 = 8000;
const SLICES: usize = 5;
const SLICE_SECONDS: u64 = 3;
const CONNECTIONS: &str = "64";

pub async fn measure(
    cluster: &Cluster,
    image: &str,
    work_dir: &Path,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let sandbox = cluster.create(0).await?;
    let like = Like::sandbox(image, &sandbox);
    let container = docker::name("server");
    let measured = compare(cluster, &sandbox, &container, &like, work_dir, effort, report).await;
    docker::remove(&container).await?;
    remove(cluster, &sandbox).await?;
    measured
}

async fn compare(
    cluster: &Cluster,
    sandbox: &Sandbox,
    container: &str,
    like: &Like,
    work_dir: &Path,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    serve_in(cluster, sandbox).await?;
    let open = cluster.api(sandbox.owner, Method::POST, &format!("/sandbox/{}/public/true", sandbox.id));
    good(open).await?;
    let address = docker::run_server(container, like, SERVER_PORT).await?;
    until_listening(&address, SERVER_PORT).await?;
    let nginx = Nginx::start(work_dir, &format!("{address}:{SERVER_PORT}")).await?;

    let host = format!("{SERVER_PORT}-{}.{}", sandbox.id, cluster.preview_domain());
    let by_node = |node: usize| Way { url: cluster.nodes()[node].http.clone(), host: host.clone() };
    let ways = [
        by_node(sandbox.owner),
        by_node(cluster.another_than(sandbox.owner)),
        Way { url: nginx.url.clone(), host: host.clone() },
        Way { url: format!("http://{address}:{SERVER_PORT}"), host },
    ];
    let mut rates = [const { Vec::new() }; 4];
    for slice in 0..=effort.samples(SLICES) {
        for (way, rates) in ways.iter().zip(&mut rates) {
            let rate = way.requests_per_second().await?;
            // The first round opens connections and is not counted.
            if slice > 0 {
                rates.push(rate);
            }
        }
    }
    let [owner, other, nginx_rates, direct] = rates;
    let (owner, other) = (Samples::of_rates(owner)?, Samples::of_rates(other)?);
    let (nginx_rates, direct) = (Samples::of_rates(nginx_rates)?, Samples::of_rates(direct)?);
    report.compare("preview requests, through the owner", &owner, "nginx to a container", &nginx_rates);
    report.compare("preview requests, through another node", &other, "nginx to a container", &nginx_rates);
    report.compare("preview requests, through the owner", &owner, "straight to a container", &direct);
    report.note(format!(
        "Preview: the same server in the sandbox and, as nothing on the host reaches a sandbox but its node, for nginx in a \
         container of the same image and limits. wrk, 1 thread, {CONNECTIONS} connections kept open, 128 byte answers, plain \
         HTTP, {SLICES} slices of {SLICE_SECONDS} s in turn; nginx has a worker per core and keeps connections to the \
         container open. Everything, the client too, shares the cores."
    ));
    Ok(())
}

/// Puts this very program into the sandbox, as the server.
async fn serve_in(cluster: &Cluster, sandbox: &Sandbox) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let bytes = tokio::fs::read(&program).await.context("read this program")?;
    let upload = cluster.toolbox(
        sandbox.owner,
        &sandbox.id,
        Method::POST,
        "/files/upload-v2?path=/home/daytona/atoll-bench",
    );
    good(upload.body(bytes)).await.context("upload the server")?;
    cluster.exec(sandbox.owner, &sandbox.id, "chmod +x /home/daytona/atoll-bench").await?;
    let post =
        |path: &str, body| good(cluster.toolbox(sandbox.owner, &sandbox.id, Method::POST, path).json(&body));
    post("/process/session", json!({ "sessionId": "serve" })).await?;
    let command = format!("/home/daytona/atoll-bench serve --port {SERVER_PORT}");
    let start = json!({ "command": command, "runAsync": true });
    post("/process/session/serve/exec", start).await.context("start the server")?;
    let probe = format!(
        "bash -c 'for i in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/{SERVER_PORT}) 2>/dev/null && exit 0; sleep 0.05; \
         done; exit 1'"
    );
    cluster.exec(sandbox.owner, &sandbox.id, &probe).await.context("wait for the server")?;
    Ok(())
}

struct Way {
    url: String,
    host: String,
}

impl Way {
    async fn requests_per_second(&self) -> Result<f64> {
        let mut command = Command::new("wrk");
        command.args(["--threads", "1", "--connections", CONNECTIONS]);
        command.args(["--duration", &format!("{SLICE_SECONDS}s")]);
        command.args(["--header", &format!("Host: {}", self.host)]).arg(format!("{}/", self.url));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.context("run wrk (Debian: wrk)")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr));
        parse_wrk(&said).with_context(|| format!("{}: {said}", self.url))
    }
}

/// wrk counts answers of any status; those that are no success it names in a line of their own.
fn parse_wrk(said: &str) -> Result<f64> {
    ensure!(
        !said.contains("Non-2xx") && !said.contains("Socket errors"),
        "not every request was answered well"
    );
    let rate = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let rate: f64 = rate.context("wrk names no rate")?.trim().parse().context("parse wrk's rate")?;
    ensure!(rate > 0.0, "nothing was answered");
    Ok(rate)
}

struct Nginx {
    url: String,
    /// Before the folder, so that it ends before that goes.
    _server: Background,
    _dir: tempfile::TempDir,
}

impl Nginx {
    async fn start(work_dir: &Path, upstream: &str) -> Result<Nginx> {
        let dir = tempfile::Builder::new().prefix("nginx-").tempdir_in(work_dir).context("make a folder")?;
        let [port] = ports::free()?;
        let config = dir.path().join("nginx.conf");
        std::fs::write(&config, nginx_config(dir.path(), port, upstream)).context("write nginx's config")?;
        let mut command = std::process::Command::new("nginx");
        command.arg("-c").arg(&config).arg("-p").arg(dir.path());
        let server = Background::start(command, "nginx-light", &dir.path().join("nginx.log"))?;
        until_listening("127.0.0.1", port).await?;
        Ok(Nginx { url: format!("http://127.0.0.1:{port}"), _server: server, _dir: dir })
    }
}

fn nginx_config(dir: &Path, port: u16, upstream: &str) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
worker_processes auto;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  keepalive_requests 100000000;
  upstream sandbox {{ server {upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://sandbox;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
    }}
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_with_failures_is_none() {
        let good = "  1200 requests in 1.00s, 150KB read\nRequests/sec:   1199.05\nTransfer/sec: 1KB\n";
        let bad = format!("  Non-2xx or 3xx responses: 7\n{good}");

        assert_eq!(parse_wrk(good).unwrap(), 1199.05);
        assert!(parse_wrk(&bad).is_err() && parse_wrk("").is_err());
    }
}
