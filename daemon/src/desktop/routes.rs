//! `/computeruse/…`: translates between HTTP and the desktop.

mod accessibility;
mod input;
mod recordings;

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::agent::{Ask, Format, Region, Wanted};
use crate::errors::{ApiError, Params};
use crate::routes::Daemon;

type Reply<T> = Result<T, ApiError>;

const JPEG_QUALITY: u8 = 85;
/// Smaller than this nothing can be seen, larger than the screen there is nothing to see.
const SCALES: std::ops::RangeInclusive<f32> = 0.1..=1.0;

pub fn router() -> Router<Arc<Daemon>> {
    let processes = Router::new()
        .route("/computeruse/start", post(start))
        .route("/computeruse/stop", post(stop))
        .route("/computeruse/status", get(status))
        .route("/computeruse/process-status", get(status))
        .route("/computeruse/process/{name}/status", get(process_status))
        .route("/computeruse/process/{name}/logs", get(process_logs))
        .route("/computeruse/process/{name}/errors", get(process_errors))
        .route("/computeruse/process/{name}/restart", post(restart));
    let screen = Router::new()
        .route("/computeruse/screenshot", get(screenshot))
        .route("/computeruse/screenshot/region", get(region_screenshot))
        .route("/computeruse/screenshot/compressed", get(compressed_screenshot))
        .route("/computeruse/screenshot/region/compressed", get(compressed_region_screenshot))
        .route("/computeruse/display/info", get(display_info))
        .route("/computeruse/display/windows", get(windows));
    let input = Router::new()
        .route("/computeruse/mouse/position", get(input::position))
        .route("/computeruse/mouse/move", post(input::move_mouse))
        .route("/computeruse/mouse/click", post(input::click))
        .route("/computeruse/mouse/drag", post(input::drag))
        .route("/computeruse/mouse/scroll", post(input::scroll))
        .route("/computeruse/mouse/down", post(input::mouse_down))
        .route("/computeruse/mouse/up", post(input::mouse_up))
        .route("/computeruse/keyboard/type", post(input::type_text))
        .route("/computeruse/keyboard/key", post(input::press_key))
        .route("/computeruse/keyboard/hotkey", post(input::press_hotkey))
        .route("/computeruse/keyboard/down", post(input::key_down))
        .route("/computeruse/keyboard/up", post(input::key_up));
    let accessibility = Router::new()
        .route("/computeruse/a11y/tree", get(accessibility::tree))
        .route("/computeruse/a11y/find", post(accessibility::find))
        .route("/computeruse/a11y/node/focus", post(accessibility::focus))
        .route("/computeruse/a11y/node/invoke", post(accessibility::invoke))
        .route("/computeruse/a11y/node/value", post(accessibility::set_value));
    let recordings = Router::new()
        .route("/computeruse/recordings", get(recordings::list))
        .route("/computeruse/recordings/start", post(recordings::start))
        .route("/computeruse/recordings/stop", post(recordings::stop))
        .route("/computeruse/recordings/{id}", get(recordings::show).delete(recordings::delete))
        .route("/computeruse/recordings/{id}/download", get(recordings::download));
    processes.merge(screen).merge(input).merge(accessibility).merge(recordings)
}

async fn start(State(daemon): State<Arc<Daemon>>) -> Reply<Json<Value>> {
    daemon.desktop.start(&daemon).await?;
    Ok(Json(json!({ "message": "the desktop runs", "status": daemon.desktop.statuses() })))
}

async fn stop(State(daemon): State<Arc<Daemon>>) -> Reply<Json<Value>> {
    daemon.desktop.installed(&daemon).await?;
    daemon.desktop.stop(&daemon).await;
    Ok(Json(json!({ "message": "the desktop is stopped", "status": daemon.desktop.statuses() })))
}

async fn status(State(daemon): State<Arc<Daemon>>) -> Reply<Json<Value>> {
    daemon.desktop.installed(&daemon).await?;
    Ok(Json(json!({ "status": daemon.desktop.status() })))
}

async fn process_status(State(daemon): State<Arc<Daemon>>, Path(name): Path<String>) -> Reply<Json<Value>> {
    daemon.desktop.installed(&daemon).await?;
    let program = daemon.desktop.program(&name)?;
    Ok(Json(json!({ "processName": program.name, "running": program.pid().is_some() })))
}

async fn process_logs(State(daemon): State<Arc<Daemon>>, Path(name): Path<String>) -> Reply<Json<Value>> {
    daemon.desktop.installed(&daemon).await?;
    let program = daemon.desktop.program(&name)?;
    Ok(Json(json!({ "processName": program.name, "logs": program.output.text() })))
}

async fn process_errors(State(daemon): State<Arc<Daemon>>, Path(name): Path<String>) -> Reply<Json<Value>> {
    daemon.desktop.installed(&daemon).await?;
    let program = daemon.desktop.program(&name)?;
    Ok(Json(json!({ "processName": program.name, "errors": program.errors.text() })))
}

async fn restart(State(daemon): State<Arc<Daemon>>, Path(name): Path<String>) -> Reply<Json<Value>> {
    daemon.desktop.restart(&name, &daemon).await?;
    Ok(Json(json!({ "message": format!("{name} runs again"), "processName": name })))
}

/// Here as below, SDKs up to 0.110 write `show_cursor`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CursorQuery {
    #[serde(alias = "show_cursor")]
    show_cursor: Option<bool>,
}

/// Flat, because a query can't be taken apart by types within types.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegionQuery {
    x: i32,
    y: i32,
    width: i32,
    height: i32,
    #[serde(alias = "show_cursor")]
    show_cursor: Option<bool>,
    format: Option<Format>,
    quality: Option<u8>,
    scale: Option<f32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CompressedQuery {
    #[serde(alias = "show_cursor")]
    show_cursor: Option<bool>,
    format: Option<Format>,
    quality: Option<u8>,
    scale: Option<f32>,
}

impl RegionQuery {
    fn region(&self) -> Region {
        Region { x: self.x, y: self.y, width: self.width, height: self.height }
    }
}

async fn screenshot(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<CursorQuery>,
) -> Reply<Json<Box<RawValue>>> {
    take(&daemon, whole(None, query.show_cursor)).await
}

async fn region_screenshot(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<RegionQuery>,
) -> Reply<Json<Box<RawValue>>> {
    take(&daemon, whole(Some(query.region()), query.show_cursor)).await
}

async fn compressed_screenshot(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<CompressedQuery>,
) -> Reply<Json<Box<RawValue>>> {
    let CompressedQuery { show_cursor, format, quality, scale } = query;
    take(&daemon, compressed(None, show_cursor, format, quality, scale)?).await
}

async fn compressed_region_screenshot(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<RegionQuery>,
) -> Reply<Json<Box<RawValue>>> {
    let region = query.region();
    let RegionQuery { show_cursor, format, quality, scale, .. } = query;
    take(&daemon, compressed(Some(region), show_cursor, format, quality, scale)?).await
}

fn whole(region: Option<Region>, show_cursor: Option<bool>) -> Wanted {
    let show_cursor = show_cursor.unwrap_or(false);
    Wanted { region, format: Format::Png, quality: JPEG_QUALITY, scale: 1.0, show_cursor }
}

fn compressed(
    region: Option<Region>,
    show_cursor: Option<bool>,
    format: Option<Format>,
    quality: Option<u8>,
    scale: Option<f32>,
) -> Reply<Wanted> {
    let quality = quality.unwrap_or(JPEG_QUALITY);
    if quality > 100 {
        return Err(ApiError::bad_request("quality is from 1 to 100"));
    }
    let scale = scale.unwrap_or(1.0);
    if !SCALES.contains(&scale) {
        return Err(ApiError::bad_request("scale is from 0.1 to 1.0"));
    }
    Ok(Wanted {
        region,
        format: format.unwrap_or(Format::Jpeg),
        quality: quality.max(1),
        scale,
        show_cursor: show_cursor.unwrap_or(false),
    })
}

async fn take(daemon: &Daemon, wanted: Wanted) -> Reply<Json<Box<RawValue>>> {
    ask(daemon, &Ask::Picture(wanted)).await
}

#[derive(Serialize)]
struct Displays {
    displays: [Box<RawValue>; 1],
}

#[derive(Serialize)]
struct Windows {
    windows: Vec<Box<RawValue>>,
    /// SDKs up to 0.110 take no answer without it.
    count: usize,
}

async fn display_info(State(daemon): State<Arc<Daemon>>) -> Reply<Json<Displays>> {
    let Json(display) = ask(&daemon, &Ask::Display).await?;
    Ok(Json(Displays { displays: [display] }))
}

async fn windows(State(daemon): State<Arc<Daemon>>) -> Reply<Json<Windows>> {
    let Json(windows) = ask(&daemon, &Ask::Windows).await?;
    let windows: Vec<Box<RawValue>> = serde_json::from_str(windows.get())
        .map_err(|error| ApiError::internal(format!("what the agent says of windows: {error}")))?;
    Ok(Json(Windows { count: windows.len(), windows }))
}

/// The answer is what the agent says, as it is.
async fn ask(daemon: &Daemon, ask: &Ask) -> Reply<Json<Box<RawValue>>> {
    let live = daemon.desktop.live(daemon).await?;
    daemon.desktop.ask(&live, ask).await.map(Json)
}
