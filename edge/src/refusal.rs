//! Why the edge does not pass a request on. One enum for the whole door; `answer` is the only file that knows statuses.

use atoll_api::access::Denied;
use atoll_mesh::dial::{DialError, DirectoryError};

/// Named by who must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    // The client.
    #[error("bad request: {0}")]
    BadRequest(&'static str),
    #[error("the request target is too long")]
    TargetTooLong,
    #[error("the request head is too large")]
    HeadTooLarge,
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    #[error("the request body did not arrive in time")]
    BodyTimedOut,
    #[error("a valid credential is required")]
    Unauthorized,
    #[error("the link's signature does not fit: the link was changed, or its signing key was replaced")]
    WrongSignature,
    #[error("the link or token has expired")]
    Expired,
    /// Below the preview domain, but not `{port}-{id or token}`.
    #[error("no such preview: the host must be <port>-<sandbox id or token>.<preview domain>")]
    NoSuchPreview,
    #[error("sandbox not found")]
    SandboxNotFound,
    #[error("not found")]
    NotFound,

    // The sandbox's owner.
    #[error("sandbox is {state}. Is the Sandbox started?")]
    NotRunning { state: String },
    #[error("nothing listens on port {port} in the sandbox")]
    PortClosed { port: u16 },
    #[error("the program in the sandbox closed the connection without a valid answer")]
    BrokenAnswer,

    // Nobody now: try again later.
    #[error("the sandbox cannot be reached now, try again")]
    Unreachable,
    #[error("too many connections to this sandbox, try again")]
    Overloaded,
    #[error("the sandbox did not answer in time")]
    TimedOut,
    #[error("the API of this node is not answering now, try again")]
    ApiUnavailable,

    // Us.
    /// The request may have been carried out: it is not repeated, and the client is not asked to.
    #[error("the API of this node closed the connection without a valid answer")]
    ApiBroken,
    #[error("internal error")]
    Internal,
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Refusal {
        match denied {
            Denied::Unauthorized => Refusal::Unauthorized,
            Denied::NotFound => Refusal::SandboxNotFound,
            Denied::Expired => Refusal::Expired,
        }
    }
}

impl From<DialError> for Refusal {
    fn from(error: DialError) -> Refusal {
        match error {
            DialError::NotFound => Refusal::SandboxNotFound,
            DialError::NotRunning { state } => Refusal::NotRunning { state },
            DialError::PortClosed { port } => Refusal::PortClosed { port },
            DialError::Unreachable(_) => Refusal::Unreachable,
            DialError::Overloaded => Refusal::Overloaded,
            DialError::TimedOut => Refusal::TimedOut,
            DialError::Internal(_) => Refusal::Internal,
        }
    }
}

impl From<DirectoryError> for Refusal {
    fn from(error: DirectoryError) -> Refusal {
        match error {
            DirectoryError::NotFound => Refusal::SandboxNotFound,
            DirectoryError::Unreachable(_) => Refusal::Unreachable,
        }
    }
}
