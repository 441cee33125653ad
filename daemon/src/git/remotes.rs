//! `/git/remotes`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Kind;
use super::address::Address;
use super::credentials::{Credentials, Offer};
use super::names;
use super::program::{Call, Git};
use crate::errors::{ApiError, JsonBody, Params};
use crate::routes::Daemon;

#[derive(Deserialize)]
pub struct Query {
    path: String,
}

#[derive(Serialize)]
pub struct Remotes {
    remotes: Vec<Remote>,
}

#[derive(Serialize)]
struct Remote {
    name: String,
    url: String,
}

#[derive(Deserialize)]
pub struct Add {
    path: String,
    name: names::Remote,
    url: Address,
    fetch: Option<bool>,
    overwrite: Option<bool>,
}

/// `git remote` says so.
const EXISTS_CODE: i32 = 3;
/// `git config` says that there was nothing to unset.
const UNSET_CODE: i32 = 5;

pub async fn list(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<Query>,
) -> Result<Json<Remotes>, ApiError> {
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &query.path, Kind::Local).await?;
        let call =
            Call::new(["config", "--local", "--includes", "--null", "--get-regexp", r"^remote\..*\.url$"]);
        let ran = git.try_run(call).await?;
        match ran.code {
            0 => Ok(Json(Remotes { remotes: parse(&String::from_utf8_lossy(&ran.stdout)) })),
            1 => Ok(Json(Remotes { remotes: Vec::new() })),
            _ => Err(git.explain(&ran)),
        }
    };
    daemon.git.run(Kind::Local, work).await
}

/// `key\nvalue\0`. A remote may have several URLs, of which the first is fetched from.
fn parse(records: &str) -> Vec<Remote> {
    let mut remotes: Vec<Remote> = Vec::new();
    for record in records.split('\0') {
        let Some((key, url)) = record.split_once('\n') else { continue };
        let name = key.strip_prefix("remote.").and_then(|key| key.strip_suffix(".url")).unwrap_or(key);
        if remotes.iter().all(|remote| remote.name != name) {
            remotes.push(Remote { name: name.to_owned(), url: url.to_owned() });
        }
    }
    remotes
}

/// Credentials in the URL serve the fetch that is asked for, and are not kept.
pub async fn add(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Add>,
) -> Result<StatusCode, ApiError> {
    let Add { path, name, url, fetch, overwrite } = request;
    let name = name.as_str().to_owned();
    let kind = if fetch == Some(true) { Kind::Remote } else { Kind::Local };
    let here = daemon.clone();
    let work = async move {
        let mut git = Git::open(&here, &path, kind).await?;
        let added = git.try_run(Call::new(["remote", "add", "--", &name, url.url()])).await?;
        let is_new = added.code == 0;
        match added.code {
            0 => {}
            EXISTS_CODE if overwrite == Some(true) => replace(&git, &name, url.url()).await?,
            EXISTS_CODE => {
                return Err(ApiError::conflict(format!(
                    "the remote {name:?} exists already: overwrite=true gives it another url"
                )));
            }
            _ => return Err(git.explain(&added)),
        }
        if fetch == Some(true) {
            let offer = offer(&mut git, url.embedded(), &url)?;
            let fetched = git.run(Call::new(["fetch", "--quiet", "--", &name]).offer(offer)).await;
            if fetched.is_err() && is_new {
                // Asked again, it shall not be refused because it exists.
                git.run(Call::new(["remote", "remove", &name])).await?;
            }
            fetched?;
        }
        Ok(StatusCode::CREATED)
    };
    daemon.git.run(kind, work).await
}

/// Its branches, and what tracks them, stay.
async fn replace(git: &Git, name: &str, url: &str) -> Result<(), ApiError> {
    let (fetch, push) = (format!("remote.{name}.url"), format!("remote.{name}.pushurl"));
    git.run(Call::new(["config", "--local", "--replace-all", &fetch, url])).await?;
    let ran = git.try_run(Call::new(["config", "--local", "--unset-all", &push])).await?;
    if ran.code == 0 || ran.code == UNSET_CODE { Ok(()) } else { Err(git.explain(&ran)) }
}

/// Where a configured remote really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Fetch,
    Push,
}

pub async fn address_of(git: &Git, name: &str, direction: Direction) -> Result<Option<Address>, ApiError> {
    let mut call = Call::new(["remote", "get-url"]);
    if direction == Direction::Push {
        call = call.arg("--push");
    }
    let ran = git.try_run(call.arg("--").arg(name)).await?;
    let no_such_remote = || {
        ApiError::git_repo_not_found(format!("there is no remote {name:?}: add it with POST /git/remotes"))
    };
    match ran.code {
        0 => Ok(Address::parse(String::from_utf8_lossy(&ran.stdout).trim_end_matches('\n')).ok()),
        _ if ran.stderr.contains("No such remote") => Err(no_such_remote()),
        _ => Err(git.explain(&ran)),
    }
}

/// For the next call only. Where nobody asks for credentials there is none.
pub fn offer(
    git: &mut Git,
    credentials: Option<&Credentials>,
    address: &Address,
) -> Result<Option<Offer>, ApiError> {
    let Some(credentials) = credentials else { return Ok(None) };
    git.keep_secret(credentials);
    let Some(origin) = address.origin() else { return Ok(None) };
    let offer = credentials.offer(origin, git.account());
    offer.map(Some).map_err(|error| ApiError::internal(format!("keep the credentials for git: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remotes_first_url_is_its_url_and_names_may_have_dots() {
        let remotes = parse("remote.a.b.url\nhttps://1\0remote.o.url\n/x y\0remote.o.url\n/second\0");

        let found: Vec<_> = remotes.iter().map(|remote| (&*remote.name, &*remote.url)).collect();
        assert_eq!(found, [("a.b", "https://1"), ("o", "/x y")]);
    }
}
