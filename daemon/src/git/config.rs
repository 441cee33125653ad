//! `/git/config…` and `/git/credentials`: settings in git's own files.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Kind;
use super::address::is_host;
use super::credentials::{Credentials, Secret};
use super::names::{ConfigKey, check_identity, unless_empty};
use super::program::{Call, Git};
use crate::errors::{ApiError, JsonBody, Params};
use crate::routes::Daemon;

/// Which of git's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Global,
    Local,
    System,
}

impl TryFrom<String> for Scope {
    type Error = &'static str;

    fn try_from(scope: String) -> Result<Scope, &'static str> {
        match scope.as_str() {
            "global" => Ok(Scope::Global),
            "local" => Ok(Scope::Local),
            "system" => Ok(Scope::System),
            _ => Err("scope is one of global, local, system"),
        }
    }
}

impl Scope {
    fn flag(self) -> &'static str {
        match self {
            Scope::Global => "--global",
            Scope::Local => "--local",
            Scope::System => "--system",
        }
    }
}

#[derive(Deserialize)]
pub struct Query {
    key: ConfigKey,
    #[serde(default, deserialize_with = "unless_empty")]
    scope: Option<Scope>,
    path: Option<String>,
}

#[derive(Serialize)]
pub struct Value {
    /// Null when the key is not set there.
    value: Option<String>,
}

#[derive(Deserialize)]
pub struct Set {
    key: ConfigKey,
    value: String,
    #[serde(default, deserialize_with = "unless_empty")]
    scope: Option<Scope>,
    path: Option<String>,
}

#[derive(Deserialize)]
pub struct SetUser {
    name: String,
    email: String,
    #[serde(default, deserialize_with = "unless_empty")]
    scope: Option<Scope>,
    path: Option<String>,
}

#[derive(Deserialize)]
pub struct Store {
    username: Secret,
    password: Secret,
    host: Option<String>,
    protocol: Option<String>,
}

pub async fn show(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<Query>,
) -> Result<Json<Value>, ApiError> {
    let here = daemon.clone();
    let work = async move {
        let (git, scope) = open(&here, query.scope, query.path.as_deref()).await?;
        let call = Call::new(["config", scope.flag(), "--includes", "--null", "--get", query.key.as_str()]);
        let ran = git.try_run(call).await?;
        match ran.code {
            0 => {
                let text = String::from_utf8_lossy(&ran.stdout);
                Ok(Json(Value { value: Some(text.trim_end_matches('\0').to_owned()) }))
            }
            1 => Ok(Json(Value { value: None })),
            _ => Err(git.explain(&ran)),
        }
    };
    daemon.git.run(Kind::Local, work).await
}

pub async fn set(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Set>,
) -> Result<(), ApiError> {
    let here = daemon.clone();
    let work = async move {
        let (git, scope) = open(&here, request.scope, request.path.as_deref()).await?;
        write(&git, scope, request.key.as_str(), &request.value).await
    };
    daemon.git.run(Kind::Local, work).await
}

pub async fn set_user(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<SetUser>,
) -> Result<(), ApiError> {
    check_identity(&request.name, &request.email)?;
    let here = daemon.clone();
    let work = async move {
        let (git, scope) = open(&here, request.scope, request.path.as_deref()).await?;
        write(&git, scope, "user.name", &request.name).await?;
        write(&git, scope, "user.email", &request.email).await
    };
    daemon.git.run(Kind::Local, work).await
}

/// On purpose in plain text, in the user's home, for all later operations: that is what the caller asks for.
pub async fn store_credentials(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<Store>,
) -> Result<(), ApiError> {
    let host = request.host.filter(|host| !host.is_empty()).unwrap_or_else(|| "github.com".into());
    let protocol = request.protocol.filter(|name| !name.is_empty()).unwrap_or_else(|| "https".into());
    if !is_host(&host) {
        return Err(ApiError::bad_request("host is a name or an address, with a port or without"));
    }
    if protocol != "https" && protocol != "http" {
        return Err(ApiError::bad_request("protocol is https or http"));
    }
    if request.username.reveal().is_empty() || request.password.reveal().is_empty() {
        return Err(ApiError::bad_request("username and password are needed"));
    }
    let credentials = Credentials::new(request.username.reveal().to_owned(), request.password)?;
    let here = daemon.clone();
    let work = async move {
        let mut git = Git::at(&here, "/".into(), Kind::Local).await?;
        git.keep_secret(&credentials);
        let all = Call::new(["config", "--global", "--null", "--get-all", "credential.helper"]);
        let helpers = git.try_run(all).await?.stdout;
        let mut helpers = helpers.split(|&byte| byte == 0);
        if !helpers.any(|helper| helper == b"store") {
            git.run(Call::new(["config", "--global", "--add", "credential.helper", "store"])).await?;
        }
        let entry = format!(
            "protocol={protocol}\nhost={host}\nusername={}\npassword={}\n\n",
            credentials.username(),
            credentials.password().reveal()
        );
        git.run(Call::new(["credential-store", "store"]).input(entry.into_bytes())).await?;
        Ok(())
    };
    daemon.git.run(Kind::Local, work).await
}

async fn open(
    daemon: &Arc<Daemon>,
    scope: Option<Scope>,
    path: Option<&str>,
) -> Result<(Git, Scope), ApiError> {
    let scope = scope.unwrap_or(Scope::Global);
    let git = match (scope, path.filter(|path| !path.is_empty())) {
        (Scope::Local, Some(path)) => Git::open(daemon, path, Kind::Local).await?,
        (Scope::Local, None) => {
            return Err(ApiError::bad_request("scope \"local\" needs the path of a repository"));
        }
        (Scope::Global | Scope::System, _) => Git::at(daemon, "/".into(), Kind::Local).await?,
    };
    Ok((git, scope))
}

/// In place of all values that the key may have there.
async fn write(git: &Git, scope: Scope, key: &str, value: &str) -> Result<(), ApiError> {
    git.run(Call::new(["config", scope.flag(), "--replace-all", key, value])).await?;
    Ok(())
}
