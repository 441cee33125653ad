//! The tree of what programs show.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Reply;
use crate::desktop::accessibility::ask;
use crate::errors::{ApiError, JsonBody, Params};
use crate::routes::Daemon;

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tree {
    scope: Option<String>,
    pid: Option<i32>,
    max_depth: Option<i32>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Find {
    scope: Option<String>,
    pid: Option<i32>,
    role: Option<String>,
    name: Option<String>,
    name_match: Option<String>,
    states: Option<Vec<String>>,
    limit: Option<i64>,
}

#[derive(Deserialize, Serialize)]
pub struct Node {
    id: String,
}

#[derive(Deserialize, Serialize)]
pub struct Invoke {
    id: String,
    action: Option<String>,
}

#[derive(Deserialize, Serialize)]
pub struct SetValue {
    id: String,
    value: Option<String>,
}

pub async fn tree(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<Tree>,
) -> Reply<Json<Box<RawValue>>> {
    answer(&daemon, "tree", &query).await.map(Json)
}

pub async fn find(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Find>,
) -> Reply<Json<Box<RawValue>>> {
    answer(&daemon, "find", &request).await.map(Json)
}

pub async fn focus(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Node>,
) -> Reply<Json<Value>> {
    answer(&daemon, "focus", &request).await.map(done)
}

pub async fn invoke(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Invoke>,
) -> Reply<Json<Value>> {
    answer(&daemon, "invoke", &request).await.map(done)
}

pub async fn set_value(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<SetValue>,
) -> Reply<Json<Value>> {
    answer(&daemon, "value", &request).await.map(done)
}

fn done(_: Box<RawValue>) -> Json<Value> {
    Json(json!({}))
}

async fn answer(daemon: &Daemon, operation: &str, request: &impl Serialize) -> Reply<Box<RawValue>> {
    let live = daemon.desktop.live(daemon).await.map_err(ApiError::into_a11y_unavailable)?;
    let mut question = serde_json::to_value(request).expect("a request has text and numbers only");
    question["op"] = operation.into();
    ask(&live, &question).await
}
