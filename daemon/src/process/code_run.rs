//! `POST /process/code-run`: source text on the standard input of its language's interpreter.
//!
//! A Python program that may draw runs below a wrapper which tells of its figures (see [`super::charts`]); nothing else is
//! different for it.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use tokio::net::unix::pipe;

use super::{Ended, Run, charts, checked_envs, run, timeout_of};
use crate::environment::Variables;
use crate::errors::{ApiError, JsonBody};
use crate::launch::Launch;
use crate::programs::first_in_path;
use crate::routes::Daemon;

#[derive(Deserialize)]
pub struct Request {
    code: String,
    language: Language,
    argv: Option<Vec<String>>,
    envs: Option<HashMap<String, String>>,
    /// Seconds.
    timeout: Option<i64>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Language {
    Python,
    Javascript,
    Typescript,
}

/// The shell's own number for a program that is not there.
const NOT_FOUND_CODE: i32 = 127;

pub async fn code_run(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Request>,
) -> Result<Json<Ended>, ApiError> {
    let env = daemon.environment.with(&checked_envs(request.envs)?);
    let timeout = timeout_of(request.timeout)?;
    let mut source = None;
    let candidates: &[&str] = match request.language {
        Language::Python => &["python3", "python"],
        Language::Javascript => &["node"],
        Language::Typescript => &["ts-node", "tsx", "bun"],
    };
    let cwd = daemon.resolve("");
    let looked_through = match request.language {
        Language::Python | Language::Javascript => env.clone(),
        Language::Typescript => with_own_tools(&env, &cwd),
    };
    let Some((name, program)) = first_in_path(&daemon, &looked_through, candidates).await else {
        let result = format!("none of {} is in the sandbox's PATH\n", candidates.join(", "));
        return Ok(Json(Ended::not_started(NOT_FOUND_CODE, result)));
    };
    let mut charts = None;
    let mut code = request.code;
    if matches!(request.language, Language::Python) && charts::may_draw(&code) {
        let (theirs, ours) =
            charts_pipe().map_err(|error| ApiError::internal(format!("make a pipe: {error}")))?;
        code = charts::wrapped(&code, theirs.as_raw_fd());
        charts = Some((theirs, ours));
    }
    // An empty program is a program; a newline keeps its input from being no input at all.
    let mut input = code.into_bytes();
    input.push(b'\n');
    let mut args = match request.language {
        Language::Python => vec!["-u", "-"],
        Language::Javascript => vec!["-"],
        Language::Typescript => {
            source = Some(Source::write(&daemon, std::mem::take(&mut input)).await?);
            if name == "ts-node" { vec!["--compilerOptions", r#"{"module":"CommonJS"}"#] } else { vec![] }
        }
    };
    let path = source.as_ref().map(|source| source.path.to_string_lossy().into_owned());
    args.extend(path.as_deref());
    let launch = Launch {
        program,
        arg0: None,
        args: args.into_iter().map(str::to_owned).chain(request.argv.unwrap_or_default()).collect(),
        env,
        cwd,
    };
    run(&daemon.launcher, Run { launch, input, timeout, charts }).await.map(Json)
}

/// A project's own tools come first, as `npx` has it.
fn with_own_tools(env: &Variables, cwd: &Path) -> Variables {
    let own = cwd.join("node_modules/.bin");
    let path = env.get("PATH").map_or("", String::as_str);
    [("PATH".to_owned(), format!("{}:{path}", own.display()))].into()
}

fn charts_pipe() -> std::io::Result<(OwnedFd, pipe::Receiver)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((writer, pipe::Receiver::from_owned_fd(reader)?))
}

/// A source file for interpreters that take no standard input; it goes when the run is over.
struct Source {
    path: PathBuf,
    daemon: Arc<Daemon>,
}

impl Source {
    async fn write(daemon: &Arc<Daemon>, code: Vec<u8>) -> Result<Source, ApiError> {
        let path = std::env::temp_dir().join(format!("atoll-code-{}.ts", uuid::Uuid::new_v4().simple()));
        let source = Source { path: path.clone(), daemon: daemon.clone() };
        let written = daemon.workers.run(move || std::fs::write(&path, code)).await;
        written.map_err(|error| ApiError::from_io(&error, &source.path.to_string_lossy()))?;
        Ok(source)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        self.daemon.workers.detach(move || drop(std::fs::remove_file(path)));
    }
}
