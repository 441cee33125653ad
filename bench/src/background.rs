//! A reference's server, as long as the value lives: ended with SIGTERM, so that it ends its own workers, and waited for.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;

const STOP_DEADLINE: Duration = Duration::from_secs(5);
const LISTENS_DEADLINE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub struct Background {
    child: Child,
}

impl Background {
    /// `package`: where Debian has the program. What it says goes to the log.
    pub fn start(mut command: Command, package: &str, log: &Path) -> Result<Background> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {program} (Debian: {package})"))?;
        Ok(Background { child })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn until_listening(host: &str, port: u16) -> Result<()> {
    let deadline = Instant::now() + LISTENS_DEADLINE;
    while TcpStream::connect((host, port)).await.is_err() {
        ensure!(Instant::now() < deadline, "nothing listens on {host}:{port} within {LISTENS_DEADLINE:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_ends_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let server = Background::start(command, "coreutils", &dir.path().join("log")).unwrap();
        let proc_dir = format!("/proc/{}", server.child.id());
        assert!(Path::new(&proc_dir).exists());

        drop(server);

        assert!(!Path::new(&proc_dir).exists());
    }
}
