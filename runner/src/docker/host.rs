//! What this host's engine and kernel can hold, and what an operator must know about it.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use bollard::models::SystemInfo;

use crate::docker::DockerConfig;
use crate::docker::engine::{Engine, RequestError};
use crate::docker::firewall::Firewall;
use crate::runtime::{Finding, RuntimeError};

/// Engine 20.10.
const API_VERSION_MIN: (usize, usize) = (1, 41);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFacts {
    pub(crate) cpus: i64,
    /// The kernel can limit CPU time.
    pub(crate) cpu_quota: bool,
    /// The storage driver can limit a container's disk.
    pub(crate) disk_quota: bool,
}

impl HostFacts {
    pub(crate) async fn read(engine: &Engine) -> Result<HostFacts, RuntimeError> {
        let info = system_info(engine).await?;
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Ok(HostFacts {
            cpus: info.ncpu.unwrap_or(1),
            cpu_quota: info.cpu_cfs_quota == Some(true),
            disk_quota: disk_quota(&info, &mounts),
        })
    }
}

async fn system_info(engine: &Engine) -> Result<SystemInfo, RuntimeError> {
    engine
        .request(|docker| async move { docker.info().await })
        .await
        .map_err(|error| error.on_host("describe its host"))
}

/// Without it, frames between two sandboxes on one bridge never meet the firewall.
pub(crate) fn require_bridge_filtering() -> Result<(), RuntimeError> {
    match fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables") {
        Ok(value) if value.trim() == "1" => Ok(()),
        _ => Err(RuntimeError::Host(
            "the kernel does not filter between the ports of a bridge, so sandboxes could reach each other: \
             `modprobe br_netfilter && sysctl net.bridge.bridge-nf-call-iptables=1`"
                .into(),
        )),
    }
}

pub(crate) async fn check(
    config: &DockerConfig,
    engine: &Engine,
    firewall: &Firewall,
) -> Result<Vec<Finding>, RuntimeError> {
    let mut lines = Vec::new();
    if !rustix::process::geteuid().is_root() {
        lines.push("the runner does not run as root, which it needs to own sandboxes".to_owned());
    }
    lines.extend(firewall.probe().await.err().map(|error| error.to_string()));
    // Docker loads the module itself when it makes the first such network.
    if Path::new("/proc/sys/net/bridge").exists() {
        lines.extend(require_bridge_filtering().err().map(|error| error.to_string()));
    }
    let info = match system_info(engine).await {
        Ok(info) => info,
        Err(error) => {
            lines.push(error.to_string());
            return Ok(lines.into_iter().map(Finding::Fault).collect());
        }
    };

    let version = engine.client().await?.client_version();
    if (version.major_version, version.minor_version) < API_VERSION_MIN {
        lines.push(format!(
            "Docker Engine {} is too old: 20.10 or newer is needed",
            info.server_version.as_deref().unwrap_or("of unknown version")
        ));
    }
    for image in &config.images {
        match engine.request(|docker| async move { docker.inspect_image(image).await }).await {
            Ok(_) => {}
            Err(RequestError::NotFound(_)) => lines.push(format!(
                "the image {image} is not on this node: build or load it (`docker load`, or deploy/base/build.sh while Docker runs)"
            )),
            Err(error) => lines.push(error.on_host("look for an image").to_string()),
        }
    }
    lines.extend(limit_lines(&info));
    lines.extend(disk_line(config, &info));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut limitations = Vec::new();
    if !disk_quota(&info, &mounts) {
        limitations.push(format!(
            "sandboxes' disk size is not enforced: storage driver {} has no quota here (overlay2 on xfs mounted with \
             pquota has)",
            info.driver.as_deref().unwrap_or("unknown")
        ));
    }
    if config.nameservers.is_empty() {
        let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        lines.extend(nameserver_lines(&resolv_conf, is_of_this_host));
    }
    let faults = lines.into_iter().map(Finding::Fault);
    Ok(faults.chain(limitations.into_iter().map(Finding::Limitation)).collect())
}

fn limit_lines(info: &SystemInfo) -> Vec<String> {
    let mut lines = Vec::new();
    let limits = [
        (info.memory_limit, "memory"),
        (info.swap_limit, "swap"),
        (info.pids_limit, "process"),
        (info.cpu_cfs_quota, "CPU"),
    ];
    for (supported, name) in limits {
        if supported == Some(false) {
            lines.push(format!(
                "sandboxes' {name} limits are not enforced: the kernel has no such cgroup controller"
            ));
        }
    }
    let options = info.security_options.clone().unwrap_or_default();
    if !options.iter().any(|option| option.contains("name=seccomp")) {
        lines.push("Docker runs without seccomp: sandboxes may make every system call".to_owned());
    }
    for mode in ["userns", "rootless"] {
        if options.iter().any(|option| option.contains(&format!("name={mode}"))) {
            lines.push(format!(
                "Docker's {mode} mode is not supported: sandboxes cannot read what the node mounts"
            ));
        }
    }
    lines
}

fn disk_line(config: &DockerConfig, info: &SystemInfo) -> Option<String> {
    let root = info.docker_root_dir.as_deref()?;
    let stat = rustix::fs::statvfs(root).ok()?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    (free_bytes < config.disk_free_bytes_min).then(|| {
        format!(
            "only {} MiB are free on the disk of {root}, less than {} MiB: free some space (`docker system df`)",
            free_bytes >> 20,
            config.disk_free_bytes_min >> 20
        )
    })
}

/// As Docker's documentation of `--storage-opt` has it.
fn disk_quota(info: &SystemInfo, mounts: &str) -> bool {
    match info.driver.as_deref() {
        Some("btrfs" | "zfs" | "devicemapper") => true,
        Some("overlay2") => {
            let root = Path::new(info.docker_root_dir.as_deref().unwrap_or("/var/lib/docker"));
            let holding = mounts
                .lines()
                .filter_map(|line| {
                    let mut words = line.split(' ').skip(1);
                    Some((words.next()?, words.next()?, words.next()?))
                })
                .filter(|(at, _, _)| root.starts_with(at))
                .max_by_key(|(at, _, _)| at.len());
            holding.is_some_and(|(_, kind, options)| {
                kind == "xfs" && options.split(',').any(|option| matches!(option, "pquota" | "prjquota"))
            })
        }
        _ => false,
    }
}

/// A nameserver that the rules cut off. Docker itself replaces loopback ones.
fn nameserver_lines(resolv_conf: &str, is_of_this_host: impl Fn(IpAddr) -> bool) -> Vec<String> {
    let servers = resolv_conf
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|server| !server.is_loopback());
    servers
        .filter(|server| {
            matches!(server, IpAddr::V4(v4) if v4.is_link_local()) || is_of_this_host(*server)
        })
        .map(|server| {
            format!(
                "sandboxes cannot reach the host's nameserver {server}, which is link-local or the host itself: \
                 configure other nameservers for them"
            )
        })
        .collect()
}

fn is_of_this_host(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(root: &str) -> SystemInfo {
        SystemInfo {
            driver: Some("overlay2".into()),
            docker_root_dir: Some(root.into()),
            ..SystemInfo::default()
        }
    }

    #[test]
    fn overlay_has_a_quota_only_on_xfs_with_project_quotas() {
        let mounts =
            "/dev/a / ext4 rw 0 0\n/dev/b /var/lib/docker xfs rw,prjquota 0 0\n/dev/c /srv xfs rw 0 0\n";

        assert!(disk_quota(&overlay("/var/lib/docker"), mounts));
        assert!(!disk_quota(&overlay("/srv/docker"), mounts));
        assert!(!disk_quota(&overlay("/opt/docker"), mounts));
        assert!(!disk_quota(&overlay("/var/lib/dockerx"), mounts));
    }

    #[test]
    fn a_nameserver_behind_the_walls_is_named() {
        let conf = "# x\nnameserver 169.254.169.254\nnameserver 10.0.0.1\nnameserver 127.0.0.53\nnameserver 9.9.9.9\n";

        let lines = nameserver_lines(conf, |address| address == IpAddr::from([10, 0, 0, 1]));

        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("169.254.169.254") && lines[1].contains("10.0.0.1"));
    }

    #[test]
    fn a_missing_limit_is_named() {
        let info = SystemInfo { pids_limit: Some(false), ..SystemInfo::default() };

        let lines = limit_lines(&info);

        assert!(lines.iter().any(|line| line.contains("process limits are not enforced")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("seccomp")), "{lines:?}");
    }
}
