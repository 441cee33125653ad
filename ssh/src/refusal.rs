//! Every reason to refuse, in the client's words: what is wrong and what to do. The only file of this crate that does so.

use atoll_api::access::Denied;
use atoll_mesh::dial::{DialError, DirectoryError};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Malformed and unknown read the same, so that a guess teaches nothing.
    #[error(
        "Wrong, expired or revoked SSH token. The user name must be the token that POST /api/sandbox/{{id}}/ssh-access returned; ask for a new one there."
    )]
    WrongToken,
    #[error("The sandbox of this SSH token no longer exists.")]
    SandboxGone,
    #[error("Cannot check the SSH token now: {0}. Try again in a moment.")]
    DirectoryUnreachable(String),
    #[error("Cannot reach the sandbox: {0}")]
    Dial(DialError),
    /// The daemon said so.
    #[error("The sandbox refused: {0}")]
    Daemon(String),
    #[error("The sandbox did not answer as expected: {0}")]
    Protocol(String),
    #[error("The connection to the sandbox was lost.")]
    Lost,
    #[error("The command is not UTF-8 text, or too long.")]
    BadCommand,
    #[error("Port 2280 of a sandbox belongs to its daemon and cannot be forwarded.")]
    DaemonPort,
    #[error("{0} is not a port that can be forwarded.")]
    BadPort(u32),
}

pub(crate) const REVOKED: &str =
    "This SSH token was revoked or has expired, or its sandbox was deleted. Ask for a new token.";
pub(crate) const SHUTTING_DOWN: &str =
    "This node is shutting down. Connect again: any other node serves the same token.";

/// What OpenSSH's client itself returns when the connection, not the command, failed.
pub(crate) const EXIT_NOT_RUN: u32 = 255;

impl From<DirectoryError> for Refusal {
    fn from(error: DirectoryError) -> Refusal {
        match error {
            DirectoryError::NotFound => Refusal::WrongToken,
            DirectoryError::Unreachable(cause) => Refusal::DirectoryUnreachable(cause),
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Refusal {
        match denied {
            Denied::Unauthorized | Denied::Expired => Refusal::WrongToken,
            Denied::NotFound => Refusal::SandboxGone,
        }
    }
}

impl From<DialError> for Refusal {
    fn from(error: DialError) -> Refusal {
        match error {
            DialError::NotFound => Refusal::SandboxGone,
            other => Refusal::Dial(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_sandbox_is_named_in_the_words_that_integrators_match() {
        let refusal = Refusal::from(DialError::NotRunning { state: "stopped".into() });

        assert_eq!(
            refusal.to_string(),
            "Cannot reach the sandbox: sandbox is stopped. Is the Sandbox started?"
        );
    }
}
