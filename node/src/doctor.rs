//! `atoll doctor`: looks at this machine and says what is missing and what to do, one line each.

use std::process::ExitCode;

use anyhow::Result;
use atoll_api::ids::NodeId;
use atoll_runner::{Finding, Runtime};

use crate::cli::DoctorArgs;
use crate::config::{Config, RuntimeConfig};
use crate::{runner, runtimes};

/// For logs and snapshots of the state.
const DATA_DISK_FREE_GIB_MIN: u32 = 1;
/// UDP buffers below this cost throughput between nodes on fast links.
const UDP_BUFFER_BYTES_MIN: u64 = 2 * 1024 * 1024;

pub async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let mut findings = match &config {
        Some(config) => of_node(config).await,
        None => here(&RuntimeConfig { image: args.image, ..RuntimeConfig::default() }).await,
    };
    if let Some(config) = &config {
        let free_gib = config.free_disk_gib();
        if free_gib < DATA_DISK_FREE_GIB_MIN {
            findings.push(Finding::Fault(format!(
                "{} has {free_gib} GiB left, and the log needs room: free {DATA_DISK_FREE_GIB_MIN} GiB at least",
                config.data_dir.display()
            )));
        }
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
            let mut findings = here(&config.runtime).await;
            findings.push(Finding::Fault(error.to_string()));
            findings
        }
    }
}

async fn here(config: &RuntimeConfig) -> Vec<Finding> {
    let checked = match runtimes::open_kind(config, NodeId(0)) {
        Ok(runtime) => runtime.check().await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    checked.unwrap_or_else(|error| vec![Finding::Fault(format!("{error:#}"))])
}
