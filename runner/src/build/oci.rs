//! An image's OCI configuration: what a stage's looks like as JSON, and what one of a base says.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::plan::StageConfig;
use super::program::host_architecture;
use crate::image::{ImageConfig, Layer};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exposed_ports: Option<BTreeMap<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<BTreeMap<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    /// Docker's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    shell: Option<Vec<String>>,
    #[serde(skip_serializing)]
    on_build: Option<Vec<String>>,
}

/// `created` is RFC 3339, or absent: then the same build gives the same image.
pub fn config_json(config: &StageConfig, layers: &[Layer]) -> Vec<u8> {
    let list = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
    let set = |names: &BTreeSet<String>| {
        (!names.is_empty()).then(|| names.iter().map(|name| (name.clone(), json!({}))).collect())
    };
    let image = &config.image;
    let written = Config {
        user: image.user.clone(),
        exposed_ports: set(&config.exposed_ports),
        env: list(&image.env),
        entrypoint: list(&image.entrypoint),
        cmd: list(&image.cmd),
        volumes: set(&config.volumes),
        working_dir: image.work_dir.clone(),
        labels: (!image.labels.is_empty()).then(|| image.labels.clone()),
        stop_signal: config.stop_signal.clone(),
        shell: list(&config.shell),
        on_build: None,
    };
    let document = json!({
        "architecture": host_architecture(),
        "os": "linux",
        "config": written,
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>() },
    });
    document.to_string().into_bytes()
}

/// What a base's configuration says. An image that wants to run commands in who builds on it is refused.
pub fn read_config(document: &[u8]) -> Result<StageConfig, String> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        config: Option<Config>,
    }
    let document: Document = serde_json::from_slice(document)
        .map_err(|error| format!("the base image's configuration cannot be read: {error}"))?;
    let config = document.config.unwrap_or_default();
    if config.on_build.is_some_and(|triggers| !triggers.is_empty()) {
        return Err("the base image has ONBUILD instructions, which are not supported".into());
    }
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let names = |map: Option<BTreeMap<String, Value>>| map.unwrap_or_default().into_keys().collect();
    Ok(StageConfig {
        image: ImageConfig {
            env: config.env.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            work_dir: text(config.working_dir),
            user: text(config.user),
            labels: config.labels.unwrap_or_default(),
        },
        exposed_ports: names(config.exposed_ports),
        volumes: names(config.volumes),
        stop_signal: text(config.stop_signal),
        shell: config.shell.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let config = StageConfig {
            image: ImageConfig {
                env: vec!["A=b".into()],
                entrypoint: vec!["e".into()],
                cmd: vec!["c".into()],
                work_dir: Some("/w".into()),
                user: Some("u".into()),
                labels: BTreeMap::from([("l".into(), "v".into())]),
            },
            exposed_ports: BTreeSet::from(["80/tcp".into()]),
            volumes: BTreeSet::from(["/v".into()]),
            stop_signal: Some("SIGQUIT".into()),
            shell: vec!["/bin/bash".into(), "-c".into()],
        };

        assert_eq!(read_config(&config_json(&config, &[])), Ok(config));
        assert_eq!(read_config(&config_json(&StageConfig::default(), &[])), Ok(StageConfig::default()));
        assert_eq!(read_config(br#"{"config":{"Env":null,"User":""}}"#), Ok(StageConfig::default()));
        assert!(read_config(br#"{"config":{"OnBuild":["RUN x"]}}"#).is_err());
    }
}
