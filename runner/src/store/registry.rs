//! A client of foreign registries (OCI Distribution v2), for pulling.
//!
//! Own code over reqwest, as the client libraries at hand take a manifest or a token of any length into memory and send
//! credentials to whatever place a registry names. Here every answer is bounded, and a password only goes to the
//! registry itself or, over TLS, to the token service that it names.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, RANGE, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::access::{Credentials, Identity, KnownCredentials, Registries};
use super::blobs::BlobWriter;
use super::fetch::Progress;
use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use super::reach::{Reach, Resolver};
use super::reference::{Reference, Version};
use super::{MANIFEST_BYTES_MAX, StoreError};
use crate::image::Digest;

mod challenge;

use challenge::Challenge;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A manifest or a token.
const SMALL_DEADLINE: Duration = Duration::from_secs(60);
const TOKEN_BYTES_MAX: u64 = 64 * 1024;
/// Told to be valid for less than this, a token is used at once and not kept.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
const TOKENS_MAX: usize = 1000;
const REDIRECTS_MAX: usize = 5;
/// Of one blob, each going on where the last one ended; counted anew after progress.
const ATTEMPTS_MAX: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// Of those known for one host.
const KNOWN_TRIED_MAX: usize = 8;

pub struct RegistryClient {
    http: reqwest::Client,
    registries: Arc<Registries>,
    known: OnceLock<Arc<dyn KnownCredentials>>,
    tokens: Mutex<HashMap<TokenKey, (String, Instant)>>,
}

type TokenKey = (String, String, Option<Credentials>);

/// Whose image, and as whom it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub repository: String,
    pub identity: Identity,
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient").field("registries", &self.registries).finish_non_exhaustive()
    }
}

impl RegistryClient {
    pub fn new(registries: Arc<Registries>) -> Result<RegistryClient, StoreError> {
        // The process's default; an error says that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let insecure = registries.clone();
        // Blobs often lie elsewhere; but what was asked for over TLS is not fetched without.
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            let host = host_of(attempt.url());
            let was_tls = attempt.previous().iter().any(|url| url.scheme() == "https");
            if !insecure.reach.permits_host(&host) {
                attempt.error(insecure.reach.refusal(&host))
            } else if attempt.previous().len() > REDIRECTS_MAX {
                attempt.error("too many redirections")
            } else if attempt.url().scheme() != "https" && (was_tls || !insecure.is_insecure(&host)) {
                attempt.error("a redirection away from TLS")
            } else {
                attempt.follow()
            }
        });
        let http = reqwest::Client::builder()
            .user_agent(concat!("atoll/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE_MAX)
            .redirect(redirects)
            .dns_resolver(Arc::new(Resolver(Arc::new(registries.reach.clone()))))
            .build()
            .map_err(|error| StoreError::Unreachable(format!("cannot set up TLS: {error}")))?;
        Ok(RegistryClient { http, registries, known: OnceLock::new(), tokens: Mutex::default() })
    }

    pub fn set_known(&self, known: Arc<dyn KnownCredentials>) {
        let _ = self.known.set(known);
    }

    /// Where `reference` lies.
    pub fn place(&self, reference: &Reference, identity: Identity) -> Place {
        Place { host: reference.host.clone(), repository: reference.repository.clone(), identity }
    }

    /// What is shown in turn until the registry is content.
    fn credentials(&self, place: &Place) -> Vec<Option<Credentials>> {
        let operators = || self.registries.credentials.get(&place.host).cloned();
        match &place.identity {
            Identity::Of(Some(credentials)) => vec![Some(credentials.clone())],
            Identity::Of(None) => vec![operators()],
            Identity::Anybody => {
                let known = self.known.get().map_or_else(Vec::new, |known| known.of_host(&place.host));
                let known = known.into_iter().take(KNOWN_TRIED_MAX).map(Some);
                std::iter::once(operators()).chain(known).collect()
            }
        }
    }

    /// The JSON of a manifest or an index.
    pub async fn manifest(&self, place: &Place, version: &Version) -> Result<Vec<u8>, StoreError> {
        let fetched = tokio::time::timeout(SMALL_DEADLINE, self.try_manifest(place, version)).await;
        fetched.unwrap_or_else(|_| Err(place.unreachable("it took too long to answer")))
    }

    async fn try_manifest(&self, place: &Place, version: &Version) -> Result<Vec<u8>, StoreError> {
        let version_text = match version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        };
        let accept = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ");
        let url = self.url(place, &format!("manifests/{version_text}"));
        let response = self.ask(place, |http| http.get(&url).header(ACCEPT, &accept)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(StoreError::NotFound(format!(
                "{}/{} has no {version_text}: check the image's name",
                place.host, place.repository
            )));
        }
        let json = read_bounded(response, MANIFEST_BYTES_MAX, place).await?;
        match version {
            Version::Digest(digest) if Digest::of(&json) != *digest => {
                Err(StoreError::Bad(format!("{} answers with another manifest than {digest}", place.host)))
            }
            _ => Ok(json),
        }
    }

    /// Downloads into `writer`, from where that ends, until it has `bytes`.
    pub async fn blob(
        &self,
        place: &Place,
        digest: &Digest,
        bytes: u64,
        writer: &mut BlobWriter,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let (mut attempt, mut pause) = (0, FIRST_PAUSE);
        loop {
            let before = writer.written();
            let error = match self.try_blob(place, digest, bytes, writer, progress).await {
                Ok(()) => return Ok(()),
                Err(error @ (StoreError::Unreachable(_) | StoreError::Bad(_))) => error,
                Err(error) => return Err(error),
            };
            if writer.written() > before {
                (attempt, pause) = (0, FIRST_PAUSE);
            }
            attempt += 1;
            if attempt == ATTEMPTS_MAX || matches!(error, StoreError::Bad(_)) {
                return Err(error);
            }
            tracing::info!(%digest, host = %place.host, written = writer.written(), %error, "a download goes on");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn try_blob(
        &self,
        place: &Place,
        digest: &Digest,
        bytes: u64,
        writer: &mut BlobWriter,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let from = writer.written();
        if from > bytes {
            writer.restart().await?;
            return Err(place.unreachable("a download was longer than it should be"));
        }
        if from == bytes && bytes > 0 {
            return Ok(());
        }
        let url = self.url(place, &format!("blobs/{digest}"));
        let response = self
            .ask(place, |http| match from {
                0 => http.get(&url),
                from => http.get(&url).header(RANGE, format!("bytes={from}-")),
            })
            .await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(&response, from) => {}
            StatusCode::OK if from == 0 => {}
            // It knows nothing of ranges.
            StatusCode::OK => writer.restart().await?,
            StatusCode::NOT_FOUND => {
                return Err(StoreError::NotFound(format!(
                    "{}/{} lacks {digest}",
                    place.host, place.repository
                )));
            }
            status => return Err(place.unreachable(&format!("it answers {status} to a part of a blob"))),
        }
        let mut body = response.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| place.unreachable(&error.to_string()))?;
            if writer.written() + chunk.len() as u64 > bytes {
                return Err(StoreError::Bad(format!(
                    "{} gives more than the {bytes} bytes of {digest}",
                    place.host
                )));
            }
            writer.write(&chunk).await?;
            progress.tell(digest, writer.written(), bytes);
        }
        match writer.written() == bytes {
            true => Ok(()),
            false => Err(place.unreachable("it broke off")),
        }
    }

    /// Asks as whoever may have it. Never answers with 401 or a failure of the server.
    async fn ask(
        &self,
        place: &Place,
        request: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, StoreError> {
        let mut refused = place.denied(None);
        for credentials in self.credentials(place) {
            match self.ask_as(place, credentials, &request).await {
                Err(error @ StoreError::Denied(_)) => refused = error,
                answered => return answered,
            }
        }
        Err(refused)
    }

    /// Asks, and once more with what the registry wants to see first.
    async fn ask_as(
        &self,
        place: &Place,
        credentials: Option<Credentials>,
        request: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, StoreError> {
        if !self.registries.reach.permits_host(&place.host) {
            return Err(place.out_of_reach(&self.registries.reach, &place.host));
        }
        let key = (place.host.clone(), place.repository.clone(), credentials);
        let mut authorization = self.known_token(&key);
        for _ in 0..2 {
            let mut asked = request(&self.http);
            if let Some(authorization) = &authorization {
                asked = asked.header(AUTHORIZATION, authorization);
            }
            let response = asked.send().await.map_err(|error| place.unreachable(&reason(&error)))?;
            match response.status() {
                StatusCode::UNAUTHORIZED => {
                    authorization = Some(self.authorize(place, &key, &response).await?);
                }
                StatusCode::FORBIDDEN => return Err(place.denied(key.2.as_ref())),
                StatusCode::TOO_MANY_REQUESTS => {
                    return Err(place.unreachable("it answers 429 (too many pulls): log in or wait"));
                }
                status if status.is_server_error() => {
                    return Err(place.unreachable(&format!("it answers {status}")));
                }
                status if status.is_success() || status == StatusCode::NOT_FOUND => return Ok(response),
                status => return Err(place.unreachable(&format!("it answers {status}"))),
            }
        }
        Err(place.denied(key.2.as_ref()))
    }

    /// The value of the header that the registry's challenge asks for.
    async fn authorize(
        &self,
        place: &Place,
        key: &TokenKey,
        response: &Response,
    ) -> Result<String, StoreError> {
        let shown = key.2.as_ref();
        let challenges =
            response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenge = challenges.filter_map(Challenge::parse).next().ok_or_else(|| place.denied(shown))?;
        match challenge {
            Challenge::Basic => {
                let credentials = shown.ok_or_else(|| place.denied(None))?;
                use base64::Engine as _;
                let pair = format!("{}:{}", credentials.username, credentials.password);
                Ok(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
            }
            Challenge::Bearer { realm, service } => {
                let (token, lasts) = self.fetch_token(place, shown, &realm, service.as_deref()).await?;
                let header = format!("Bearer {token}");
                if let Some(lasts) = lasts.checked_sub(TOKEN_MARGIN) {
                    let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                    tokens.retain(|_, (_, until)| *until > Instant::now());
                    if tokens.len() < TOKENS_MAX {
                        tokens.insert(key.clone(), (header.clone(), Instant::now() + lasts));
                    }
                }
                Ok(header)
            }
        }
    }

    async fn fetch_token(
        &self,
        place: &Place,
        credentials: Option<&Credentials>,
        realm: &str,
        service: Option<&str>,
    ) -> Result<(String, Duration), StoreError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let mut url =
            reqwest::Url::parse(realm).map_err(|_| place.unreachable("its token service has no URL"))?;
        if url.scheme() != "https" && !self.registries.is_insecure(&host_of(&url)) {
            return Err(place.unreachable("its token service is not reached over TLS"));
        }
        if !self.registries.reach.permits_host(&host_of(&url)) {
            return Err(place.out_of_reach(&self.registries.reach, &host_of(&url)));
        }
        url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", place.repository));
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.http.get(url).timeout(SMALL_DEADLINE);
        if let Some(credentials) = credentials {
            request = request.basic_auth(&credentials.username, Some(&credentials.password));
        }
        let response = request.send().await.map_err(|error| place.unreachable(&reason(&error)))?;
        if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(place.denied(credentials));
        }
        let json = read_bounded(response, TOKEN_BYTES_MAX, place).await?;
        let answer: Answer = serde_json::from_slice(&json)
            .map_err(|_| place.unreachable("its token service answers nonsense"))?;
        let token = answer.token.or(answer.access_token).ok_or_else(|| place.denied(credentials))?;
        // The specification's default.
        Ok((token, Duration::from_secs(answer.expires_in.unwrap_or(60).min(3600))))
    }

    fn known_token(&self, key: &TokenKey) -> Option<String> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(key).filter(|(_, until)| *until > Instant::now()).map(|(token, _)| token.clone())
    }

    fn url(&self, place: &Place, rest: &str) -> String {
        let scheme = if self.registries.is_insecure(&place.host) { "http" } else { "https" };
        let host = if place.host == "docker.io" { "registry-1.docker.io" } else { &place.host };
        format!("{scheme}://{host}/v2/{}/{rest}", place.repository)
    }
}

impl Place {
    fn unreachable(&self, why: &str) -> StoreError {
        StoreError::Unreachable(format!("cannot fetch from the registry {}: {why}", self.host))
    }

    /// Asking again changes nothing.
    fn out_of_reach(&self, reach: &Reach, host: &str) -> StoreError {
        StoreError::Bad(format!("cannot fetch from the registry {}: {}", self.host, reach.refusal(host)))
    }

    fn denied(&self, shown: Option<&Credentials>) -> StoreError {
        StoreError::Denied(match shown {
            Some(credentials) => {
                let (host, user, repository) = (&self.host, &credentials.username, &self.repository);
                format!(
                    "{host} refuses the credentials of {user} for {repository}: check the password and rights"
                )
            }
            None => format!(
                "{}/{} does not exist or is private: check the name, or give credentials for {}",
                self.host, self.repository, self.host
            ),
        })
    }
}

async fn read_bounded(response: Response, bytes_max: u64, place: &Place) -> Result<Vec<u8>, StoreError> {
    if !response.status().is_success() {
        return Err(place.unreachable(&format!("it answers {}", response.status())));
    }
    let mut bytes = Vec::new();
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| place.unreachable(&error.to_string()))?);
        if bytes.len() as u64 > bytes_max {
            return Err(StoreError::Bad(format!("{} answers with more than {bytes_max} bytes", place.host)));
        }
    }
    Ok(bytes)
}

fn begins_at(response: &Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

fn host_of(url: &reqwest::Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => String::new(),
    }
}

/// The innermost cause says what an operator can act on.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
