//! `/git/branches` and `/git/checkout`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Kind;
use super::names::{Branch, Revision};
use super::program::{Call, Git};
use crate::errors::{ApiError, JsonBody, Params};
use crate::routes::Daemon;

#[derive(Deserialize)]
pub struct Query {
    path: String,
}

#[derive(Serialize)]
pub struct Branches {
    branches: Vec<String>,
    /// Empty when HEAD is on none.
    current: String,
}

#[derive(Deserialize)]
pub struct Named {
    path: String,
    name: Branch,
}

#[derive(Deserialize)]
pub struct Checkout {
    path: String,
    branch: Revision,
}

pub async fn list(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<Query>,
) -> Result<Json<Branches>, ApiError> {
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &query.path, Kind::Local).await?;
        let ran = git.run(Call::new(["for-each-ref", "--format=%(refname)", "refs/heads/"])).await?;
        if ran.is_cut {
            return Err(ApiError::unprocessable("too many branches to list them"));
        }
        let text = String::from_utf8_lossy(&ran.stdout);
        let branches = text.lines().map(|name| name.trim_start_matches("refs/heads/").to_owned()).collect();
        Ok(Json(Branches { branches, current: current(&git).await?.unwrap_or_default() }))
    };
    daemon.git.run(Kind::Local, work).await
}

pub async fn create(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Named>,
) -> Result<StatusCode, ApiError> {
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &request.path, Kind::Local).await?;
        if is_unborn(&git).await? {
            return Err(ApiError::conflict("the repository has no commit that a branch could begin at"));
        }
        git.run(Call::new(["branch", "--no-track", "--", request.name.as_str()])).await?;
        Ok(StatusCode::CREATED)
    };
    daemon.git.run(Kind::Local, work).await
}

/// Whether it has been merged or not: the interface has no way to insist.
pub async fn delete(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Named>,
) -> Result<StatusCode, ApiError> {
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &request.path, Kind::Local).await?;
        git.run(Call::new(["branch", "--delete", "--force", "--", request.name.as_str()])).await?;
        Ok(StatusCode::NO_CONTENT)
    };
    daemon.git.run(Kind::Local, work).await
}

/// A branch of here, one of the remote's that becomes one of here, or a commit.
pub async fn checkout(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Checkout>,
) -> Result<(), ApiError> {
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &request.path, Kind::Local).await?;
        // The end of options comes last: what is after it would be a file.
        git.run(Call::new(["checkout", "--quiet", request.branch.as_str(), "--"])).await?;
        Ok(())
    };
    daemon.git.run(Kind::Local, work).await
}

/// The branch that HEAD is on, also when it has no commit yet.
pub async fn current(git: &Git) -> Result<Option<String>, ApiError> {
    let ran = git.try_run(Call::new(["symbolic-ref", "--quiet", "HEAD"])).await?;
    match ran.code {
        0 => {
            let name = String::from_utf8_lossy(&ran.stdout).trim_end().to_owned();
            Ok(Some(name.strip_prefix("refs/heads/").map(str::to_owned).unwrap_or(name)))
        }
        1 => Ok(None),
        _ => Err(git.explain(&ran)),
    }
}

pub async fn is_unborn(git: &Git) -> Result<bool, ApiError> {
    let ran = git.try_run(Call::new(["rev-parse", "--quiet", "--verify", "HEAD"])).await?;
    match ran.code {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(git.explain(&ran)),
    }
}
