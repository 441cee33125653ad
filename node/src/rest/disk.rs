//! What is made of a sandbox's disk: snapshots, forks, its archive.

use atoll_api::rest::{CreateSandboxSnapshot, ErrorBody, ForkSandbox, Sandbox};
use axum::Json;

use super::create::{given, sandbox_name};
use super::errors::ApiError;
use super::input::{Body, NAME_CHARS_MAX, Queries, Segments};
use super::present;
use super::sandbox::{answer, change};
use super::visitor::Visitor;
use crate::control::verb::{SandboxView, Verb, VerbAnswer};

/// Makes a snapshot of the sandbox's files, from which sandboxes can be made on any node. A running sandbox is frozen
/// while its files are read, and goes on by itself. Answers when the snapshot is there, or after 30 s, with the state
/// `snapshotting`.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/snapshot", operation_id = "createSandboxSnapshot", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    request_body = CreateSandboxSnapshot,
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn snapshot(
    visitor: Visitor,
    path: Segments,
    Body(asked): Body<CreateSandboxSnapshot>,
) -> Result<Json<Sandbox>, ApiError> {
    if asked.include_memory == Some(true) {
        return Err(ApiError::Unsupported(
            "includeMemory (a snapshot holds files; leave it out, or pause the sandbox to keep its memory)"
                .to_owned(),
        ));
    }
    let name = snapshot_name(asked.name)?;
    change(&visitor, Verb::Snapshot { sandbox: path.sandbox()?, name }).await
}

/// Makes a new sandbox with the files of this one as they are now, and otherwise like it. From then on they have nothing
/// to do with each other, except that the one with forks cannot be deleted before them.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/fork", operation_id = "forkSandbox", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    request_body = ForkSandbox,
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn fork(
    visitor: Visitor,
    path: Segments,
    Body(asked): Body<ForkSandbox>,
) -> Result<Json<Sandbox>, ApiError> {
    let name = given(asked.name).map(sandbox_name).transpose()?;
    change(&visitor, Verb::Fork { sandbox: path.sandbox()?, name }).await
}

/// Lists the sandboxes that were forked from this one. Deleted ones are not remembered, so `includeDestroyed` adds none.
#[utoipa::path(
    get, path = "/sandbox/{sandboxIdOrName}/forks", operation_id = "getSandboxForks", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path), ("includeDestroyed" = Option<bool>, Query)),
    responses((status = 200, body = Vec<Sandbox>), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list_forks(
    visitor: Visitor,
    path: Segments,
    queries: Queries,
) -> Result<Json<Vec<Sandbox>>, ApiError> {
    queries.flag("includeDestroyed")?;
    let forks = several(&visitor, Verb::Forks { sandbox: path.sandbox()? }).await?;
    Ok(Json(forks.into_iter().map(|view| present::sandbox(view, &visitor.door)).collect()))
}

/// The sandbox that this one was forked from, while it is there.
#[utoipa::path(
    get, path = "/sandbox/{sandboxIdOrName}/parent", operation_id = "getSandboxParent", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn read_parent(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    let ancestors = several(&visitor, Verb::Ancestors { sandbox: path.sandbox()? }).await?;
    let parent = ancestors.into_iter().next();
    let parent = parent.ok_or_else(|| {
        ApiError::NotFound("the sandbox is no fork, or what it was forked from is deleted".to_owned())
    })?;
    Ok(Json(present::sandbox(parent, &visitor.door)))
}

/// What the sandbox was forked from, what that was forked from, and so on.
#[utoipa::path(
    get, path = "/sandbox/{sandboxIdOrName}/ancestors", operation_id = "getSandboxAncestors", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = Vec<Sandbox>), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list_ancestors(visitor: Visitor, path: Segments) -> Result<Json<Vec<Sandbox>>, ApiError> {
    let ancestors = several(&visitor, Verb::Ancestors { sandbox: path.sandbox()? }).await?;
    Ok(Json(ancestors.into_iter().map(|view| present::sandbox(view, &visitor.door)).collect()))
}

/// Puts a stopped sandbox's files away as an image and frees its node. A start brings it back, on any node with room, with
/// the same id, links and files. `backupCopies` says how many nodes hold the files: its own, and another one of the region
/// when there is one that can take a copy. Answers when it is done, or after 30 s, with the state `archiving`.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/archive", operation_id = "archiveSandbox", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn archive(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    change(&visitor, Verb::Archive { sandbox: path.sandbox()? }).await
}

/// Does nothing, and is here for old clients: an archive is made by `archive`.
#[utoipa::path(
    post, path = "/sandbox/{sandboxIdOrName}/backup", operation_id = "createBackup", tag = "sandbox", security(("bearer" = [])),
    params(("sandboxIdOrName" = String, Path)),
    responses((status = 200, body = Sandbox), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn back_up(visitor: Visitor, path: Segments) -> Result<Json<Sandbox>, ApiError> {
    change(&visitor, Verb::Get { sandbox: path.sandbox()? }).await
}

async fn several(visitor: &Visitor, verb: Verb) -> Result<Vec<SandboxView>, ApiError> {
    answer!(visitor.ask(verb).await?, VerbAnswer::Sandboxes(views) => views)
}

fn snapshot_name(name: String) -> Result<String, ApiError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    let ok = name.len() <= NAME_CHARS_MAX
        && name.chars().all(inner)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    ok.then_some(name).ok_or_else(|| {
        ApiError::Invalid(format!(
            "name must be 1 to {NAME_CHARS_MAX} letters, digits, '-', '_', '.', ':' or '/', and begin with a letter or digit"
        ))
    })
}
