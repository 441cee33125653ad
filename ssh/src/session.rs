//! What one SSH connection asks for: russh's handler. It runs on the connection's own task, so it only notes and starts
//! things; whatever may wait is done by a task per channel. The one exception is the login, before which nothing else happens.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use atoll_api::channel::{ChannelOpen, ChannelProgram, PtyRequest, PtySize};
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Response, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Error, Pty, Sig};
use russh::{keys::Certificate, server};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info};

use crate::access::{Access, Seams};
use crate::forward::{self, Destination};
use crate::input::Input;
use crate::memory::Memory;
use crate::program::{self, ClientEnd};
use crate::refusal::Refusal;

const ENV_NAMES_MAX: usize = 64;
const ENV_BYTES_MAX: usize = 16 * 1024;
const TERM_BYTES_MAX: usize = 64;

pub(crate) struct Session {
    seams: Seams,
    refusal_delay: Duration,
    channels_max: usize,
    /// For the unread input of this connection.
    memory: Arc<Memory>,
    login: Login,
    /// Told once, when the login has succeeded.
    logged_in: Option<oneshot::Sender<Arc<Access>>>,
    /// Text for the client whose login has just been refused.
    refusal: Option<String>,
    channels: HashMap<ChannelId, ChannelSlot>,
    tasks: TaskTracker,
    /// Ends every task of this connection.
    ended: CancellationToken,
}

enum Login {
    Nobody,
    /// This user name was found to be a valid token.
    Known {
        user: String,
        access: Arc<Access>,
    },
}

struct ChannelSlot {
    input: Arc<Input>,
    stage: Stage,
    /// Cancelled by the client's close, and by the channel's task when it is done.
    ended: CancellationToken,
}

enum Stage {
    /// A session channel that has not said yet what to run.
    Preparing(Preparation),
    Running,
}

struct Preparation {
    output: ChannelWriteHalf<Msg>,
    env: BTreeMap<String, String>,
    env_bytes: usize,
    pty: Option<PtyRequest>,
}

impl Session {
    pub(crate) fn new(
        seams: Seams,
        refusal_delay: Duration,
        channels_max: usize,
        memory: Arc<Memory>,
        logged_in: oneshot::Sender<Arc<Access>>,
        tasks: TaskTracker,
        ended: CancellationToken,
    ) -> Session {
        Session {
            seams,
            refusal_delay,
            channels_max,
            memory,
            login: Login::Nobody,
            logged_in: Some(logged_in),
            refusal: None,
            channels: HashMap::new(),
            tasks,
            ended,
        }
    }

    /// Every method of authentication comes here: the user name is the whole credential.
    async fn judge(&mut self, name: &str) -> Auth {
        if matches!(&self.login, Login::Known { user, .. } if user == name) {
            return Auth::Accept;
        }
        let asked_at = Instant::now();
        match Access::judge(self.seams.clone(), name).await {
            Ok(access) => {
                self.login = Login::Known { user: name.to_owned(), access: Arc::new(access) };
                Auth::Accept
            }
            Err(refusal) => {
                info!(%refusal, "login refused");
                self.login = Login::Nobody;
                self.refusal = Some(refusal.to_string());
                tokio::time::sleep_until(asked_at + self.refusal_delay).await;
                Auth::reject()
            }
        }
    }

    fn access(&self) -> Result<Arc<Access>, Error> {
        match &self.login {
            Login::Known { access, .. } => Ok(access.clone()),
            Login::Nobody => Err(Error::Inconsistent),
        }
    }

    /// Makes room for one more channel, forgetting those whose tasks have finished.
    fn slot(&mut self, channel: ChannelId, stage: Stage) -> Option<(Arc<Input>, CancellationToken)> {
        self.channels.retain(|_, slot| !slot.ended.is_cancelled());
        if self.channels.len() >= self.channels_max {
            return None;
        }
        let (input, ended) = (Arc::new(Input::new(self.memory.clone())), self.ended.child_token());
        self.channels.insert(channel, ChannelSlot { input: input.clone(), stage, ended: ended.clone() });
        Some((input, ended))
    }

    fn preparation(&mut self, channel: ChannelId) -> Option<&mut Preparation> {
        match self.channels.get_mut(&channel) {
            Some(ChannelSlot { stage: Stage::Preparing(preparation), .. }) => Some(preparation),
            _ => None,
        }
    }

    fn start(
        &mut self,
        channel: ChannelId,
        program: ChannelProgram,
        session: &mut server::Session,
    ) -> Result<(), Error> {
        let access = self.access()?;
        let Some(slot) = self.channels.get_mut(&channel) else {
            return session.channel_failure(channel);
        };
        // A channel runs one program (RFC 4254, 6.5).
        let Stage::Preparing(preparation) = std::mem::replace(&mut slot.stage, Stage::Running) else {
            return session.channel_failure(channel);
        };
        let Preparation { output, env, pty, .. } = preparation;
        session.channel_success(channel)?;
        let client = ClientEnd { input: slot.input.clone(), output, session: session.handle() };
        let open = ChannelOpen { program, env, pty };
        let ended = slot.ended.clone();
        self.spawn(ended, program::run(access, open, client));
        Ok(())
    }

    fn spawn(&self, ended: CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
        let done = ended.clone().drop_guard();
        let task = async move {
            let _done = done;
            ended.run_until_cancelled(work).await;
        };
        self.tasks.spawn(task.in_current_span());
    }
}

impl server::Handler for Session {
    type Error = Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Error> {
        Ok(self.judge(user).await)
    }

    async fn auth_password(&mut self, user: &str, _password: &str) -> Result<Auth, Error> {
        Ok(self.judge(user).await)
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        _offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Error> {
        Ok(self.judge(user).await)
    }

    async fn auth_publickey(&mut self, user: &str, _key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(self.judge(user).await)
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        _certificate: &Certificate,
    ) -> Result<Auth, Error> {
        Ok(self.judge(user).await)
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        _response: Option<Response<'a>>,
    ) -> Result<Auth, Error> {
        Ok(self.judge(user).await)
    }

    fn take_refusal(&mut self) -> Option<String> {
        self.refusal.take()
    }

    async fn auth_succeeded(&mut self, _session: &mut server::Session) -> Result<(), Error> {
        let access = self.access()?;
        info!(sandbox_id = %access.sandbox_id(), "logged in");
        if let Some(logged_in) = self.logged_in.take() {
            // Nobody hears it only when the connection is being cut.
            let _ = logged_in.send(access);
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut server::Session,
    ) -> Result<(), Error> {
        let id = channel.id();
        // Input comes by `data`: russh's own queue counts messages, not bytes, and would stop the connection when full.
        let (_queue, output) = channel.split();
        let preparation = Preparation { output, env: BTreeMap::new(), env_bytes: 0, pty: None };
        match self.slot(id, Stage::Preparing(preparation)) {
            Some(_) => reply.accept().await,
            None => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut server::Session,
    ) -> Result<(), Error> {
        let access = self.access()?;
        let destination = match Destination::parse(host, port) {
            Ok(destination) => destination,
            Err(refusal) => {
                reply.reject(forward::open_failure(&refusal)).await;
                return Ok(());
            }
        };
        let id = channel.id();
        let (_queue, output) = channel.split();
        match self.slot(id, Stage::Running) {
            Some((input, ended)) => {
                let client = ClientEnd { input, output, session: session.handle() };
                self.spawn(ended, forward::run(access, destination, reply, client));
            }
            None => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        bytes: &[u8],
        _session: &mut server::Session,
    ) -> Result<(), Error> {
        if let Some(slot) = self.channels.get(&channel) {
            slot.input.push_bytes(bytes).map_err(|error| {
                debug!(%error, "connection dropped");
                Error::Inconsistent
            })?;
        }
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _session: &mut server::Session) -> Result<(), Error> {
        if let Some(slot) = self.channels.get(&channel) {
            slot.input.push_eof();
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut server::Session,
    ) -> Result<(), Error> {
        if let Some(slot) = self.channels.remove(&channel) {
            slot.ended.cancel();
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _pixel_width: u32,
        _pixel_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut server::Session,
    ) -> Result<(), Error> {
        let Some(preparation) = self.preparation(channel) else {
            return session.channel_failure(channel);
        };
        preparation.pty = Some(PtyRequest { term: terminal_name(term), size: pty_size(cols, rows) });
        session.channel_success(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut server::Session,
    ) -> Result<(), Error> {
        let Some(preparation) = self.preparation(channel) else {
            return session.channel_failure(channel);
        };
        let env_bytes = preparation.env_bytes + name.len() + value.len();
        let fits = preparation.env.len() < ENV_NAMES_MAX && env_bytes <= ENV_BYTES_MAX;
        if !fits || !is_env_name(name) || value.contains('\0') {
            return session.channel_failure(channel);
        }
        preparation.env_bytes = env_bytes;
        preparation.env.insert(name.to_owned(), value.to_owned());
        session.channel_success(channel)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut server::Session,
    ) -> Result<(), Error> {
        self.start(channel, ChannelProgram::Shell, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), Error> {
        match std::str::from_utf8(command) {
            Ok(command) if !command.contains('\0') => {
                self.start(channel, ChannelProgram::Exec { command: command.to_owned() }, session)
            }
            _ => {
                debug!(refusal = %Refusal::BadCommand, "exec refused");
                session.channel_failure(channel)
            }
        }
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut server::Session,
    ) -> Result<(), Error> {
        match name {
            "sftp" => self.start(channel, ChannelProgram::Sftp, session),
            _ => session.channel_failure(channel),
        }
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        cols: u32,
        rows: u32,
        _pixel_width: u32,
        _pixel_height: u32,
        _session: &mut server::Session,
    ) -> Result<(), Error> {
        let size = pty_size(cols, rows);
        match self.channels.get_mut(&channel) {
            Some(ChannelSlot { stage: Stage::Preparing(preparation), .. }) => {
                if let Some(pty) = &mut preparation.pty {
                    pty.size = size;
                }
            }
            Some(slot) => slot.input.push_resize(size),
            None => {}
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut server::Session,
    ) -> Result<(), Error> {
        if let (Some(slot), Some(name)) = (self.channels.get(&channel), program::signal_name(signal)) {
            slot.input.push_signal(name);
        }
        Ok(())
    }

    /// Not offered: nothing in a sandbox can open windows on the client's screen.
    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _auth_protocol: &str,
        _auth_cookie: &str,
        _screen_number: u32,
        session: &mut server::Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }
    // Agent forwarding, remote forwarding and Unix sockets are not offered either: russh refuses what has no method here.
}

/// RFC 4254 counts in 32 bits, terminals in 16; zero means unknown in both.
fn pty_size(cols: u32, rows: u32) -> PtySize {
    let clamp = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    PtySize { cols: clamp(cols), rows: clamp(rows) }
}

fn terminal_name(term: &str) -> String {
    let known = (1..=TERM_BYTES_MAX).contains(&term.len())
        && term.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
    if known { term.to_owned() } else { "xterm".to_owned() }
}

fn is_env_name(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables_and_terminals_are_plain_words() {
        assert!(is_env_name("LC_ALL") && is_env_name("_"));
        assert!(!is_env_name("") && !is_env_name("1A") && !is_env_name("A=B") && !is_env_name("A\0"));
        assert_eq!(terminal_name("screen.xterm-256color"), "screen.xterm-256color");
        assert_eq!(terminal_name("x\ny"), "xterm");
    }

    #[test]
    fn absurd_terminal_sizes_are_clamped() {
        assert_eq!(pty_size(u32::MAX, 24), PtySize { cols: u16::MAX, rows: 24 });
    }
}
