//! Mouse and keyboard. What can be judged without the screen is judged here.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Reply, ask};
use crate::desktop::agent::{self, Ask, Button, Direction, Point, Press};
use crate::errors::{ApiError, JsonBody};
use crate::routes::Daemon;

const CLICKS_MAX: u32 = 10;
const SCROLL_MAX: u32 = 100;
const TEXT_CHARS_MAX: usize = 20_000;
/// Typed at a time, so that nobody else who drives the desktop waits for long.
const TYPED_CHARS: usize = 200;
/// Of one request: what all the pauses between keys may take.
const TYPING_MAX: Duration = Duration::from_secs(120);
const COORDINATES: std::ops::RangeInclusive<i32> = 0..=32_767;

#[derive(Deserialize)]
pub struct Move {
    x: Option<i32>,
    y: Option<i32>,
}

#[derive(Deserialize)]
pub struct Click {
    x: Option<i32>,
    y: Option<i32>,
    button: Option<Button>,
    double: Option<bool>,
    clicks: Option<u32>,
    modifiers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drag {
    start_x: Option<i32>,
    start_y: Option<i32>,
    end_x: Option<i32>,
    end_y: Option<i32>,
    button: Option<Button>,
    modifiers: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub struct Scroll {
    x: Option<i32>,
    y: Option<i32>,
    direction: Option<Direction>,
    amount: Option<u32>,
    modifiers: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub struct ButtonRequest {
    x: Option<i32>,
    y: Option<i32>,
    button: Option<Button>,
}

#[derive(Deserialize)]
pub struct Type {
    text: Option<String>,
    /// Milliseconds between keys.
    delay: Option<u32>,
}

#[derive(Deserialize)]
pub struct PressKey {
    key: Option<String>,
    modifiers: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub struct Hotkey {
    keys: Option<String>,
}

#[derive(Deserialize)]
pub struct Key {
    key: String,
}

pub async fn position(State(daemon): State<Arc<Daemon>>) -> Reply<Json<Box<RawValue>>> {
    ask(&daemon, &Ask::Pointer).await
}

pub async fn move_mouse(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Move>,
) -> Reply<Json<Box<RawValue>>> {
    ask(&daemon, &Ask::Move(point(request.x, request.y, "x and y")?)).await
}

pub async fn click(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Click>,
) -> Reply<Json<Box<RawValue>>> {
    let clicks = request.clicks.unwrap_or(if request.double == Some(true) { 2 } else { 1 });
    if !(1..=CLICKS_MAX).contains(&clicks) {
        return Err(ApiError::bad_request(format!("clicks is from 1 to {CLICKS_MAX}")));
    }
    let at = point_or_here(request.x, request.y)?;
    let button = request.button.unwrap_or_default();
    let modifiers = modifiers(request.modifiers)?;
    ask(&daemon, &Ask::Click { at, button, clicks, modifiers }).await
}

pub async fn drag(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Drag>,
) -> Reply<Json<Box<RawValue>>> {
    let from = point(request.start_x, request.start_y, "startX and startY")?;
    let to = point(request.end_x, request.end_y, "endX and endY")?;
    let button = request.button.unwrap_or_default();
    let modifiers = modifiers(request.modifiers)?;
    ask(&daemon, &Ask::Drag { from, to, button, modifiers }).await
}

pub async fn scroll(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Scroll>,
) -> Reply<Json<Value>> {
    let direction =
        request.direction.ok_or_else(|| ApiError::bad_request("direction is up, down, left or right"))?;
    let amount = request.amount.unwrap_or(1);
    if amount > SCROLL_MAX {
        return Err(ApiError::bad_request(format!("amount is from 0 to {SCROLL_MAX}")));
    }
    let at = point_or_here(request.x, request.y)?;
    let modifiers = modifiers(request.modifiers)?;
    tell(&daemon, &Ask::Scroll { at, direction, amount, modifiers }).await?;
    Ok(Json(json!({ "success": true })))
}

pub async fn mouse_down(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<ButtonRequest>,
) -> Reply<Json<Box<RawValue>>> {
    press_button(&daemon, request, Press::Down).await
}

pub async fn mouse_up(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<ButtonRequest>,
) -> Reply<Json<Box<RawValue>>> {
    press_button(&daemon, request, Press::Up).await
}

async fn press_button(daemon: &Daemon, request: ButtonRequest, press: Press) -> Reply<Json<Box<RawValue>>> {
    let at = point_or_here(request.x, request.y)?;
    ask(daemon, &Ask::Button { at, button: request.button.unwrap_or_default(), press }).await
}

pub async fn type_text(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Type>,
) -> Reply<Json<Value>> {
    let text = request.text.ok_or_else(|| ApiError::bad_request("text is what to type"))?;
    let chars: Vec<char> = text.chars().collect();
    if chars.len() > TEXT_CHARS_MAX {
        return Err(ApiError::bad_request(format!("text has at most {TEXT_CHARS_MAX} characters")));
    }
    if let Some(char) =
        chars.iter().find(|char| char.is_control() && !"\n\r\t\u{8}\u{1b}\u{7f}".contains(**char))
    {
        return Err(ApiError::bad_request(format!("no key types {char:?}")));
    }
    let delay = Duration::from_millis(request.delay.unwrap_or(0).into());
    if delay.saturating_mul(u32::try_from(chars.len()).unwrap_or(u32::MAX)) > TYPING_MAX {
        let seconds = TYPING_MAX.as_secs();
        return Err(ApiError::bad_request(format!("with this delay the text takes more than {seconds} s")));
    }
    let at_a_time = if delay.is_zero() { TYPED_CHARS } else { 1 };
    // Also of an empty text: is there a desktop?
    tell(&daemon, &Ask::Type(String::new())).await?;
    for (number, some) in chars.chunks(at_a_time).enumerate() {
        if number > 0 && !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        tell(&daemon, &Ask::Type(some.iter().collect())).await?;
    }
    Ok(empty())
}

pub async fn press_key(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<PressKey>,
) -> Reply<Json<Value>> {
    let key = request.key.ok_or_else(|| ApiError::bad_request("key is what to press"))?;
    agent::key(&key).map_err(ApiError::bad_request)?;
    let mut keys = modifiers(request.modifiers)?;
    keys.push(key);
    tell(&daemon, &Ask::Chord(keys)).await?;
    Ok(empty())
}

pub async fn press_hotkey(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Hotkey>,
) -> Reply<Json<Value>> {
    let keys = request.keys.ok_or_else(|| ApiError::bad_request("keys is a hotkey like ctrl+c"))?;
    tell(&daemon, &Ask::Chord(agent::chord(&keys).map_err(ApiError::bad_request)?)).await?;
    Ok(empty())
}

pub async fn key_down(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Key>,
) -> Reply<Json<Value>> {
    hold_key(&daemon, request.key, Press::Down).await
}

pub async fn key_up(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Key>,
) -> Reply<Json<Value>> {
    hold_key(&daemon, request.key, Press::Up).await
}

async fn hold_key(daemon: &Daemon, key: String, press: Press) -> Reply<Json<Value>> {
    agent::key(&key).map_err(ApiError::bad_request)?;
    tell(daemon, &Ask::Key { key, press }).await?;
    Ok(empty())
}

async fn tell(daemon: &Daemon, what: &Ask) -> Reply<()> {
    ask(daemon, what).await.map(drop)
}

fn empty() -> Json<Value> {
    Json(json!({}))
}

fn point(x: Option<i32>, y: Option<i32>, names: &str) -> Reply<Point> {
    match (x, y) {
        (Some(x), Some(y)) if COORDINATES.contains(&x) && COORDINATES.contains(&y) => Ok(Point { x, y }),
        _ => Err(ApiError::bad_request(format!("{names} are pixels of the screen, from 0 on"))),
    }
}

/// Where the pointer is, when neither is said.
fn point_or_here(x: Option<i32>, y: Option<i32>) -> Reply<Option<Point>> {
    match (x, y) {
        (None, None) => Ok(None),
        (x, y) => point(x, y, "x and y").map(Some),
    }
}

fn modifiers(names: Option<Vec<String>>) -> Reply<Vec<String>> {
    const MODIFIERS_MAX: usize = 8;
    let names = names.unwrap_or_default();
    if names.len() > MODIFIERS_MAX {
        return Err(ApiError::bad_request(format!("at most {MODIFIERS_MAX} modifiers")));
    }
    agent::modifiers(&names).map_err(ApiError::bad_request)
}
