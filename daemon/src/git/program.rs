//! Runs git as the sandbox's user: one process after another, in one folder, until one deadline.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::Kind;
use super::credentials::{Credentials, Offer};
use super::failure;
use crate::environment::Variables;
use crate::errors::ApiError;
use crate::files::parse_path;
use crate::launch::{Input, Launch, Output};
use crate::output::{Bounded, OUTPUT_BYTES_MAX, Stream};
use crate::processes;
use crate::reaper::Reaper;
use crate::routes::Daemon;

/// For all processes of one operation together. A sandbox with larger repositories sets the variable, in seconds.
const LOCAL_DEADLINE: Duration = Duration::from_secs(10 * 60);
const REMOTE_DEADLINE: Duration = Duration::from_secs(60 * 60);
const DEADLINE_VARIABLE: &str = "ATOLL_GIT_DEADLINE_SECONDS";
const DEADLINE_SECONDS_MAX: u64 = 24 * 60 * 60;
/// Between SIGTERM, at which git removes its locks and what it has half made, and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// After SIGKILL, until nothing of the session is left.
const GONE_DEADLINE: Duration = Duration::from_secs(2);
const GONE_POLL: Duration = Duration::from_millis(10);
/// Of the last words of a git that failed.
const COMPLAINT_BYTES_MAX: usize = 16 * 1024;

/// Where the sandbox's own environment says nothing.
const DEFAULTS: [(&str, &str); 4] = [
    // Who asks by a window would wait for ever.
    ("GIT_ASKPASS", ""),
    ("SSH_ASKPASS_REQUIRE", "never"),
    // A server that has not said a byte for so long is not going to.
    ("GIT_HTTP_LOW_SPEED_LIMIT", "1"),
    ("GIT_HTTP_LOW_SPEED_TIME", "120"),
];
/// Whatever the sandbox's own environment says.
const DEMANDS: [(&str, &str); 7] = [
    ("GIT_TERMINAL_PROMPT", "0"),
    // [`failure`] reads what git says.
    ("LC_ALL", "C"),
    ("LANGUAGE", ""),
    ("GIT_EDITOR", ":"),
    ("GIT_SEQUENCE_EDITOR", ":"),
    ("GIT_MERGE_AUTOEDIT", "no"),
    ("GIT_PAGER", "cat"),
];
/// They would make git work on another repository than the one asked for, or tell on standard error what it does.
const UNWANTED: [&str; 14] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_CURL_VERBOSE",
];
const TRACES: &str = "GIT_TRACE";

/// A folder, and the time that is left to work there.
#[derive(Clone)]
pub struct Git {
    daemon: Arc<Daemon>,
    program: PathBuf,
    env: Variables,
    cwd: PathBuf,
    deadline: Duration,
    until: Instant,
    secrets: Vec<String>,
}

/// One process to be.
#[derive(Default)]
pub struct Call {
    config: Vec<String>,
    args: Vec<String>,
    env: Variables,
    input: Vec<u8>,
    offer: Option<Offer>,
}

/// One process that has ended.
pub struct Ran {
    pub code: i32,
    pub stdout: Vec<u8>,
    /// There was more than fits into an answer.
    pub is_cut: bool,
    /// What it said on standard error, without secrets.
    pub stderr: String,
}

impl Call {
    pub fn new<'a>(args: impl IntoIterator<Item = &'a str>) -> Call {
        Call { args: args.into_iter().map(str::to_owned).collect(), ..Call::default() }
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Call {
        self.args.push(arg.into());
        self
    }

    pub fn config(mut self, setting: impl Into<String>) -> Call {
        self.config.push(setting.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Call {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Written to its standard input, which then ends.
    pub fn input(mut self, input: Vec<u8>) -> Call {
        self.input = input;
        self
    }

    pub fn offer(mut self, offer: Option<Offer>) -> Call {
        self.offer = offer;
        self
    }
}

impl Git {
    /// In a repository that a caller has named. That it is one, git says.
    pub async fn open(daemon: &Arc<Daemon>, path: &str, kind: Kind) -> Result<Git, ApiError> {
        Git::at(daemon, parse_path(daemon, path)?, kind).await
    }

    pub async fn at(daemon: &Arc<Daemon>, cwd: PathBuf, kind: Kind) -> Result<Git, ApiError> {
        let env = environment(daemon);
        let path = env.get("PATH").cloned().unwrap_or_default();
        let find = move || crate::programs::in_path(&path, "git");
        let program = daemon.workers.run(find).await.ok_or_else(|| {
            ApiError::unprocessable(
                "git is not in the sandbox's PATH: install it, or use an image that has it",
            )
        })?;
        let deadline = deadline(&env, kind);
        let until = Instant::now() + deadline;
        Ok(Git { daemon: daemon.clone(), program, env, cwd, deadline, until, secrets: Vec::new() })
    }

    /// The same time in another folder.
    pub fn moved_to(&self, cwd: PathBuf) -> Git {
        Git { cwd, ..self.clone() }
    }

    /// No message will contain them.
    pub fn keep_secret(&mut self, credentials: &Credentials) {
        self.secrets.extend(credentials.secrets().filter(|secret| !secret.is_empty()).map(str::to_owned));
    }

    pub fn account(&self) -> &crate::accounts::Account {
        self.daemon.launcher.account()
    }

    /// Files, as the user.
    pub async fn on_worker<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.daemon.workers.run(work).await
    }

    /// Runs to its end, and makes its failure an error.
    pub async fn run(&self, call: Call) -> Result<Ran, ApiError> {
        let ran = self.try_run(call).await?;
        if ran.code == 0 { Ok(ran) } else { Err(self.explain(&ran)) }
    }

    /// For calls whose exit codes have a meaning.
    pub async fn try_run(&self, call: Call) -> Result<Ran, ApiError> {
        let Call { config, args, env: extra, input, offer } = call;
        let mut env = self.env.clone();
        env.extend(extra);
        let config = config.into_iter().chain(offer.iter().flat_map(|offer| offer.config.clone()));
        let config = config.flat_map(|setting| ["-c".to_owned(), setting]);
        let args: Vec<String> = config.chain(args).collect();
        let launch = Launch { program: self.program.clone(), arg0: None, args, env, cwd: self.cwd.clone() };
        self.process(launch, input, offer).await
    }

    /// Another program than git, as part of the operation, whose deadline has passed perhaps.
    pub async fn clean_up(&self, program: &str, args: &[&str]) -> Result<Ran, ApiError> {
        let launch = Launch {
            program: program.into(),
            arg0: None,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: self.env.clone(),
            cwd: "/".into(),
        };
        let afterwards = Git { until: Instant::now() + LOCAL_DEADLINE, ..self.clone() };
        afterwards.process(launch, Vec::new(), None).await
    }

    async fn process(&self, launch: Launch, input: Vec<u8>, offer: Option<Offer>) -> Result<Ran, ApiError> {
        if launch.args.iter().any(|arg| arg.contains('\0')) {
            return Err(ApiError::bad_request("a text has a zero byte"));
        }
        let wanted = if input.is_empty() { Input::Empty } else { Input::Piped };
        let kept = offer.as_ref().map(Offer::kept);
        let mut running = self
            .daemon
            .launcher
            .start_with(launch, wanted, Output::Split, kept)
            .map_err(|error| self.not_started(&error))?;
        drop(offer);
        let reaper = &self.daemon.launcher.reaper;
        let mut leader = Leader { reaper, pid: running.pid, is_ended: false };
        let stdin = running.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // It may end before it has read everything.
                let _ = stdin.write_all(&input).await;
            }
        };
        let mut exit = running.exit.clone();
        let stdout = capture(running.stdout.take().map(|pipe| Stream::new(pipe, exit.clone())));
        let stderr = last_words(running.stderr.take().map(|pipe| Stream::new(pipe, exit.clone())));
        let whole = async {
            let read = async { tokio::join!(stdout, stderr) };
            tokio::pin!(read);
            let read = tokio::select! {
                read = &mut read => read,
                () = async { feed.await; std::future::pending().await } => unreachable!("pending"),
            };
            (exit.exited().await, read)
        };
        let Ok((exit, ((stdout, is_cut), stderr))) = tokio::time::timeout_at(self.until, whole).await else {
            leader.end(running.exit).await;
            return Err(ApiError::request_timeout(format!(
                "git did not end within {} s and was stopped; {DEADLINE_VARIABLE} in the sandbox's environment allows more",
                self.deadline.as_secs()
            )));
        };
        leader.is_ended = true;
        let stderr = self.without_secrets(stderr.into_text());
        Ok(Ran { code: exit.shell_code(), stdout, is_cut, stderr })
    }

    fn not_started(&self, error: &io::Error) -> ApiError {
        let folder = self.cwd.display();
        match error.kind() {
            io::ErrorKind::NotFound => ApiError::git_repo_not_found(format!("no such folder: {folder}")),
            io::ErrorKind::ArgumentListTooLong => ApiError::bad_request("a text is too long for git"),
            _ => ApiError::from_io(error, &self.cwd.to_string_lossy()),
        }
    }

    pub fn explain(&self, ran: &Ran) -> ApiError {
        let mut words = Bounded::new(COMPLAINT_BYTES_MAX);
        words.push(&ran.stdout);
        let words = self.without_secrets(words.into_text());
        failure::explain(&format!("{}\n{words}", ran.stderr), ran.code)
    }

    fn without_secrets(&self, text: String) -> String {
        self.secrets.iter().fold(text, |text, secret| text.replace(secret.as_str(), "***"))
    }
}

/// The first process of a call, which leads its session and group.
struct Leader<'a> {
    reaper: &'a Reaper,
    pid: Pid,
    is_ended: bool,
}

impl Leader<'_> {
    fn signal(&self, signal: Signal) {
        self.reaper.signal_group(self.pid, signal);
        self.reaper.signal_session(self.pid, signal);
    }

    /// Nothing of it is left afterwards, and nothing writes any more.
    async fn end(&mut self, mut exit: crate::reaper::ExitWatch) {
        self.signal(Signal::TERM);
        let _ = tokio::time::timeout(GRACE, exit.exited()).await;
        self.signal(Signal::KILL);
        let gone = async {
            exit.exited().await;
            while !processes::of_session(self.pid).is_empty() {
                tokio::time::sleep(GONE_POLL).await;
            }
        };
        if tokio::time::timeout(GONE_DEADLINE, gone).await.is_err() {
            tracing::warn!(pid = self.pid.as_raw_nonzero(), "a git that was killed does not go");
        }
        self.is_ended = true;
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.signal(Signal::KILL);
        }
    }
}

/// The beginning, whole or not. What is beyond is read and thrown away, so that git goes on.
async fn capture(stream: Option<Stream>) -> (Vec<u8>, bool) {
    let (mut bytes, mut is_cut) = (Vec::new(), false);
    let Some(mut stream) = stream else { return (bytes, is_cut) };
    while let Some(chunk) = stream.next().await {
        let room = OUTPUT_BYTES_MAX - bytes.len();
        is_cut |= chunk.len() > room;
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    (bytes, is_cut)
}

async fn last_words(stream: Option<Stream>) -> Bounded {
    let mut words = Bounded::new(COMPLAINT_BYTES_MAX);
    let Some(mut stream) = stream else { return words };
    while let Some(chunk) = stream.next().await {
        words.push(chunk);
    }
    words
}

fn environment(daemon: &Daemon) -> Variables {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let mut env = daemon.environment.beneath(&DEFAULTS.map(owned).into());
    env.retain(|name, _| !UNWANTED.contains(&name.as_str()) && !name.starts_with(TRACES));
    env.extend(DEMANDS.map(owned));
    env
}

fn deadline(env: &Variables, kind: Kind) -> Duration {
    let seconds = env.get(DEADLINE_VARIABLE).and_then(|text| text.parse::<u64>().ok());
    match (seconds, kind) {
        (Some(seconds), _) => Duration::from_secs(seconds.clamp(1, DEADLINE_SECONDS_MAX)),
        (None, Kind::Local) => LOCAL_DEADLINE,
        (None, Kind::Remote) => REMOTE_DEADLINE,
    }
}
