//! The program `nft`: whole scripts, each of which the kernel takes as one transaction or not at all.

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::runtime::RuntimeError;

const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// Services often start with a path that lacks sbin.
pub(super) const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) async fn apply(script: &str) -> Result<(), RuntimeError> {
    let output = call(&["-f", "-"], script).await?;
    output.status.success().then_some(()).ok_or_else(|| refused(&output))
}

/// Whether the kernel would take it. Nothing changes.
pub(super) async fn probe(script: &str) -> Result<(), RuntimeError> {
    let output = call(&["-c", "-f", "-"], script).await?;
    output.status.success().then_some(()).ok_or_else(|| refused(&output))
}

/// What a `list` says; `None` when there is no such thing.
pub(super) async fn list(what: &[&str]) -> Result<Option<Value>, RuntimeError> {
    let arguments: Vec<&str> = ["-j", "list"].iter().chain(what).copied().collect();
    let output = call(&arguments, "").await?;
    if !output.status.success() {
        return match String::from_utf8_lossy(&output.stderr).contains("No such file or directory") {
            true => Ok(None),
            false => Err(refused(&output)),
        };
    }
    let parsed = serde_json::from_slice(&output.stdout);
    parsed
        .map(Some)
        .map_err(|error| RuntimeError::Host(format!("nft answers something that is no JSON: {error}")))
}

async fn call(arguments: &[&str], script: &str) -> Result<Output, RuntimeError> {
    let called = async {
        let mut child = Command::new("nft")
            .args(arguments)
            .env("PATH", PROGRAM_PATH)
            // Its words are looked at.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take();
        let written = async {
            match stdin {
                Some(mut stdin) => stdin.write_all(script.as_bytes()).await,
                None => Ok(()),
            }
        };
        // It may answer before it has read everything; its words then say more than our broken pipe.
        let (_, output) = tokio::join!(written, child.wait_with_output());
        output
    };
    tokio::time::timeout(CALL_DEADLINE, called)
        .await
        .map_err(|_| RuntimeError::TimedOut("nft".into()))?
        .map_err(|error: std::io::Error| {
            RuntimeError::Host(format!(
                "cannot run nft, which keeps sandboxes away from the host and each other: {error}; install the \
                 package nftables"
            ))
        })
}

fn refused(output: &Output) -> RuntimeError {
    let words = String::from_utf8_lossy(&output.stderr);
    // The first line says what; the others repeat the script.
    let first = words.lines().next().unwrap_or_default().trim();
    RuntimeError::Host(format!(
        "nft refuses the rules that keep sandboxes away from the host: {first}; run as root on a kernel with \
         nf_tables and its expressions fib, ct, nat and reject"
    ))
}
