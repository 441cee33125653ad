//! `/process/session…`: translates between HTTP and [`super::Sessions`].

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};

use super::command::{Echo, InputError, Stdin};
use super::log::{LOG_REPLY_BYTES_MAX, split, without_markers};
use super::sdk::LogShape;
use super::{Command, ENTRYPOINT, Session, SessionError};
use crate::errors::{ApiError, JsonBody, Params};
use crate::launch::Launch;
use crate::routes::Daemon;
use crate::websocket::{accept, choose_first_protocol, close};

/// A follower that takes nothing for this long is gone.
const FOLLOWER_DEADLINE: Duration = Duration::from_secs(60);
/// Of one message from a follower, who has nothing to say.
const FOLLOWER_BYTES_MAX: usize = 64 * 1024;

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> ApiError {
        let message = error.to_string();
        match error {
            SessionError::Exists(_) | SessionError::TooMany | SessionError::QueueFull => {
                ApiError::conflict(message)
            }
            SessionError::Unknown(_) => ApiError::process_not_found(message),
            SessionError::Reserved(_) | SessionError::BadId => ApiError::bad_request(message),
            SessionError::Ended => ApiError::session_ended(message),
            SessionError::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                ApiError::unprocessable(message)
            }
            SessionError::Io(_) => ApiError::internal(message),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateRequest {
    session_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    session_id: String,
    commands: Vec<CommandView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandView {
    id: String,
    command: String,
    /// Absent while it waits or runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    command: String,
    run_async: Option<bool>,
    /// What older SDKs call it.
    r#async: Option<bool>,
    suppress_input_echo: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExecResponse {
    cmd_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
}

#[derive(Deserialize)]
pub struct InputRequest {
    data: String,
}

#[derive(Deserialize)]
pub struct LogsQuery {
    #[serde(default)]
    follow: Option<String>,
}

pub async fn create(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<CreateRequest>,
) -> Result<StatusCode, ApiError> {
    let shell = daemon.shells.command();
    let launch = Launch {
        program: shell.to_owned(),
        arg0: None,
        args: Vec::new(),
        env: daemon.environment.with(&Default::default()),
        cwd: daemon.resolve(""),
    };
    daemon.sessions.create(&request.session_id, &daemon.launcher, shell, launch)?;
    Ok(StatusCode::CREATED)
}

pub async fn list(State(daemon): State<Arc<Daemon>>) -> Json<Vec<SessionView>> {
    Json(daemon.sessions.list().iter().map(|session| view(session)).collect())
}

pub async fn show(
    State(daemon): State<Arc<Daemon>>,
    Path(session_id): Path<String>,
) -> Result<Json<SessionView>, ApiError> {
    Ok(Json(view(&*daemon.sessions.find(&session_id)?)))
}

pub async fn delete(
    State(daemon): State<Arc<Daemon>>,
    Path(session_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    daemon.sessions.delete(&session_id, &daemon.launcher).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn exec(
    State(daemon): State<Arc<Daemon>>,
    Path(session_id): Path<String>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<ExecRequest>,
) -> Result<Response, ApiError> {
    if request.command.trim().is_empty() {
        return Err(ApiError::bad_request("command is empty"));
    }
    let session = daemon.sessions.find(&session_id)?;
    let is_async = request.run_async.or(request.r#async).unwrap_or(false);
    let echo = if request.suppress_input_echo == Some(true) { Echo::Nowhere } else { Echo::IntoLog };
    let stdin = if is_async { Stdin::Open { echo } } else { Stdin::Empty };
    let command = session.submit(request.command, stdin, &daemon.launcher, &daemon.workers)?;
    let mut response = ExecResponse {
        cmd_id: command.id.clone(),
        output: None,
        stdout: None,
        stderr: None,
        exit_code: None,
    };
    if is_async {
        return Ok((StatusCode::ACCEPTED, Json(response)).into_response());
    }
    // The sender lives in the command, which we hold.
    let exit_code = *command.watch_exit_code().wait_for(Option::is_some).await.expect("the command is held");
    let raw = read_log(&command).await?;
    let shape = LogShape::asked_for(&headers);
    if shape == LogShape::Json {
        let (stdout, stderr) = split(&raw);
        (response.stdout, response.stderr) = (Some(text(stdout)), Some(text(stderr)));
    }
    response.output = Some(text(if shape == LogShape::Plain { without_markers(&raw) } else { raw }));
    response.exit_code = exit_code;
    Ok(Json(response).into_response())
}

pub async fn command(
    State(daemon): State<Arc<Daemon>>,
    Path((session_id, command_id)): Path<(String, String)>,
) -> Result<Json<CommandView>, ApiError> {
    Ok(Json(command_view(&*find_command(&daemon, &session_id, &command_id)?)))
}

pub async fn input(
    State(daemon): State<Arc<Daemon>>,
    Path((session_id, command_id)): Path<(String, String)>,
    JsonBody(request): JsonBody<InputRequest>,
) -> Result<StatusCode, ApiError> {
    let command = find_command(&daemon, &session_id, &command_id)?;
    command.write_input(&request.data).await.map_err(|error| match error {
        InputError::Ended => ApiError::command_completed(error.to_string()),
        InputError::NoInput => ApiError::conflict(error.to_string()),
        InputError::NotRead => ApiError::request_timeout(error.to_string()),
    })?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn logs(
    State(daemon): State<Arc<Daemon>>,
    Path((session_id, command_id)): Path<(String, String)>,
    headers: HeaderMap,
    Params(query): Params<LogsQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let command = find_command(&daemon, &session_id, &command_id)?;
    answer_logs(&daemon, command, headers, query, upgrade.ok()).await
}

pub async fn show_entrypoint(State(daemon): State<Arc<Daemon>>) -> Result<Json<SessionView>, ApiError> {
    Ok(Json(view(&*daemon.sessions.find(ENTRYPOINT)?)))
}

pub async fn entrypoint_logs(
    State(daemon): State<Arc<Daemon>>,
    headers: HeaderMap,
    Params(query): Params<LogsQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let session = daemon.sessions.find(ENTRYPOINT)?;
    let command =
        session.commands().into_iter().next().ok_or_else(|| ApiError::process_not_found("no entrypoint"))?;
    answer_logs(&daemon, command, headers, query, upgrade.ok()).await
}

fn find_command(daemon: &Daemon, session_id: &str, command_id: &str) -> Result<Arc<Command>, ApiError> {
    let session = daemon.sessions.find(session_id)?;
    session.find(command_id).ok_or_else(|| ApiError::process_not_found(format!("no command {command_id:?}")))
}

fn view(session: &Session) -> SessionView {
    let commands = session.commands().iter().map(|command| command_view(command)).collect();
    SessionView { session_id: session.id.clone(), commands }
}

fn command_view(command: &Command) -> CommandView {
    CommandView { id: command.id.clone(), command: command.text.clone(), exit_code: command.exit_code() }
}

async fn read_log(command: &Command) -> Result<Vec<u8>, ApiError> {
    command.log.read().await.map_err(|error| ApiError::internal(format!("read log: {error}")))
}

async fn answer_logs(
    daemon: &Daemon,
    command: Arc<Command>,
    headers: HeaderMap,
    query: LogsQuery,
    upgrade: Option<WebSocketUpgrade>,
) -> Result<Response, ApiError> {
    let follow = query.follow.is_some_and(|follow| !matches!(follow.as_str(), "false" | "0"));
    if let Some(mut upgrade) = upgrade {
        if !follow {
            return Err(ApiError::bad_request("a log WebSocket needs follow=true"));
        }
        choose_first_protocol(&mut upgrade);
        let seat = daemon.sockets.seat()?;
        return Ok(accept(upgrade, seat, FOLLOWER_BYTES_MAX, |socket| send_log(socket, command)));
    }
    let raw = read_log(&command).await?;
    Ok(match LogShape::asked_for(&headers) {
        LogShape::Json => {
            #[derive(Serialize)]
            struct Logs {
                output: String,
                stdout: String,
                stderr: String,
            }
            let (stdout, stderr) = split(&raw);
            Json(Logs { output: text(raw), stdout: text(stdout), stderr: text(stderr) }).into_response()
        }
        LogShape::Marked => text(raw).into_response(),
        LogShape::Plain => text(without_markers(&raw)).into_response(),
    })
}

fn text(bytes: Vec<u8>) -> String {
    debug_assert!(bytes.len() as u64 <= LOG_REPLY_BYTES_MAX + 1024);
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The whole log and what is added, then 1000 once the command has ended and all is sent. Reading goes on all the time:
/// that is what answers pings, also under heavy output.
async fn send_log(socket: WebSocket, command: Arc<Command>) {
    let (mut sink, mut stream) = socket.split();
    let heard = async { while let Some(Ok(_)) = stream.next().await {} };
    let sent = async {
        let (mut length, mut exit_code) = (command.log.watch_length(), command.watch_exit_code());
        let mut offset = 0;
        loop {
            // Before reading: what was there when it ended is then surely read.
            let has_ended = exit_code.borrow_and_update().is_some();
            let end = *length.borrow_and_update();
            while offset < end {
                let Ok(chunk) = command.log.read_at(offset).await else { return close_code::ERROR };
                offset += chunk.len() as u64;
                let sending = sink.send(Message::Binary(chunk.into()));
                if !matches!(tokio::time::timeout(FOLLOWER_DEADLINE, sending).await, Ok(Ok(()))) {
                    return close_code::POLICY;
                }
            }
            if has_ended && *length.borrow() == offset {
                return close_code::NORMAL;
            }
            tokio::select! {
                _ = length.changed() => {}
                changed = exit_code.changed(), if !has_ended => {
                    if changed.is_err() {
                        return close_code::AWAY;
                    }
                }
            }
        }
    };
    let code = tokio::select! {
        code = sent => code,
        () = heard => return,
    };
    if let Ok(socket) = stream.reunite(sink) {
        close(socket, code, String::new()).await;
    }
}
