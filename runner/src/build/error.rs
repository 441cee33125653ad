//! Why a build ended without an image, by who must act.

use crate::runtime::RuntimeError;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile asks for what cannot be; nothing of that line was done. Lines count from 1.
    #[error("Dockerfile line {line}: {reason}")]
    Dockerfile { line: usize, reason: String },
    /// A command of the Dockerfile ended badly.
    #[error("Dockerfile line {line}: {step} ended with exit code {exit_code}")]
    Command { line: usize, step: String, exit_code: i64 },
    /// The uploaded context lacks something, or is no tar.
    #[error("build context: {0}")]
    Context(String),
    /// The operator must act.
    #[error("{0}")]
    Host(String),
    #[error("the build took longer than {0} s")]
    TimedOut(u64),
    #[error("the build was cancelled")]
    Cancelled,
}

impl BuildError {
    pub(crate) fn at(line: usize, reason: impl Into<String>) -> BuildError {
        BuildError::Dockerfile { line, reason: reason.into() }
    }
}

impl From<RuntimeError> for BuildError {
    fn from(error: RuntimeError) -> BuildError {
        BuildError::Host(error.to_string())
    }
}
