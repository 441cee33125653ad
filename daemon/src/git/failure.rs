//! What git said when it failed, in words for the caller: a documented code, and git's own lines. Reads the C locale's sentences.

use crate::errors::ApiError;

const MESSAGE_CHARS_MAX: usize = 2000;

struct Meaning {
    refusal: fn(String) -> ApiError,
    /// Parts of git's sentences, each of which says it.
    said_by: &'static [&'static str],
    advice: Option<&'static str>,
}

const fn meaning(refusal: fn(String) -> ApiError, said_by: &'static [&'static str]) -> Meaning {
    Meaning { refusal, said_by, advice: None }
}

impl Meaning {
    const fn advising(mut self, advice: &'static str) -> Meaning {
        self.advice = Some(advice);
        self
    }
}

/// The first that fits holds, so the more telling stand before the general.
const MEANINGS: &[Meaning] = &[
    meaning(
        ApiError::git_repo_not_found,
        &[
            "not a git repository (or any",
            "not in a git directory",
            "can only be used inside a git repository",
        ],
    ),
    meaning(ApiError::file_access_denied, &["detected dubious ownership"])
        .advising("The folder belongs to another user: change its owner, or set safe.directory"),
    meaning(
        ApiError::git_auth_failed,
        &[
            "Authentication failed for",
            "could not read Username for",
            "could not read Password for",
            "terminal prompts disabled",
            "returned error: 401",
            "Permission denied (publickey",
            "Permission denied, please try again",
        ],
    )
    .advising("The remote wants other credentials: give username and password, or a key for SSH"),
    meaning(ApiError::forbidden, &["returned error: 403"]),
    meaning(
        ApiError::git_remote_rejected,
        &["[remote rejected]", "HTTP 413", "returned error: 413", "remote unpack failed"],
    ),
    meaning(ApiError::git_push_rejected, &["[rejected]"])
        .advising("The remote has commits that are not here: pull first"),
    meaning(
        ApiError::git_merge_conflict,
        &[
            "CONFLICT (",
            "Automatic merge failed",
            "unmerged files",
            "You have not concluded your merge",
            "in the middle of a merge",
            "resolve your current index first",
            "could not apply",
            "is unmerged",
        ],
    )
    .advising("Resolve the conflicts, add the files and commit"),
    meaning(
        ApiError::git_dirty_worktree,
        &[
            "would be overwritten by",
            "would be removed by",
            "not uptodate. Cannot merge",
            "You have unstaged changes",
            "contains uncommitted changes",
            "would lose untracked files in",
            "Could not reset index file to revision",
        ],
    )
    .advising("Commit, stash or discard these changes first"),
    meaning(ApiError::git_branch_exists, &["a branch named"]),
    meaning(
        ApiError::conflict,
        &[
            "already exists and is not an empty directory",
            "Not possible to fast-forward",
            "refusing to merge unrelated",
        ],
    ),
    meaning(
        ApiError::git_branch_not_found,
        &[
            "not found in upstream",
            "find remote ref",
            "not our ref",
            "src refspec",
            "invalid reference:",
            "unknown revision",
            "as a valid revision",
            "as a valid tree",
            "bad revision",
            "not a valid object name",
            "not a valid commit",
            "could not resolve ",
            "reference is not a tree",
            "unable to read tree",
        ],
    ),
    meaning(
        ApiError::git_repo_not_found,
        &["returned error: 404", "does not appear to be a git repository", "does not exist"],
    ),
    meaning(ApiError::unprocessable, &["No space left on device", "Disk quota exceeded"]),
    meaning(ApiError::file_access_denied, &["Permission denied", "Read-only file system"]),
    meaning(ApiError::conflict, &[".lock': File exists", "could not lock config file"])
        .advising("Another git works there, or one was killed: try again, then remove its lock"),
    meaning(
        ApiError::invalid_path,
        &["did not match any file", "is outside repository", "is beyond a symbolic link"],
    ),
    meaning(
        ApiError::bad_request,
        &["Please tell me who you are", "unable to auto-detect email", "empty ident name"],
    )
    .advising("Set a name and an email with POST /git/config/user"),
    meaning(
        ApiError::git_transport_failed,
        &[
            "unable to access '",
            "Could not read from remote repository",
            "Host key verification failed",
            "unable to connect to",
            "unable to look up",
            "the remote end hung up",
            "early EOF",
            "RPC failed",
            "unexpected disconnect",
            "invalid index-pack output",
            "expected flush after ref listing",
            "Could not resolve host",
            "bad line length",
            "protocol error",
            "valid info/refs",
        ],
    ),
    meaning(
        ApiError::bad_request,
        &[
            "is not a valid branch name",
            "is not a valid remote name",
            "must be run in a work tree",
            "nothing to commit",
            "nothing added to commit",
            "no changes added to commit",
            "due to empty commit message",
            "ignored by one of your .gitignore",
            "annot delete branch",
            "annot delete the branch",
            "used by worktree at",
            "invalid initial branch name",
            "cannot mkdir",
            "Not a directory",
            "File name too long",
            "invalid key",
            "not allowed",
        ],
    ),
];

pub fn explain(complaint: &str, code: i32) -> ApiError {
    let lines = || complaint.lines().filter(|line| is_telling(line));
    let message = message(complaint, code);
    // Whole sentences: their parts could be anything.
    let is_said = |begin: &str, end: &str| {
        lines().any(|line| line.starts_with(begin) && line.trim_end_matches('.').ends_with(end))
    };
    if is_said("fatal: repository '", "' not found") {
        return ApiError::git_repo_not_found(message);
    }
    if is_said("error: branch '", "' not found") {
        return ApiError::git_branch_not_found(message);
    }
    let fits =
        |meaning: &&Meaning| meaning.said_by.iter().any(|part| lines().any(|line| line.contains(part)));
    match MEANINGS.iter().find(fits) {
        Some(Meaning { refusal, advice: Some(advice), .. }) => refusal(format!("{message}\n{advice}")),
        Some(Meaning { refusal, .. }) => refusal(message),
        None => ApiError::unprocessable(message),
    }
}

/// What a server says (`remote: …`) and names of files (indented) decide nothing; ` ! [rejected]` does.
fn is_telling(line: &str) -> bool {
    line.starts_with(" !") || !(line.starts_with("remote:") || line.starts_with(['\t', ' ']))
}

/// Without advice that only helps at a terminal.
fn message(complaint: &str, code: i32) -> String {
    let is_wanted = |line: &&str| {
        !line.is_empty() && !line.starts_with("hint:") && !line.starts_with("To ") && *line != "Done"
    };
    let text = complaint.lines().map(str::trim_end).filter(is_wanted).collect::<Vec<_>>().join("\n");
    match text.char_indices().nth(MESSAGE_CHARS_MAX) {
        _ if text.is_empty() => format!("git ended with code {code} and without a word"),
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(complaint: &str, expected: fn(String) -> ApiError) {
        let explained = explain(complaint, 1);
        let code = |error: &ApiError| {
            let body = serde_json::to_value(error.body("POST", "/git")).unwrap();
            (body["statusCode"].clone(), body["code"].clone())
        };
        assert_eq!(code(&explained), code(&expected(String::new())), "{complaint}: {explained}");
    }

    #[test]
    fn each_complaint_has_its_code() {
        check("fatal: Authentication failed for 'https://h/x/'", ApiError::git_auth_failed);
        check(
            "fatal: could not read Username for 'https://h': terminal prompts disabled",
            ApiError::git_auth_failed,
        );
        check(
            "git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.",
            ApiError::git_auth_failed,
        );
        check(
            "fatal: unable to access 'https://h/x/': The requested URL returned error: 403",
            ApiError::forbidden,
        );
        check(
            "remote: Repository not found.\nfatal: repository 'https://h/x/' not found",
            ApiError::git_repo_not_found,
        );
        check("fatal: repository '/no/such' does not exist", ApiError::git_repo_not_found);
        check(
            "fatal: unable to access 'https://h/': Could not resolve host: h",
            ApiError::git_transport_failed,
        );
        check(
            "fatal: unable to access 'https://h/': SSL certificate problem: self-signed certificate",
            ApiError::git_transport_failed,
        );
        check("!\trefs/heads/m:refs/heads/m\t[rejected] (fetch first)\nDone", ApiError::git_push_rejected);
        check(
            "!\trefs/heads/m:refs/heads/m\t[remote rejected] (pre-receive hook declined)",
            ApiError::git_remote_rejected,
        );
        check("CONFLICT (content): Merge conflict in a", ApiError::git_merge_conflict);
        check(
            "error: could not lock config file /etc/gitconfig: Permission denied",
            ApiError::file_access_denied,
        );
        check("fatal: Unable to create '/r/.git/index.lock': File exists.", ApiError::conflict);
        check(
            "error: The following untracked working tree files would be overwritten by merge:\n\ta",
            ApiError::git_dirty_worktree,
        );
        check("error: Cannot delete branch 'm' checked out at '/r'", ApiError::bad_request);
        check("error: cannot delete branch 'm' used by worktree at '/r'", ApiError::bad_request);
        check("error: branch 'm' not found", ApiError::git_branch_not_found);
        check("fatal: Not possible to fast-forward, aborting.", ApiError::conflict);
        check("something else", ApiError::unprocessable);
        check("", ApiError::unprocessable);
    }

    #[test]
    fn neither_a_server_nor_a_files_name_chooses_the_code() {
        check(
            "remote: fatal: Authentication failed for you\n!\ta:b\t[remote rejected] (hook declined)",
            ApiError::git_remote_rejected,
        );
        check(
            "error: Your local changes to the following files would be overwritten by checkout:\n\tCONFLICT (x)",
            ApiError::git_dirty_worktree,
        );
    }
}
