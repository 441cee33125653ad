//! The desktop as a whole: what runs, in which order it starts, and when each part is ready.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::agent::{Ask, Seen};
use super::helper::{Helper, HelperError};
use super::program::{Program, Role};
use super::recordings::Recordings;
use super::settings;
use super::{DISPLAY, Installed, NOVNC_PAGES, NOVNC_PORT, VNC_PORT, not_installed};
use crate::environment::{Update, Variables};
use crate::errors::ApiError;
use crate::launch::Launch;
use crate::routes::Daemon;

/// Of each program, from its start.
const READY_DEADLINE: Duration = Duration::from_secs(20);
const READY_POLL: Duration = Duration::from_millis(50);
/// Between two attempts, if what it rests on ends again and again.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// One question to the agent. A click takes as long as a person's, a picture of a large screen a second.
const ASK_DEADLINE: Duration = Duration::from_secs(15);
const SIZE: (u32, u32) = (1024, 768);
/// What a picture's memory allows.
const SIDE_PIXELS_MAX: u32 = 3840;
/// May say another size, as WIDTHxHEIGHT.
const SIZE_VARIABLE: &str = "VNC_RESOLUTION";

/// Later processes find the desktop by these.
const PUBLISHED: [&str; 2] = ["DISPLAY", "DBUS_SESSION_BUS_ADDRESS"];

pub struct Desktop {
    pub programs: [Program; 6],
    pub agent: Helper,
    pub accessibility: Helper,
    pub recordings: Recordings,
    /// Held by whoever starts, stops or restarts.
    changing: tokio::sync::Mutex<()>,
    /// The environment of everything on the desktop, while it is to run.
    environment: Mutex<Option<Arc<Variables>>>,
    /// Rebuilds it when what it rests on has ended.
    guard: Mutex<Option<AbortHandle>>,
}

/// Proof that the desktop was started and not stopped since.
pub struct Live<'a> {
    pub daemon: &'a Daemon,
    pub environment: Arc<Variables>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    running: bool,
    priority: u32,
    auto_restart: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
}

impl Default for Desktop {
    fn default() -> Desktop {
        Desktop {
            programs: [
                Program::new("xvfb", 100, Role::Foundation),
                Program::new("dbus", 120, Role::Foundation),
                // Before anybody has the bus start another one.
                Program::new("atspi", 150, Role::Alone),
                Program::new("xfce4", 200, Role::Alone),
                Program::new("x11vnc", 300, Role::Alone),
                Program::new("novnc", 400, Role::Alone),
            ],
            agent: Helper::default(),
            accessibility: Helper::default(),
            recordings: Recordings::default(),
            changing: tokio::sync::Mutex::default(),
            environment: Mutex::default(),
            guard: Mutex::default(),
        }
    }
}

impl Desktop {
    pub fn program(&self, name: &str) -> Result<&Program, ApiError> {
        let names = || self.programs.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
        self.programs
            .iter()
            .find(|program| program.name == name)
            .ok_or_else(|| ApiError::process_not_found(format!("no process {name:?}; there are {}", names())))
    }

    pub fn statuses(&self) -> BTreeMap<&'static str, ProgramStatus> {
        let status = |program: &Program| ProgramStatus {
            running: program.pid().is_some(),
            priority: program.priority,
            auto_restart: true,
            pid: program.pid().map(|pid| pid.as_raw_nonzero().get()),
        };
        self.programs.iter().map(|program| (program.name, status(program))).collect()
    }

    /// In one word.
    pub fn status(&self) -> &'static str {
        match self.programs.iter().filter(|program| program.pid().is_some()).count() {
            0 => "inactive",
            running if running == self.programs.len() => "active",
            _ => "partial",
        }
    }

    /// That it runs; otherwise what to do about it.
    pub async fn live<'a>(&self, daemon: &'a Daemon) -> Result<Live<'a>, ApiError> {
        match self.environment() {
            Some(environment) => Ok(Live { daemon, environment }),
            None => {
                self.installed(daemon).await?;
                Err(ApiError::conflict("the desktop does not run: start it with POST /computeruse/start"))
            }
        }
    }

    /// Of a sandbox without the programs nothing else is said.
    pub async fn installed(&self, daemon: &Daemon) -> Result<Installed, ApiError> {
        let env = daemon.environment.with(&Variables::new());
        Installed::find(daemon, &env).await.map_err(|missing| not_installed(&missing))
    }

    /// What runs already stays. When one does not become ready, those before it run on, and can be looked at.
    pub async fn start(&self, daemon: &Arc<Daemon>) -> Result<(), ApiError> {
        let installed = self.installed(daemon).await?;
        let _changing = self.changing.lock().await;
        let runtime_dir = runtime_dir(daemon).await?;
        let environment = match self.environment() {
            Some(environment) => environment,
            None => {
                let environment = Arc::new(environment(daemon, &runtime_dir));
                *held(&self.environment) = Some(environment.clone());
                environment
            }
        };
        let live = Live { daemon, environment };
        self.start_in_order(&installed, &live, &runtime_dir).await?;
        publish(daemon, &live.environment);
        held(&self.guard).get_or_insert_with(|| tokio::spawn(guard(daemon.clone())).abort_handle());
        Ok(())
    }

    async fn start_in_order(
        &self,
        installed: &Installed,
        live: &Live<'_>,
        runtime_dir: &Path,
    ) -> Result<(), ApiError> {
        make_socket_folder();
        for program in &self.programs {
            self.start_one(program, installed, live, runtime_dir).await?;
        }
        Ok(())
    }

    pub async fn stop(&self, daemon: &Daemon) {
        // First, or what it is just starting would have to become ready before it may be stopped.
        self.dismiss_guard();
        let _changing = self.changing.lock().await;
        self.dismiss_guard();
        let environment = held(&self.environment).take();
        if let Some(environment) = environment {
            withdraw(daemon, &environment);
        }
        self.recordings.stop_all(daemon).await;
        self.stop_in_order(daemon).await;
    }

    /// For the daemon's own end: nothing is started again, and whoever runs is ended with all the others.
    pub fn let_go(&self) {
        self.dismiss_guard();
        self.programs.iter().for_each(Program::let_go);
    }

    fn dismiss_guard(&self) {
        if let Some(guard) = held(&self.guard).take() {
            guard.abort();
        }
    }

    async fn stop_in_order(&self, daemon: &Daemon) {
        self.accessibility.end().await;
        self.agent.end().await;
        for program in self.programs.iter().rev() {
            program.stop(&daemon.launcher.reaper).await;
        }
    }

    /// Everything from the ground up: what has lost its display or its bus is of no use.
    async fn rebuild(&self, daemon: &Daemon) -> Result<(), ApiError> {
        let installed = self.installed(daemon).await?;
        let _changing = self.changing.lock().await;
        let live = self.live(daemon).await?;
        let runtime_dir = runtime_dir(daemon).await?;
        self.stop_in_order(daemon).await;
        self.start_in_order(&installed, &live, &runtime_dir).await
    }

    /// Alone, or with all that rests on it.
    pub async fn restart(&self, name: &str, daemon: &Daemon) -> Result<(), ApiError> {
        let program = self.program(name)?;
        let installed = self.installed(daemon).await?;
        if program.role == Role::Foundation {
            return self.rebuild(daemon).await;
        }
        let _changing = self.changing.lock().await;
        let live = self.live(daemon).await?;
        let runtime_dir = runtime_dir(daemon).await?;
        program.stop(&daemon.launcher.reaper).await;
        self.start_one(program, &installed, &live, &runtime_dir).await
    }

    /// Until it is ready. Told again to run: a foundation may find its place still taken by a former one, and give up.
    async fn start_one(
        &self,
        program: &Program,
        installed: &Installed,
        live: &Live<'_>,
        runtime_dir: &Path,
    ) -> Result<(), ApiError> {
        let ready = async {
            loop {
                let launch = launch(program.name, installed, live, runtime_dir);
                program.keep(&live.daemon.launcher, launch);
                if program.pid().is_some() && self.is_ready(program.name, live, runtime_dir).await {
                    return;
                }
                tokio::time::sleep(READY_POLL).await;
            }
        };
        tokio::time::timeout(READY_DEADLINE, ready).await.map_err(|_| {
            let words = program.errors.last_line().or_else(|| program.output.last_line());
            ApiError::unavailable(format!(
                "{} was not ready within {} s{}; see GET /computeruse/process/{}/errors",
                program.name,
                READY_DEADLINE.as_secs(),
                words.map_or_else(String::new, |words| format!(", its last words: {words}")),
                program.name,
            ))
        })
    }

    async fn is_ready(&self, name: &str, live: &Live<'_>, runtime_dir: &Path) -> bool {
        let seen = async || {
            let seen = self.ask(live, &Ask::Seen).await.ok()?;
            serde_json::from_str::<Seen>(seen.get()).ok()
        };
        match name {
            "xvfb" => seen().await.is_some(),
            "xfce4" => seen().await.is_some_and(|seen| seen.window_manager),
            "atspi" => seen().await.is_some_and(|seen| seen.accessibility),
            "x11vnc" => listens(VNC_PORT).await,
            "novnc" => listens(NOVNC_PORT).await,
            _ => {
                let socket = runtime_dir.join("bus");
                let connect = move || std::os::unix::net::UnixStream::connect(socket).is_ok();
                live.daemon.workers.run(connect).await
            }
        }
    }

    pub async fn ask(&self, live: &Live<'_>, ask: &Ask) -> Result<Box<RawValue>, ApiError> {
        let launch = || live.launch("/proc/self/exe".into(), &["desktop-agent"]);
        let question = serde_json::to_value(ask).expect("a question has text and numbers only");
        let answer = self.agent.ask(&live.daemon.launcher, launch, &question, ASK_DEADLINE).await;
        answer.map_err(|error| match error {
            HelperError::Refused(why) | HelperError::Unknown(why) => ApiError::bad_request(why),
            HelperError::Unavailable(why) => {
                ApiError::unavailable(format!("the desktop does not answer: {why}"))
            }
        })
    }

    fn environment(&self) -> Option<Arc<Variables>> {
        held(&self.environment).clone()
    }
}

/// Lives from start to stop.
async fn guard(daemon: Arc<Daemon>) {
    let desktop = &daemon.desktop;
    let foundations = || desktop.programs.iter().filter(|program| program.role == Role::Foundation);
    loop {
        let ends = foundations().map(|program| Box::pin(program.ended()));
        futures_util::future::select_all(ends).await;
        // Also when somebody restarts them just now: then this waits until that is done, and finds them running.
        let _ = desktop.changing.lock().await;
        if foundations().all(|program| program.pid().is_some()) {
            continue;
        }
        tracing::warn!("the desktop has lost what it rests on, and is started anew");
        if let Err(error) = desktop.rebuild(&daemon).await {
            tracing::warn!(%error, "start the desktop anew");
        }
        tokio::time::sleep(REBUILD_PAUSE).await;
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live<'_> {
    pub fn launch(&self, program: PathBuf, args: &[&str]) -> Launch {
        Launch {
            program,
            arg0: None,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: (*self.environment).clone(),
            cwd: self.daemon.resolve(""),
        }
    }
}

fn launch(name: &str, installed: &Installed, live: &Live<'_>, runtime_dir: &Path) -> Launch {
    let (width, height) = size(&live.environment);
    let (screen, vnc) = (format!("{width}x{height}x24"), VNC_PORT.to_string());
    let (door, target) = (format!("127.0.0.1:{NOVNC_PORT}"), format!("127.0.0.1:{VNC_PORT}"));
    let bus = format!("--address=unix:path={}/bus", runtime_dir.display());
    match name {
        // Whoever is in the sandbox may connect; from outside nobody can.
        "xvfb" => live.launch(
            installed.xvfb.clone(),
            &[DISPLAY, "-screen", "0", &screen, "-ac", "-nolisten", "tcp", "-noreset"],
        ),
        "dbus" => live.launch(installed.dbus.clone(), &["--session", "--nofork", "--nopidfile", &bus]),
        "xfce4" => live.launch(installed.session.clone(), &[]),
        // Announced as switched on, or browsers would hide their contents.
        "atspi" => live.launch(installed.atspi.clone(), &["--launch-immediately", "--a11y=1"]),
        "x11vnc" => {
            let args = [
                "-display",
                DISPLAY,
                "-rfbport",
                &vnc,
                "-localhost",
                "-forever",
                "-shared",
                "-nopw",
                "-noxrecord",
                "-noipv6",
                "-quiet",
            ];
            live.launch(installed.x11vnc.clone(), &args)
        }
        _ => live.launch(installed.websockify.clone(), &["--web", NOVNC_PAGES, &door, &target]),
    }
}

/// Of everything on the desktop.
fn environment(daemon: &Daemon, runtime_dir: &Path) -> Variables {
    let bus = format!("unix:path={}/bus", runtime_dir.display());
    let own = [
        ("DISPLAY", DISPLAY.to_owned()),
        ("DBUS_SESSION_BUS_ADDRESS", bus),
        ("XDG_RUNTIME_DIR", runtime_dir.display().to_string()),
        ("XDG_CONFIG_DIRS", format!("{}/{}:/etc/xdg", runtime_dir.display(), settings::FOLDER)),
        ("XDG_SESSION_TYPE", "x11".into()),
        ("XDG_CURRENT_DESKTOP", "XFCE".into()),
        ("GDK_BACKEND", "x11".into()),
        ("QT_ACCESSIBILITY", "1".into()),
        ("QT_LINUX_ACCESSIBILITY_ALWAYS_ON", "1".into()),
    ];
    let mut environment =
        daemon.environment.with(&own.map(|(name, value)| (name.to_owned(), value)).into_iter().collect());
    for of_another in ["WAYLAND_DISPLAY", "XAUTHORITY", "SESSION_MANAGER", "NO_AT_BRIDGE"] {
        environment.remove(of_another);
    }
    environment
}

/// What a user has set stays.
fn publish(daemon: &Daemon, environment: &Variables) {
    let present = daemon.environment.with(&Variables::new());
    let set = PUBLISHED.into_iter().filter(|name| !present.contains_key(*name));
    let set = set.filter_map(|name| Some((name.to_owned(), environment.get(name)?.clone()))).collect();
    daemon.environment.update(Update { set, unset: Vec::new(), unset_value_prefix: None });
}

fn withdraw(daemon: &Daemon, environment: &Variables) {
    let present = daemon.environment.with(&Variables::new());
    let is_ours = |name: &&str| present.get(*name) == environment.get(*name);
    let unset = PUBLISHED.into_iter().filter(is_ours).map(str::to_owned).collect();
    daemon.environment.update(Update { set: Variables::new(), unset, unset_value_prefix: None });
}

fn size(environment: &Variables) -> (u32, u32) {
    let parse = |text: &str| {
        let (width, height) = text.split_once('x')?;
        let side = |text: &str| text.trim().parse().ok().filter(|side| (64..=SIDE_PIXELS_MAX).contains(side));
        Some((side(width)?, side(height)?))
    };
    environment.get(SIZE_VARIABLE).and_then(|text| parse(text)).unwrap_or(SIZE)
}

/// The user's own, for sockets: made as the user, and nobody else's.
async fn runtime_dir(daemon: &Daemon) -> Result<PathBuf, ApiError> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let uid = daemon.launcher.account().uid;
    let dir = std::env::temp_dir().join(format!("atoll-desktop-{uid}"));
    let made = dir.clone();
    let make = move || {
        match std::fs::DirBuilder::new().mode(0o700).create(&made) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let metadata = std::fs::symlink_metadata(&made)?;
        let is_own = metadata.is_dir() && metadata.uid() == uid && metadata.mode() & 0o077 == 0;
        if !is_own {
            return Err(std::io::ErrorKind::PermissionDenied.into());
        }
        settings::write(&made.join(settings::FOLDER))
    };
    let made = daemon.workers.run(make).await;
    made.map_err(|error| ApiError::unavailable(format!("make {}: {error}", dir.display())))?;
    Ok(dir)
}

/// An X server that is not root's does not make it, and then listens where not everybody looks.
fn make_socket_folder() {
    use rustix::fs::{Mode, OFlags};
    const FOLDER: &std::ffi::CStr = c"/tmp/.X11-unix";
    // Only the last name is made, and an entry that exists, whatever it is, stays.
    if rustix::fs::mkdir(FOLDER, Mode::from_raw_mode(0o755)).is_err() {
        return;
    }
    // Ours, in a folder with the sticky bit: nobody can have put anything else there since.
    let opened =
        rustix::fs::open(FOLDER, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.and_then(|folder| rustix::fs::fchmod(folder, Mode::from_raw_mode(0o1777)));
    if let Err(error) = opened {
        tracing::warn!(%error, "make /tmp/.X11-unix");
    }
}

async fn listens(port: u16) -> bool {
    let connect = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    matches!(tokio::time::timeout(Duration::from_secs(1), connect).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_makes_no_sense_is_not_taken() {
        let of = |text: &str| size(&[(SIZE_VARIABLE.to_owned(), text.to_owned())].into());

        assert_eq!(of("1280x720"), (1280, 720));
        for odd in ["", "1280", "0x0", "99999x720", "-1x5", "ax5"] {
            assert_eq!(of(odd), SIZE, "{odd}");
        }
    }
}
