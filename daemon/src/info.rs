//! What the daemon says of itself and its sandbox, and the environment that later processes get.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::environment::{Update, first_invalid};
use crate::errors::{ApiError, JsonBody};
use crate::routes::Daemon;

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize)]
pub struct Dir {
    dir: String,
}

pub async fn version() -> Json<Value> {
    Json(json!({ "version": format!("v{VERSION}") }))
}

pub async fn work_dir(State(daemon): State<Arc<Daemon>>) -> Json<Dir> {
    Json(Dir { dir: daemon.work_dir.to_string_lossy().into_owned() })
}

pub async fn home_dir(State(daemon): State<Arc<Daemon>>) -> Json<Dir> {
    Json(Dir { dir: daemon.launcher.account().home.to_string_lossy().into_owned() })
}

#[derive(Deserialize)]
pub struct InitRequest {
    /// For telemetry, which this daemon doesn't send.
    #[serde(rename = "token")]
    _token: Option<String>,
}

pub async fn init(JsonBody(_): JsonBody<InitRequest>) -> Json<Value> {
    Json(json!({ "message": "daemon is initialized" }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvRequest {
    set: Option<HashMap<String, String>>,
    unset: Option<Vec<String>>,
    unset_value_prefix: Option<String>,
}

pub async fn update_env(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<EnvRequest>,
) -> Result<Json<Value>, ApiError> {
    let set = request.set.unwrap_or_default();
    if let Some(name) = first_invalid(&set) {
        return Err(ApiError::bad_request(format!("not an environment variable: {name:?}")));
    }
    daemon.environment.update(Update {
        set: set.into_iter().collect(),
        unset: request.unset.unwrap_or_default(),
        unset_value_prefix: request.unset_value_prefix,
    });
    Ok(Json(json!({ "message": "environment is updated" })))
}
