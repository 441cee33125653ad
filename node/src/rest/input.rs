//! Reading a request: path segments, queries and bodies, each with a message that says which part is wrong.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::RestState;
use super::errors::ApiError;
use crate::control::verb::SandboxReference;

pub(super) const BODY_BYTES_MAX: usize = 1 << 20;
const BODY_DEADLINE_MS: u64 = 10_000;
/// Longest name there is; see `create`.
pub(super) const NAME_CHARS_MAX: usize = 128;
/// Longest text that a query may filter by.
const FILTER_CHARS_MAX: usize = 256;

/// The variable segments of the path, decoded.
pub(super) struct Segments(BTreeMap<String, String>);

impl FromRequestParts<RestState> for Segments {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &RestState) -> Result<Self, ApiError> {
        let raw = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::Invalid("the path is not valid UTF-8 after decoding".to_owned()))?;
        Ok(Segments(raw.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }
}

impl Segments {
    /// Text too long or too odd to be a name is an unknown sandbox, not a mistake of another kind.
    pub(super) fn sandbox(&self) -> Result<SandboxReference, ApiError> {
        let text = self.text("sandboxIdOrName").or_else(|_| self.text("sandboxId"))?;
        if text.chars().count() > NAME_CHARS_MAX {
            return Err(ApiError::NotFound("sandbox not found".to_owned()));
        }
        Ok(SandboxReference::parse(text))
    }

    pub(super) fn port(&self) -> Result<u16, ApiError> {
        let port = number("port", self.text("port")?, 1..=u16::MAX.into())?;
        Ok(u16::try_from(port).expect("the range admits only ports"))
    }

    pub(super) fn number(&self, name: &str, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
        number(name, self.text(name)?, range)
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        flag(name, self.text(name)?)
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, ApiError> {
        let text = self.0.get(name).map(String::as_str);
        text.ok_or_else(|| ApiError::Bug(format!("the route has no segment {name}")))
    }
}

/// The query, in which a name may stand more than once.
pub(super) struct Queries(Vec<(String, String)>);

impl FromRequestParts<RestState> for Queries {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &RestState) -> Result<Self, ApiError> {
        let Query(pairs) = Query::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::Invalid(rejection.body_text()))?;
        Ok(Queries(pairs))
    }
}

impl Queries {
    /// The last one given. Empty is as good as absent.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let last = self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        match last.filter(|value| !value.is_empty()) {
            Some(value) => bounded(name, value).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn all(&self, name: &str) -> Result<Vec<String>, ApiError> {
        const REPEATED_MAX: usize = 100;
        let given: Vec<&str> = self
            .0
            .iter()
            .filter(|(key, value)| key == name && !value.is_empty())
            .map(|(_, v)| v.as_str())
            .collect();
        if given.len() > REPEATED_MAX {
            return Err(ApiError::Invalid(format!("{name} may be given at most {REPEATED_MAX} times")));
        }
        given.into_iter().map(|value| bounded(name, value).map(str::to_owned)).collect()
    }

    pub(super) fn number(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        self.text(name)?.map(|text| number(name, text, range)).transpose()
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.text(name)?.map(|text| flag(name, text)).transpose()
    }

    /// A JSON object of texts, the way SDKs send a label filter. It has a bound of its own: the URL's.
    pub(super) fn labels(&self, name: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let Some((_, text)) = self.0.iter().rev().find(|(key, value)| key == name && !value.is_empty())
        else {
            return Ok(BTreeMap::new());
        };
        serde_json::from_str(text).map_err(|error| {
            ApiError::Invalid(format!("{name} must be a JSON object of texts, like {{\"a\":\"b\"}}: {error}"))
        })
    }

    /// A filter that we would ignore gives answers that are wrong, so it is refused.
    pub(super) fn refuse(&self, names: &[&str]) -> Result<(), ApiError> {
        for (name, value) in &self.0 {
            if !value.is_empty() && names.contains(&name.as_str()) {
                return Err(ApiError::Unsupported(format!("the query parameter {name}")));
            }
        }
        Ok(())
    }
}

fn bounded<'a>(name: &str, value: &'a str) -> Result<&'a str, ApiError> {
    if value.chars().count() > FILTER_CHARS_MAX || value.chars().any(char::is_control) {
        return Err(ApiError::Invalid(format!(
            "{name} must be at most {FILTER_CHARS_MAX} characters, none of them control characters"
        )));
    }
    Ok(value)
}

fn number(name: &str, text: &str, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    let parsed =
        i64::from_str(text).map_err(|_| ApiError::Invalid(format!("{name} must be a whole number")))?;
    within(name, parsed, range)
}

pub(super) fn within<N: PartialOrd + Display>(
    name: &str,
    value: N,
    range: RangeInclusive<N>,
) -> Result<N, ApiError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ApiError::Invalid(format!("{name} must be between {} and {}", range.start(), range.end())))
}

fn flag(name: &str, text: &str) -> Result<bool, ApiError> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ApiError::Invalid(format!("{name} must be true or false"))),
    }
}

/// A JSON body. An empty one of any content type stands for `{}`: that is what body-less SDK calls send.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<RestState> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &RestState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        if bytes.is_empty() {
            return parse(&Bytes::from_static(b"{}"));
        }
        if let Some(content_type) = parts.headers.get(CONTENT_TYPE)
            && !is_json(content_type.as_bytes())
        {
            return Err(ApiError::Invalid(
                "the body must be JSON: Content-Type: application/json".to_owned(),
            ));
        }
        parse(&bytes)
    }
}

async fn read(body: axum::body::Body) -> Result<Bytes, ApiError> {
    let deadline = Duration::from_millis(BODY_DEADLINE_MS);
    match tokio::time::timeout(deadline, axum::body::to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_long(&error) => Err(ApiError::BodyTooLarge { bytes_max: BODY_BYTES_MAX }),
        Ok(Err(_)) => Err(ApiError::Invalid("the body ended before its announced length".to_owned())),
        Err(_) => Err(ApiError::BodyTooSlow),
    }
}

pub(crate) fn is_too_long(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<Body<T>, ApiError> {
    // Every body is an object. Serde would also take a list for one, its items for the fields in order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::Invalid("the body must be a JSON object".to_owned()));
    }
    let Json(value) =
        Json::from_bytes(bytes).map_err(|rejection| ApiError::Invalid(rejection.body_text()))?;
    Ok(Body(value))
}

fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
        || (essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json"))
}
