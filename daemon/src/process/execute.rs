//! `POST /process/execute`: one command line, run by the command shell.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::{Ended, Run, checked_envs, run, timeout_of};
use crate::errors::{ApiError, JsonBody};
use crate::launch::Launch;
use crate::routes::Daemon;

#[derive(Deserialize)]
pub struct Request {
    command: String,
    cwd: Option<String>,
    envs: Option<HashMap<String, String>>,
    /// Seconds.
    timeout: Option<i64>,
}

pub async fn execute(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Request>,
) -> Result<Json<Ended>, ApiError> {
    if request.command.trim().is_empty() {
        return Err(ApiError::bad_request("command is empty"));
    }
    let launch = Launch {
        program: daemon.shells.command().to_owned(),
        arg0: None,
        args: vec!["-c".into(), request.command],
        env: daemon.environment.with(&checked_envs(request.envs)?),
        cwd: daemon.resolve(request.cwd.as_deref().unwrap_or_default()),
    };
    let timeout = timeout_of(request.timeout)?;
    run(&daemon.launcher, Run { launch, input: Vec::new(), timeout, charts: None }).await.map(Json)
}
