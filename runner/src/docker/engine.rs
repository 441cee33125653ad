//! The connection to the Docker engine: agrees on an API version, again after the engine was restarted or upgraded,
//! and names errors by who must act.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, Docker};

use crate::runtime::RuntimeError;

/// For one request to the engine; longer than a stop with its grace.
const REQUEST_DEADLINE_S: u64 = 60;

pub(crate) struct Engine {
    socket: PathBuf,
    /// `None` until the next request, which agrees on a version first.
    client: Mutex<Option<Docker>>,
}

/// What the engine, or the way to it, said.
#[derive(Debug)]
pub(crate) enum RequestError {
    NotFound(String),
    Conflict(String),
    Bad(String),
    Refused(String),
    Unreachable(RuntimeError),
}

impl Engine {
    pub(crate) fn new(socket: PathBuf) -> Engine {
        Engine { socket, client: Mutex::default() }
    }

    pub(crate) async fn client(&self) -> Result<Docker, RuntimeError> {
        if let Some(docker) = self.cached().clone() {
            return Ok(docker);
        }
        let connected = Docker::connect_with_unix(
            &self.socket.to_string_lossy(),
            REQUEST_DEADLINE_S,
            API_DEFAULT_VERSION,
        );
        let agreed = match connected {
            Ok(docker) => docker.negotiate_version().await,
            Err(error) => Err(error),
        };
        let docker = agreed.map_err(|error| self.unreachable(&error))?;
        *self.cached() = Some(docker.clone());
        Ok(docker)
    }

    /// One request. If the engine has gone away since the last one, it is tried once more on a new connection:
    /// every request that we make may be made twice.
    pub(crate) async fn request<T, F>(&self, ask: impl Fn(Docker) -> F + Sync) -> Result<T, RequestError>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let known = self.cached().is_some();
        match self.request_once(&ask).await {
            // Not after a time-out: the engine is there and slow, and the caller's time is spent.
            Err(RequestError::Unreachable(RuntimeError::Host(_))) if known => self.request_once(&ask).await,
            answer => answer,
        }
    }

    async fn request_once<T, F>(&self, ask: &(impl Fn(Docker) -> F + Sync)) -> Result<T, RequestError>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let docker = self.client().await.map_err(RequestError::Unreachable)?;
        ask(docker).await.map_err(|error| match error {
            Error::DockerResponseServerError { message, .. } if message.contains("client version") => {
                // An engine of another version has taken its place.
                self.cached().take();
                RequestError::Unreachable(RuntimeError::Host(message))
            }
            Error::DockerResponseServerError { status_code, message } => match status_code {
                404 => RequestError::NotFound(message),
                409 => RequestError::Conflict(message),
                400 => RequestError::Bad(message),
                _ => RequestError::Refused(message),
            },
            Error::RequestTimeoutError => {
                RequestError::Unreachable(RuntimeError::TimedOut("the Docker engine does not answer".into()))
            }
            error => {
                self.cached().take();
                RequestError::Unreachable(self.unreachable(&error))
            }
        })
    }

    fn cached(&self) -> std::sync::MutexGuard<'_, Option<Docker>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreachable(&self, error: &Error) -> RuntimeError {
        let mut causes = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            causes = format!("{causes}: {cause}");
            source = cause.source();
        }
        RuntimeError::Host(format!(
            "cannot reach the Docker engine at {}: {causes}; install it (package docker.io), start it \
             (`systemctl start docker`) and run the node as root",
            self.socket.display()
        ))
    }
}

impl RequestError {
    /// For requests about one sandbox's container.
    pub(crate) fn on_sandbox(self, verb: &str) -> RuntimeError {
        match self {
            RequestError::NotFound(_) => RuntimeError::NotFound,
            other => other.on_host(&format!("{verb} the sandbox's container")),
        }
    }

    /// For requests about what all sandboxes share.
    pub(crate) fn on_host(self, doing: &str) -> RuntimeError {
        let message = match self {
            RequestError::Unreachable(error) => return error,
            RequestError::NotFound(message)
            | RequestError::Conflict(message)
            | RequestError::Bad(message)
            | RequestError::Refused(message) => message,
        };
        let advice = if message.contains("no space left on device") {
            "; the engine's disk is full: free some space (`docker system df` says where it went)"
        } else if message.contains("address pool") {
            "; the engine has no subnet left: remove unused networks (`docker network prune`)"
        } else if message.contains("br_netfilter") {
            "; load the kernel module: `modprobe br_netfilter`"
        } else {
            ""
        };
        RuntimeError::Host(format!("Docker cannot {doing}: {}{advice}", message.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_absent_engine_is_the_operators_business() {
        let engine = Engine::new("/nonexistent/docker.sock".into());

        let error =
            engine.request(|docker| async move { docker.ping().await }).await.unwrap_err().on_host("ping");

        assert!(matches!(&error, RuntimeError::Host(text) if text.contains("docker.io")), "{error}");
    }

    #[test]
    fn a_full_disk_is_named_with_what_to_do() {
        let error = RequestError::Refused("write /var/lib/x: no space left on device".into());

        assert!(error.on_sandbox("start").to_string().contains("docker system df"));
    }

    #[test]
    fn a_missing_container_is_not_an_operators_error() {
        assert_eq!(
            RequestError::NotFound("No such container: x".into()).on_sandbox("stop"),
            RuntimeError::NotFound
        );
    }
}
