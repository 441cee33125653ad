//! Docker as a reference: by its command, as people use it, and by the engine's API over its Unix socket, which spares the
//! start of a client process and is the least that any product on top of Docker pays.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::cluster::{Sandbox, good};

const SOCKET: &str = "/var/run/docker.sock";
const DEADLINE: Duration = Duration::from_secs(60);
const SANDBOX_LABEL: &str = "atoll.sandbox";

/// What the nodes give every sandbox, beside what a create asks for.
const PIDS: u32 = 2048;
const SHARED_MEMORY_BYTES: u64 = 256 << 20;
const GIB: u64 = 1 << 30;

/// What a container needs to be like a sandbox: the same image and the same limits.
#[derive(Debug, Clone)]
pub struct Like {
    image: String,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    /// With swap, of which there is none beside.
    memory_bytes: u64,
    cpus: u32,
}

impl Like {
    pub fn sandbox(image: &str, sandbox: &Sandbox) -> Like {
        Like::promised(image, sandbox.cpu, sandbox.memory_gib)
    }

    pub fn promised(image: &str, cpus: u32, memory_gib: u32) -> Like {
        // No node gives more CPUs than the host has, and Docker refuses them.
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let limits = Limits { memory_bytes: u64::from(memory_gib) * GIB, cpus: cpus.clamp(1, cores) };
        Like { image: image.to_owned(), limits }
    }
}

/// Of a container of ours.
pub fn name(what: &str) -> String {
    format!("atoll-bench-{}-{what}", std::process::id())
}

/// The container that runs a sandbox, by Atoll's label.
pub async fn container_of(sandbox_id: &str) -> Result<Option<String>> {
    let filter = format!("label={SANDBOX_LABEL}={sandbox_id}");
    let names = docker(&["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"]).await?;
    Ok(names.lines().next().map(str::to_owned))
}

pub async fn exists(container: &str) -> Result<bool> {
    let filter = format!("name=^/{container}$");
    Ok(!docker(&["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"]).await?.trim().is_empty())
}

/// Its pid, as the host numbers it.
pub async fn first_process(container: &str) -> Result<i32> {
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", container]).await?;
    pid.trim().parse().context("parse a container's pid")
}

pub async fn run_detached(name: &str, like: &Like) -> Result<()> {
    run(name, like, &[], &["sleep", "infinity"]).await
}

/// This very program's server in a container like the sandbox's. Answers its address on Docker's own bridge.
pub async fn run_server(name: &str, like: &Like, port: u16) -> Result<String> {
    let program = std::env::current_exe().context("find this program")?;
    let mount = format!("type=bind,source={},target=/atoll-bench,readonly", program.display());
    let port = port.to_string();
    run(name, like, &["--mount", &mount], &["/atoll-bench", "serve", "--port", &port]).await?;
    let address = docker(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", name]).await?;
    Ok(address.trim().to_owned())
}

async fn run(name: &str, like: &Like, options: &[&str], command: &[&str]) -> Result<()> {
    let limits = like.limits.as_arguments();
    let mut arguments = vec!["run", "--detach", "--name", name];
    arguments.extend(limits.iter().map(String::as_str));
    arguments.extend(options);
    arguments.push(&like.image);
    arguments.extend(command);
    docker(&arguments).await.map(drop)
}

pub async fn exec(name: &str) -> Result<()> {
    docker(&["exec", name, "true"]).await.map(drop)
}

pub async fn copy_in(name: &str, from: &Path, to: &str) -> Result<()> {
    docker(&["cp", &from.to_string_lossy(), &format!("{name}:{to}")]).await.map(drop)
}

pub async fn copy_out(name: &str, from: &str, to: &Path) -> Result<()> {
    docker(&["cp", &format!("{name}:{from}"), &to.to_string_lossy()]).await.map(drop)
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
    fn as_arguments(self) -> [String; 5] {
        [
            format!("--memory={}", self.memory_bytes),
            format!("--memory-swap={}", self.memory_bytes),
            format!("--shm-size={SHARED_MEMORY_BYTES}"),
            format!("--pids-limit={PIDS}"),
            format!("--cpus={}", self.cpus),
        ]
    }

    fn as_host_config(self) -> Value {
        json!({
            "Memory": self.memory_bytes,
            "MemorySwap": self.memory_bytes,
            "NanoCpus": u64::from(self.cpus) * 1_000_000_000,
            "PidsLimit": PIDS,
            "ShmSize": SHARED_MEMORY_BYTES,
        })
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

    pub async fn run_detached(&self, name: &str, like: &Like) -> Result<()> {
        let body = json!({
            "Image": like.image,
            "Cmd": ["sleep", "infinity"],
            "HostConfig": like.limits.as_host_config(),
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
    fn a_container_has_the_sandboxes_limits() {
        let sandbox = Sandbox { id: String::new(), owner: 0, cpu: 1, memory_gib: 2 };
        let limits = Like::sandbox("image", &sandbox).limits;

        let arguments = limits.as_arguments();
        let host_config = limits.as_host_config();

        assert_eq!(arguments[..2], ["--memory=2147483648", "--memory-swap=2147483648"]);
        assert_eq!(arguments[3..], ["--pids-limit=2048", "--cpus=1"]);
        assert_eq!(host_config["Memory"], 2_u64 << 30);
        assert_eq!(host_config["NanoCpus"], 1_000_000_000);
    }
}
