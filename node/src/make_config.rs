//! A configuration file from a few options, for those who have none yet.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use atoll_api::ids::RegionName;

use crate::cli::MakeConfigArgs;
use crate::config::{Advertise, Capacity, Config, Listen, RuntimeConfig, Timing, default_snapshot, layouts};
use crate::files::private_dir;
use crate::place::Place;

/// The given file, whose region must be the one asked for, or a new one inside the data folder.
pub fn given_or_made(
    given: Option<&Path>,
    make: &MakeConfigArgs,
    region: &RegionName,
) -> Result<(Config, PathBuf)> {
    if let Some(path) = given {
        let config = Config::load(path)?;
        ensure!(
            config.region == *region,
            "--region is {region}, but {} says {}",
            path.display(),
            config.region
        );
        return Ok((config, path.to_owned()));
    }
    if make.base_port > u16::MAX - 3 {
        bail!("--base-port must leave room for three more ports");
    }
    let data_dir = std::path::absolute(&make.data_dir).context("make --data-dir absolute")?;
    private_dir(&data_dir).with_context(|| format!("create {}", data_dir.display()))?;
    let place = Place::free(make.base_port)?;
    let config = Config {
        name: make.name.clone().unwrap_or_else(host_name),
        region: region.clone(),
        zone: None,
        data_dir: data_dir.clone(),
        listen: Listen {
            http: make.socket(0),
            https: Some(make.socket(1)),
            ssh: make.socket(2),
            mesh: make.socket(3),
        },
        advertise: Advertise::default(),
        preview_domain: make.preview_domain.clone(),
        default_snapshot: default_snapshot(),
        runtime: RuntimeConfig {
            kind: make.runtime,
            image: make.image.clone(),
            node_user: make.node_user.clone(),
            network: place.network_of(0).to_string(),
            uid_base: place.uid_base_of(0),
            seeds: layouts(&std::path::absolute(&make.cache_dir).context("make --cache-dir absolute")?),
            ..RuntimeConfig::default()
        },
        capacity: Capacity::default(),
        timing: Timing::default(),
    };
    config.check()?;
    let path = data_dir.join("node.toml");
    config.save(&path)?;
    Ok((config, path))
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "node".into() } else { name }
}
