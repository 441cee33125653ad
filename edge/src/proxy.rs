//! The shell around the pure parts: one request from head to last byte, as Pingora calls us.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use atoll_api::access::{self, AuthorizedSandbox, Credential, FileGrant, PreviewGrant, SandboxFacts, Target};
use atoll_api::file_link::{FileLink, SigningSecret};
use atoll_api::ids::{RequestId, SandboxId};
use atoll_api::preview_host::{PreviewHost, PreviewSubject};
use atoll_mesh::dial::{ByteStream, DIAL_DEADLINE_MS, Dial, Directory, DirectoryError};
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::Instrument;

use crate::answer::{self, Answer, Format};
use crate::cookie::{self, Claim, CookieKey, Transport};
use crate::credentials::{self, Shown};
use crate::file_link;
use crate::head::{self, Head, Host};
use crate::head_clock::HeadClock;
use crate::headers::{self, Audience, Forwarded};
use crate::refusal::Refusal;
use crate::route::{self, Route};
use crate::target;
use crate::upstream::{self, Exchange};

/// How often the bytes of one request are reported as activity.
const TOUCH_INTERVAL: Duration = Duration::from_secs(5);
/// A dialer that keeps its own deadline never meets this one.
const DIAL_TIMEOUT: Duration = Duration::from_millis(DIAL_DEADLINE_MS + 2_000);
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that sends nothing of its body for as long has gone.
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(300);
/// A refused upload is read to its end within these bounds, so that the client gets to read the answer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
const DRAIN_BYTES_MAX: usize = 16 * 1024 * 1024;

const SKIP_ACTIVITY_HEADER: &str = "x-daytona-skip-last-activity-update";
const DISABLE_CORS_HEADER: &str = "x-daytona-disable-cors";

/// What every request needs; one per edge, shared by its threads.
pub struct Doors {
    pub preview_domain: String,
    pub api_socket: PathBuf,
    pub cookie_key: CookieKey,
    pub signing_secret: SigningSecret,
    pub directory: Arc<dyn Directory>,
    pub dial: Arc<dyn Dial>,
}

/// One per thread, because each keeps its own connections to the API.
pub struct EdgeProxy {
    pub doors: Arc<Doors>,
}

/// One request.
pub struct Exchanged {
    started: Instant,
    request_id: Option<RequestId>,
    host: Option<Host>,
    transport: Transport,
    journey: Journey,
    span: tracing::Span,
}

/// How far the request has come.
enum Journey {
    /// Not routed, or answered by us.
    Here,
    ToApi(Box<HttpPeer>),
    ToSandbox(Box<ToSandbox>),
}

struct ToSandbox {
    sandbox: AuthorizedSandbox,
    audience: Audience,
    /// What the sandbox is asked for.
    target: Vec<u8>,
    peer: HttpPeer,
    exchange: Exchange,
    /// Below which path the client sees the toolbox, if it came that way.
    prefix: Option<String>,
    cors: Cors,
    set_cookie: Option<String>,
    activity: Activity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cors {
    Open,
    Untouched,
}

/// Reports use of a sandbox, now and then while bytes flow.
enum Activity {
    Ignored,
    Reported { directory: Arc<dyn Directory>, sandbox_id: SandboxId, last: Instant },
}

impl Activity {
    fn begin(directory: &Arc<dyn Directory>, sandbox_id: SandboxId, headers: &HeaderMap) -> Activity {
        let skip =
            headers.get(SKIP_ACTIVITY_HEADER).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true"));
        if skip {
            return Activity::Ignored;
        }
        directory.touch(sandbox_id);
        Activity::Reported { directory: directory.clone(), sandbox_id, last: Instant::now() }
    }

    fn bytes_passed(&mut self) {
        if let Activity::Reported { directory, sandbox_id, last } = self
            && last.elapsed() >= TOUCH_INTERVAL
        {
            *last = Instant::now();
            directory.touch(*sandbox_id);
        }
    }
}

/// Who was let in, and what that is worth.
struct Admitted {
    sandbox: AuthorizedSandbox,
    set_cookie: Option<String>,
}

impl EdgeProxy {
    /// Decides where the request goes and opens the way there.
    async fn receive(&self, session: &Session, ctx: &mut Exchanged) -> Result<Option<Answer>, Refusal> {
        let request = session.req_header();
        let raw_head = session.as_downstream().as_http1().map(|http1| http1.get_headers_raw_bytes());
        let raw_target = request.raw_path();
        let host = head::check(&Head {
            method: &request.method,
            version: request.version,
            headers: &request.headers,
            raw_target,
            authority: request.uri.authority().map(|authority| authority.as_str()),
            raw_head: raw_head.as_deref(),
        })?;
        ctx.host = Some(host.clone());
        let origin_form = target::origin_form(raw_target)
            .ok_or(Refusal::BadRequest("the request target must be a path"))?;
        let exchange = exchange(request);

        match route::route(&host, &origin_form, &self.doors.preview_domain)? {
            Route::Preview(preview) => {
                self.receive_preview(request, &preview, &origin_form, exchange, ctx).await?;
            }
            Route::Toolbox { sandbox_id, path, target } => {
                let answer = self.receive_toolbox(request, sandbox_id, &target, exchange, ctx).await?;
                if let Journey::ToSandbox(to) = &mut ctx.journey {
                    to.prefix = Some(path.prefix(&sandbox_id.to_string()));
                }
                return Ok(answer);
            }
            Route::Api => {
                let peer = match exchange {
                    Exchange::Plain => {
                        upstream::api_peer(&self.doors.api_socket).map_err(|_| Refusal::Internal)?
                    }
                    Exchange::Upgrade => upstream::api_upgrade_peer(self.connect_api().await?),
                };
                ctx.journey = Journey::ToApi(Box::new(peer));
            }
        }
        Ok(None)
    }

    async fn receive_preview(
        &self,
        request: &RequestHeader,
        preview: &PreviewHost,
        origin_form: &[u8],
        exchange: Exchange,
        ctx: &mut Exchanged,
    ) -> Result<(), Refusal> {
        let dialed = Target::port(preview.port);
        let audience = match dialed {
            Target::Daemon => Audience::Daemon,
            Target::Port(_) => Audience::UserCode,
        };
        let (target, query_key) = target::take_query_parameter(origin_form, credentials::QUERY_KEY);
        if dialed == Target::Daemon && target::is_internal_path(&target) {
            return Err(Refusal::NotFound);
        }
        let label = match &preview.subject {
            PreviewSubject::Sandbox(id) => id.to_string(),
            PreviewSubject::Signed(token) => token.reveal().to_owned(),
        };
        let cookie = cookie::verified(
            &self.doors.cookie_key,
            &request.headers,
            &label,
            preview.port,
            unix_now().as_secs(),
        )
        .filter(|_| dialed != Target::Daemon || !headers::is_from_foreign_page(&request.headers));

        // A signed label names its sandbox only through the directory; a cookie of an hour outlives a short link.
        let grant = match (&preview.subject, &cookie) {
            (PreviewSubject::Sandbox(_), _) => None,
            (PreviewSubject::Signed(token), cookie) => match self.signed_preview(token).await {
                Ok(grant) => Some(grant),
                Err(_) if cookie.is_some() => None,
                Err(DirectoryError::NotFound) => return Err(Refusal::Expired),
                Err(error) => return Err(error.into()),
            },
        };
        let sandbox_id = match (&preview.subject, &grant, &cookie) {
            (PreviewSubject::Sandbox(id), _, _) => *id,
            (PreviewSubject::Signed(_), Some(grant), _) => grant.sandbox_id,
            (PreviewSubject::Signed(_), None, Some(claim)) => claim.sandbox_id,
            (PreviewSubject::Signed(_), None, None) => return Err(Refusal::Expired),
        };
        let cookie = cookie.filter(|claim| claim.sandbox_id == sandbox_id);
        let shown =
            credentials::shown(&request.headers, query_key.as_deref(), cookie, Some(&preview.subject), None);
        let admitted = self
            .admit(shown, sandbox_id, dialed, grant, |claim| {
                cookie::issue(&self.doors.cookie_key, &label, claim, ctx.transport)
            })
            .await?;
        self.dial(request, admitted, audience, &target, exchange, ctx).await
    }

    async fn receive_toolbox(
        &self,
        request: &RequestHeader,
        sandbox_id: SandboxId,
        rest: &[u8],
        exchange: Exchange,
        ctx: &mut Exchanged,
    ) -> Result<Option<Answer>, Refusal> {
        let disabled = request.headers.get(DISABLE_CORS_HEADER).is_some_and(|v| v.as_bytes() == b"true");
        if !disabled && answer::is_preflight(&request.method, &request.headers) {
            return Ok(Some(answer::preflight(&request.headers)));
        }
        let (target, query_key) = target::take_query_parameter(rest, credentials::QUERY_KEY);
        if target::is_internal_path(&target) {
            return Err(Refusal::NotFound);
        }
        let link = file_link::find(&request.method, &target);
        let target = match &link {
            Some(link) => Cow::Owned(file_link::target_of(link)),
            None => target,
        };
        let shown = credentials::shown(&request.headers, query_key.as_deref(), None, None, link);
        let mut admitted = self.admit(shown, sandbox_id, Target::Daemon, None, |_| String::new()).await?;
        admitted.set_cookie = None;
        self.dial(request, admitted, Audience::Daemon, &target, exchange, ctx).await?;
        if let Journey::ToSandbox(to) = &mut ctx.journey {
            to.cors = if disabled { Cors::Untouched } else { Cors::Open };
        }
        Ok(None)
    }

    /// Tries what was shown in order; the first that opens the door does. Otherwise the most telling denial.
    async fn admit(
        &self,
        shown: Vec<Shown>,
        sandbox_id: SandboxId,
        target: Target,
        grant: Option<PreviewGrant>,
        issue: impl Fn(&Claim) -> String,
    ) -> Result<Admitted, Refusal> {
        let facts = self.facts(sandbox_id).await?;
        let now = unix_now();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mut denial = Refusal::Unauthorized;
        for shown in shown {
            let wins_cookie = matches!(shown, Shown::TokenInQuery(_) | Shown::SignedLabel(_));
            let credential = match shown {
                Shown::ApiKey(key) => match self.api_key(&key).await {
                    Ok(caller) => Credential::Caller(caller),
                    Err(DirectoryError::NotFound) => continue,
                    Err(error) => return Err(error.into()),
                },
                Shown::TokenInHeader(hash) | Shown::TokenInQuery(hash) => Credential::PreviewToken(hash),
                Shown::Cookie(claim) => Credential::SignedPreview(PreviewGrant {
                    sandbox_id: claim.sandbox_id,
                    port: claim.port,
                    expires_at_ms: claim.expires_at_s.saturating_mul(1000),
                }),
                Shown::SignedLabel(_) => match grant.clone() {
                    Some(grant) => Credential::SignedPreview(grant),
                    None => continue,
                },
                Shown::FileLink(link) => match self.file_grant(&link, &facts).await? {
                    Some(grant) => Credential::FileLink(grant),
                    None => {
                        if denial == Refusal::Unauthorized {
                            denial = Refusal::WrongSignature;
                        }
                        continue;
                    }
                },
                Shown::Nothing => Credential::Nothing,
            };
            match access::authorize(&credential, &facts, target, now_ms) {
                Ok(sandbox) => {
                    let set_cookie = match (wins_cookie, port_of(target)) {
                        (true, Some(port)) => Some(issue(&Claim {
                            sandbox_id,
                            port,
                            expires_at_s: now.as_secs() + cookie::MAX_AGE_S,
                        })),
                        _ => None,
                    };
                    return Ok(Admitted { sandbox, set_cookie });
                }
                // Of two reasons the first credential's says more than "nothing was shown".
                Err(reason) if denial == Refusal::Unauthorized => denial = reason.into(),
                Err(_) => {}
            }
        }
        Err(denial)
    }

    async fn dial(
        &self,
        request: &RequestHeader,
        admitted: Admitted,
        audience: Audience,
        target: &[u8],
        exchange: Exchange,
        ctx: &mut Exchanged,
    ) -> Result<(), Refusal> {
        let Admitted { sandbox, set_cookie } = admitted;
        let request_id = ctx.request_id.as_ref().ok_or(Refusal::Internal)?;
        ctx.span.record("sandbox_id", tracing::field::display(sandbox.sandbox_id()));
        ctx.span.record("generation", sandbox.generation().0);
        let activity = Activity::begin(&self.doors.directory, sandbox.sandbox_id(), &request.headers);
        let dialing = self.doors.dial.dial(&sandbox, request_id).instrument(ctx.span.clone());
        let stream =
            timeout(DIAL_TIMEOUT, dialing).await.map_err(|_| Refusal::TimedOut)?.map_err(|error| {
                tracing::debug!(parent: &ctx.span, %error, "dial failed");
                Refusal::from(error)
            })?;
        ctx.journey = Journey::ToSandbox(Box::new(ToSandbox {
            peer: upstream::sandbox_peer(&sandbox, stream, exchange),
            sandbox,
            audience,
            target: target.to_vec(),
            exchange,
            prefix: None,
            cors: Cors::Untouched,
            set_cookie,
            activity,
        }));
        Ok(())
    }

    async fn facts(&self, sandbox_id: SandboxId) -> Result<SandboxFacts, Refusal> {
        let found = timeout(DIRECTORY_TIMEOUT, self.doors.directory.sandbox(sandbox_id)).await;
        Ok(found.map_err(|_| Refusal::Unreachable)??)
    }

    /// A replica may not have heard yet that the key was replaced.
    async fn file_grant(&self, link: &FileLink, facts: &SandboxFacts) -> Result<Option<FileGrant>, Refusal> {
        let verify = |version| self.doors.signing_secret.key_of(facts.sandbox_id, version).verify(link);
        if let Some(grant) = verify(facts.signing_key_version) {
            return Ok(Some(grant));
        }
        if !link.is_well_formed() {
            return Ok(None);
        }
        let now = timeout(DIRECTORY_TIMEOUT, self.doors.directory.sandbox_now(facts.sandbox_id)).await;
        let version = now.map_err(|_| Refusal::Unreachable)??.signing_key_version;
        Ok(if version == facts.signing_key_version { None } else { verify(version) })
    }

    async fn api_key(
        &self,
        key: &atoll_api::tokens::ApiKey,
    ) -> Result<atoll_api::access::Caller, DirectoryError> {
        timeout(DIRECTORY_TIMEOUT, self.doors.directory.api_key(key)).await.unwrap_or_else(|_| Err(slow()))
    }

    async fn signed_preview(
        &self,
        token: &atoll_api::tokens::SignedPreviewToken,
    ) -> Result<PreviewGrant, DirectoryError> {
        timeout(DIRECTORY_TIMEOUT, self.doors.directory.signed_preview(token))
            .await
            .unwrap_or_else(|_| Err(slow()))
    }

    /// An upgrade gets a connection of its own, through the same gate as a sandbox's.
    async fn connect_api(&self) -> Result<ByteStream, Refusal> {
        let stream = UnixStream::connect(&self.doors.api_socket).await.map_err(|error| {
            tracing::warn!(%error, socket = %self.doors.api_socket.display(), "API socket is not answering");
            Refusal::ApiUnavailable
        })?;
        Ok(Box::new(stream))
    }

    /// Answers with a refusal, in JSON or as a page.
    async fn refuse(&self, session: &mut Session, ctx: &Exchanged, refusal: &Refusal) -> pingora::Result<()> {
        let request = session.req_header();
        // A toolbox client reads JSON whatever it says it accepts, and a browser shows a page only for a preview.
        let toolbox = target::split_toolbox(request.raw_path()).is_some();
        let format = if toolbox { Format::Json } else { Format::wanted_by(&request.headers) };
        let (path, _) = target::split_query(request.raw_path());
        let path = String::from_utf8_lossy(&path[..path.len().min(1024)]).into_owned();
        let mut answer = answer::refusal(refusal, &path, format, time::OffsetDateTime::now_utc());
        if toolbox {
            answer.headers.extend(answer::CORS.map(|(name, value)| (name, value.to_owned())));
        }
        tracing::debug!(parent: &ctx.span, status = answer.status, %refusal, "refused");
        self.send(session, ctx, answer).await
    }

    async fn send(&self, session: &mut Session, ctx: &Exchanged, answer: Answer) -> pingora::Result<()> {
        let mut response = ResponseHeader::build(answer.status, Some(answer.headers.len() + 3))?;
        for (name, value) in answer.headers {
            response.insert_header(name, value)?;
        }
        if let Some(request_id) = &ctx.request_id {
            response.insert_header(RequestId::HEADER, request_id.as_str())?;
        }
        let bodiless = answer.body.is_empty() || session.req_header().method == Method::HEAD;
        let awaits_continue = session.req_header().headers.contains_key(header::EXPECT);
        session.write_response_header(Box::new(response), bodiless).await?;
        if bodiless {
            session.as_downstream_mut().finish_body().await?;
        } else {
            session.write_response_body(Some(Bytes::from(answer.body)), true).await?;
        }
        // Closing on unread bytes resets the connection, and the client may lose the answer.
        if !awaits_continue && session.as_downstream().as_http1().is_some() {
            let _ = timeout(DRAIN_TIMEOUT, drain(session)).await;
        }
        Ok(())
    }
}

async fn drain(session: &mut Session) {
    let mut bytes = 0;
    while bytes < DRAIN_BYTES_MAX && !session.as_downstream_mut().is_body_done() {
        match session.as_downstream_mut().read_request_body().await {
            Ok(Some(chunk)) => bytes += chunk.len(),
            Ok(None) | Err(_) => return,
        }
    }
}

/// Only WebSocket goes through; any other upgrade is forwarded as the plain request it may stay.
fn exchange(request: &RequestHeader) -> Exchange {
    let asked = request.headers.get(header::UPGRADE);
    let websocket = asked.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if websocket && request.version == http::Version::HTTP_11 { Exchange::Upgrade } else { Exchange::Plain }
}

fn port_of(target: Target) -> Option<u16> {
    match target {
        Target::Daemon => Some(access::DAEMON_PORT),
        Target::Port(port) => Some(port),
    }
}

fn slow() -> DirectoryError {
    DirectoryError::Unreachable("no answer in time".to_owned())
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[async_trait]
impl ProxyHttp for EdgeProxy {
    type CTX = Exchanged;

    fn new_ctx(&self) -> Exchanged {
        Exchanged {
            started: Instant::now(),
            request_id: None,
            host: None,
            transport: Transport::Plain,
            journey: Journey::Here,
            span: tracing::Span::none(),
        }
    }

    /// No modules: nothing may be compressed or buffered.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Exchanged) -> pingora::Result<()> {
        let request_id = session
            .req_header()
            .headers
            .get(RequestId::HEADER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .unwrap_or_else(|| RequestId::from_random(rand::random()));
        ctx.span = tracing::info_span!(
            "request",
            request_id = %request_id,
            sandbox_id = tracing::field::Empty,
            generation = tracing::field::Empty
        );
        ctx.request_id = Some(request_id);
        if let Some(clock) = HeadClock::of(session.as_downstream()) {
            clock.received();
        }
        let downstream = session.as_downstream_mut();
        let tls = downstream.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        ctx.transport = if tls { Transport::Tls } else { Transport::Plain };
        // A client that sends its next request early must not lose the answer to this one.
        downstream.set_pipelining_enabled(true);
        // Pingora's 60 s would cut uploads that pause, and idle WebSockets.
        let upgrade = exchange(downstream.req_header()) == Exchange::Upgrade;
        downstream.set_read_timeout((!upgrade).then_some(BODY_READ_TIMEOUT));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Exchanged) -> pingora::Result<bool> {
        match self.receive(session, ctx).await {
            Ok(None) => Ok(false),
            Ok(Some(answer)) => {
                self.send(session, ctx, answer).await?;
                Ok(true)
            }
            Err(refusal) => {
                self.refuse(session, ctx, &refusal).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        ctx: &mut Exchanged,
    ) -> pingora::Result<Box<HttpPeer>> {
        match &ctx.journey {
            Journey::ToApi(peer) => Ok(peer.clone()),
            Journey::ToSandbox(to) => Ok(Box::new(to.peer.clone())),
            Journey::Here => Err(Error::explain(ErrorType::InternalError, "the request was not routed")),
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Exchanged,
    ) -> pingora::Result<()> {
        let (Some(host), Some(request_id)) = (&ctx.host, &ctx.request_id) else {
            return Err(Error::explain(ErrorType::InternalError, "the request was not received"));
        };
        let audience = match &ctx.journey {
            Journey::ToSandbox(to) => to.audience,
            Journey::ToApi(_) | Journey::Here => Audience::Api,
        };
        let client = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
        let forwarded = Forwarded { client, transport: ctx.transport, host: &host.text, request_id };
        let changes = headers::changes(&upstream_request.headers, audience, &forwarded);
        for name in &changes.remove {
            upstream_request.remove_header(name);
        }
        for (name, value) in changes.set {
            upstream_request.insert_header(name, value)?;
        }
        if let Journey::ToSandbox(to) = &ctx.journey {
            upstream_request.set_raw_path(&to.target)?;
            if !upstream_request.headers.contains_key(header::UPGRADE) {
                // One stream, one request: the program may close at once, and Pingora keeps nothing.
                upstream_request.insert_header(header::CONNECTION, "close")?;
            }
        } else if upstream_request.raw_path().first() != Some(&b'/') {
            let origin_form = target::origin_form(upstream_request.raw_path()).map(Cow::into_owned);
            if let Some(origin_form) = origin_form {
                upstream_request.set_raw_path(&origin_form)?;
            }
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Exchanged,
    ) -> pingora::Result<()> {
        if response.status.is_informational() && response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        if let Some(request_id) = &ctx.request_id {
            response.insert_header(RequestId::HEADER, request_id.as_str())?;
        }
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            session.as_downstream_mut().set_read_timeout(None);
        }
        let Journey::ToSandbox(to) = &mut ctx.journey else {
            return Ok(());
        };
        if to.cors == Cors::Open {
            for (name, value) in answer::CORS {
                response.insert_header(name, value)?;
            }
        }
        if let (Some(prefix), Some(host)) = (&to.prefix, &ctx.host)
            && response.status.is_redirection()
            && let Some(location) = response.headers.get(header::LOCATION)
            && let Some(moved) = headers::prefixed_location(location.as_bytes(), prefix, &host.text)
        {
            response.insert_header(header::LOCATION, moved)?;
        }
        if let Some(set_cookie) = to.set_cookie.take() {
            response.append_header(header::SET_COOKIE, set_cookie)?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Exchanged,
    ) -> pingora::Result<()> {
        if let (Some(_), Journey::ToSandbox(to)) = (body, &mut ctx.journey) {
            to.activity.bytes_passed();
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Exchanged,
    ) -> pingora::Result<Option<Duration>> {
        if let (Some(_), Journey::ToSandbox(to)) = (body, &mut ctx.journey) {
            to.activity.bytes_passed();
        }
        Ok(None)
    }

    /// Something broke after the way was open. If nothing has been answered yet, we do.
    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Exchanged) -> FailToProxy {
        let refusal = failure(error, &ctx.journey);
        let dead = FailToProxy { error_code: 0, can_reuse_downstream: false };
        if session
            .response_written()
            .is_some_and(|written| !written.status.is_informational() || written.status == 101)
        {
            return dead;
        }
        let Some(refusal) = refusal else {
            return dead;
        };
        session.set_keepalive(None);
        match self.refuse(session, ctx, &refusal).await {
            Ok(()) => FailToProxy {
                error_code: session.response_written().map_or(0, |written| written.status.as_u16()),
                can_reuse_downstream: false,
            },
            Err(_) => dead,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Exchanged) {
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let elapsed_ms = u64::try_from(ctx.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let request = session.req_header();
        let error = error.map(tracing::field::display);
        tracing::debug!(
            parent: &ctx.span,
            method = %request.method,
            path = request.uri.path(),
            status,
            elapsed_ms,
            error,
            sent_bytes = session.body_bytes_sent(),
            generation = match &ctx.journey {
                Journey::ToSandbox(to) => Some(to.sandbox.generation().0),
                Journey::Here | Journey::ToApi(_) => None,
            },
            upgraded = matches!(&ctx.journey, Journey::ToSandbox(to) if to.exchange == Exchange::Upgrade),
            "request done"
        );
        // On an HTTP/2 connection others may be under way; when there is none, its own idle timeout counts.
        let http1 = session.as_downstream().as_http1().is_some();
        if let (true, Some(clock)) = (http1, HeadClock::of(session.as_downstream())) {
            clock.answered();
        }
    }

    /// Clients that go away and programs that break are not ours to be woken for; `logging` has them.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Exchanged, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Exchanged,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// What to tell the client, or `None` when the client itself is gone.
fn failure(error: &Error, journey: &Journey) -> Option<Refusal> {
    let timed_out = matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
    match (error.esource(), journey) {
        (ErrorSource::Downstream, _) => match error.etype() {
            ErrorType::ReadTimedout => Some(Refusal::BodyTimedOut),
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => None,
            _ => Some(Refusal::BadRequest("malformed request")),
        },
        (ErrorSource::Upstream, _) if timed_out => Some(Refusal::TimedOut),
        (ErrorSource::Upstream, Journey::ToSandbox(_)) => Some(Refusal::BrokenAnswer),
        (ErrorSource::Upstream, _) => match error.etype() {
            ErrorType::ConnectError
            | ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectTimedout
            | ErrorType::SocketError => Some(Refusal::ApiUnavailable),
            _ => Some(Refusal::ApiBroken),
        },
        (ErrorSource::Internal | ErrorSource::Unset, _) => Some(Refusal::Internal),
    }
}
