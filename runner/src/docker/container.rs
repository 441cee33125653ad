//! How a sandbox becomes a container: every limit and every mask is decided here. Pure.

use std::collections::HashMap;
use std::path::Path;

use atoll_api::daemon::{BINARY_PATH, MOUNT_DIR};
use atoll_api::sandbox::SandboxSpec;
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use crate::docker::host::HostFacts;
use crate::docker::{DockerConfig, LABEL_GENERATION, LABEL_NODE, LABEL_SANDBOX};
use crate::runtime::Incarnation;

/// What root inside a sandbox may do, beyond an ordinary user. Everything else is dropped; of Docker's own defaults
/// that is MKNOD (no device nodes), NET_RAW (no forged packets; ping works through ping_group_range) and SETFCAP.
const CAPABILITIES: [&str; 11] = [
    // Package managers unpack files of any owner into any folder and keep their modes.
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    // The daemon starts user processes as the sandbox's user and ends them; su, sudo and services do the same.
    "SETUID",
    "SETGID",
    "KILL",
    // Only to give capabilities up.
    "SETPCAP",
    // People run web servers on port 80.
    "NET_BIND_SERVICE",
    // apt and sshd confine themselves with chroot.
    "SYS_CHROOT",
    // sudo and su log to the audit system and fail where they may not.
    "AUDIT_WRITE",
];

/// Docker's own list (the newest, so that an older engine hides as much), and the host's serial numbers.
const MASKED_PATHS: [&str; 14] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/devices/virtual/dmi",
    "/sys/kernel/debug",
];

/// Sandboxes are killed for memory before the host's own processes are. The daemon raises its user processes further.
const OOM_SCORE_ADJ: i64 = 100;
/// `/dev/shm` (browsers need more than Docker's 64 MiB). Counts against the sandbox's memory.
const SHM_BYTES: i64 = 256 << 20;
const GIB: i64 = 1 << 30;

pub(crate) fn create_body(
    config: &DockerConfig,
    facts: &HostFacts,
    incarnation: Incarnation,
    spec: &SandboxSpec,
    image: String,
    mount_dir: &Path,
) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(image),
        hostname: Some(incarnation.sandbox_id.to_string()),
        // The first process is ours, so it is root whatever the image says. It starts the user's as `spec.user`.
        user: Some("0:0".to_owned()),
        // The image's, where the daemon looks what it is.
        working_dir: None,
        entrypoint: Some(vec![BINARY_PATH.to_owned()]),
        cmd: Some(Vec::new()),
        stop_signal: Some("SIGTERM".to_owned()),
        // The image's own would be run by the engine, as root and beside the sandbox's limits.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        labels: Some(HashMap::from([
            (LABEL_NODE.to_owned(), config.node_id.to_string()),
            (LABEL_SANDBOX.to_owned(), incarnation.sandbox_id.to_string()),
            (LABEL_GENERATION.to_owned(), incarnation.generation.to_string()),
        ])),
        host_config: Some(host_config(config, facts, spec, mount_dir)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(config: &DockerConfig, facts: &HostFacts, spec: &SandboxSpec, mount_dir: &Path) -> HostConfig {
    let memory_bytes = i64::from(spec.resources.memory_gib.max(1)) * GIB;
    // The engine refuses more CPUs than the host has; a promise above that is the node's overcommit.
    let cpus = i64::from(spec.resources.cpu).clamp(1, facts.cpus.max(1));
    HostConfig {
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
        // The default seccomp profile holds because none is named.
        security_opt: (!spec.allow_sudo).then(|| vec!["no-new-privileges".to_owned()]),
        masked_paths: Some(MASKED_PATHS.map(str::to_owned).to_vec()),

        memory: Some(memory_bytes),
        // Equal to memory: no swap.
        memory_swap: Some(memory_bytes),
        nano_cpus: facts.cpu_quota.then_some(cpus * 1_000_000_000),
        pids_limit: Some(i64::from(config.pids_max)),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        shm_size: Some(SHM_BYTES.min(memory_bytes / 2)),
        ulimits: Some(vec![ResourcesUlimits { name: Some("core".to_owned()), soft: Some(0), hard: Some(0) }]),
        storage_opt: facts
            .disk_quota
            .then(|| HashMap::from([("size".to_owned(), format!("{}G", spec.resources.disk_gib.max(1)))])),

        network_mode: Some(match spec.egress.block_all {
            true => "none".to_owned(),
            false => config.network.clone(),
        }),
        dns: (!config.nameservers.is_empty())
            .then(|| config.nameservers.iter().map(ToString::to_string).collect()),
        // Not `binds`: those make a missing folder, this refuses it.
        mounts: Some(vec![Mount {
            typ: Some(MountType::BIND),
            source: Some(mount_dir.to_string_lossy().into_owned()),
            target: Some(MOUNT_DIR.to_owned()),
            read_only: Some(true),
            ..Mount::default()
        }]),

        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            ..RestartPolicy::default()
        }),
        // The daemon is the first process and reaps.
        init: Some(false),
        // Only the daemon's own last words; users' output does not come here.
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "64k".to_owned()),
                ("max-file".to_owned(), "1".to_owned()),
            ])),
        }),
        ..HostConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use atoll_api::ids::{Generation, NodeId, RegionOrdinal, SandboxId};
    use atoll_api::sandbox::{Egress, Resources};

    use super::*;

    const FACTS: HostFacts = HostFacts { cpus: 2, cpu_quota: true, disk_quota: false };

    fn spec() -> SandboxSpec {
        SandboxSpec {
            snapshot: "s".into(),
            image: "i".into(),
            user: "daytona".into(),
            env: Default::default(),
            entrypoint: Vec::new(),
            resources: Resources { cpu: 4, memory_gib: 2, disk_gib: 10 },
            egress: Default::default(),
            allow_sudo: true,
        }
    }

    fn host_config_of(spec: &SandboxSpec, facts: &HostFacts) -> HostConfig {
        let incarnation = Incarnation {
            sandbox_id: SandboxId::new(RegionOrdinal::new(0).unwrap(), [1; 14]),
            generation: Generation(3),
        };
        let config = DockerConfig::for_node(NodeId(7));
        create_body(&config, facts, incarnation, spec, "i".into(), Path::new("/d/mount")).host_config.unwrap()
    }

    #[test]
    fn new_privileges_are_refused_unless_sudo_is_asked_for() {
        let with_sudo = host_config_of(&spec(), &FACTS);
        let without = host_config_of(&SandboxSpec { allow_sudo: false, ..spec() }, &FACTS);

        assert_eq!(with_sudo.security_opt, None);
        assert_eq!(without.security_opt, Some(vec!["no-new-privileges".to_owned()]));
    }

    #[test]
    fn a_blocked_network_is_none_at_all() {
        let blocked = host_config_of(
            &SandboxSpec { egress: Egress { block_all: true, ..Egress::default() }, ..spec() },
            &FACTS,
        );

        assert_eq!(blocked.network_mode.as_deref(), Some("none"));
        assert_eq!(host_config_of(&spec(), &FACTS).network_mode.as_deref(), Some("atoll-0000000000000007"));
    }

    #[test]
    fn more_cpus_than_the_host_has_are_not_asked_of_the_engine() {
        assert_eq!(host_config_of(&spec(), &FACTS).nano_cpus, Some(2_000_000_000));
    }

    #[test]
    fn limits_that_the_host_cannot_hold_are_left_out() {
        let poor = HostFacts { cpu_quota: false, ..FACTS };
        let rich = HostFacts { disk_quota: true, ..FACTS };

        assert_eq!(host_config_of(&spec(), &poor).nano_cpus, None);
        assert_eq!(host_config_of(&spec(), &FACTS).storage_opt, None);
        assert_eq!(host_config_of(&spec(), &rich).storage_opt.unwrap()["size"], "10G");
    }

    #[test]
    fn swap_is_off() {
        let config = host_config_of(&spec(), &FACTS);

        assert_eq!(config.memory, Some(2 << 30));
        assert_eq!(config.memory_swap, config.memory);
    }
}
