//! What changes a repository of here: init, add, commit, reset, restore.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Kind;
use super::names::{Branch, Files, Revision, check_identity, unless_empty};
use super::program::{Call, Git};
use crate::errors::{ApiError, JsonBody};
use crate::files::parse_path;
use crate::routes::Daemon;

/// Before the command. A file's name is no pattern; said so for these commands only, as a hook would inherit it.
const AS_THEY_ARE: &str = "--literal-pathspecs";
const FILES_FROM_INPUT: [&str; 2] = ["--pathspec-from-file=-", "--pathspec-file-nul"];

#[derive(Deserialize)]
pub struct Init {
    path: String,
    bare: Option<bool>,
    #[serde(default, deserialize_with = "unless_empty")]
    initial_branch: Option<Branch>,
}

#[derive(Deserialize)]
pub struct Add {
    path: String,
    files: Files,
}

#[derive(Deserialize)]
pub struct Commit {
    path: String,
    message: String,
    author: String,
    email: String,
    allow_empty: Option<bool>,
}

#[derive(Serialize)]
pub struct Committed {
    hash: String,
}

#[derive(Deserialize)]
pub struct Reset {
    path: String,
    #[serde(default, deserialize_with = "unless_empty")]
    mode: Option<Mode>,
    #[serde(default, deserialize_with = "unless_empty")]
    target: Option<Revision>,
    files: Option<Vec<String>>,
}

/// One that git has.
struct Mode(&'static str);

impl TryFrom<String> for Mode {
    type Error = &'static str;

    fn try_from(mode: String) -> Result<Mode, &'static str> {
        const MODES: [&str; 5] = ["soft", "mixed", "hard", "merge", "keep"];
        let known = MODES.into_iter().find(|known| *known == mode);
        known.map(Mode).ok_or("mode is one of soft, mixed, hard, merge, keep")
    }
}

#[derive(Deserialize)]
pub struct Restore {
    path: String,
    files: Files,
    staged: Option<bool>,
    worktree: Option<bool>,
    #[serde(default, deserialize_with = "unless_empty")]
    source: Option<Revision>,
}

pub async fn init(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Init>,
) -> Result<StatusCode, ApiError> {
    let folder = parse_path(&daemon, &request.path)?;
    let here = daemon.clone();
    let work = async move {
        let git = Git::at(&here, "/".into(), Kind::Local).await?;
        let mut call = Call::new(["init", "--quiet"]);
        if request.bare == Some(true) {
            call = call.arg("--bare");
        }
        if let Some(branch) = &request.initial_branch {
            call = call.arg(format!("--initial-branch={}", branch.as_str()));
        }
        git.run(call.arg("--").arg(folder.to_string_lossy())).await?;
        Ok(StatusCode::CREATED)
    };
    daemon.git.run(Kind::Local, work).await
}

pub async fn add(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Add>,
) -> Result<(), ApiError> {
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &request.path, Kind::Local).await?;
        let call = Call::new([AS_THEY_ARE, "add"].into_iter().chain(FILES_FROM_INPUT));
        git.run(call.input(request.files.to_input())).await?;
        Ok(())
    };
    daemon.git.run(Kind::Local, work).await
}

pub async fn commit(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Commit>,
) -> Result<Json<Committed>, ApiError> {
    let Commit { path, message, author, email, allow_empty } = request;
    check_identity(&author, &email)?;
    if message.trim().is_empty() || message.contains('\0') {
        return Err(ApiError::bad_request("message is empty, or has a zero byte"));
    }
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &path, Kind::Local).await?;
        let mut call = Call::new(["commit", "--quiet", "--file=-"]).input(message.into_bytes());
        if allow_empty == Some(true) {
            call = call.arg("--allow-empty");
        }
        // A merge that waits to be concluded is concluded by this one too.
        for role in ["AUTHOR", "COMMITTER"] {
            call = call.env(&format!("GIT_{role}_NAME"), &author).env(&format!("GIT_{role}_EMAIL"), &email);
        }
        git.run(call).await?;
        let ran = git.run(Call::new(["rev-parse", "--verify", "HEAD"])).await?;
        Ok(Json(Committed { hash: String::from_utf8_lossy(&ran.stdout).trim_end().to_owned() }))
    };
    daemon.git.run(Kind::Local, work).await
}

pub async fn reset(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Reset>,
) -> Result<(), ApiError> {
    let files = request.files.filter(|files| !files.is_empty()).map(Files::try_from).transpose();
    let files = files.map_err(ApiError::bad_request)?;
    let mode = request.mode.map(|mode| mode.0);
    if files.is_some() && mode.is_some_and(|mode| mode != "mixed") {
        return Err(ApiError::bad_request(
            "files are reset in the index only: leave mode out, or use restore",
        ));
    }
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &request.path, Kind::Local).await?;
        let mut call = Call::new([AS_THEY_ARE, "reset", "--quiet"]);
        match files {
            Some(files) => {
                call = FILES_FROM_INPUT.into_iter().fold(call, Call::arg).input(files.to_input());
            }
            None => call = call.arg(format!("--{}", mode.unwrap_or("mixed"))),
        }
        if let Some(target) = &request.target {
            call = call.arg(target.as_str());
        }
        git.run(call.arg("--")).await?;
        Ok(())
    };
    daemon.git.run(Kind::Local, work).await
}

pub async fn restore(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Restore>,
) -> Result<(), ApiError> {
    let staged = request.staged.unwrap_or(false);
    let worktree = request.worktree.unwrap_or(!staged);
    if !staged && !worktree {
        return Err(ApiError::bad_request("neither staged nor worktree: nothing would be restored"));
    }
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &request.path, Kind::Local).await?;
        let mut call = Call::new([AS_THEY_ARE, "restore", "--quiet"].into_iter().chain(FILES_FROM_INPUT));
        for (is_asked, flag) in [(staged, "--staged"), (worktree, "--worktree")] {
            if is_asked {
                call = call.arg(flag);
            }
        }
        if let Some(source) = &request.source {
            call = call.arg(format!("--source={}", source.as_str()));
        }
        git.run(call.input(request.files.to_input())).await?;
        Ok(())
    };
    daemon.git.run(Kind::Local, work).await
}
