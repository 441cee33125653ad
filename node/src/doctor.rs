//! `atoll doctor`: looks at this machine and says what is missing and what to do, one line each.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::Result;
use atoll_api::ids::NodeId;
use atoll_runner::{Finding, Runtime};

use crate::cli::DoctorArgs;
use crate::config::{
    Advertise, Capacity, Config, Listen, RuntimeConfig, RuntimeKind, Timing, base_layout,
    default_preview_domain, default_snapshot,
};
use crate::{runner, runtimes};

/// For logs and snapshots of the state.
const DATA_DISK_FREE_GIB_MIN: u32 = 1;
/// UDP buffers below this cost throughput between nodes on fast links.
const UDP_BUFFER_BYTES_MIN: u64 = 2 * 1024 * 1024;

pub async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let config = match &args.config {
        Some(path) => Config::load(path)?,
        None => config_without_node(&args),
    };
    let mut findings = match args.config {
        Some(_) => of_node(&config).await,
        None => here(&config).await,
    };
    findings.extend(base_image(&config.runtime));
    let free_gib = config.free_disk_gib();
    if args.config.is_some() && free_gib < DATA_DISK_FREE_GIB_MIN {
        findings.push(Finding::Fault(format!(
            "{} has {free_gib} GiB left, and the log needs room: free {DATA_DISK_FREE_GIB_MIN} GiB at least",
            config.data_dir.display()
        )));
    }
    for name in ["rmem_max", "wmem_max"] {
        let bytes = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap_or_default();
        if bytes.trim().parse::<u64>().is_ok_and(|bytes| bytes < UDP_BUFFER_BYTES_MIN) {
            findings.push(Finding::Limitation(format!(
                "UDP buffers are small, which slows the mesh on fast links: sysctl -w net.core.{name}={UDP_BUFFER_BYTES_MIN}"
            )));
        }
    }
    let mut faults = 0;
    for finding in &findings {
        match finding {
            Finding::Fault(line) => {
                faults += 1;
                println!("wrong   {line}");
            }
            Finding::Limitation(line) => println!("note    {line}"),
        }
    }
    if faults > 0 {
        return Ok(ExitCode::FAILURE);
    }
    println!("ok      this machine can run sandboxes");
    Ok(ExitCode::SUCCESS)
}

/// What the node's runner says, which knows its own privileges; where none runs, what this process would be able to do.
async fn of_node(config: &Config) -> Vec<Finding> {
    match runner::remote(config).check().await {
        Ok(findings) => findings,
        Err(error) => {
            let mut findings = here(config).await;
            findings.push(Finding::Fault(error.to_string()));
            findings
        }
    }
}

fn config_without_node(args: &DoctorArgs) -> Config {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let runtime = RuntimeConfig {
        kind: args.runtime,
        image: args.image.clone(),
        seeds: vec![base_layout(&args.cache_dir)],
        ..RuntimeConfig::default()
    };
    Config {
        name: "doctor".into(),
        region: "none".parse().expect("a region's name"),
        zone: None,
        data_dir: std::env::temp_dir(),
        listen: Listen { http: nowhere, https: None, ssh: nowhere, mesh: nowhere },
        advertise: Advertise::default(),
        preview_domain: default_preview_domain(),
        default_snapshot: default_snapshot(),
        runtime,
        capacity: Capacity::default(),
        timing: Timing::default(),
    }
}

/// With folders that go again, and a node's id that is nobody's.
async fn here(config: &Config) -> Vec<Finding> {
    let checked = async {
        let scratch = tempfile::Builder::new().prefix("atoll-doctor-").tempdir()?;
        let (state_dir, layers_dir) = (scratch.path().join("state"), scratch.path().join("layers"));
        let runtime = runtimes::open_in(state_dir, layers_dir, config, NodeId(rand::random()))?;
        let findings = runtime.check().await;
        runner::teardown(&*runtime).await?;
        Ok::<_, anyhow::Error>(findings?)
    };
    checked.await.unwrap_or_else(|error| vec![Finding::Fault(format!("{error:#}"))])
}

/// Docker has its images itself, and says so if it lacks one.
fn base_image(config: &RuntimeConfig) -> Option<Finding> {
    let is_there = config.kind == RuntimeKind::Docker
        || config.seeds.iter().any(|seed| seed.join("index.json").exists());
    (!is_there).then(|| {
        let seeds: Vec<String> = config.seeds.iter().map(|seed| seed.display().to_string()).collect();
        Finding::Fault(format!(
            "the base snapshot is not at {}: make it with deploy/base/build.sh, or let runtime.seeds name its folder",
            seeds.join(" or ")
        ))
    })
}
