//! What can go wrong with an image, by who must act.

use std::io;

use crate::runtime::RuntimeError;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody who was asked has it.
    #[error("{0}")]
    NotFound(String),
    /// The image, its name or an uploaded blob is at fault.
    #[error("{0}")]
    Bad(String),
    /// The registry wants other credentials.
    #[error("{0}")]
    Denied(String),
    /// A registry or another node could not be asked; later it may be possible.
    #[error("{0}")]
    Unreachable(String),
    #[error("the image store's disk: {0}")]
    Io(#[from] io::Error),
}

impl From<StoreError> for RuntimeError {
    fn from(error: StoreError) -> RuntimeError {
        match error {
            StoreError::NotFound(text) | StoreError::Bad(text) | StoreError::Denied(text) => {
                RuntimeError::Spec(text)
            }
            StoreError::Unreachable(text) => RuntimeError::Host(text),
            StoreError::Io(ref cause) if cause.kind() == io::ErrorKind::StorageFull => {
                RuntimeError::Host(format!("{error}: free some space or lower the store's budget"))
            }
            StoreError::Io(_) => RuntimeError::Host(error.to_string()),
        }
    }
}
