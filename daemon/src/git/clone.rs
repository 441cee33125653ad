//! `POST /git/clone`: a whole folder, or none.
//!
//!   free? ─▶ clone ─▶ (commit here? ─no─▶ fetch it) ─▶ check it out ─▶ done
//!               └───────────────┴───────────────────────┴─▶ failed: what was made is removed, then the answer

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;

use super::address::Address;
use super::credentials::{Credentials, Secret};
use super::names::{Branch, CommitId, unless_empty};
use super::program::{Call, Git};
use super::remotes::offer;
use super::{Claim, Kind};
use crate::errors::{ApiError, JsonBody};
use crate::files::parse_path;
use crate::routes::Daemon;

const REMOTE: &str = "origin";

#[derive(Deserialize)]
pub struct Request {
    url: Address,
    path: String,
    #[serde(default, deserialize_with = "unless_empty")]
    branch: Option<Branch>,
    #[serde(default, deserialize_with = "unless_empty")]
    commit_id: Option<CommitId>,
    username: Option<Secret>,
    password: Option<Secret>,
    insecure_skip_tls: Option<bool>,
    /// Commits; 0 is all.
    depth: Option<i64>,
}

/// The folder-to-be, before it was touched.
enum Before {
    Empty,
    /// With the topmost of the folders that have to be made.
    Missing(PathBuf),
}

pub async fn clone(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Request>,
) -> Result<(), ApiError> {
    let Request { url, path, branch, commit_id, username, password, insecure_skip_tls, depth } = request;
    let credentials = Credentials::of_request(username, password)?.or_else(|| url.embedded().cloned());
    let depth = match depth {
        None | Some(0) => None,
        Some(depth) => {
            let depth = i32::try_from(depth).ok().filter(|depth| *depth > 0);
            Some(depth.ok_or_else(|| ApiError::bad_request("depth is a number of commits"))?)
        }
    };
    let target = parse_path(&daemon, &path)?;
    let here = daemon.clone();
    let work = async move {
        let claim = here.git.claim(&target);
        let _claim: Claim = claim
            .ok_or_else(|| ApiError::conflict(format!("another clone is making {}", target.display())))?;
        let looked_at = target.clone();
        let before = here.workers.run(move || look_at(&looked_at)).await?;
        let from = here.resolve("");
        let looked_at = from.clone();
        let has_work_dir = here.workers.run(move || looked_at.is_dir()).await;
        let git = Git::at(&here, if has_work_dir { from } else { "/".into() }, Kind::Remote).await?;
        let clone = Clone {
            git,
            url,
            branch,
            commit_id,
            credentials,
            is_unverified: insecure_skip_tls == Some(true),
            depth,
        };
        match clone.perform(&target).await {
            Ok(Outcome::Cloned) => Ok(()),
            Ok(Outcome::Occupied(refusal)) => Err(refusal),
            Err(failure) => {
                clone.undo(&target, before).await;
                Err(failure)
            }
        }
    };
    daemon.git.run(Kind::Remote, work).await
}

enum Outcome {
    Cloned,
    /// By somebody else, after we looked: what is there is not ours to remove.
    Occupied(ApiError),
}

/// As the user.
fn look_at(target: &Path) -> Result<Before, ApiError> {
    let shown = target.to_string_lossy();
    match fs::read_dir(target) {
        Ok(mut entries) => match entries.next() {
            None => Ok(Before::Empty),
            Some(_) => Err(ApiError::conflict(format!("the folder {shown} exists and is not empty"))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let is_missing = |path: &&Path| fs::symlink_metadata(path).is_err();
            match target.ancestors().take_while(is_missing).last() {
                Some(topmost) => Ok(Before::Missing(topmost.to_owned())),
                None => Err(ApiError::conflict(format!("{shown} is a link that leads nowhere"))),
            }
        }
        Err(error) => Err(ApiError::from_io(&error, &shown)),
    }
}

struct Clone {
    git: Git,
    url: Address,
    branch: Option<Branch>,
    commit_id: Option<CommitId>,
    credentials: Option<Credentials>,
    is_unverified: bool,
    depth: Option<i32>,
}

impl Clone {
    async fn perform(&self, target: &Path) -> Result<Outcome, ApiError> {
        let mut git = self.git.clone();
        let address = self.rewritten(&git).await?;
        let mut call =
            self.call(&mut git, &address, &["clone", "--quiet"])?.arg(format!("--origin={REMOTE}"));
        if self.commit_id.is_some() {
            call = call.arg("--no-checkout");
        }
        if let Some(branch) = &self.branch {
            call = call.arg(format!("--branch={}", branch.as_str()));
        }
        let call = call.arg("--").arg(self.url.url()).arg(target.to_string_lossy());
        let ran = git.try_run(call).await?;
        if ran.code != 0 {
            let is_occupied = ran.stderr.contains("already exists and is not an empty directory");
            let failure = git.explain(&ran);
            return if is_occupied { Ok(Outcome::Occupied(failure)) } else { Err(failure) };
        }
        let Some(commit_id) = &self.commit_id else { return Ok(Outcome::Cloned) };
        let mut inside = git.moved_to(target.to_owned());
        if !has_commit(&inside, commit_id).await? {
            self.fetch(&mut inside, &address, commit_id).await?;
        }
        inside.run(Call::new(["checkout", "--quiet", "--detach", commit_id.as_str(), "--"])).await?;
        Ok(Outcome::Cloned)
    }

    /// Of a history cut short, or on no branch.
    async fn fetch(&self, git: &mut Git, address: &Address, commit_id: &CommitId) -> Result<(), ApiError> {
        let id = commit_id.as_str();
        if !commit_id.is_whole() {
            let where_ =
                if self.depth.is_some() { "the commits that were asked for" } else { "the repository" };
            return Err(ApiError::git_branch_not_found(format!(
                "no commit of {where_} begins with {id}: its whole id may be found elsewhere"
            )));
        }
        let call = self.call(git, address, &["fetch", "--quiet"])?;
        git.run(call.arg("--").arg(REMOTE).arg(id)).await?;
        Ok(())
    }

    fn call(&self, git: &mut Git, address: &Address, command: &[&str]) -> Result<Call, ApiError> {
        let offer = offer(git, self.credentials.as_ref(), address)?;
        let mut call = Call::new(command.iter().copied()).offer(offer);
        if self.is_unverified {
            call = call.config("http.sslVerify=false");
        }
        if let Some(depth) = self.depth {
            call = call.arg(format!("--depth={depth}"));
        }
        Ok(call)
    }

    /// Whom git will ask: the user may have configured another place (`url.….insteadOf`), and credentials are for one only.
    async fn rewritten(&self, git: &Git) -> Result<Address, ApiError> {
        if self.credentials.is_none() {
            return Ok(self.url.clone());
        }
        let ran = git.run(Call::new(["ls-remote", "--get-url", "--", self.url.url()])).await?;
        let text = String::from_utf8_lossy(&ran.stdout);
        Ok(Address::parse(text.trim_end_matches('\n')).unwrap_or_else(|_| self.url.clone()))
    }

    /// Git removes what it made when it fails or is asked to stop; this is for what it could not, and for the commit's checkout.
    async fn undo(&self, target: &Path, before: Before) {
        let folder = target.to_string_lossy();
        // Child processes and no worker: how deep the tree is, a stranger has chosen.
        let removed = match before {
            Before::Empty => self.git.clean_up("find", &[&folder, "-mindepth", "1", "-delete"]).await,
            Before::Missing(_) => self.git.clean_up("rm", &["-rf", "--", &folder]).await,
        };
        match removed {
            Ok(ran) if ran.code == 0 => {}
            Ok(ran) => tracing::warn!(code = ran.code, "what a failed clone has left is not removed"),
            Err(error) => tracing::warn!(%error, "what a failed clone has left is not removed"),
        }
        if let Before::Missing(topmost) = before {
            let target = target.to_owned();
            // Those that are not empty have become somebody else's.
            let remove = move || {
                let made = target.ancestors().skip(1).take_while(|folder| folder.starts_with(&topmost));
                made.map(fs::remove_dir).take_while(Result::is_ok).count()
            };
            self.git.on_worker(remove).await;
        }
    }
}

async fn has_commit(git: &Git, commit_id: &CommitId) -> Result<bool, ApiError> {
    let commit = format!("{}^{{commit}}", commit_id.as_str());
    Ok(git.try_run(Call::new(["cat-file", "-e", &commit])).await?.code == 0)
}
