//! Docker as a reference: by its command, as people use it, and by the engine's API over its Unix socket, which spares the
//! start of a client process and is the least that any product on top of Docker pays.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::cluster::good;

const SOCKET: &str = "/var/run/docker.sock";
const DEADLINE: Duration = Duration::from_secs(60);
const SANDBOX_LABEL: &str = "atoll.sandbox";

/// What the engine was told of a container's limits, so that another can be given the same.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Limits {
    memory: i64,
    memory_swap: i64,
    nano_cpus: i64,
    pids_limit: Option<i64>,
    shm_size: i64,
}

#[derive(Debug, Clone)]
pub struct Container {
    pub name: String,
    pub image: String,
    pub limits: Limits,
}

/// The container that runs a sandbox, by Atoll's label.
pub async fn container_of(sandbox_id: &str) -> Result<Option<String>> {
    let filter = format!("label={SANDBOX_LABEL}={sandbox_id}");
    let names = docker(&["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"]).await?;
    Ok(names.lines().next().map(str::to_owned))
}

pub async fn inspect_container_of(sandbox_id: &str) -> Result<Container> {
    let name = container_of(sandbox_id).await?.with_context(|| format!("no container of {sandbox_id}"))?;
    let inspected: Value = serde_json::from_str(&docker(&["inspect", &name]).await?)?;
    let container = &inspected[0];
    Ok(Container {
        image: container["Config"]["Image"].as_str().context("it has no image")?.to_owned(),
        limits: serde_json::from_value(container["HostConfig"].clone()).context("read its limits")?,
        name,
    })
}

pub async fn run_detached(name: &str, image: &str, limits: &Limits) -> Result<()> {
    run(name, limits, &[image, "sleep", "infinity"]).await
}

/// This very program's server in a container like the sandbox's. Answers its address on Docker's own bridge.
pub async fn run_server(name: &str, image: &str, limits: &Limits, port: u16) -> Result<String> {
    let program = std::env::current_exe().context("find this program")?;
    let mount = format!("type=bind,source={},target=/atoll-bench,readonly", program.display());
    let port = port.to_string();
    run(name, limits, &["--mount", &mount, image, "/atoll-bench", "serve", "--port", &port]).await?;
    let address = docker(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", name]).await?;
    Ok(address.trim().to_owned())
}

async fn run(name: &str, limits: &Limits, rest: &[&str]) -> Result<()> {
    let limits = limits.as_arguments();
    let mut arguments = vec!["run", "--detach", "--name", name];
    arguments.extend(limits.iter().map(String::as_str));
    arguments.extend(rest);
    docker(&arguments).await.map(drop)
}

pub async fn exec(name: &str) -> Result<()> {
    docker(&["exec", name, "true"]).await.map(drop)
}

pub async fn remove(name: &str) -> Result<()> {
    docker(&["rm", "--force", "--volumes", name]).await.map(drop)
}

async fn docker(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output());
    let output = output.await.with_context(|| format!("docker {} hangs", arguments[0]))?;
    let output = output.context("run docker")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker {}: {}", arguments.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Limits {
    fn as_arguments(&self) -> Vec<String> {
        let bytes = |option: &str, bytes: i64| (bytes > 0).then(|| format!("{option}={bytes}"));
        let pids = self.pids_limit.filter(|pids| *pids > 0).map(|pids| format!("--pids-limit={pids}"));
        let cpus =
            (self.nano_cpus > 0).then(|| format!("--cpus={}", self.nano_cpus as f64 / 1_000_000_000.0));
        let memory = bytes("--memory", self.memory);
        let swap = bytes("--memory-swap", self.memory_swap);
        [memory, swap, bytes("--shm-size", self.shm_size), pids, cpus].into_iter().flatten().collect()
    }
}

/// The engine without the `docker` command before it.
pub struct Engine {
    http: reqwest::Client,
}

impl Engine {
    pub fn open() -> Result<Engine> {
        let http = reqwest::Client::builder().unix_socket(SOCKET).timeout(DEADLINE).no_proxy();
        Ok(Engine { http: http.build().context("make an HTTP client")? })
    }

    pub async fn run_detached(&self, name: &str, image: &str, limits: &Limits) -> Result<()> {
        let body = json!({
            "Image": image,
            "Cmd": ["sleep", "infinity"],
            "HostConfig": {
                "Memory": limits.memory,
                "MemorySwap": limits.memory_swap,
                "NanoCpus": limits.nano_cpus,
                "PidsLimit": limits.pids_limit,
                "ShmSize": limits.shm_size,
            },
        });
        let path = format!("/containers/create?name={name}");
        self.ask(Method::POST, &path, Some(body)).await?;
        self.ask(Method::POST, &format!("/containers/{name}/start"), None).await.map(drop)
    }

    /// `true`, to its end and with its exit code, as a product has to do it: three calls.
    pub async fn exec(&self, name: &str) -> Result<()> {
        let body = json!({ "AttachStdout": true, "AttachStderr": true, "Cmd": ["true"] });
        let made = self.ask(Method::POST, &format!("/containers/{name}/exec"), Some(body)).await?;
        let made: Value = serde_json::from_str(&made)?;
        let exec_id = made["Id"].as_str().context("the engine named no exec")?;
        let body = json!({ "Detach": false, "Tty": false });
        self.ask(Method::POST, &format!("/exec/{exec_id}/start"), Some(body)).await?;
        let ended: Value =
            serde_json::from_str(&self.ask(Method::GET, &format!("/exec/{exec_id}/json"), None).await?)?;
        ensure!(ended["ExitCode"] == 0, "true did not succeed: {ended}");
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<String> {
        let mut request = self.http.request(method, format!("http://docker{path}"));
        if let Some(body) = body {
            request = request.json(&body);
        }
        good(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_commands_options() {
        let limits: Limits = serde_json::from_value(json!({
            "Memory": 1 << 30, "MemorySwap": 1 << 30, "NanoCpus": 1_500_000_000, "PidsLimit": 2048, "ShmSize": 64,
        }))
        .unwrap();

        assert_eq!(
            limits.as_arguments(),
            [
                "--memory=1073741824",
                "--memory-swap=1073741824",
                "--shm-size=64",
                "--pids-limit=2048",
                "--cpus=1.5"
            ]
        );
    }

    #[test]
    fn what_was_not_limited_stays_so() {
        let unlimited = Limits { memory: 0, memory_swap: 0, nano_cpus: 0, pids_limit: None, shm_size: 0 };

        assert!(unlimited.as_arguments().is_empty());
    }
}
