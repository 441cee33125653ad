//! `/process/interpreter…`: translates between HTTP and [`super::Interpreters`].

use std::sync::Arc;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::socket::{self, REQUEST_BYTES_MAX};
use super::{Context, InterpreterError, LANGUAGE};
use crate::errors::{ApiError, JsonBody};
use crate::routes::Daemon;
use crate::websocket::{accept, choose_first_protocol};

impl From<InterpreterError> for ApiError {
    fn from(error: InterpreterError) -> ApiError {
        let message = error.to_string();
        match error {
            InterpreterError::Unknown(_) => ApiError::process_not_found(message),
            InterpreterError::TooMany | InterpreterError::QueueFull => ApiError::conflict(message),
            InterpreterError::Reserved | InterpreterError::Language(_) | InterpreterError::Start(_) => {
                ApiError::bad_request(message)
            }
        }
    }
}

#[derive(Deserialize)]
pub struct CreateRequest {
    cwd: Option<String>,
    language: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContextView {
    id: String,
    cwd: String,
    language: &'static str,
    created_at: String,
    /// Whether it has a process; its next run gives it one.
    active: bool,
}

impl ContextView {
    fn of(context: &Context) -> ContextView {
        ContextView {
            id: context.id.clone(),
            cwd: context.cwd.to_string_lossy().into_owned(),
            language: LANGUAGE,
            created_at: context.created_at.format(&Rfc3339).unwrap_or_default(),
            active: context.is_active(),
        }
    }
}

pub async fn create(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<CreateRequest>,
) -> Result<Json<ContextView>, ApiError> {
    let cwd = daemon.resolve(request.cwd.as_deref().unwrap_or_default());
    let context = daemon.interpreters.create(&daemon, request.language.as_deref(), cwd).await?;
    Ok(Json(ContextView::of(&context)))
}

pub async fn list(State(daemon): State<Arc<Daemon>>) -> Json<Value> {
    let contexts: Vec<_> =
        daemon.interpreters.list().iter().map(|context| ContextView::of(context)).collect();
    Json(json!({ "contexts": contexts }))
}

pub async fn delete(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    daemon.interpreters.delete(&id).await?;
    Ok(Json(json!({ "message": "interpreter context is deleted" })))
}

pub async fn execute(
    State(daemon): State<Arc<Daemon>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let mut upgrade = upgrade.map_err(|_| ApiError::bad_request("this route is a WebSocket"))?;
    choose_first_protocol(&mut upgrade);
    let seat = daemon.sockets.seat()?;
    Ok(accept(upgrade, seat, REQUEST_BYTES_MAX, |socket| socket::converse(socket, daemon)))
}
