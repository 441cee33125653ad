//! What surrounds every request: its id, the door it came through, its deadline, CORS, and a body for each refusal.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::RequestId;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD,
};
use http::{HeaderValue, Method};
use tracing::Instrument;

use super::door::Door;
use super::errors::{self, ApiError};
use super::service;
use super::{RestSettings, present};
use crate::control::verb::VERB_DEADLINE_MS;

/// A verb answers before this; what is left is for reading the body.
const REQUEST_DEADLINE_MS: u64 = VERB_DEADLINE_MS + 10_000;

/// What the frame knows of a request, for the handlers.
#[derive(Debug, Clone)]
pub(super) struct Framed {
    pub(super) request_id: RequestId,
    pub(super) door: Door,
}

pub(super) async fn frame(
    State(settings): State<Arc<RestSettings>>,
    mut request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(RequestId::HEADER).and_then(|id| id.to_str().ok()?.parse().ok());
    let request_id = given.unwrap_or_else(|| RequestId::from_random(rand::random()));
    let door = Door::of(request.headers(), &settings.http_base);
    let path = errors::path_of(request.uri());
    let span = tracing::info_span!("request", %request_id, method = %request.method(), path);
    let response = if let Some(answer) = preflight(&request) {
        answer
    } else {
        request.extensions_mut().insert(Framed { request_id: request_id.clone(), door });
        answer_in_time(request, next).instrument(span.clone()).await
    };
    let mut response = span.in_scope(|| errors::finish(response, &path, &request_id));
    let headers = response.headers_mut();
    // A parsed id has only characters that a header may hold.
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(RequestId::HEADER, value);
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(present::EXPOSED_HEADERS));
    response
}

/// Whatever happens inside, the client gets an answer: SDKs repeat even a create when a connection just closes.
async fn answer_in_time(request: Request, next: Next) -> Response {
    let deadline = Duration::from_millis(REQUEST_DEADLINE_MS);
    match tokio::time::timeout(deadline, AssertUnwindSafe(next.run(request)).catch_unwind()).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => ApiError::Bug("a handler panicked".to_owned()).into_response(),
        Err(_) => ApiError::TimedOut(deadline.as_secs()).into_response(),
    }
}

/// SDKs run in browsers of any origin; keys are in a header and never in a cookie, so being open gives nothing away.
fn preflight(request: &Request) -> Option<Response> {
    let asked = request.headers();
    if request.method() != Method::OPTIONS || !asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut response = service::nothing();
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE"),
    );
    // `*` does not stand for Authorization, so the list is given back as it was asked for.
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    Some(response)
}
