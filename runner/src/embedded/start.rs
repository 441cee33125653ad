//! From a made sandbox to its daemon's first instruction.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use atoll_api::daemon::BINARY_PATH;
use atoll_api::sandbox::SandboxSpec;

use super::cgroup::Limits;
use super::disk::fs_dir;
use super::home::Home;
use super::init::{CONFIG_FD, HELLO_FD};
use super::live::Live;
use super::maker::{BecomeError, ParkedInit};
use super::messages::Become;
use super::mounts;
use super::node_files::{NodeFiles, write_etc};
use super::record::{Record, Run, process_started_at};
use super::runtime::host;
use super::sandbox::Sandbox;
use super::timings::StartTimings;
use crate::handle::blocking;
use crate::image::Image;
use crate::runtime::{Incarnation, RuntimeError};

const GIB: u64 = 1 << 30;
/// `/dev/shm` (browsers need more than Docker's 64 MiB). Counts against the sandbox's memory.
const SHM_BYTES: u64 = 256 << 20;
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The caller holds the sandbox's verb lock, and watches what is returned.
pub(super) async fn start(
    home: &Arc<Home>,
    sandbox: &Arc<Sandbox>,
    incarnation: Incarnation,
) -> Result<Arc<Live>, RuntimeError> {
    let began = Instant::now();
    let init = home.pool.claim().await?;
    let claim_us = micros(began);
    // Before anything of the sandbox runs.
    let step = Instant::now();
    if let Err(error) = home.network.set_egress(init.slot, &sandbox.record().spec.egress).await {
        home.pool.discard(init).await;
        return Err(error);
    }
    let egress_us = micros(step);
    let (blocking_home, blocking_sandbox) = (home.clone(), sandbox.clone());
    let settled = blocking(move || {
        let (home, sandbox) = (blocking_home, blocking_sandbox);
        let mut timings = StartTimings {
            create_us: sandbox.made_in_us,
            claim_us,
            egress_us,
            clone_us: init.timings.clone_us,
            cgroup_us: init.timings.cgroup_us,
            furnish_us: init.timings.furnish_us,
            network_us: init.timings.network_us,
            ..StartTimings::default()
        };
        let record = sandbox.record();
        if let Err(error) = settle(&home, &sandbox, incarnation, &record, &init, &mut timings) {
            return Ok(Err((init, error)));
        }
        timings.total_us = micros(began);
        home.timings.note(timings);
        tracing::debug!(sandbox_id = %incarnation.sandbox_id, ?timings, "started");
        begun(&sandbox, init).map(Ok)
    });
    match settled.await? {
        Ok(live) => Ok(live),
        Err((init, error)) => {
            home.pool.discard(init).await;
            Err(error)
        }
    }
}

/// Everything between a parked init and a running daemon. Blocks for some milliseconds.
fn settle(
    home: &Home,
    sandbox: &Sandbox,
    incarnation: Incarnation,
    record: &Record,
    init: &ParkedInit,
    timings: &mut StartTimings,
) -> Result<(), RuntimeError> {
    let step = Instant::now();
    init.cgroup.limit(&limits(home, &record.spec)).map_err(host("limit a sandbox"))?;
    timings.limit_us = micros(step);

    let step = Instant::now();
    home.disks.mount(&sandbox.dir).map_err(host("mount a sandbox's disk"))?;
    let hostname = incarnation.sandbox_id.to_string();
    let fs = fs_dir(&sandbox.dir);
    write_etc(&fs.join("etc"), &hostname, init.address, &home.nameservers())
        .map_err(host("write a sandbox's /etc"))?;
    timings.disk_us = micros(step);

    let step = Instant::now();
    let layers = home.layers_of(&record.image)?;
    let user_namespace = init.user_namespace.as_fd();
    let root = home
        .mounter
        .root(&layers, &fs, user_namespace, init.root_id)
        .map_err(host("stack a sandbox's layers"))?;
    let etc = mounts::shifted(&fs.join("etc"), 0, user_namespace).map_err(host("mount a sandbox's /etc"))?;
    let program_dir = mounts::read_only(&home.daemon_dir).map_err(host("mount the daemon"))?;
    timings.mount_us = micros(step);

    let step = Instant::now();
    let NodeFiles { config, hello } = NodeFiles::open(&record.mount_dir)?;
    let words = last_words().map_err(host("make a sandbox's log"))?;
    let wish = Become {
        hostname,
        env: environment(&record.image),
        program: BINARY_PATH.into(),
        arguments: [
            "atoll-daemon",
            "--config",
            &format!("fd:{CONFIG_FD}"),
            "--hello",
            &format!("fd:{HELLO_FD}"),
        ]
        .map(str::to_owned)
        .to_vec(),
        work_dir: record.image.config.work_dir.clone(),
        // Also where nothing in the image could use them.
        no_new_privileges: !record.spec.allow_sudo || !home.layers.has_sudo(&record.image)?,
        shared_memory_bytes: SHM_BYTES.min(memory_bytes(&record.spec) / 2),
    };
    let fds = [&root, &program_dir, &etc, &words, &config, &hello].map(|fd| fd.as_fd());
    init.become_sandbox(&wish, fds).map_err(|error| match error {
        BecomeError::Image(reason) => RuntimeError::Spec(reason),
        BecomeError::Host(reason) => RuntimeError::Host(reason),
    })?;
    timings.exec_us = micros(step);
    Ok(())
}

fn begun(sandbox: &Sandbox, init: ParkedInit) -> Result<Arc<Live>, RuntimeError> {
    let started_at = process_started_at(init.pid).unwrap_or_default();
    let run = Run { slot: init.slot, pid: init.pid, started_at };
    let ParkedInit { pidfd, cgroup, network_namespace, .. } = init;
    let live = Arc::new(Live::new(run, pidfd, cgroup, network_namespace).map_err(host("watch a sandbox"))?);
    let noted = sandbox.has_begun(live.clone());
    if let Err(error) = noted {
        // Nobody could adopt it, and its watcher gives back what it holds.
        live.signal(rustix::process::Signal::KILL);
        tracing::error!(%error, "cannot note that a sandbox runs");
    }
    Ok(live)
}

fn limits(home: &Home, spec: &SandboxSpec) -> Limits {
    Limits {
        memory_bytes: memory_bytes(spec),
        // A promise above what the host has is the node's overcommit.
        cpus: spec.resources.cpu.clamp(1, home.cpus),
        pids: home.config.pids_max,
    }
}

fn memory_bytes(spec: &SandboxSpec) -> u64 {
    u64::from(spec.resources.memory_gib.max(1)) * GIB
}

/// Of the daemon; user processes get it too.
fn environment(image: &Image) -> Vec<String> {
    let mut env = image.config.env.clone();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    env
}

/// Standard error of the daemon: memory of a fixed size, so that nothing inside can fill the host's disk through it.
fn last_words() -> std::io::Result<OwnedFd> {
    const BYTES: u64 = 64 * 1024;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let words = memfd_create("atoll-daemon.log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&words, BYTES)?;
    fcntl_add_seals(&words, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(words)
}

pub(super) fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}
