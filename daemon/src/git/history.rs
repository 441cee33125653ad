//! `GET /git/history`: the commits below HEAD, newest first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Kind;
use super::branches;
use super::program::{Call, Git};
use crate::errors::{ApiError, Params};
use crate::routes::Daemon;

/// The interface has no pages, so the oldest of more are left out.
const COMMITS_MAX: usize = 10_000;

#[derive(Deserialize)]
pub struct Query {
    path: String,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Commit {
    hash: String,
    author: String,
    email: String,
    message: String,
    /// RFC 3339, of the author.
    timestamp: String,
}

pub async fn history(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<Query>,
) -> Result<Json<Vec<Commit>>, ApiError> {
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &query.path, Kind::Local).await?;
        if branches::is_unborn(&git).await? {
            return Ok(Json(Vec::new()));
        }
        let call = Call::new(["log", "-z", "--format=%H%n%an%n%ae%n%aI%n%B", "--encoding=UTF-8"])
            .arg("--no-show-signature")
            .arg("--no-patch")
            .arg("--no-color")
            .arg(format!("--max-count={COMMITS_MAX}"));
        let ran = git.run(call).await?;
        let mut commits = ran.stdout.split(|&byte| byte == 0).filter(|record| !record.is_empty());
        if ran.is_cut {
            // Half a commit is none.
            commits.next_back();
        }
        Ok(Json(commits.filter_map(parse).collect()))
    };
    daemon.git.run(Kind::Local, work).await
}

fn parse(record: &[u8]) -> Option<Commit> {
    let text = String::from_utf8_lossy(record);
    let mut lines = text.splitn(5, '\n').map(str::to_owned);
    let (hash, author, email) = (lines.next()?, lines.next()?, lines.next()?);
    let (timestamp, message) = (lines.next()?, lines.next()?);
    Some(Commit { hash, author, email, message, timestamp })
}
