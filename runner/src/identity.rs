//! Tells the daemon of a running sandbox whom it is for: one request on a connection of the owner's own.

use atoll_api::access::DAEMON_PORT;
use atoll_api::daemon::{IDENTITY_PATH, Identity, owner_preamble};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::handle::RunnerDialError;
use crate::mount::Secret;
use crate::runtime::{Incarnation, Runtime};

/// An answer is a status and at most a sentence.
const ANSWER_BYTES_MAX: u64 = 8 * 1024;

/// What the daemon made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Taken,
    /// The image has no such user.
    Refused(String),
}

/// The caller sets the deadline.
pub(crate) async fn tell_identity(
    runtime: &dyn Runtime,
    incarnation: Incarnation,
    secret: &Secret,
    identity: &Identity,
) -> Result<Told, RunnerDialError> {
    let body = serde_json::to_vec(identity).expect("strings and maps of strings are always JSON");
    let mut request = format!(
        "{}POST {IDENTITY_PATH} HTTP/1.1\r\nHost: daemon\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        owner_preamble(secret.reveal()),
        body.len()
    )
    .into_bytes();
    request.extend(body);

    let mut stream = runtime.dial(incarnation, DAEMON_PORT).await?;
    let _ = stream.set_nodelay(true);
    let mut answer = Vec::new();
    let asked = async {
        stream.write_all(&request).await?;
        (&mut stream).take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await
    };
    asked.await.map_err(|_| RunnerDialError::PortClosed)?;
    understood(&answer).ok_or(RunnerDialError::PortClosed)
}

/// `None`: neither a yes nor a reason.
fn understood(answer: &[u8]) -> Option<Told> {
    let answer = std::str::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    match head.strip_prefix("HTTP/1.1 ")?.get(..3)? {
        "200" => Some(Told::Taken),
        "422" => Some(Told::Refused(body.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yes_a_refusal_and_anything_else_are_told_apart() {
        let said = |answer: &str| understood(answer.as_bytes());

        assert_eq!(said("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Some(Told::Taken));
        let refused = "HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 4\r\n\r\nnobo";
        assert_eq!(said(refused), Some(Told::Refused("nobo".into())));
        for other in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 500 Oh\r\n\r\n", "HTTP/1.1 2", "SSH-2.0\r\n\r\n"] {
            assert_eq!(said(other), None, "{other}");
        }
        assert_eq!(understood(b"HTTP/1.1 200 OK\r\n\r\n\xff"), None);
    }
}
