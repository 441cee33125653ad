//! `GET /git/status`: the branch, how it stands to its upstream, and every file that differs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Kind;
use super::program::{Call, Git};
use crate::errors::{ApiError, Params};
use crate::routes::Daemon;

#[derive(Deserialize)]
pub struct Query {
    path: String,
}

#[derive(Debug, Serialize, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `HEAD` when that is on no branch.
    current_branch: String,
    detached: bool,
    /// Empty when there is none.
    upstream: String,
    /// 0 without an upstream: clients compare them with 0.
    ahead: i64,
    behind: i64,
    /// Whether a remote is known to have the branch.
    branch_published: bool,
    file_status: Vec<FileStatus>,
}

/// Names that are not UTF-8 have U+FFFD in place of what is not.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct FileStatus {
    name: String,
    staging: Word,
    worktree: Word,
    /// Where a renamed or copied file comes from.
    extra: String,
}

#[derive(Debug, Serialize, Clone, Copy, PartialEq, Eq)]
enum Word {
    Unmodified,
    Untracked,
    Modified,
    Added,
    Deleted,
    Renamed,
    Copied,
    #[serde(rename = "Updated but unmerged")]
    Unmerged,
}

pub async fn status(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<Query>,
) -> Result<Json<Status>, ApiError> {
    let here = daemon.clone();
    let work = async move {
        let git = Git::open(&here, &query.path, Kind::Local).await?;
        // Looking must not be in the way of who is working.
        let call = Call::new(["status", "--porcelain=v2", "-z", "--branch", "--untracked-files=all"])
            .env("GIT_OPTIONAL_LOCKS", "0");
        let ran = git.run(call).await?;
        if ran.is_cut {
            return Err(ApiError::unprocessable(
                "too many files differ to list them: add a .gitignore, or commit some",
            ));
        }
        let mut status = parse(&ran.stdout).ok_or_else(|| {
            ApiError::internal("this git's status is in a form that the daemon does not know")
        })?;
        if !status.branch_published && !status.detached {
            let of_remotes = format!("refs/remotes/*/{}", status.current_branch);
            let found = git.run(Call::new(["for-each-ref", "--count=1", &of_remotes])).await?;
            status.branch_published = !found.stdout.is_empty();
        }
        Ok(Json(status))
    };
    daemon.git.run(Kind::Local, work).await
}

/// Records of `--porcelain=v2 -z`: `# name value`, `1 XY …`, `2 XY …` and the former name in a record of its own, `u XY …`, `? name`.
fn parse(records: &[u8]) -> Option<Status> {
    let mut status = Status::default();
    let mut records = records.split(|&byte| byte == 0).filter(|record| !record.is_empty());
    while let Some(record) = records.next() {
        let (kind, rest) = (record.first()?, record.get(2..)?);
        match kind {
            b'#' => status.header(&String::from_utf8_lossy(rest))?,
            b'1' => status.push(rest, 7, String::new())?,
            b'2' => status.push(rest, 8, String::from_utf8_lossy(records.next()?).into_owned())?,
            // Which of the two sides did what is for tools that merge; here it is one thing to be resolved.
            b'u' => {
                let name = field(rest, 9)?;
                status.file_status.push(FileStatus {
                    name,
                    staging: Word::Unmerged,
                    worktree: Word::Unmerged,
                    extra: String::new(),
                });
            }
            b'?' => status.file_status.push(FileStatus {
                name: String::from_utf8_lossy(rest).into_owned(),
                staging: Word::Untracked,
                worktree: Word::Untracked,
                extra: String::new(),
            }),
            _ => return None,
        }
    }
    Some(status)
}

impl Status {
    fn header(&mut self, text: &str) -> Option<()> {
        let (name, value) = text.split_once(' ')?;
        match name {
            "branch.head" if value == "(detached)" => {
                self.detached = true;
                self.current_branch = "HEAD".into();
            }
            "branch.head" => self.current_branch = value.to_owned(),
            "branch.upstream" => self.upstream = value.to_owned(),
            // Absent when the upstream's branch is not there.
            "branch.ab" => {
                let (ahead, behind) = value.split_once(' ')?;
                self.ahead = ahead.strip_prefix('+')?.parse().ok()?;
                self.behind = behind.strip_prefix('-')?.parse().ok()?;
                self.branch_published = true;
            }
            _ => {}
        }
        Some(())
    }

    /// `XY` and more fields, then the name.
    fn push(&mut self, rest: &[u8], fields: usize, extra: String) -> Option<()> {
        let (staging, worktree) = (Word::of(*rest.first()?)?, Word::of(*rest.get(1)?)?);
        self.file_status.push(FileStatus { name: field(rest, fields)?, staging, worktree, extra });
        Some(())
    }
}

/// What is after `before` fields, spaces included.
fn field(record: &[u8], before: usize) -> Option<String> {
    let name = record.splitn(before + 1, |&byte| byte == b' ').nth(before)?;
    Some(String::from_utf8_lossy(name).into_owned())
}

impl Word {
    fn of(letter: u8) -> Option<Word> {
        match letter {
            b'.' => Some(Word::Unmodified),
            // Also a file that became a link.
            b'M' | b'T' => Some(Word::Modified),
            b'A' => Some(Word::Added),
            b'D' => Some(Word::Deleted),
            b'R' => Some(Word::Renamed),
            b'C' => Some(Word::Copied),
            b'U' => Some(Word::Unmerged),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_record_is_understood() {
        let records: Vec<u8> = [
            &b"# branch.oid (initial)"[..],
            b"# branch.head main",
            b"# branch.upstream origin/main",
            b"# branch.ab +2 -3",
            b"# stash 1",
            b"1 .M N... 100644 100644 100644 aa bb a b\nc",
            b"2 R. N... 100644 100644 100644 aa aa R100 new name",
            b"old name",
            b"u AA N... 000000 100644 100644 100644 aa bb cc both",
            b"? \xff",
        ]
        .join(&0);

        let status = parse(&records).unwrap();

        let file = |name: &str, staging, worktree, extra: &str| FileStatus {
            name: name.into(),
            staging,
            worktree,
            extra: extra.into(),
        };
        assert_eq!((status.ahead, status.behind, status.branch_published), (2, 3, true));
        assert_eq!((&*status.current_branch, &*status.upstream), ("main", "origin/main"));
        assert_eq!(
            status.file_status,
            [
                file("a b\nc", Word::Unmodified, Word::Modified, ""),
                file("new name", Word::Renamed, Word::Unmodified, "old name"),
                file("both", Word::Unmerged, Word::Unmerged, ""),
                file("\u{fffd}", Word::Untracked, Word::Untracked, ""),
            ]
        );
    }

    #[test]
    fn what_is_no_status_is_not_guessed_at() {
        for bad in [&b"1"[..], b"1 ", b"1 .M N...", b"2 R. a b c d e f g h", b"x y", b"# branch.ab 1"] {
            assert_eq!(parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
