//! `ssh … true`, connect to exit: into a sandbox by the owner and by another node, against OpenSSH's own server on this host.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::Value;
use tokio::process::Command;

use crate::Effort;
use crate::background::{Background, until_listening};
use crate::cluster::{Cluster, good, remove};
use crate::measure::{Samples, timed};
use crate::ports;
use crate::report::Report;

const ROUNDS: usize = 30;
const WARM_UPS: usize = 2;
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

pub async fn measure(cluster: &Cluster, work_dir: &Path, effort: Effort, report: &mut Report) -> Result<()> {
    let sshd = Sshd::start(work_dir).await?;
    let sandbox = cluster.create(0).await?;
    let issue = cluster.api(sandbox.owner, Method::POST, &format!("/sandbox/{}/ssh-access", sandbox.id));
    let access: Value = serde_json::from_str(&good(issue).await?)?;
    let token = access["token"].as_str().context("the answer has no token")?;
    let login = |node: usize| -> Result<Login> {
        let (host, port) = cluster.nodes()[node].ssh.rsplit_once(':').context("an SSH address has a port")?;
        Ok(Login { port: port.to_owned(), destination: format!("{token}@{host}"), key: None })
    };
    let (by_owner, by_other) = (login(sandbox.owner)?, login(cluster.another_than(sandbox.owner))?);

    let (mut owner, mut other, mut reference) = (vec![], vec![], vec![]);
    for round in 0..WARM_UPS + effort.samples(ROUNDS) {
        let turns = [(&by_owner, &mut owner), (&sshd.login, &mut reference), (&by_other, &mut other)];
        for (login, samples) in turns {
            let (took, ()) = timed(login.run_true()).await?;
            if round >= WARM_UPS {
                samples.push(took);
            }
        }
    }
    remove(cluster, &sandbox).await?;

    let reference = Samples::of_latencies(reference)?;
    let name = "sshd on the host";
    report.compare(
        "ssh connect + `true`, through the owner",
        &Samples::of_latencies(owner)?,
        name,
        &reference,
    );
    report.compare(
        "ssh connect + `true`, through another node",
        &Samples::of_latencies(other)?,
        name,
        &reference,
    );
    report.note(
        "SSH: OpenSSH's client as a process, from its start to its end, on all sides. sshd: a throwaway one with an Ed25519 \
         key, without PAM, running `true` on the host and not in a container.",
    );
    Ok(())
}

struct Login {
    port: String,
    destination: String,
    key: Option<String>,
}

impl Login {
    async fn run_true(&self) -> Result<()> {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-p", &self.port]);
        for option in
            ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"]
        {
            command.args(["-o", option]);
        }
        if let Some(key) = &self.key {
            command.args(["-o", "IdentitiesOnly=yes", "-i", key]);
        }
        command.args([&self.destination, "true"]).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(ANSWER_DEADLINE, command.output()).await.context("ssh hangs")?;
        let output = output.context("run ssh")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ssh on port {}: {}", self.port, complaint.trim());
        Ok(())
    }
}

struct Sshd {
    login: Login,
    /// Before the folder, so that it ends before that goes.
    _server: Background,
    _dir: tempfile::TempDir,
}

impl Sshd {
    async fn start(work_dir: &Path) -> Result<Sshd> {
        let dir = tempfile::Builder::new().prefix("sshd-").tempdir_in(work_dir).context("make a folder")?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (host_key, user_key) = (path("host_key"), path("user_key"));
        for key in [&host_key, &user_key] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", key]).status();
            ensure!(made.await.context("run ssh-keygen")?.success(), "ssh-keygen failed");
        }
        let [port] = ports::free()?;
        let config = path("sshd_config");
        // Debian's bash reads ~/.bashrc in outermost SSH sessions; whatever is in there is no part of the comparison.
        let text = format!(
            "SetEnv SHLVL=2\nListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {user_key}.pub\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nMaxStartups 100\n"
        );
        std::fs::write(&config, text).context("write sshd's config")?;
        // Where sshd drops its privileges; Debian makes it when the service starts.
        std::fs::create_dir_all("/run/sshd").context("make /run/sshd")?;
        let mut command = std::process::Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f", &config]);
        let server = Background::start(command, "openssh-server", &dir.path().join("sshd.log"))?;
        until_listening("127.0.0.1", port).await?;
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        let login =
            Login { port: port.to_string(), destination: format!("{user}@127.0.0.1"), key: Some(user_key) };
        Ok(Sshd { login, _server: server, _dir: dir })
    }
}
