//! The service about itself: configuration for clients, liveness, readiness.

use std::collections::BTreeMap;

use atoll_api::rest::{DaytonaConfiguration, Health, HealthIndicator, OidcConfig};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::StatusCode;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::create::AUTO_ARCHIVE_MINUTES_MAX;
use super::errors;
use super::visitor::Through;
use super::{Component, Readiness, RestState};

/// For whoever opens the address in a browser.
pub(super) async fn welcome(State(state): State<RestState>) -> Response {
    Json(json!({
        "product": "Atoll",
        "version": state.settings.version,
        "api": "/api",
        "openapi": "/api/openapi.json",
    }))
    .into_response()
}

/// The answer to a CORS preflight.
pub(super) fn nothing() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// What a client may know before it has a key.
#[utoipa::path(
    get, path = "/config", operation_id = "ConfigController_getConfig", tag = "config",
    responses((status = 200, body = DaytonaConfiguration))
)]
pub(super) async fn config(
    State(state): State<RestState>,
    Through(door): Through,
) -> Json<DaytonaConfiguration> {
    let settings = &state.settings;
    Json(DaytonaConfiguration {
        version: settings.version.clone(),
        oidc: OidcConfig::default(),
        linked_accounts_enabled: false,
        announcements: BTreeMap::new(),
        proxy_template_url: door.preview_template(&settings.preview_domain),
        proxy_toolbox_url: door.toolbox(),
        default_snapshot: settings.default_snapshot.clone(),
        dashboard_url: door.base(),
        max_auto_archive_interval: AUTO_ARCHIVE_MINUTES_MAX,
        maintenance_mode: false,
        environment: "production".to_owned(),
        ssh_gateway_command: format!("ssh -p {} {{{{TOKEN}}}}@{}", settings.ssh_port, settings.ssh_host),
        ssh_gateway_host: settings.ssh_host.clone(),
        ssh_gateway_port: settings.ssh_port,
        ssh_gateway_host_keys: settings.ssh_host_keys.clone(),
        ssh_gateway_host_key_fingerprints: settings
            .ssh_host_keys
            .iter()
            .filter_map(|key| fingerprint(key))
            .collect(),
    })
}

/// The way `ssh-keygen -lf` writes it. `None` for what is no public key line.
fn fingerprint(public_key_line: &str) -> Option<String> {
    let blob = STANDARD.decode(public_key_line.split_ascii_whitespace().nth(1)?).ok()?;
    Some(format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob))))
}

/// Whether the process answers at all.
#[utoipa::path(
    get, path = "/health", operation_id = "HealthController_live", tag = "Health",
    responses((status = 200, body = Health))
)]
pub(super) async fn alive() -> Json<Health> {
    Json(health(Readiness::default()))
}

/// Whether this node can do its work now.
#[utoipa::path(
    get, path = "/health/ready", operation_id = "HealthController_check", tag = "Health",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(super) async fn ready(State(state): State<RestState>) -> Response {
    let health = health((state.readiness)());
    if health.error.is_empty() { Json(health).into_response() } else { errors::not_ready(health) }
}

fn health(readiness: Readiness) -> Health {
    let indicator = |Component { name, down }: Component| {
        let status = if down.is_none() { "up" } else { "down" };
        (name, HealthIndicator { status: status.to_owned(), message: down })
    };
    let details: BTreeMap<_, _> = readiness.components.into_iter().map(indicator).collect();
    let (info, error): (BTreeMap<_, _>, BTreeMap<_, _>) =
        details.clone().into_iter().partition(|(_, indicator)| indicator.message.is_none());
    let status = if error.is_empty() { "ok" } else { "error" };
    Health { status: status.to_owned(), info, error, details }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_what_ssh_keygen_prints() {
        // Both printed by OpenSSH 9.2.
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICHfv0ZwSKZIghski5EnFATaRtkxY1HbNew44KlSe/id comment";

        assert_eq!(fingerprint(line).as_deref(), Some("SHA256:HQZGGe39GkBE6Ok0J+SJo/Mtt45Zkw1s52eMDVqcWdI"));
        assert_eq!(fingerprint("nonsense"), None);
        assert_eq!(fingerprint("ssh-ed25519 %%%"), None);
    }
}
