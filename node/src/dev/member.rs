//! One node of a throwaway cluster: its configuration, its two processes, and how they end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use atoll_certs::identity::NodeIdentity;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::process::{Child, Command};

use super::{LOOK_EVERY, PORTS_PER_NODE, own_program};
use crate::account::Account;
use crate::cli::{DevArgs, MakeConfigArgs};
use crate::config::{Capacity, Config};
use crate::place::Place;
use crate::{make_config, runner, runtimes};

const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Numbers that no distribution gives to anybody.
const FIRST_NODE_UID: u32 = 61_900;

pub(super) struct Member {
    pub(super) config: Config,
    pub(super) config_path: PathBuf,
    node: Option<Child>,
    runner: Option<Child>,
}

impl Member {
    pub(super) fn configure(args: &DevArgs, root: &Path, place: Place, index: usize) -> Result<Member> {
        let name = format!("n{}", index + 1);
        let data_dir = root.join(&name);
        ensure!(
            NodeIdentity::load(&data_dir.join("identity"))?.is_none(),
            "{} holds a node of an earlier run; remove it or choose another --data-dir",
            data_dir.display()
        );
        let number = u32::try_from(index).context("too many nodes")?;
        let make = MakeConfigArgs {
            name: Some(name),
            data_dir,
            address: args.address,
            base_port: args.base_port + index as u16 * PORTS_PER_NODE,
            image: args.image.clone(),
            cache_dir: args.cache_dir.clone(),
            runtime: args.runtime,
            preview_domain: crate::config::default_preview_domain(),
            node_user: geteuid().is_root().then(|| Account::of_uid(FIRST_NODE_UID + number)),
        };
        let region = &args.regions[index % args.regions.len()];
        let (mut config, config_path) = make_config::given_or_made(None, &make, region)?;
        // Whoever tries it out has their registry on this machine.
        config.runtime.private_registries = ["*".to_owned()].into();
        let number = u8::try_from(index).context("too many nodes")?;
        config.runtime.network = place.network_of(number).to_string();
        config.runtime.uid_base = place.uid_base_of(number);
        // Unpacked once for all nodes, and for the next cluster.
        config.runtime.layers_dir = Some(std::path::absolute(args.cache_dir.join("layers"))?);
        if let Some(count) = args.sandboxes_max {
            config.capacity = Capacity::for_default_sandboxes(count);
        }
        config.save(&config_path)?;
        Ok(Member { config, config_path, node: None, runner: None })
    }

    /// The folder comes first, so that the node can hold it open whenever it starts.
    pub(super) fn start_runner(&mut self) -> Result<()> {
        let state_dir = self.config.state_dir();
        let ids = self.config.runtime.node_user.as_ref().map(Account::ids).transpose()?;
        if let Some(ids) = ids {
            runner::make_state_dir(&state_dir, ids)?;
        } else {
            std::fs::create_dir_all(&state_dir)?;
        }
        let mut command = self.command(&["runner", "--remove-with-parent"], &self.runner_log())?;
        self.runner =
            Some(command.spawn().with_context(|| format!("start the runner of {}", self.config.name))?);
        Ok(())
    }

    /// With a join token the node joins first, with these arguments. The token travels in the environment: every user
    /// of the machine may read a command line.
    pub(super) fn start_node(&mut self, arguments: &[&str], join_token: Option<&str>) -> Result<()> {
        let verb = if join_token.is_some() { "join" } else { "start" };
        let mut command = self.command(&["node", verb], &self.node_log())?;
        command.args(arguments).envs(join_token.map(|token| ("ATOLL_JOIN_TOKEN", token)));
        self.node = Some(command.spawn().with_context(|| format!("start node {}", self.config.name))?);
        Ok(())
    }

    fn command(&self, verb: &[&str], log_path: &Path) -> Result<Command> {
        let log =
            std::fs::File::create(log_path).with_context(|| format!("create {}", log_path.display()))?;
        let mut command = Command::new(own_program()?);
        command
            .args(verb)
            .arg("--config")
            .arg(&self.config_path)
            .args(["--parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for `dev`, which then stops the nodes in order.
            .process_group(0);
        Ok(command)
    }

    fn node_log(&self) -> PathBuf {
        self.config.data_dir.join("node.log")
    }

    fn runner_log(&self) -> PathBuf {
        self.config.state_dir().join("runner.log")
    }

    pub(super) fn node_id_of_process(&self) -> Option<u32> {
        self.node.as_ref().and_then(Child::id)
    }

    /// What to tell the person when one of the two has ended while the cluster was to start.
    pub(super) fn ended_early(&mut self) -> Option<String> {
        let name = &self.config.name;
        let ended = |child: &mut Option<Child>| child.as_mut()?.try_wait().ok().flatten();
        if let Some(status) = ended(&mut self.node) {
            return Some(format!("node {name} ended with {status}:\n{}", self.log_tail()));
        }
        let status = ended(&mut self.runner)?;
        Some(format!("the runner of {name} ended with {status}:\n{}", tail(&self.runner_log())))
    }

    /// Says so once.
    pub(super) fn report_dead_runner(&mut self) {
        let Some(Ok(Some(status))) = self.runner.as_mut().map(Child::try_wait) else { return };
        self.runner = None;
        eprintln!(
            "the runner of {} ended with {status}; its sandboxes go on. Start it again with: {} runner --config {}",
            self.config.name,
            own_program().unwrap_or_else(|_| "atoll".into()).display(),
            self.config_path.display()
        );
    }

    pub(super) fn log_tail(&self) -> String {
        format!("{}\n--- its runner ---\n{}", tail(&self.node_log()), tail(&self.runner_log()))
    }

    /// The process that `dev` started, and the one in the pid file when somebody started the node again.
    pub(super) fn node_pids(&self) -> Vec<Pid> {
        self.pids(self.node.as_ref(), &self.config.layout().pid_file())
    }

    pub(super) fn runner_pids(&self) -> Vec<Pid> {
        self.pids(self.runner.as_ref(), &self.config.state_dir().join("runner.pid"))
    }

    fn pids(&self, child: Option<&Child>, pid_file: &Path) -> Vec<Pid> {
        let started = child.and_then(Child::id).and_then(|id| Pid::from_raw(id as i32));
        let noted = std::fs::read_to_string(pid_file)
            .ok()
            .and_then(|text| Pid::from_raw(text.trim().parse().ok()?))
            .filter(|pid| runs_config(*pid, &self.config_path));
        let mut pids: Vec<Pid> = started.into_iter().chain(noted).collect();
        pids.dedup();
        pids
    }

    /// By its runner, or by ourselves where none runs any more.
    pub(super) async fn remove_sandboxes(&self) -> Result<()> {
        let Ok(Some(identity)) = NodeIdentity::load(&self.config.layout().identity_dir()) else {
            return Ok(());
        };
        let removed = match self.runner_pids().iter().any(|pid| is_alive(*pid)) {
            true => runner::teardown(&*runner::remote(&self.config)).await,
            false => {
                let runtime = runtimes::open(&self.config, identity.node_id())?;
                runner::teardown(&*runtime).await
            }
        };
        removed.with_context(|| format!("remove the sandboxes of {}", self.config.name))
    }

    fn reap(&mut self) {
        for child in [&mut self.node, &mut self.runner].into_iter().flatten() {
            let _ = child.try_wait();
        }
    }
}

/// SIGTERM to these processes of every node, and SIGKILL when that does not help.
pub(super) async fn stop(nodes: &mut [Member], which: fn(&Member) -> Vec<Pid>) {
    let running: Vec<Pid> = nodes.iter().flat_map(which).collect();
    for signal in [Signal::TERM, Signal::KILL] {
        let deadline = Instant::now() + STOP_DEADLINE;
        for pid in running.iter().filter(|pid| is_alive(**pid)) {
            let _ = kill_process(*pid, signal);
        }
        while running.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
            // Our own children must be reaped, or they stay as zombies.
            nodes.iter_mut().for_each(Member::reap);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Whether the process is one of ours: a pid file may outlive its process, and the pid be somebody else's.
fn runs_config(pid: Pid, config_path: &Path) -> bool {
    let command_line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let wanted = config_path.as_os_str().as_encoded_bytes();
    command_line.split(|byte| *byte == 0).any(|argument| argument == wanted)
}

/// Not gone, and not a zombie that whoever started it has yet to reap.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn tail(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
