//! `/process/pty…`: translates between HTTP and [`super::Terminals`].

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::socket::{self, ExitControl};
use super::tty::Size;
use super::{PtyError, Start, Terminal, Wanted};
use crate::environment::Variables;
use crate::errors::{ApiError, JsonBody, Params};
use crate::launch::Launch;
use crate::process::checked_envs;
use crate::routes::Daemon;
use crate::websocket::{Seat, accept};

const EXIT_CONTROL_PROTOCOL: &str = "X-Daytona-Pty-Exit-Control";
const ENVS_PROTOCOL: &str = "X-Daytona-Pty-Envs~";
/// Of one message from a client.
const INPUT_BYTES_MAX: usize = 64 * 1024;

impl From<PtyError> for ApiError {
    fn from(error: PtyError) -> ApiError {
        let message = error.to_string();
        match error {
            PtyError::Exists(_) | PtyError::TooMany | PtyError::TooManyClients => ApiError::conflict(message),
            PtyError::Unknown(_) => ApiError::process_not_found(message),
            PtyError::BadId | PtyError::BadSize => ApiError::bad_request(message),
            PtyError::Ended => ApiError::gone(message),
            PtyError::Start(error) if error.raw_os_error().is_some() => ApiError::bad_request(message),
            PtyError::Start(_) => ApiError::internal(message),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateRequest {
    id: Option<String>,
    cwd: Option<String>,
    envs: Option<HashMap<String, String>>,
    cols: Option<i64>,
    rows: Option<i64>,
    lazy_start: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    id: String,
    cwd: String,
    envs: Variables,
    cols: u16,
    rows: u16,
    created_at: String,
    active: bool,
    lazy_start: bool,
}

impl SessionInfo {
    fn of(terminal: &Terminal) -> SessionInfo {
        let size = terminal.size();
        SessionInfo {
            id: terminal.id.clone(),
            cwd: terminal.cwd.to_string_lossy().into_owned(),
            envs: terminal.envs.clone(),
            cols: size.cols,
            rows: size.rows,
            created_at: terminal.created_at.format(&Rfc3339).unwrap_or_default(),
            active: terminal.is_active(),
            lazy_start: terminal.start == Start::Lazily,
        }
    }
}

pub async fn create(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<CreateRequest>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let terminal = create_terminal(&daemon, request)?;
    Ok((StatusCode::CREATED, Json(json!({ "sessionId": terminal.id }))))
}

/// A terminal of nothing but defaults.
pub fn create_default(daemon: &Daemon, id: String) -> Result<Arc<Terminal>, ApiError> {
    let request =
        CreateRequest { id: Some(id), cwd: None, envs: None, cols: None, rows: None, lazy_start: None };
    create_terminal(daemon, request)
}

fn create_terminal(daemon: &Daemon, request: CreateRequest) -> Result<Arc<Terminal>, ApiError> {
    let default = Size::DEFAULT;
    let (cols, rows) =
        (request.cols.unwrap_or(default.cols.into()), request.rows.unwrap_or(default.rows.into()));
    let size = Size::new(cols, rows).ok_or(PtyError::BadSize)?;
    let envs = checked_envs(request.envs)?;
    let cwd = daemon.resolve(request.cwd.as_deref().unwrap_or_default());
    let start = if request.lazy_start == Some(true) { Start::Lazily } else { Start::Now };
    let id = request.id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let mut env = daemon.environment.with(&[("TERM".to_owned(), "xterm-256color".to_owned())].into());
    env.extend(envs.clone());
    let launch = Launch {
        program: daemon.shells.login().to_owned(),
        arg0: None,
        args: vec!["-i".into(), "-l".into()],
        env,
        cwd: cwd.clone(),
    };
    Ok(daemon.terminals.create(Wanted { id, cwd, envs, size, start }, launch, &daemon.launcher)?)
}

pub async fn list(State(daemon): State<Arc<Daemon>>) -> Json<Value> {
    let sessions: Vec<_> = daemon.terminals.list().iter().map(|terminal| SessionInfo::of(terminal)).collect();
    Json(json!({ "sessions": sessions }))
}

pub async fn show(
    State(daemon): State<Arc<Daemon>>,
    Path(session_id): Path<String>,
) -> Result<Json<SessionInfo>, ApiError> {
    Ok(Json(SessionInfo::of(&*daemon.terminals.find(&session_id)?)))
}

pub async fn delete(
    State(daemon): State<Arc<Daemon>>,
    Path(session_id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    daemon.terminals.delete(&session_id, &daemon.launcher)?;
    Ok(Json(json!({ "message": "PTY session is deleted" })))
}

#[derive(Deserialize)]
pub struct ResizeRequest {
    cols: i64,
    rows: i64,
}

pub async fn resize(
    State(daemon): State<Arc<Daemon>>,
    Path(session_id): Path<String>,
    JsonBody(request): JsonBody<ResizeRequest>,
) -> Result<Json<SessionInfo>, ApiError> {
    let size = Size::new(request.cols, request.rows).ok_or(PtyError::BadSize)?;
    let terminal = daemon.terminals.find_live(&session_id)?;
    terminal.resize(size)?;
    Ok(Json(SessionInfo::of(&terminal)))
}

pub async fn connect(
    State(daemon): State<Arc<Daemon>>,
    Path(session_id): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let (upgrade, offered) = negotiate(upgrade)?;
    let seat = daemon.sockets.seat()?;
    let found = daemon.terminals.find(&session_id).map_err(ApiError::from);
    Ok(serve(upgrade, seat, offered.exit_control, daemon, found))
}

/// A whole terminal in one request: what the query and the subprotocols say is created, connected, and gone when its shell ends.
#[derive(Deserialize)]
pub struct CreateConnectQuery {
    id: Option<String>,
    cwd: Option<String>,
    cols: Option<i64>,
    rows: Option<i64>,
}

pub async fn create_connect(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<CreateConnectQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let (upgrade, offered) = negotiate(upgrade)?;
    let seat = daemon.sockets.seat()?;
    let created = match (query.id.filter(|id| !id.is_empty()), offered.envs) {
        (None, _) => Err(ApiError::bad_request("id is missing")),
        (_, Err(error)) => Err(error),
        (Some(id), Ok(envs)) => {
            let CreateConnectQuery { cwd, cols, rows, .. } = query;
            create_terminal(&daemon, CreateRequest { id: Some(id), cwd, envs, cols, rows, lazy_start: None })
        }
    };
    Ok(serve(upgrade, seat, offered.exit_control, daemon, created))
}

/// A WebSocket client can't read an HTTP refusal: it is told over the socket.
fn serve(
    upgrade: WebSocketUpgrade,
    seat: Seat,
    exit_control: ExitControl,
    daemon: Arc<Daemon>,
    terminal: Result<Arc<Terminal>, ApiError>,
) -> Response {
    accept(upgrade, seat, INPUT_BYTES_MAX, async move |socket| {
        let attached =
            terminal.and_then(|terminal| Ok(daemon.terminals.attach(&terminal, &daemon.launcher)?));
        match attached {
            Ok(attached) => socket::converse(socket, attached, exit_control).await,
            Err(error) => socket::refuse(socket, error.to_string()).await,
        }
    })
}

struct Offered {
    exit_control: ExitControl,
    envs: Result<Option<HashMap<String, String>>, ApiError>,
}

/// One of the offered subprotocols is always chosen: a client that offers some gives up otherwise.
fn negotiate(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<(WebSocketUpgrade, Offered), ApiError> {
    let mut upgrade = upgrade.map_err(|_| ApiError::bad_request("this route is a WebSocket"))?;
    let offered: Vec<String> =
        upgrade.requested_protocols().filter_map(|name| Some(name.to_str().ok()?.to_owned())).collect();
    let is_capable = offered.iter().any(|name| name == EXIT_CONTROL_PROTOCOL);
    let chosen = if is_capable { Some(EXIT_CONTROL_PROTOCOL) } else { offered.first().map(String::as_str) };
    if let Some(chosen) = chosen.and_then(|name| name.parse().ok()) {
        upgrade.set_selected_protocol(chosen);
    }
    let exit_control = if is_capable { ExitControl::Message } else { ExitControl::CloseOnly };
    let envs = offered.iter().find_map(|name| name.strip_prefix(ENVS_PROTOCOL)).map(parse_envs).transpose();
    Ok((upgrade, Offered { exit_control, envs }))
}

fn parse_envs(encoded: &str) -> Result<HashMap<String, String>, ApiError> {
    URL_SAFE_NO_PAD
        .decode(encoded.trim_end_matches('='))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| {
            ApiError::bad_request("the environment in the subprotocol is not base64url of a JSON object")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envs_come_as_base64url_of_json() {
        assert_eq!(parse_envs("eyJBIjoiMSJ9").unwrap()["A"], "1");
        assert!(parse_envs("???").is_err());
        assert!(parse_envs("MQ").is_err());
    }
}
