//! Who asks: a request whose key has been looked up. A handler that takes a [`Visitor`] is closed to everybody else.

use atoll_api::access::Caller;
use atoll_api::ids::RequestId;
use atoll_api::tokens::{ApiKey, TokenHash};
use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;

use super::RestState;
use super::door::Door;
use super::errors::ApiError;
use super::frame::Framed;
use crate::control::verb::{Verb, VerbAnswer};

pub(super) struct Visitor {
    pub(super) caller: Caller,
    pub(super) key: ApiKey,
    pub(super) door: Door,
    request_id: RequestId,
    state: RestState,
}

impl Visitor {
    pub(super) async fn ask(&self, verb: Verb) -> Result<VerbAnswer, ApiError> {
        Ok(self.state.control.perform(&self.caller, &self.request_id, verb).await?)
    }

    pub(super) fn key_hash(&self) -> TokenHash {
        self.key.hash()
    }
}

impl FromRequestParts<RestState> for Visitor {
    type Rejection = ApiError;

    /// The organization is the key's: `X-Daytona-Organization-ID` goes with JWTs and is not looked at. SDKs send other things in it
    /// (Python's `revoke_ssh_access` sends the token).
    async fn from_request_parts(parts: &mut Parts, state: &RestState) -> Result<Self, ApiError> {
        let Framed { request_id, door } = framed(parts)?;
        let key = api_key(bearer(&parts.headers)?)?;
        let caller = state.directory.api_key(&key).await?;
        Ok(Visitor { caller, key, door, request_id, state: state.clone() })
    }
}

/// The way a client came in, for handlers that are open to everybody.
pub(super) struct Through(pub(super) Door);

impl FromRequestParts<RestState> for Through {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &RestState) -> Result<Self, ApiError> {
        Ok(Through(framed(parts)?.door))
    }
}

fn framed(parts: &Parts) -> Result<Framed, ApiError> {
    let framed = parts.extensions.get::<Framed>().cloned();
    framed.ok_or_else(|| ApiError::Bug("a handler runs outside the frame".to_owned()))
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Err(ApiError::Unauthorized("an API key is required: Authorization: Bearer dtn_…"));
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or(ApiError::Unauthorized("the Authorization header must be: Bearer dtn_…"))
}

/// Something with three dotted parts is a JWT and never tried as a key.
pub(super) fn api_key(token: &str) -> Result<ApiKey, ApiError> {
    if token.split('.').count() == 3 {
        return Err(ApiError::Unauthorized("JWTs are not supported yet: use an API key"));
    }
    token
        .parse()
        .map_err(|_| ApiError::Unauthorized("the API key is malformed: expected dtn_ and 64 hex digits"))
}
