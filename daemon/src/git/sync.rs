//! `POST /git/push` and `/git/pull`: one branch, one remote.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;

use super::Kind;
use super::branches::current;
use super::credentials::{Credentials, Offer, Secret};
use super::names::{Branch, Remote, unless_empty};
use super::program::{Call, Git};
use super::remotes::{Direction, address_of, offer};
use crate::errors::{ApiError, JsonBody};
use crate::routes::Daemon;

const ORIGIN: &str = "origin";

#[derive(Deserialize)]
pub struct Request {
    path: String,
    username: Option<Secret>,
    password: Option<Secret>,
    #[serde(default, deserialize_with = "unless_empty")]
    branch: Option<Branch>,
    #[serde(default, deserialize_with = "unless_empty")]
    remote: Option<Remote>,
    set_upstream: Option<bool>,
}

pub async fn push(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Request>,
) -> Result<(), ApiError> {
    let Request { path, username, password, branch, remote, set_upstream } = request;
    let credentials = Credentials::of_request(username, password)?;
    let here = daemon.clone();
    let work = async move {
        let mut git = Git::open(&here, &path, Kind::Remote).await?;
        let branch = match branch {
            Some(branch) => branch.full(),
            None => format!("refs/heads/{}", current(&git).await?.ok_or_else(no_branch)?),
        };
        let remote = remote.as_ref().map_or(ORIGIN, Remote::as_str);
        let offer = offer_to(&mut git, remote, Direction::Push, credentials.as_ref()).await?;
        let mut call = Call::new(["push", "--porcelain"]).offer(offer);
        if set_upstream == Some(true) {
            call = call.arg("--set-upstream");
        }
        git.run(call.arg("--").arg(remote).arg(format!("{branch}:{branch}"))).await?;
        Ok(())
    };
    daemon.git.run(Kind::Remote, work).await
}

/// Merges what was fetched, unless the user has configured how to bring both together. A conflict stays in the working tree.
pub async fn pull(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Request>,
) -> Result<(), ApiError> {
    let Request { path, username, password, branch, remote, set_upstream } = request;
    let credentials = Credentials::of_request(username, password)?;
    let here = daemon.clone();
    let work = async move {
        let mut git = Git::open(&here, &path, Kind::Remote).await?;
        let on = current(&git).await?;
        let habits = Habits::of(&git, on.as_deref()).await?;
        let remote = match (&remote, &habits.remote) {
            (Some(remote), _) => remote.as_str().to_owned(),
            // The branch's own upstream, unless the caller means another one. A branch of here may track one of here.
            (None, Some(upstream)) if branch.is_none() && upstream != "." => upstream.clone(),
            (None, _) => ORIGIN.to_owned(),
        };
        let branch = match (branch, habits.merge, on) {
            (Some(branch), _, _) => branch.full(),
            (None, Some(merge), _) if habits.remote.as_deref() == Some(&remote) => merge,
            (None, _, Some(on)) => format!("refs/heads/{on}"),
            (None, _, None) => return Err(no_branch()),
        };
        let offer = offer_to(&mut git, &remote, Direction::Fetch, credentials.as_ref()).await?;
        let mut call = Call::new(["pull", "--quiet"]).offer(offer);
        if !habits.has_strategy {
            call = call.arg("--no-rebase");
        }
        if set_upstream == Some(true) {
            call = call.arg("--set-upstream");
        }
        git.run(call.arg("--").arg(remote).arg(branch)).await?;
        Ok(())
    };
    daemon.git.run(Kind::Remote, work).await
}

async fn offer_to(
    git: &mut Git,
    remote: &str,
    direction: Direction,
    credentials: Option<&Credentials>,
) -> Result<Option<Offer>, ApiError> {
    match address_of(git, remote, direction).await? {
        Some(address) => offer(git, credentials, &address),
        // Git will say what is wrong with it.
        None => Ok(None),
    }
}

fn no_branch() -> ApiError {
    ApiError::bad_request("HEAD is on no branch: name the branch, or check one out")
}

/// What the repository's configuration says about pulling.
struct Habits {
    remote: Option<String>,
    merge: Option<String>,
    has_strategy: bool,
}

impl Habits {
    async fn of(git: &Git, branch: Option<&str>) -> Result<Habits, ApiError> {
        let call = Call::new([
            "config",
            "--null",
            "--get-regexp",
            r"^(branch\..*\.|pull\.)(remote|merge|rebase|ff)$",
        ]);
        let ran = git.try_run(call).await?;
        if ran.code > 1 {
            return Err(git.explain(&ran));
        }
        let text = String::from_utf8_lossy(&ran.stdout);
        // The last one holds, as in git.
        let settings: HashMap<&str, &str> =
            text.split('\0').filter_map(|record| record.split_once('\n')).collect();
        let of_branch = |name: &str| {
            let key = format!("branch.{}.{name}", branch?);
            settings.get(key.as_str()).map(|value| (*value).to_owned())
        };
        let is_set = |name: &str| settings.contains_key(name);
        Ok(Habits {
            remote: of_branch("remote"),
            merge: of_branch("merge"),
            has_strategy: of_branch("rebase").is_some() || is_set("pull.rebase") || is_set("pull.ff"),
        })
    }
}
