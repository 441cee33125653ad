//! Sandboxes: their life, their settings, and the ways into them.

use atoll_api::rest::{
    CreateSandbox, ErrorBody, ListSandboxesResponse, PortPreviewUrl, Sandbox, SandboxLabels, SandboxState,
    SignedPortPreviewUrl, SshAccessDto, SshAccessValidationDto, Timestamp, ToolboxProxyUrl,
    UpdateSandboxNetworkSettings,
};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::RestState;
use super::create::{self, INTERVAL_MINUTES_MAX};
use super::errors::ApiError;
use super::input::{Body, Queries, Segments};
use super::present;
use super::visitor::Visitor;
use crate::control::verb::{IntervalChange, ListSandboxes, SandboxView, Verb, VerbAnswer};

const LIST_LIMIT_DEFAULT: u32 = 100;
const LIST_LIMIT_MAX: i64 = 200;
const SSH_MINUTES_DEFAULT: i64 = 60;
const SIGNED_SECONDS_DEFAULT: i64 = 60;
const SIGNED_SECONDS_MAX: i64 = 86_400;

/// Takes the one kind of answer that the verb has; any other is our mistake.
macro_rules! answer {
    ($answer:expr, $pattern:pat => $value:expr) => {
        match $answer {
            $pattern => Ok($value),
            _ => {
                Err($crate::rest::errors::ApiError::Bug(format!("the answer is no {}", stringify!($pattern))))
            }
        }
    };
}
pub(super) use answer;

/// Creates a sandbox and answers when it runs.
#[utoipa::path(
    post, path = "/sandbox", operation_id = "createSandbox", tag = "sandbox", security(("bearer" = [])),
    request_body = CreateSandbox,
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn create(
    visitor: Visitor,
    Body(asked): Body<CreateSandbox>,
) -> Result<Json<Sandbox>, ApiError> {
    change(&visitor, Verb::Create(create::parse(asked)?)).await
}

/// Lists the organization's sandboxes in every region. Regions that cannot be asked are named in the header
/// `X-Atoll-Unreachable-Regions`.
#[utoipa::path(
    get, path = "/sandbox", operation_id = "listSandboxes", tag = "sandbox", security(("bearer" = [])),
    params(
        ("cursor" = Option<String>, Query, description = "nextCursor of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "100 when left out"),
        ("id" = Option<String>, Query, description = "how the id begins"),
        ("name" = Option<String>, Query, description = "how the name begins"),
        ("labels" = Option<String>, Query, description = "a JSON object; every pair must be there"),
        ("states" = Option<Vec<String>>, Query, description = "any of them"),
        ("snapshots" = Option<Vec<String>>, Query, description = "any of them"),
        ("regionIds" = Option<Vec<String>>, Query, description = "any of them"),
    ),
    responses((status = 200, body = ListSandboxesResponse), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(visitor: Visitor, queries: Queries) -> Result<Response, ApiError> {
    let page =
        answer!(visitor.ask(Verb::List(list_query(&queries)?)).await?, VerbAnswer::Page(page) => page)?;
    let items = page.items.into_iter().map(|view| present::sandbox(view, &visitor.door).into()).collect();
    let mut response = Json(ListSandboxesResponse { items, next_cursor: page.next_cursor }).into_response();
    if let Some(regions) = present::unreachable_regions(&page.unreachable_regions) {
        response.headers_mut().insert(present::UNREACHABLE_REGIONS_HEADER, regions);
    }
    Ok(response)
}

fn list_query(queries: &Queries) -> Result<ListSandboxes, ApiError> {
    queries.refuse(&[
        "sandboxClasses",
        "minCpu",
        "maxCpu",
        "minGpu",
        "maxGpu",
        "minMemoryGiB",
        "maxMemoryGiB",
        "minDiskGiB",
        "maxDiskGiB",
        "isPublic",
        "isRecoverable",
        "createdAtAfter",
        "createdAtBefore",
        "lastEventAfter",
        "lastEventBefore",
        "autoDestroyAtAfter",
        "autoDestroyAtBefore",
        "sort",
        "order",
    ])?;
    let states = queries.all("states")?;
    if let Some(unknown) = states.iter().find(|state| !SandboxState::NAMES.contains(&state.as_str())) {
        return Err(ApiError::Invalid(format!("states: there is no state {unknown:?}")));
    }
    let regions = queries.all("regionIds")?.iter().map(|region| region.parse()).collect::<Result<_, _>>();
    let cursor = queries.text("cursor")?;
    if cursor.is_some_and(|cursor| !cursor.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(ApiError::Invalid("cursor is malformed: send nextCursor of the page before".to_owned()));
    }
    let limit = queries.number("limit", 1..=LIST_LIMIT_MAX)?;
    Ok(ListSandboxes {
        cursor: cursor.map(str::to_owned),
        limit: limit.map_or(LIST_LIMIT_DEFAULT, |limit| u32::try_from(limit).expect("the range is small")),
        id_prefix: queries.text("id")?.map(str::to_owned),
        name_prefix: queries.text("name")?.map(str::to_owned),
        labels: queries.labels("labels")?,
        states,
        snapshots: queries.all("snapshots")?,
        regions: regions.map_err(|error| ApiError::Invalid(format!("regionIds: {error}")))?,
    })
}

#[utoipa::path(
    get, path = "/sandbox/{sandboxIdOrName}", operation_id = "getSandbox", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn read(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    change(&visitor, Verb::Get { sandbox: path.sandbox()? }).await
}

#[utoipa::path(
    delete, path = "/sandbox/{sandboxIdOrName}", operation_id = "deleteSandbox", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn delete(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    change(&visitor, Verb::Delete { sandbox: path.sandbox()? }).await
}

/// Starts a sandbox and answers when it runs.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/start", operation_id = "startSandbox", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn start(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    change(&visitor, Verb::Start { sandbox: path.sandbox()? }).await
}

/// Stops a sandbox and answers when it has stopped.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/stop", operation_id = "stopSandbox", tag = "sandbox", security(("bearer" = [])),
    params(
        ("sandboxIdOrName" = String, Path),
        ("force" = Option<bool>, Query, description = "kill at once"),
    ),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn stop(
    visitor: Visitor,
    path: Segments,
    queries: Queries,
) -> Result<Json<Sandbox>, ApiError> {
    let force = queries.flag("force")?.unwrap_or_default();
    change(&visitor, Verb::Stop { sandbox: path.sandbox()?, force }).await
}

/// Freezes a running sandbox and answers when no process of it runs any more. What is in memory stays; a start goes on
/// from there.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/pause", operation_id = "pauseSandbox", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn pause(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    change(&visitor, Verb::Pause { sandbox: path.sandbox()? }).await
}

/// Changes what a sandbox may reach, also while it runs.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/network-settings", operation_id = "updateNetworkSettings", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    request_body = UpdateSandboxNetworkSettings,
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn update_network_settings(
    visitor: Visitor,
    path: Segments,
    Body(asked): Body<UpdateSandboxNetworkSettings>,
) -> Result<Json<Sandbox>, ApiError> {
    let UpdateSandboxNetworkSettings { network_block_all, network_allow_list, domain_allow_list } = asked;
    let verb = Verb::SetEgress {
        sandbox: path.sandbox()?,
        block_all: network_block_all,
        networks: network_allow_list,
        domains: domain_allow_list,
    };
    change(&visitor, verb).await
}

/// Replaces all labels.
#[utoipa::path(
    put, path = "/sandbox/{sandboxIdOrName}/labels", operation_id = "replaceLabels", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    request_body = SandboxLabels,
    responses((status = 200, body = SandboxLabels), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn replace_labels(
    visitor: Visitor,
    path: Segments,
    Body(asked): Body<SandboxLabels>,
) -> Result<Json<SandboxLabels>, ApiError> {
    let labels = create::labels(asked.labels)?;
    let view = view(&visitor, Verb::SetLabels { sandbox: path.sandbox()?, labels }).await?;
    Ok(Json(SandboxLabels { labels: view.record.labels }))
}

/// Opens or closes the previews to everybody.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/public/{isPublic}", operation_id = "updatePublicStatus", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("isPublic" = bool, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn set_public(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    let public = path.flag("isPublic")?;
    change(&visitor, Verb::SetPublic { sandbox: path.sandbox()?, public }).await
}

/// Sets after how many idle minutes a sandbox stops; 0: never.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/autostop/{interval}", operation_id = "setAutostopInterval", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("interval" = i64, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn set_auto_stop(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    let minutes = create::auto_stop(path.number("interval", WHOLE)?)?;
    set_interval(&visitor, &path, IntervalChange::Stop(minutes)).await
}

/// Sets after how many idle minutes a sandbox is paused; 0: never.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/autopause/{interval}", operation_id = "setAutoPauseInterval", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("interval" = i64, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn set_auto_pause(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    let minutes = create::auto_pause(path.number("interval", WHOLE)?)?;
    set_interval(&visitor, &path, IntervalChange::Pause(minutes)).await
}

/// Sets after how many stopped minutes a sandbox is archived; 0: the longest there is.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/autoarchive/{interval}", operation_id = "setAutoArchiveInterval", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("interval" = i64, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn set_auto_archive(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    let minutes = create::auto_archive(path.number("interval", WHOLE)?)?;
    set_interval(&visitor, &path, IntervalChange::Archive(minutes)).await
}

/// Sets after how many stopped minutes a sandbox is deleted; negative: never, 0: as soon as it stops.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/autodelete/{interval}", operation_id = "setAutoDeleteInterval", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("interval" = i64, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn set_auto_delete(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    let minutes = create::auto_delete(path.number("interval", WHOLE)?)?;
    set_interval(&visitor, &path, IntervalChange::Delete(minutes)).await
}

/// Any whole number: the interval's own range is judged by its own rule.
const WHOLE: std::ops::RangeInclusive<i64> = i64::MIN..=i64::MAX;

async fn set_interval(
    visitor: &Visitor,
    path: &Segments,
    change: IntervalChange,
) -> Result<Json<Sandbox>, ApiError> {
    self::change(visitor, Verb::SetIntervals { sandbox: path.sandbox()?, change }).await
}

/// Says that a sandbox is in use, so that it does not stop for being idle. The moment in the body, if any, is ignored:
/// it is now.
#[utoipa::path(
    post, path = "/sandbox/{sandboxId}/last-activity", operation_id = "updateLastActivity", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxId" = String, Path)),
    responses((status = 201), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn touch(visitor: Visitor, path: Segments) -> Result<StatusCode, ApiError> {
    answer!(visitor.ask(Verb::Touch { sandbox: path.sandbox()? }).await?, VerbAnswer::Done => StatusCode::CREATED)
}

/// The base URL of the sandbox's toolbox.
#[utoipa::path(
    get, path = "/sandbox/{sandboxId}/toolbox-proxy-url", operation_id = "getToolboxProxyUrl", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxId" = String, Path)),
    responses((status = 200, body = ToolboxProxyUrl), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn toolbox_proxy_url(
    visitor: Visitor,
    path: Segments,
) -> Result<Json<ToolboxProxyUrl>, ApiError> {
    view(&visitor, Verb::Get { sandbox: path.sandbox()? }).await?;
    Ok(Json(ToolboxProxyUrl { url: visitor.door.toolbox() }))
}

/// The URL of a port of the sandbox, and the token that opens it.
#[utoipa::path(
    get, path = "/sandbox/{sandboxIdOrName}/ports/{port}/preview-url", operation_id = "getPortPreviewUrl", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("port" = u16, Path)),
    responses((status = 200, body = PortPreviewUrl), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn preview_url(
    State(state): State<RestState>,
    visitor: Visitor,
    path: Segments,
) -> Result<Json<PortPreviewUrl>, ApiError> {
    let verb = Verb::PreviewToken { sandbox: path.sandbox()?, port: path.port()? };
    let (sandbox_id, port, token) = answer!(
        visitor.ask(verb).await?,
        VerbAnswer::PreviewToken { sandbox_id, port, token } => (sandbox_id, port, token)
    )?;
    let url = visitor.door.preview(port, sandbox_id, &state.settings.preview_domain);
    Ok(Json(PortPreviewUrl { sandbox_id, url, token }))
}

/// A URL that opens a port for whoever has it, for a while.
#[utoipa::path(
    get, path = "/sandbox/{sandboxIdOrName}/ports/{port}/signed-preview-url", operation_id = "getSignedPortPreviewUrl", tag = "sandbox", security(("bearer" = [])),
    params(
        ("sandboxIdOrName" = String, Path), ("port" = u16, Path),
        ("expiresInSeconds" = Option<u32>, Query, minimum = 1, maximum = 86400, description = "60 when left out"),
    ),
    responses((status = 200, body = SignedPortPreviewUrl), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn signed_preview_url(
    State(state): State<RestState>,
    visitor: Visitor,
    path: Segments,
    queries: Queries,
) -> Result<Json<SignedPortPreviewUrl>, ApiError> {
    let seconds =
        queries.number("expiresInSeconds", 1..=SIGNED_SECONDS_MAX)?.unwrap_or(SIGNED_SECONDS_DEFAULT);
    let verb = Verb::SignPreview {
        sandbox: path.sandbox()?,
        port: path.port()?,
        expires_in_s: seconds.unsigned_abs(),
    };
    let (sandbox_id, port, token) = answer!(
        visitor.ask(verb).await?,
        VerbAnswer::SignedPreview { sandbox_id, port, token } => (sandbox_id, port, token)
    )?;
    let url = visitor.door.signed_preview(port, &token, &state.settings.preview_domain);
    Ok(Json(SignedPortPreviewUrl { sandbox_id, port, token, url }))
}

#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/ports/{port}/signed-preview-url/{token}/expire",
    operation_id = "expireSignedPortPreviewUrl", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("port" = u16, Path), ("token" = String, Path)),
    responses((status = 200), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn expire_signed_preview_url(
    visitor: Visitor,
    path: Segments,
) -> Result<StatusCode, ApiError> {
    let token = path.text("token")?;
    if token.parse::<atoll_api::tokens::SignedPreviewToken>().is_err() {
        return Err(ApiError::NotFound("the signed preview token is not known".to_owned()));
    }
    let verb = Verb::ExpirePreview { sandbox: path.sandbox()?, port: path.port()?, token: token.to_owned() };
    answer!(visitor.ask(verb).await?, VerbAnswer::Done => StatusCode::OK)
}

/// The key that clients sign links to the sandbox's files with.
#[utoipa::path(
    get, path = "/sandbox/{sandboxId}/signing-key", operation_id = "getSandboxSigningKey", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxId" = String, Path)),
    responses((status = 200, body = String), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn signing_key(visitor: Visitor, path: Segments) -> Result<Json<String>, ApiError> {
    signing_key_of(&visitor, Verb::SigningKey { sandbox: path.sandbox()? }).await
}

/// A new one. Links that were signed before end.
#[utoipa::path(
    post, path = "/sandbox/{sandboxId}/signing-key/rotate", operation_id = "rotateSigningKey", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxId" = String, Path)),
    responses((status = 200, body = String), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn rotate_signing_key(visitor: Visitor, path: Segments) -> Result<Json<String>, ApiError> {
    signing_key_of(&visitor, Verb::RotateSigningKey { sandbox: path.sandbox()? }).await
}

async fn signing_key_of(visitor: &Visitor, verb: Verb) -> Result<Json<String>, ApiError> {
    answer!(visitor.ask(verb).await?, VerbAnswer::SigningKey(key) => Json(key.0))
}

/// Issues the sandbox's SSH token; earlier ones end.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/ssh-access", operation_id = "createSshAccess", tag = "sandbox", security(("bearer" = [])),
    params(
        ("sandboxIdOrName" = String, Path),
        ("expiresInMinutes" = Option<u32>, Query, minimum = 1, maximum = 525600, description = "60 when left out"),
    ),
    responses((status = 200, body = SshAccessDto), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn issue_ssh(
    State(state): State<RestState>,
    visitor: Visitor,
    path: Segments,
    queries: Queries,
) -> Result<Json<SshAccessDto>, ApiError> {
    let minutes =
        queries.number("expiresInMinutes", 1..=INTERVAL_MINUTES_MAX)?.unwrap_or(SSH_MINUTES_DEFAULT);
    let verb = Verb::IssueSsh { sandbox: path.sandbox()?, expires_in_minutes: minutes.unsigned_abs() };
    let settings = &state.settings;
    answer!(
        visitor.ask(verb).await?,
        VerbAnswer::SshAccess { id, sandbox_id, token, created_at_ms, expires_at_ms } => Json(SshAccessDto {
            id,
            sandbox_id,
            ssh_command: format!("ssh -p {} {token}@{}", settings.ssh_port, settings.ssh_host),
            token,
            expires_at: Timestamp(expires_at_ms),
            created_at: Timestamp(created_at_ms),
            updated_at: Timestamp(created_at_ms),
        })
    )
}

/// Ends one SSH token of the sandbox, or all of them.
#[utoipa::path(
    delete, path = "/sandbox/{sandboxIdOrName}/ssh-access", operation_id = "revokeSshAccess", tag = "sandbox", security(("bearer" = [])),
    params(
        ("sandboxIdOrName" = String, Path),
        ("token" = Option<String>, Query, description = "all when left out"),
    ),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn revoke_ssh(
    visitor: Visitor,
    path: Segments,
    queries: Queries,
) -> Result<Json<Sandbox>, ApiError> {
    let token = queries.text("token")?.map(str::to_owned);
    change(&visitor, Verb::RevokeSsh { sandbox: path.sandbox()?, token }).await
}

/// Whether an SSH token opens a sandbox, and which.
#[utoipa::path(
    get, path = "/sandbox/ssh-access/validate", operation_id = "validateSshAccess", tag = "sandbox", security(("bearer" = [])),
    params(("token" = String, Query)),
    responses((status = 200, body = SshAccessValidationDto), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn validate_ssh(
    visitor: Visitor,
    queries: Queries,
) -> Result<Json<SshAccessValidationDto>, ApiError> {
    let Some(token) = queries.text("token")? else {
        return Err(ApiError::Invalid("token is required".to_owned()));
    };
    let sandbox_id = answer!(
        visitor.ask(Verb::ValidateSsh { token: token.to_owned() }).await?,
        VerbAnswer::SshValidity { sandbox_id } => sandbox_id
    )?;
    Ok(Json(SshAccessValidationDto {
        valid: sandbox_id.is_some(),
        sandbox_id: sandbox_id.map(|id| id.to_string()).unwrap_or_default(),
    }))
}

pub(super) async fn change(visitor: &Visitor, verb: Verb) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(present::sandbox(view(visitor, verb).await?, &visitor.door)))
}

async fn view(visitor: &Visitor, verb: Verb) -> Result<SandboxView, ApiError> {
    answer!(visitor.ask(verb).await?, VerbAnswer::Sandbox(view) => *view)
}
