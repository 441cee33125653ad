//! Listens, admits, and holds each connection from its first byte to its last: login deadline, revocation, shutdown.
//!
//! ```text
//! accept ─▶ version and keys ─▶ login ─▶ open ─▶ closed by the client
//!    │full          │deadline     │wrong    ├─ token ended ──▶ told why, then cut
//!    ▼              ▼             ▼         └─ shutting down ─▶ told why, then cut
//!  turned away     cut       told why
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use atoll_mesh::dial::{Dial, Directory};
use russh::Disconnect;
use russh::server::RunningSession;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info_span, warn};

use crate::access::{Access, Seams};
use crate::admission::{Admission, Full};
use crate::config::{SshConfig, SshLimits, host_key, russh_config};
use crate::cut::CuttableStream;
use crate::memory::Memory;
use crate::refusal::{REVOKED, SHUTTING_DOWN};
use crate::session::Session;

pub struct SshServer;

/// A running server. Dropping it ends all connections at once; [`SshHandle::shutdown`] is kinder.
pub struct SshHandle {
    local_addr: SocketAddr,
    host_key_openssh: String,
    closing: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

/// How long a client has to take the words that end its connection.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);
/// After an accept that failed for want of resources.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

impl SshServer {
    /// Listens and serves until shut down. Fails when the address cannot be bound.
    pub async fn start(
        config: SshConfig,
        directory: Arc<dyn Directory>,
        dial: Arc<dyn Dial>,
    ) -> anyhow::Result<SshHandle> {
        let host_key = host_key(&config.host_key_seed).context("make SSH host key")?;
        let host_key_openssh = host_key.public_key().to_openssh().context("write SSH host key")?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("listen for SSH on {}", config.listen))?;
        let local_addr = listener.local_addr().context("ask for the SSH address")?;
        let (closing, cut, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let door = Arc::new(Door {
            russh: Arc::new(russh_config(&config.limits, host_key)),
            memory: Memory::new(config.limits.input_bytes_max),
            limits: config.limits,
            seams: Seams { directory, dial },
            closing: closing.clone(),
            cut: cut.clone(),
        });
        tasks.spawn(accept(listener, door, tasks.clone()));
        Ok(SshHandle { local_addr, host_key_openssh, closing, cut, tasks })
    }
}

impl SshHandle {
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The host's public key as one line of OpenSSH, `ssh-ed25519 AAAA…`.
    pub fn host_key_openssh(&self) -> String {
        self.host_key_openssh.clone()
    }

    /// Stops listening, tells every client to connect elsewhere, and returns when all are gone or, after `deadline`, cut.
    pub async fn shutdown(&self, deadline: Duration) {
        self.closing.cancel();
        self.tasks.close();
        if timeout(deadline, self.tasks.wait()).await.is_err() {
            self.cut.cancel();
            // A cut stream answers its session at once, so this is a wait for the scheduler only.
            let _ = timeout(FAREWELL_DEADLINE, self.tasks.wait()).await;
        }
    }
}

impl Drop for SshHandle {
    fn drop(&mut self) {
        self.closing.cancel();
        self.cut.cancel();
    }
}

struct Door {
    russh: Arc<russh::server::Config>,
    limits: SshLimits,
    /// For the unread input of all connections.
    memory: Arc<Memory>,
    seams: Seams,
    /// No new connections, and a farewell for the old ones.
    closing: CancellationToken,
    /// No connections.
    cut: CancellationToken,
}

async fn accept(listener: TcpListener, door: Arc<Door>, tasks: TaskTracker) {
    let admission = Admission::new(door.limits.connections_max, door.limits.connections_per_address_max);
    loop {
        let accepted = tokio::select! {
            () = door.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept SSH connections");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        match admission.admit(client.ip()) {
            Ok(place) => {
                let door = door.clone();
                let span = info_span!("ssh", %client, sandbox_id = tracing::field::Empty);
                let connection = async move {
                    let _place = place;
                    door.serve(tcp).await;
                };
                tasks.spawn(connection.instrument(span));
            }
            Err(full) => turn_away(&tcp, full),
        }
    }
}

/// Lines before the version are allowed (RFC 4253, 4.2). A fresh socket has room for one, so nothing waits.
fn turn_away(tcp: &TcpStream, full: Full) {
    debug!(%full, "connection turned away");
    let _ = tcp.try_write(format!("{full}\r\n").as_bytes());
}

impl Door {
    async fn serve(&self, tcp: TcpStream) {
        if let Err(error) = tcp.set_nodelay(true) {
            debug!(%error, "cannot set TCP_NODELAY");
        }
        let ended = self.cut.child_token();
        // Whatever way this function ends: the session's stream and the channels' tasks end with it.
        let _ended_with_us = ended.clone().drop_guard();
        let tasks = TaskTracker::new();
        if let Some((mut session, access)) = self.log_in(tcp, &tasks, &ended).await {
            tracing::Span::current().record("sandbox_id", tracing::field::display(access.sandbox_id()));
            let farewell = tokio::select! {
                ended = &mut session => {
                    debug!(cause = ?ended.err(), "connection ended");
                    None
                }
                () = access.ended() => Some(REVOKED),
                () = self.closing.cancelled() => Some(SHUTTING_DOWN),
            };
            if let Some(words) = farewell {
                debug!(words, "connection cut");
                say_farewell(&mut session, words).await;
            }
        }
        ended.cancel();
        tasks.close();
        tasks.wait().await;
    }

    /// Everything up to a valid token, within one deadline.
    async fn log_in(
        &self,
        tcp: TcpStream,
        tasks: &TaskTracker,
        ended: &CancellationToken,
    ) -> Option<(RunningSession<Session>, Arc<Access>)> {
        let deadline = Instant::now() + Duration::from_millis(self.limits.login_deadline_ms);
        let (logged_in, login) = oneshot::channel();
        let handler = Session::new(
            self.seams.clone(),
            Duration::from_millis(self.limits.refusal_delay_ms),
            self.limits.channels_per_connection_max,
            self.memory.part(self.limits.input_bytes_per_connection_max),
            logged_in,
            tasks.clone(),
            ended.clone(),
        );
        let write_stall_deadline = Duration::from_millis(self.limits.write_stall_deadline_ms);
        let stream = CuttableStream::new(tcp, ended.clone(), write_stall_deadline);
        let attempt = async {
            let mut session = match russh::server::run_stream(self.russh.clone(), stream, handler).await {
                Ok(session) => session,
                Err(error) => {
                    debug!(%error, "not an SSH client");
                    return None;
                }
            };
            tokio::select! {
                access = login => access.ok().map(|access| (session, access)),
                _gone = &mut session => None,
            }
        };
        tokio::select! {
            logged_in = timeout_at(deadline, attempt) => logged_in.unwrap_or_else(|_| {
                debug!("no login in time");
                None
            }),
            () = self.closing.cancelled() => None,
        }
    }
}

async fn say_farewell(session: &mut RunningSession<Session>, words: &str) {
    let handle = session.handle();
    let farewell = async {
        if handle.disconnect(Disconnect::ByApplication, words.into(), String::new()).await.is_ok() {
            // It ends when the client has closed its side.
            let _ = session.await;
        }
    };
    let _ = timeout(FAREWELL_DEADLINE, farewell).await;
}
