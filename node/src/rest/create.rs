//! Judges the body of a create. What passes needs no further check of form; whether there is room, control says.

use std::collections::BTreeMap;

use atoll_api::egress;
use atoll_api::rest::{CreateBuildInfo, CreateSandbox as Asked};
use atoll_api::sandbox::Egress;

use super::errors::ApiError;
use super::input::{NAME_CHARS_MAX, within};
use crate::control::verb::{BuildWish, CreateSandbox, SandboxReference};
use crate::objects::ContextHash;

pub(super) const CPU_MAX: u32 = 256;
pub(super) const MEMORY_GIB_MAX: u32 = 4_096;
pub(super) const DISK_GIB_MAX: u32 = 65_536;
/// A year.
pub(super) const INTERVAL_MINUTES_MAX: i64 = 525_600;
/// Thirty days; also what an interval of 0 stands for.
pub(super) const AUTO_ARCHIVE_MINUTES_MAX: u32 = 43_200;
/// What Linux takes for an environment and arguments together is 128 KiB at the least; half is left to programs.
const ENV_BYTES_MAX: usize = 64 * 1024;
const ENV_KEY_CHARS_MAX: usize = 256;
const LABELS_MAX: usize = 64;
const LABEL_KEY_CHARS_MAX: usize = 256;
const LABEL_VALUE_CHARS_MAX: usize = 1_024;
const USER_CHARS_MAX: usize = 32;
/// It is part of a decision in the log.
const DOCKERFILE_BYTES_MAX: usize = 128 * 1024;
const CONTEXTS_MAX: usize = 64;

pub(super) fn parse(asked: Asked) -> Result<CreateSandbox, ApiError> {
    refuse_unsupported(&asked)?;
    let Asked {
        name,
        snapshot,
        user,
        env,
        labels,
        public,
        network_block_all,
        network_allow_list,
        domain_allow_list,
        target,
        cpu,
        memory,
        disk,
        auto_stop_interval,
        auto_pause_interval,
        auto_archive_interval,
        auto_delete_interval,
        queue_timeout,
        build_info,
        ..
    } = asked;
    let build = build_info.map(build_wish).transpose()?;
    if build.is_some() && given(snapshot.clone()).is_some() {
        return Err(ApiError::Invalid("give snapshot or buildInfo, not both".to_owned()));
    }
    if let Some(minutes) = queue_timeout {
        within("queueTimeout", minutes, 1..=INTERVAL_MINUTES_MAX)?;
    }
    let resource = |name, value: Option<i64>, max: u32| {
        let checked = value.map(|value| within(name, value, 1..=i64::from(max))).transpose()?;
        Ok::<_, ApiError>(checked.map(|value| u32::try_from(value).expect("the range is below 2^32")))
    };
    Ok(CreateSandbox {
        name: given(name).map(sandbox_name).transpose()?,
        snapshot: given(snapshot).map(snapshot_name).transpose()?,
        build,
        user: given(user).map(user_name).transpose()?,
        env: environment(env.unwrap_or_default())?,
        labels: self::labels(labels.unwrap_or_default())?,
        public: public.unwrap_or_default(),
        egress: egress::Change {
            block_all: network_block_all,
            networks: network_allow_list.as_deref(),
            domains: domain_allow_list.as_deref(),
        }
        .applied_to(&Egress::default())
        .map_err(|error| ApiError::Invalid(error.to_string()))?,
        target: given(target)
            .map(|region| region.parse().map_err(|error| ApiError::Invalid(format!("target: {error}"))))
            .transpose()?,
        cpu: resource("cpu", cpu, CPU_MAX)?,
        memory_gib: resource("memory", memory, MEMORY_GIB_MAX)?,
        disk_gib: resource("disk", disk, DISK_GIB_MAX)?,
        auto_stop_minutes: auto_stop_interval.map(auto_stop).transpose()?,
        auto_pause_minutes: auto_pause_interval.map(auto_pause).transpose()?,
        auto_archive_minutes: auto_archive_interval.map(auto_archive).transpose()?,
        auto_delete_minutes: auto_delete_interval.map(auto_delete).transpose()?,
    })
}

/// A Dockerfile that can be built as far as its text says, and what it copies from.
pub(super) fn build_wish(build_info: CreateBuildInfo) -> Result<BuildWish, ApiError> {
    let CreateBuildInfo { dockerfile_content: dockerfile, context_hashes } = build_info;
    let invalid = |why: String| Err(ApiError::Invalid(format!("buildInfo.{why}")));
    if dockerfile.trim().is_empty() {
        return invalid("dockerfileContent is empty: it must begin with FROM".to_owned());
    }
    if dockerfile.len() > DOCKERFILE_BYTES_MAX {
        return invalid(format!("dockerfileContent must be at most {DOCKERFILE_BYTES_MAX} bytes"));
    }
    if let Err(error) = atoll_runner::build::check(&dockerfile) {
        return invalid(format!("dockerfileContent: {error}"));
    }
    let context_hashes = context_hashes.unwrap_or_default();
    if context_hashes.len() > CONTEXTS_MAX {
        return invalid(format!("contextHashes must be at most {CONTEXTS_MAX}"));
    }
    if let Some(error) = context_hashes.iter().find_map(|hash| hash.parse::<ContextHash>().err()) {
        return invalid(format!("contextHashes: {error}"));
    }
    Ok(BuildWish { dockerfile, context_hashes })
}

/// A wish that we would leave out silently gives a sandbox that is not what was asked for.
fn refuse_unsupported(asked: &Asked) -> Result<(), ApiError> {
    let not_empty = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let not_zero = |number: Option<i64>| number.is_some_and(|number| number != 0);
    let gpu_type = asked.gpu_type.as_ref().is_some_and(|value| match value {
        serde_json::Value::Null => false,
        serde_json::Value::Array(types) => !types.is_empty(),
        _ => true,
    });
    for (field, wanted) in [
        ("kvm", asked.kvm == Some(true)),
        ("gpu", not_zero(asked.gpu)),
        ("gpuType", gpu_type),
        ("spot", asked.spot == Some(true)),
        ("outboundProxyUrl", not_empty(&asked.outbound_proxy_url)),
        ("otelEndpointOverride", not_empty(&asked.otel_endpoint_override)),
        ("ttlMinutes", not_zero(asked.ttl_minutes)),
        ("volumes", asked.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty())),
        ("linkedSandbox", not_empty(&asked.linked_sandbox)),
        ("secrets", asked.secrets.as_ref().is_some_and(|secrets| !secrets.is_empty())),
    ] {
        if wanted {
            return Err(ApiError::Unsupported(format!("the field {field}")));
        }
    }
    Ok(())
}

/// Some clients send empty texts for what they leave out.
pub(super) fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

pub(super) fn sandbox_name(name: String) -> Result<String, ApiError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ok = name.len() <= NAME_CHARS_MAX
        && name.chars().all(inner)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !ok {
        return Err(ApiError::Invalid(format!(
            "name must be 1 to {NAME_CHARS_MAX} letters, digits, '-', '_' or '.', and begin with a letter or digit"
        )));
    }
    match SandboxReference::parse(&name) {
        SandboxReference::Name(name) => Ok(name),
        SandboxReference::Id(_) => Err(ApiError::Invalid("name must not look like a sandbox id".to_owned())),
    }
}

pub(super) fn snapshot_name(snapshot: String) -> Result<String, ApiError> {
    const SNAPSHOT_CHARS_MAX: usize = 256;
    if snapshot.chars().count() > SNAPSHOT_CHARS_MAX || snapshot.chars().any(char::is_control) {
        return Err(ApiError::Invalid(format!(
            "snapshot must be at most {SNAPSHOT_CHARS_MAX} characters, none of them control characters"
        )));
    }
    Ok(snapshot)
}

/// What useradd takes, and numbers.
fn user_name(user: String) -> Result<String, ApiError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ok = user.len() <= USER_CHARS_MAX && user.chars().all(inner) && !user.starts_with(['-', '.']);
    ok.then_some(user).ok_or_else(|| {
        ApiError::Invalid(format!(
            "user must be an account name: 1 to {USER_CHARS_MAX} letters, digits, '-', '_' or '.'"
        ))
    })
}

fn environment(env: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    let bytes: usize = env.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    if bytes > ENV_BYTES_MAX {
        return Err(ApiError::Invalid(format!("env must be at most {ENV_BYTES_MAX} bytes in all")));
    }
    for (key, value) in &env {
        let key_ok = (1..=ENV_KEY_CHARS_MAX).contains(&key.len())
            && key.bytes().all(|b| b.is_ascii_graphic() && b != b'=')
            && !key.starts_with(|c: char| c.is_ascii_digit());
        if !key_ok {
            return Err(ApiError::Invalid(format!(
                "env: {key:?} cannot name a variable: 1 to {ENV_KEY_CHARS_MAX} visible ASCII characters without '=', not beginning with a digit"
            )));
        }
        if value.contains('\0') {
            return Err(ApiError::Invalid(format!("env: the value of {key} contains a NUL character")));
        }
    }
    Ok(env)
}

pub(super) fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    if labels.len() > LABELS_MAX {
        return Err(ApiError::Invalid(format!("labels: at most {LABELS_MAX} are allowed")));
    }
    for (key, value) in &labels {
        let key_ok =
            (1..=LABEL_KEY_CHARS_MAX).contains(&key.chars().count()) && !key.chars().any(char::is_control);
        if !key_ok {
            return Err(ApiError::Invalid(format!(
                "labels: a key must be 1 to {LABEL_KEY_CHARS_MAX} characters, none of them control characters"
            )));
        }
        if value.chars().count() > LABEL_VALUE_CHARS_MAX || value.contains('\0') {
            return Err(ApiError::Invalid(format!(
                "labels: the value of {key} must be at most {LABEL_VALUE_CHARS_MAX} characters without NUL"
            )));
        }
    }
    Ok(labels)
}

/// 0: never.
pub(super) fn auto_stop(minutes: i64) -> Result<u32, ApiError> {
    let minutes = within("autoStopInterval", minutes, 0..=INTERVAL_MINUTES_MAX)?;
    Ok(u32::try_from(minutes).expect("the range is below 2^32"))
}

/// 0: never.
pub(super) fn auto_pause(minutes: i64) -> Result<u32, ApiError> {
    let minutes = within("autoPauseInterval", minutes, 0..=INTERVAL_MINUTES_MAX)?;
    Ok(u32::try_from(minutes).expect("the range is below 2^32"))
}

/// 0: as late as can be.
pub(super) fn auto_archive(minutes: i64) -> Result<u32, ApiError> {
    match within("autoArchiveInterval", minutes, 0..=i64::from(AUTO_ARCHIVE_MINUTES_MAX))? {
        0 => Ok(AUTO_ARCHIVE_MINUTES_MAX),
        minutes => Ok(u32::try_from(minutes).expect("the range is below 2^32")),
    }
}

/// Negative: never. 0: as soon as it stops.
pub(super) fn auto_delete(minutes: i64) -> Result<i32, ApiError> {
    let minutes = within("autoDeleteInterval", minutes.max(-1), -1..=INTERVAL_MINUTES_MAX)?;
    Ok(i32::try_from(minutes).expect("the range is below 2^31"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(body: Value) -> Result<CreateSandbox, ApiError> {
        parse(serde_json::from_value(body).unwrap())
    }

    #[test]
    fn what_sdks_send_is_understood() {
        let body = json!({"name": "a.b_c-1", "env": {"A": "b"}, "labels": {"code-toolbox-language": "python"},
            "autoStopInterval": 30, "autoPauseInterval": 7, "autoArchiveInterval": 0, "autoDeleteInterval": -5, "volumes": [],
            "cpu": 2, "memory": 4, "disk": 10, "target": "eu", "user": "daytona", "snapshot": "base",
            "public": true, "networkBlockAll": true});

        let create = parsed(body).unwrap();

        assert_eq!(
            create,
            CreateSandbox {
                name: Some("a.b_c-1".into()),
                snapshot: Some("base".into()),
                build: None,
                user: Some("daytona".into()),
                env: [("A".into(), "b".into())].into(),
                labels: [("code-toolbox-language".into(), "python".into())].into(),
                public: true,
                egress: Egress { block_all: true, ..Egress::default() },
                target: Some("eu".parse().unwrap()),
                cpu: Some(2),
                memory_gib: Some(4),
                disk_gib: Some(10),
                auto_stop_minutes: Some(30),
                auto_pause_minutes: Some(7),
                auto_archive_minutes: Some(43_200),
                auto_delete_minutes: Some(-1),
            }
        );
    }

    #[test]
    fn empty_values_are_as_good_as_none() {
        let body = json!({"name": "", "snapshot": "", "user": "", "target": "", "env": null, "labels": {}, "gpu": 0,
            "gpuType": [], "kvm": false, "spot": false, "volumes": [], "secrets": [], "linkedSandbox": "",
            "buildInfo": null, "ttlMinutes": 0, "queueTimeout": 5, "outboundProxyUrl": ""});

        assert_eq!(parsed(body).unwrap(), CreateSandbox::default());
    }

    #[test]
    fn an_empty_list_of_what_is_allowed_allows_nothing() {
        for body in [json!({"networkAllowList": ""}), json!({"domainAllowList": ""})] {
            assert!(parsed(body).unwrap().egress.block_all);
        }
    }

    #[test]
    fn whom_a_sandbox_may_reach_is_read_into_its_normal_form() {
        let body = json!({"networkAllowList": "10.0.0.1/8, 192.0.2.0/24", "domainAllowList": "A.example"});
        let expected = Egress {
            block_all: false,
            cidrs: vec!["10.0.0.0/8".into(), "192.0.2.0/24".into()],
            domains: vec!["a.example".into()],
        };
        assert_eq!(parsed(body).unwrap().egress, expected);
    }

    #[test]
    fn a_wish_we_cannot_fulfil_is_refused_by_name() {
        for (field, value) in [
            ("kvm", json!(true)),
            ("gpu", json!(1)),
            ("gpuType", json!(["H100"])),
            ("spot", json!(true)),
            ("outboundProxyUrl", json!("http://p")),
            ("otelEndpointOverride", json!("http://p")),
            ("ttlMinutes", json!(5)),
            ("volumes", json!([{"volumeId": "v", "mountPath": "/v"}])),
            ("linkedSandbox", json!("other")),
            ("secrets", json!([{"A": "b"}])),
        ] {
            let error = parsed(json!({ field: value })).unwrap_err();
            assert_eq!(error, ApiError::Unsupported(format!("the field {field}")));
        }
    }

    #[test]
    fn a_dockerfile_takes_the_place_of_a_snapshot() {
        let hash = "d41d8cd98f00b204e9800998ecf8427e";
        let body = json!({"buildInfo": {"dockerfileContent": "FROM a\n", "contextHashes": [hash]}, "cpu": 2});

        let create = parsed(body).unwrap();

        let wish = BuildWish { dockerfile: "FROM a\n".into(), context_hashes: vec![hash.into()] };
        assert_eq!((create.build, create.cpu), (Some(wish), Some(2)));
    }

    #[test]
    fn a_dockerfile_that_cannot_be_built_is_refused_with_its_line() {
        let build = |dockerfile: &str| json!({"buildInfo": {"dockerfileContent": dockerfile}});
        for (body, word) in [
            (build(" \n"), "empty"),
            (build("RUN true"), "line 1"),
            (build("FROM a\nNONSENSE b"), "line 2"),
            (build(&format!("FROM a\n# {}", "x".repeat(DOCKERFILE_BYTES_MAX))), "at most"),
            (
                json!({"buildInfo": {"dockerfileContent": "FROM a", "contextHashes": ["../x"]}}),
                "contextHashes",
            ),
            (json!({"buildInfo": {"dockerfileContent": "FROM a"}, "snapshot": "base"}), "not both"),
        ] {
            let error = parsed(body.clone()).unwrap_err();
            assert!(matches!(&error, ApiError::Invalid(message) if message.contains(word)), "{body} {error}");
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        let many: BTreeMap<String, String> = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        for (body, word) in [
            (json!({"cpu": 0}), "cpu"),
            (json!({"cpu": -1}), "cpu"),
            (json!({"cpu": 257}), "cpu"),
            (json!({"memory": i64::MAX}), "memory"),
            (json!({"disk": 65_537}), "disk"),
            (json!({"name": "-a"}), "name"),
            (json!({"name": "a b"}), "name"),
            (json!({"name": "a/b"}), "name"),
            (json!({"name": "é"}), "name"),
            (json!({"name": "a".repeat(129)}), "name"),
            (json!({"name": "00000000-0000-8000-8000-000000000000"}), "name"),
            (json!({"snapshot": "a\u{0}"}), "snapshot"),
            (json!({"snapshot": "a".repeat(257)}), "snapshot"),
            (json!({"user": "a b"}), "user"),
            (json!({"user": "-a"}), "user"),
            (json!({"user": "a".repeat(33)}), "user"),
            (json!({"target": "EU"}), "target"),
            (json!({"env": {"": "a"}}), "env"),
            (json!({"env": {"A=B": "a"}}), "env"),
            (json!({"env": {"A B": "a"}}), "env"),
            (json!({"env": {"1A": "a"}}), "env"),
            (json!({"env": {"A": "a\u{0}"}}), "env"),
            (json!({"env": {"A": "a".repeat(65 * 1024)}}), "env"),
            (json!({"labels": {"": "a"}}), "labels"),
            (json!({"labels": {"a\n": "a"}}), "labels"),
            (json!({"labels": {"a": "b".repeat(1025)}}), "labels"),
            (json!({"labels": many}), "labels"),
            (json!({"autoStopInterval": -1}), "autoStopInterval"),
            (json!({"autoStopInterval": 525_601}), "autoStopInterval"),
            (json!({"autoPauseInterval": -1}), "autoPauseInterval"),
            (json!({"networkAllowList": "::/0"}), "networkAllowList"),
            (json!({"domainAllowList": "10.0.0.1"}), "domainAllowList"),
            (json!({"autoArchiveInterval": 43_201}), "autoArchiveInterval"),
            (json!({"autoDeleteInterval": 525_601}), "autoDeleteInterval"),
            (json!({"queueTimeout": 0}), "queueTimeout"),
        ] {
            let error = parsed(body.clone()).unwrap_err();
            assert!(
                matches!(&error, ApiError::Invalid(message) if message.starts_with(word)),
                "{body} {error}"
            );
        }
    }
}
