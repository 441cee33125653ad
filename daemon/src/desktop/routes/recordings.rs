//! Recordings of the screen.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Reply;
use crate::desktop::recordings::{Recording, RecordingError};
use crate::errors::{ApiError, JsonBody};
use crate::files;
use crate::routes::Daemon;

impl From<RecordingError> for ApiError {
    fn from(error: RecordingError) -> ApiError {
        let message = error.to_string();
        match error {
            RecordingError::Unknown(_) => ApiError::not_found(message),
            RecordingError::StillActive(_) => ApiError::recording_still_active(message),
            RecordingError::Ended(_) | RecordingError::BadLabel => ApiError::bad_request(message),
            RecordingError::TooMany | RecordingError::TooManyActive => ApiError::conflict(message),
            RecordingError::NoFfmpeg => ApiError::recording_ffmpeg_not_found(message),
            RecordingError::Folder(error, path) => ApiError::from_io(&error, &path),
            RecordingError::NoStart(_) => ApiError::unprocessable(message),
        }
    }
}

#[derive(Deserialize, Default)]
pub struct Start {
    label: Option<String>,
}

#[derive(Deserialize)]
pub struct Stop {
    id: String,
}

pub async fn start(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Option<Start>>,
) -> Reply<(StatusCode, Json<Recording>)> {
    let live = daemon.desktop.live(&daemon).await?;
    let label = request.unwrap_or_default().label;
    let recording = daemon.desktop.recordings.start(label.as_deref(), &live).await?;
    Ok((StatusCode::CREATED, Json(recording)))
}

pub async fn stop(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Stop>,
) -> Reply<Json<Recording>> {
    daemon.desktop.installed(&daemon).await?;
    Ok(Json(daemon.desktop.recordings.stop(&request.id, &daemon).await?))
}

pub async fn list(State(daemon): State<Arc<Daemon>>) -> Reply<Json<Value>> {
    daemon.desktop.installed(&daemon).await?;
    Ok(Json(json!({ "recordings": daemon.desktop.recordings.list(&daemon).await })))
}

pub async fn show(State(daemon): State<Arc<Daemon>>, Path(id): Path<String>) -> Reply<Json<Recording>> {
    daemon.desktop.installed(&daemon).await?;
    Ok(Json(daemon.desktop.recordings.show(&id, &daemon).await?))
}

pub async fn delete(State(daemon): State<Arc<Daemon>>, Path(id): Path<String>) -> Reply<StatusCode> {
    daemon.desktop.installed(&daemon).await?;
    daemon.desktop.recordings.delete(&id, &daemon).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn download(State(daemon): State<Arc<Daemon>>, Path(id): Path<String>) -> Reply<Response> {
    daemon.desktop.installed(&daemon).await?;
    let path = daemon.desktop.recordings.finished(&id)?;
    files::routes::send(&daemon, path).await
}
