//! `/lsp/…`: translates between HTTP and the language servers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answers::{AnyCompletions, AnySymbol, Completions, Position, Symbol, completions, symbols};
use super::connection::CallError;
use super::server::Server;
use super::{Key, Language, LspError, project, uri};
use crate::errors::{ApiError, JsonBody, Params};
use crate::files::parse_path;
use crate::routes::Daemon;

type Reply<T> = Result<T, ApiError>;

/// Of a project whose server looks at one document at a time: as many are asked about,
const FILES_MAX: usize = 500;
/// for at most so long.
const SEARCH_DEADLINE: Duration = Duration::from_secs(25);
/// In one answer.
const SYMBOLS_MAX: usize = 2000;

impl From<LspError> for ApiError {
    fn from(error: LspError) -> ApiError {
        let message = error.to_string();
        match error {
            LspError::NotStarted(..) | LspError::Ended(_) | LspError::Call(CallError::Ended) => {
                ApiError::lsp_not_initialized(message)
            }
            LspError::TooMany | LspError::Call(CallError::Busy) => ApiError::conflict(message),
            LspError::Unreadable(error, path) => ApiError::from_io(&error, &path),
            LspError::TooLarge(..) => ApiError::too_large(message),
            LspError::Call(CallError::Deadline(_)) => ApiError::request_timeout(message),
            LspError::Missing(..)
            | LspError::NoStart(_)
            | LspError::Call(CallError::Refused(_) | CallError::Malformed(_)) => {
                ApiError::unprocessable(message)
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerRequest {
    language_id: String,
    path_to_project: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentRequest {
    language_id: String,
    path_to_project: String,
    uri: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompletionRequest {
    language_id: String,
    path_to_project: String,
    uri: String,
    position: Position,
    context: Option<CompletionContext>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CompletionContext {
    trigger_kind: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    trigger_character: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SymbolsQuery {
    language_id: String,
    path_to_project: String,
    query: String,
}

pub async fn start(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<ServerRequest>,
) -> Reply<StatusCode> {
    let key = key(&daemon, &request.language_id, &request.path_to_project)?;
    let project = key.project.clone();
    let is_folder = daemon.workers.run(move || std::fs::metadata(project).map(|data| data.is_dir())).await;
    let shown = key.project.display().to_string();
    if !is_folder.map_err(|error| ApiError::from_io(&error, &shown))? {
        return Err(ApiError::invalid_path(format!("pathToProject is not a folder: {shown}")));
    }
    daemon.language_servers.start(&key, &daemon).await?;
    Ok(StatusCode::OK)
}

pub async fn stop(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<ServerRequest>,
) -> Reply<StatusCode> {
    let key = key(&daemon, &request.language_id, &request.path_to_project)?;
    daemon.language_servers.stop(&key).await?;
    Ok(StatusCode::OK)
}

pub async fn did_open(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<DocumentRequest>,
) -> Reply<StatusCode> {
    let (server, path) = find(&daemon, &request).await?;
    server.open(&path, &daemon.workers).await?;
    Ok(StatusCode::OK)
}

pub async fn did_close(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<DocumentRequest>,
) -> Reply<StatusCode> {
    let (server, path) = find(&daemon, &request).await?;
    server.close(&path).await?;
    Ok(StatusCode::OK)
}

pub async fn complete(
    State(daemon): State<Arc<Daemon>>,
    JsonBody(request): JsonBody<CompletionRequest>,
) -> Reply<Json<Completions>> {
    if request.context.as_ref().is_some_and(|context| !(1..=3).contains(&context.trigger_kind)) {
        return Err(ApiError::bad_request("context.triggerKind is 1, 2 or 3"));
    }
    let CompletionRequest { language_id, path_to_project, uri, position, context } = request;
    let document = DocumentRequest { language_id, path_to_project, uri };
    let (server, path) = find(&daemon, &document).await?;
    let uri = server.open(&path, &daemon.workers).await?;
    let mut params = json!({ "textDocument": { "uri": uri }, "position": position });
    if let Some(context) = context {
        params["context"] = json!(context);
    }
    let answer: Option<AnyCompletions> = server.request("textDocument/completion", params).await?;
    Ok(Json(completions(answer)))
}

pub async fn document_symbols(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<DocumentRequest>,
) -> Reply<Json<Vec<Symbol>>> {
    let (server, path) = find(&daemon, &query).await?;
    let uri = server.open(&path, &daemon.workers).await?;
    Ok(Json(symbols_in(&server, &uri).await?))
}

pub async fn workspace_symbols(
    State(daemon): State<Arc<Daemon>>,
    Params(query): Params<SymbolsQuery>,
) -> Reply<Json<Vec<Symbol>>> {
    let key = key(&daemon, &query.language_id, &query.path_to_project)?;
    let server = daemon.language_servers.find(&key).await?;
    let mut found = if server.finds_symbols_itself() {
        // It knows a project by the documents that are open.
        if !server.has_open_documents().await
            && let Some(first) = sources(&daemon, &key, 1).await.first()
        {
            server.open(first, &daemon.workers).await?;
        }
        let answer: Option<Vec<AnySymbol>> =
            server.request("workspace/symbol", json!({ "query": query.query })).await?;
        symbols(answer, "")
    } else {
        let files = sources(&daemon, &key, FILES_MAX).await;
        search(&server, &files, &query.query).await?
    };
    found.truncate(SYMBOLS_MAX);
    Ok(Json(found))
}

/// For a server that knows symbols of single documents only.
async fn search(server: &Server, files: &[PathBuf], wanted: &str) -> Reply<Vec<Symbol>> {
    let until = Instant::now() + SEARCH_DEADLINE;
    let wanted = wanted.to_lowercase();
    let mut found = Vec::new();
    for file in files {
        if Instant::now() > until || found.len() >= SYMBOLS_MAX {
            break;
        }
        let symbols = match symbols_in(server, &uri::of(file)).await {
            Ok(symbols) => symbols,
            // One file that it can't read is no reason to say nothing of the others.
            Err(LspError::Call(CallError::Refused(_))) => continue,
            Err(error) => return Err(error.into()),
        };
        found.extend(symbols.into_iter().filter(|symbol| symbol.name.to_lowercase().contains(&wanted)));
    }
    Ok(found)
}

async fn symbols_in(server: &Server, uri: &str) -> Result<Vec<Symbol>, LspError> {
    let params = json!({ "textDocument": { "uri": uri } });
    let answer: Option<Vec<AnySymbol>> = server.request("textDocument/documentSymbol", params).await?;
    Ok(symbols(answer, uri))
}

async fn sources(daemon: &Daemon, key: &Key, files_max: usize) -> Vec<PathBuf> {
    let (project, extensions) = (key.project.clone(), key.language.extensions());
    daemon.workers.run(move || project::sources(&project, extensions, files_max)).await
}

async fn find(daemon: &Daemon, request: &DocumentRequest) -> Reply<(Arc<Server>, PathBuf)> {
    let key = key(daemon, &request.language_id, &request.path_to_project)?;
    let path = uri::parse(&request.uri, &key.project)?;
    Ok((daemon.language_servers.find(&key).await?, path))
}

fn key(daemon: &Daemon, language: &str, project: &str) -> Reply<Key> {
    let language = Language::parse(language)
        .ok_or_else(|| ApiError::bad_request("languageId is python, typescript or javascript"))?;
    Ok(Key { language, project: uri::without_dots(&parse_path(daemon, project)?) })
}
