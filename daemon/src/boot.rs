//! From arguments to serving, in the order things start; SIGTERM undoes it upwards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use atoll_api::access::WEB_TERMINAL_PORT;
use atoll_api::daemon::{CONFIG_PATH, DaemonConfig, HELLO_SOCKET_PATH, Hello, Identity};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, UnixStream};

use crate::accounts::Accounts;
use crate::environment::Environment;
use crate::files::workers::Workers;
use crate::identity::Rooms;
use crate::launch::Launcher;
use crate::reaper::Reaper;
use crate::routes::Daemon;
use crate::write_signals::WriteSignals;
use crate::{gate, info, inherited, polled, processes, shells, web_terminal, write_signals};

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2280);
/// Root's, and the user's shells may pass through it: see `session`.
const STATE_DIR: &str = "/run/atoll-daemon";
/// Between SIGTERM to everyone and SIGKILL to who is left. Shorter than any engine's own grace.
const STOP_GRACE: Duration = Duration::from_secs(3);
const STOP_POLL: Duration = Duration::from_millis(20);
/// The runner listens before it starts us; a later answer means it has gone, and it will look for itself.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Nothing here uses tokio's blocking pool on purpose; this bounds whatever a library does.
const BLOCKING_THREADS_MAX: usize = 2;
/// The lowest there is that still lets the kernel kill us before it panics.
const OOM_SCORE_ADJ: &str = "-999";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub config: Source,
    /// Absent in the config's folder means nobody waits for a hello.
    pub hello: Source,
    pub listen: SocketAddr,
    /// Where `passwd`, `group` and `shells` are.
    pub accounts_dir: PathBuf,
    pub state_dir: PathBuf,
}

/// Where a file or socket is: a path, or a descriptor that whoever started us has left open (`fd:3`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Path(PathBuf),
    Inherited(i32),
}

impl Source {
    fn parse(text: &str) -> Result<Source, String> {
        match text.strip_prefix("fd:") {
            None => Ok(Source::Path(text.into())),
            Some(number) => match number.parse() {
                Ok(number @ 3..) => Ok(Source::Inherited(number)),
                _ => Err(format!("not a descriptor that can be left to us: {text}")),
            },
        }
    }

    fn open(&self) -> std::io::Result<std::fs::File> {
        match self {
            Source::Path(path) => std::fs::File::open(path),
            Source::Inherited(number) => Ok(inherited::take(*number)?.into()),
        }
    }

    async fn connect(&self) -> std::io::Result<UnixStream> {
        match self {
            Source::Path(path) => UnixStream::connect(path).await,
            Source::Inherited(number) => {
                let stream = std::os::unix::net::UnixStream::from(inherited::take(*number)?);
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Path(path) => path.display().fmt(f),
            Source::Inherited(number) => write!(f, "descriptor {number}"),
        }
    }
}

impl Options {
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            config: Source::Path(CONFIG_PATH.into()),
            hello: Source::Path(HELLO_SOCKET_PATH.into()),
            listen: LISTEN,
            accounts_dir: "/etc".into(),
            state_dir: STATE_DIR.into(),
        };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or_else(|| format!("{flag} needs a value, or is unknown"))?;
            match flag.as_str() {
                "--config" => options.config = Source::parse(&value)?,
                "--hello" => options.hello = Source::parse(&value)?,
                "--listen" => {
                    options.listen = value.parse().map_err(|_| format!("not an address: {value}"))?
                }
                "--accounts-dir" => options.accounts_dir = value.into(),
                "--state-dir" => options.state_dir = value.into(),
                _ => return Err(format!("unknown flag {flag}")),
            }
        }
        Ok(options)
    }
}

pub fn run(options: Options) -> Result<()> {
    // Before any thread exists, so that every thread leaves these signals to us. Children start with an empty mask.
    let mut handled = SigSet::empty();
    handled.add(NixSignal::SIGTERM);
    handled.add(NixSignal::SIGINT);
    handled.thread_block().context("block signals")?;
    let of_writes = write_signals::block().context("block the signals of writes")?;

    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    protect_from_the_oom_killer();
    hide_from_the_sandbox();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("become the reaper of orphans")?;

    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("start the runtime")?
        .block_on(live(options, handled, of_writes))
}

async fn live(options: Options, handled: SigSet, of_writes: SigSet) -> Result<()> {
    let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("make a descriptor for signals")?;
    let signals = polled::signals(signals).context("listen for signals")?;
    let config = read_config(&options)?;
    let accounts = Accounts::read(&options.accounts_dir);
    let account = accounts.resolve(&config.user).context("find the sandbox's user")?;
    let shells = shells::Shells::read(&options.accounts_dir, &account);
    let environment = Environment::of_user(&account, &shells, &config.env);
    let image_work_dir = config.work_dir.clone().map(PathBuf::from).or_else(work_dir_of_image);
    // A folder that this process stands in could not be unmounted.
    std::env::set_current_dir("/").context("stand in the root folder")?;

    let writes = WriteSignals::open(&of_writes).context("listen for the signals of writes")?;
    let reaper = Reaper::default();
    let mut reaping = tokio::spawn(reaper.clone().run());
    let workers = Workers::start(&account).context("start file workers as the user")?;
    let daemon = Arc::new(Daemon::new(
        Launcher::new(account, reaper, writes.clone()),
        options.accounts_dir,
        environment,
        shells,
        workers,
        image_work_dir,
        options.listen.port(),
        options.state_dir,
    )?);

    let listener =
        TcpListener::bind(options.listen).await.with_context(|| format!("listen on {}", options.listen))?;
    daemon.listening_on(listener.local_addr().context("read the listening address")?.port());
    // Before any program of the user's could take its place.
    let web_terminal = listen_for_web_terminal(options.listen.ip(), &daemon).await;
    if !config.entrypoint.is_empty() {
        daemon.start_entrypoint(&config.entrypoint).await;
    }
    let hello = Hello {
        sandbox_id: config.sandbox_id.clone(),
        secret: config.secret.clone(),
        version: info::VERSION.to_owned(),
    };
    tracing::info!(sandbox_id = config.sandbox_id, listen = %listener.local_addr()?, "serving");

    let identity = Identity { user: config.user.clone(), env: config.env.clone() };
    let rooms = Arc::new(Rooms::new(daemon.clone(), identity));
    let terminal_served = async {
        match web_terminal {
            Some(listener) => web_terminal::serve(listener, rooms.clone()).await,
            None => std::future::pending().await,
        }
    };
    let served = async {
        // The port queues connections from the moment it is bound; hello may overtake the accept loop, but never the port.
        let (_, never) = tokio::join!(
            say_hello(&options.hello, &hello),
            gate::serve(listener, &config.secret, rooms.clone())
        );
        match never {}
    };
    tokio::select! {
        () = served => {}
        never = terminal_served => match never {},
        never = writes.run() => match never {},
        ended = &mut reaping => ended.context("reaper")?.context("wait for children")?,
        signal = asked_to_stop(&signals) => tracing::info!(signal, "stopping"),
    }
    daemon.desktop.let_go();
    stop_everyone().await;
    daemon.forget_state();
    Ok(())
}

/// Whoever starts this process puts it into the folder that the image names; the root folder stands for none.
fn work_dir_of_image() -> Option<PathBuf> {
    std::env::current_dir().ok().filter(|dir| dir.parent().is_some())
}

/// A sandbox without it is a sandbox all the same.
async fn listen_for_web_terminal(ip: IpAddr, daemon: &Daemon) -> Option<TcpListener> {
    let address = SocketAddr::new(ip, WEB_TERMINAL_PORT);
    match TcpListener::bind(address).await {
        Ok(listener) => {
            daemon.web_terminal_on(WEB_TERMINAL_PORT);
            Some(listener)
        }
        Err(error) => {
            tracing::warn!(%error, %address, "no web terminal");
            None
        }
    }
}

fn read_config(options: &Options) -> Result<DaemonConfig> {
    let source = &options.config;
    let mut text = Vec::new();
    let read = source.open().and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut text));
    read.with_context(|| format!("read {source}"))?;
    let config: DaemonConfig = serde_json::from_slice(&text).with_context(|| format!("parse {source}"))?;
    let is_secret = config.secret.len() == 64 && config.secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    anyhow::ensure!(is_secret, "the secret in {source} is not 64 hex digits");
    Ok(config)
}

/// Neither the user nor a root process of the sandbox traces us, reads our memory, environment and descriptors, or takes one of them:
/// it would need CAP_SYS_PTRACE from now on, which none has.
fn hide_from_the_sandbox() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "processes of the sandbox may trace the daemon");
    }
}

/// Lowering needs a capability that not every sandbox has; then the runner's own setting stands.
fn protect_from_the_oom_killer() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        tracing::debug!(%error, "OOM score stays");
    }
}

/// One line. Failing is not fatal: a runner that adopted a running sandbox no longer listens.
async fn say_hello(socket: &Source, hello: &Hello) {
    let said = tokio::time::timeout(HELLO_DEADLINE, async {
        let mut stream = socket.connect().await?;
        let mut line = serde_json::to_vec(hello).expect("a struct of strings is always JSON");
        line.push(b'\n');
        stream.write_all(&line).await?;
        stream.shutdown().await
    });
    match said.await {
        Ok(Ok(())) => tracing::info!("hello said"),
        Ok(Err(error)) => tracing::warn!(%error, %socket, "say hello"),
        Err(_) => tracing::warn!(%socket, "say hello: deadline"),
    }
}

/// As PID 1 we obey only who is outside (the kernel shows no sender for them): a process in the sandbox,
/// also a root one, can't stop the daemon.
async fn asked_to_stop(signals: &AsyncFd<SignalFd>) -> u32 {
    let is_init = rustix::process::getpid().is_init();
    loop {
        let Ok(mut ready) = signals.readable().await else { return 0 };
        match signals.get_ref().read_signal() {
            Ok(Some(info)) if !is_init || info.ssi_pid == 0 => return info.ssi_signo,
            Ok(Some(info)) => {
                tracing::warn!(from = info.ssi_pid, "a process in the sandbox asked the daemon to stop")
            }
            Ok(None) | Err(_) => ready.clear_ready(),
        }
    }
}

async fn stop_everyone() {
    let deadline = Instant::now() + STOP_GRACE;
    for pid in processes::descendants() {
        // Interactive shells ignore SIGTERM and obey SIGHUP; a stopped process sees neither before SIGCONT.
        for signal in [Signal::TERM, Signal::HUP, Signal::CONT] {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
    while !processes::descendants().is_empty() && Instant::now() < deadline {
        tokio::time::sleep(STOP_POLL).await;
    }
    for pid in processes::descendants() {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        Options::parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn without_flags_the_mounted_paths_hold() {
        let options = parse(&[]).unwrap();

        assert_eq!(options.config, Source::Path(CONFIG_PATH.into()));
        assert_eq!(options.listen.to_string(), "127.0.0.1:2280");
    }

    #[test]
    fn a_flag_without_value_or_meaning_is_refused() {
        assert!(parse(&["--config"]).is_err());
        assert!(parse(&["--config", "fd:1"]).is_err());
        assert!(parse(&["--config", "fd:x"]).is_err());
        assert!(parse(&["--frobnicate", "1"]).is_err());
        assert!(parse(&["--listen", "nowhere"]).is_err());
    }
}
