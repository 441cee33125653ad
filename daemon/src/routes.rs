//! The table of routes, and what all handlers share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use atoll_api::daemon::Identity;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{any, delete, get, post};
use tracing::Instrument;

use crate::accounts::{AccountError, Accounts};
use crate::desktop::Desktop;
use crate::environment::Environment;
use crate::files::workers::Workers;
use crate::interpreter::Interpreters;
use crate::launch::{Launch, Launcher};
use crate::lsp::LanguageServers;
use crate::metrics::Sampler;
use crate::pty::Terminals;
use crate::session::Sessions;
use crate::shells::Shells;
use crate::websocket::Sockets;
use crate::{
    channel, desktop, errors, files, git, info, interpreter, lsp, metrics, ports, process, proxy, pty,
    session,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;

pub struct Daemon {
    pub launcher: Launcher,
    pub environment: Environment,
    pub shells: Shells,
    pub workers: Workers,
    pub sessions: Arc<Sessions>,
    pub terminals: Arc<Terminals>,
    pub interpreters: Arc<Interpreters>,
    pub language_servers: Arc<LanguageServers>,
    pub desktop: Arc<Desktop>,
    pub metrics: Arc<Sampler>,
    pub git: Arc<git::Operations>,
    pub sockets: Arc<Sockets>,
    pub work_dir: PathBuf,
    /// What the image says; the user's home is next.
    image_work_dir: Option<PathBuf>,
    accounts_dir: PathBuf,
    own_port: AtomicU16,
    web_terminal_port: AtomicU16,
}

impl Daemon {
    #[allow(clippy::too_many_arguments, reason = "called once, at boot, where each has its name")]
    pub fn new(
        launcher: Launcher,
        accounts_dir: PathBuf,
        environment: Environment,
        shells: Shells,
        workers: Workers,
        image_work_dir: Option<PathBuf>,
        own_port: u16,
        state_dir: PathBuf,
    ) -> anyhow::Result<Daemon> {
        use anyhow::Context;
        let sessions = Sessions::new(state_dir.clone())
            .with_context(|| format!("make the state folder {}", state_dir.display()))?;
        let work_dir = first_existing([image_work_dir.clone(), Some(launcher.account().home.clone())]);
        Ok(Daemon {
            launcher,
            environment,
            shells,
            workers,
            sessions: Arc::new(sessions),
            terminals: Arc::default(),
            interpreters: Arc::default(),
            language_servers: Arc::default(),
            desktop: Arc::default(),
            metrics: Arc::default(),
            git: Arc::default(),
            sockets: Arc::default(),
            work_dir,
            image_work_dir,
            accounts_dir,
            own_port: AtomicU16::new(own_port),
            web_terminal_port: AtomicU16::new(0),
        })
    }

    /// The same sandbox for another user and environment. What runs already goes on as it is.
    pub fn become_another(&self, identity: &Identity) -> Result<Daemon, IdentityError> {
        let account = self.accounts().resolve(&identity.user)?;
        let is_same = account == *self.launcher.account();
        let shells = Shells::read(&self.accounts_dir, &account);
        let environment = Environment::of_user(&account, &shells, &identity.env);
        let workers = if is_same { self.workers.clone() } else { Workers::start(&account)? };
        let work_dir = match is_same {
            true => self.work_dir.clone(),
            false => first_existing([self.image_work_dir.clone(), Some(account.home.clone())]),
        };
        Ok(Daemon {
            launcher: self.launcher.of(account),
            environment,
            shells,
            workers,
            sessions: self.sessions.clone(),
            terminals: self.terminals.clone(),
            interpreters: self.interpreters.clone(),
            language_servers: self.language_servers.clone(),
            desktop: self.desktop.clone(),
            metrics: self.metrics.clone(),
            git: self.git.clone(),
            sockets: self.sockets.clone(),
            work_dir,
            image_work_dir: self.image_work_dir.clone(),
            accounts_dir: self.accounts_dir.clone(),
            own_port: AtomicU16::new(self.own_port()),
            web_terminal_port: AtomicU16::new(self.web_terminal_port()),
        })
    }

    /// The port, once it is known: 0 asks the kernel for one.
    pub fn listening_on(&self, port: u16) {
        self.own_port.store(port, Ordering::Relaxed);
    }

    pub fn own_port(&self) -> u16 {
        self.own_port.load(Ordering::Relaxed)
    }

    pub fn web_terminal_on(&self, port: u16) {
        self.web_terminal_port.store(port, Ordering::Relaxed);
    }

    /// 0 when there is none.
    pub fn web_terminal_port(&self) -> u16 {
        self.web_terminal_port.load(Ordering::Relaxed)
    }

    /// Absolute paths stay; others are below the working directory; the empty one is that.
    pub fn resolve(&self, path: &str) -> PathBuf {
        if path.is_empty() || path == "." {
            self.work_dir.clone()
        } else {
            self.work_dir.join(Path::new(path))
        }
    }

    /// As they are now: users come and go.
    pub fn accounts(&self) -> Accounts {
        Accounts::read(&self.accounts_dir)
    }

    /// A command that can't be started is the image's fault; the sandbox serves without it.
    pub async fn start_entrypoint(&self, command: &[String]) {
        let Some((program, args)) = command.split_first() else { return };
        let launch = Launch {
            program: program.into(),
            arg0: None,
            args: args.to_vec(),
            env: self.environment.with(&Default::default()),
            cwd: self.resolve(""),
        };
        if let Err(error) =
            self.sessions.start_entrypoint(&self.launcher, launch, command.join(" "), &self.workers)
        {
            tracing::warn!(%error, program, "start the entrypoint");
        }
    }

    pub fn forget_state(&self) {
        self.sessions.forget();
    }
}

/// Why a sandbox cannot be for somebody else.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The caller's: the image has no such user.
    #[error("{0}")]
    Account(#[from] AccountError),
    /// The sandbox's: no threads, no rights.
    #[error("start file workers as the user: {0}")]
    Workers(#[from] std::io::Error),
}

pub fn first_existing<const N: usize>(candidates: [Option<PathBuf>; N]) -> PathBuf {
    candidates.into_iter().flatten().find(|dir| dir.is_dir()).unwrap_or_else(|| PathBuf::from("/"))
}

pub fn router(daemon: Arc<Daemon>) -> Router {
    let files = Router::new()
        .route("/files", get(files::routes::list).delete(files::routes::delete))
        .route("/files/info", get(files::routes::info))
        .route("/files/folder", post(files::routes::make_folder))
        .route("/files/move", post(files::routes::rename))
        .route("/files/permissions", post(files::routes::set_permissions))
        .route("/files/find", get(files::routes::find))
        .route("/files/search", get(files::routes::search))
        .route("/files/replace", post(files::routes::replace))
        .route("/files/download", get(files::routes::download))
        .route("/files/upload", post(files::routes::upload))
        .route("/files/upload-v2", post(files::routes::upload))
        .route("/files/bulk-upload", post(files::routes::bulk_upload))
        .route("/files/bulk-download", post(files::routes::bulk_download))
        .route(
            "/files/{*path}",
            get(files::routes::get_tail).put(files::routes::put_tail).delete(files::routes::delete_tail),
        );
    let sessions = Router::new()
        .route("/process/session", get(session::routes::list).post(session::routes::create))
        .route("/process/session/entrypoint/logs", get(session::routes::entrypoint_logs))
        .route(
            "/process/session/entrypoint",
            get(session::routes::show_entrypoint).delete(|state| async {
                session::routes::delete(state, axum::extract::Path(session::ENTRYPOINT.to_owned())).await
            }),
        )
        .route("/process/session/{session_id}", get(session::routes::show).delete(session::routes::delete))
        .route("/process/session/{session_id}/exec", post(session::routes::exec))
        .route("/process/session/{session_id}/command/{command_id}", get(session::routes::command))
        .route("/process/session/{session_id}/command/{command_id}/input", post(session::routes::input))
        .route("/process/session/{session_id}/command/{command_id}/logs", get(session::routes::logs));
    let terminals = Router::new()
        .route("/process/pty", get(pty::routes::list).post(pty::routes::create))
        .route("/process/pty/create-connect", get(pty::routes::create_connect))
        .route("/process/pty/{session_id}", get(pty::routes::show).delete(pty::routes::delete))
        .route("/process/pty/{session_id}/resize", post(pty::routes::resize))
        .route("/process/pty/{session_id}/connect", get(pty::routes::connect));
    let git = Router::new()
        .route("/git/clone", post(git::clone))
        .route("/git/init", post(git::changes::init))
        .route("/git/add", post(git::changes::add))
        .route("/git/commit", post(git::changes::commit))
        .route("/git/reset", post(git::changes::reset))
        .route("/git/restore", post(git::changes::restore))
        .route("/git/push", post(git::push))
        .route("/git/pull", post(git::pull))
        .route("/git/status", get(git::status))
        .route("/git/history", get(git::history))
        .route(
            "/git/branches",
            get(git::branches::list).post(git::branches::create).delete(git::branches::delete),
        )
        .route("/git/checkout", post(git::branches::checkout))
        .route("/git/remotes", get(git::remotes::list).post(git::remotes::add))
        .route("/git/config", get(git::config::show).post(git::config::set))
        .route("/git/config/user", post(git::config::set_user))
        .route("/git/credentials", post(git::config::store_credentials));
    let interpreters = Router::new()
        .route(
            "/process/interpreter/context",
            get(interpreter::routes::list).post(interpreter::routes::create),
        )
        .route("/process/interpreter/context/{context_id}", delete(interpreter::routes::delete))
        .route("/process/interpreter/execute", get(interpreter::routes::execute));
    let language_servers = Router::new()
        .route("/lsp/start", post(lsp::routes::start))
        .route("/lsp/stop", post(lsp::routes::stop))
        .route("/lsp/did-open", post(lsp::routes::did_open))
        .route("/lsp/did-close", post(lsp::routes::did_close))
        .route("/lsp/completions", post(lsp::routes::complete))
        .route("/lsp/document-symbols", get(lsp::routes::document_symbols))
        .route("/lsp/workspacesymbols", get(lsp::routes::workspace_symbols))
        // As SDKs up to 0.110 call it.
        .route("/lsp/workspace-symbols", get(lsp::routes::workspace_symbols));
    Router::new()
        .route("/version", get(info::version))
        .route("/work-dir", get(info::work_dir))
        .route("/user-home-dir", get(info::home_dir))
        .route("/project-dir", get(info::home_dir))
        .route("/init", post(info::init))
        .route("/env", post(info::update_env))
        .route("/system/metrics", get(metrics::show))
        .route("/port", get(ports::list))
        .route("/port/{port}/in-use", get(ports::is_in_use))
        .route("/process/execute", post(process::execute))
        .route("/process/code-run", post(process::code_run))
        .route("/process/code", post(process::code_run))
        .merge(files)
        .merge(sessions)
        .merge(terminals)
        .merge(git)
        .merge(interpreters)
        .merge(language_servers)
        .merge(desktop::routes::router())
        .route("/proxy/{port}", any(proxy::forward))
        .route("/proxy/{port}/", any(proxy::forward))
        .route("/proxy/{port}/{*path}", any(proxy::forward))
        .route(atoll_api::channel::CHANNEL_PATH, get(channel::open))
        .fallback(errors::unknown_route)
        .method_not_allowed_fallback(errors::unknown_method)
        // JSON bodies have their own limit; what is streamed to disk is limited by the disk.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(errors::describe))
        .layer(from_fn(trace))
        .with_state(daemon)
}

/// The id that the edge gave the request, into the logs and back.
async fn trace(request: Request, next: Next) -> Response {
    let request_id = request.headers().get(REQUEST_ID).filter(|id| is_request_id(id)).cloned();
    let span = tracing::info_span!(
        "request",
        request_id = request_id.as_ref().and_then(|id| id.to_str().ok()),
        method = %request.method(),
        path = request.uri().path(),
    );
    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| tracing::debug!(status = response.status().as_u16(), "answered"));
    if let Some(request_id) = request_id {
        response.headers_mut().insert(REQUEST_ID, request_id);
    }
    response
}

fn is_request_id(id: &HeaderValue) -> bool {
    id.len() <= REQUEST_ID_BYTES_MAX && id.to_str().is_ok()
}
