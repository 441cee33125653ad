//! `atoll doctor`: looks at this machine and says what is missing and what to do, one line each.

use std::process::ExitCode;

use anyhow::Result;
use atoll_api::ids::NodeId;
use atoll_runner::Runtime;

use crate::cli::DoctorArgs;
use crate::config::Config;
use crate::runtimes;

/// For logs and snapshots of the state.
const DATA_DISK_FREE_GIB_MIN: u32 = 1;
/// UDP buffers below this cost throughput between nodes on fast links.
const UDP_BUFFER_BYTES_MIN: u64 = 2 * 1024 * 1024;

pub async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let image = config.as_ref().map_or(args.image, |config| config.runtime.image.clone());
    let mut wrong = docker(image).await;
    let mut advice = Vec::new();
    if rustix::process::geteuid().as_raw() != 0 {
        wrong.push("not root: sandboxes' network namespaces cannot be entered; run atoll as root".to_owned());
    }
    if let Some(config) = &config {
        let free_gib = config.free_disk_gib();
        if free_gib < DATA_DISK_FREE_GIB_MIN {
            wrong.push(format!(
                "{} has {free_gib} GiB left, and the log needs room: free some, {DATA_DISK_FREE_GIB_MIN} GiB at least",
                config.data_dir.display()
            ));
        }
    }
    for name in ["rmem_max", "wmem_max"] {
        let bytes = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap_or_default();
        if bytes.trim().parse::<u64>().is_ok_and(|bytes| bytes < UDP_BUFFER_BYTES_MIN) {
            advice.push(format!("UDP buffers are small: sysctl -w net.core.{name}={UDP_BUFFER_BYTES_MIN}"));
        }
    }
    for line in &wrong {
        println!("wrong   {line}");
    }
    for line in &advice {
        println!("advice  {line}");
    }
    if wrong.is_empty() {
        println!("ok      this machine can run sandboxes");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

async fn docker(image: String) -> Vec<String> {
    let checked = match runtimes::docker(NodeId(0), &image) {
        Ok(runtime) => runtime.check().await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    checked.unwrap_or_else(|error| vec![format!("{error:#}")])
}
