//! The registries that an organization's images come from. A password goes in and never comes out.

use atoll_api::rest::{
    CreateDockerRegistry, DockerRegistry, ErrorBody, RegistryType, Timestamp, UpdateDockerRegistry,
};
use atoll_consensus::state::cluster::RegistryRecord;
use axum::Json;
use http::StatusCode;

use super::errors::ApiError;
use super::input::{Body, Segments};
use super::sandbox::answer;
use super::visitor::Visitor;
use crate::control::verb::{Password, RegistryWish, Verb, VerbAnswer};

const NAME_CHARS_MAX: usize = 128;
const URL_CHARS_MAX: usize = 255;
const USERNAME_CHARS_MAX: usize = 255;
/// Those of some clouds are signed documents.
const PASSWORD_BYTES_MAX: usize = 16 * 1024;
const PROJECT_CHARS_MAX: usize = 255;
/// In images' names it goes by one of them.
const HUB: &str = "docker.io";
const HUB_HOSTS: [&str; 5] =
    ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub.docker.com"];

#[utoipa::path(
    post, path = "/docker-registry", operation_id = "createRegistry", tag = "docker-registry", security(("bearer" = [])),
    request_body = CreateDockerRegistry,
    responses((status = 201, body = DockerRegistry), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn create(
    visitor: Visitor,
    Body(asked): Body<CreateDockerRegistry>,
) -> Result<(StatusCode, Json<DockerRegistry>), ApiError> {
    let CreateDockerRegistry { name, url, username, password, project } = asked;
    let wish = wish(name, url, username, Some(password), project)?;
    Ok((StatusCode::CREATED, one(&visitor, Verb::CreateRegistry(wish)).await?))
}

#[utoipa::path(
    get, path = "/docker-registry", operation_id = "listRegistries", tag = "docker-registry", security(("bearer" = [])),
    responses((status = 200, body = [DockerRegistry]), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(visitor: Visitor) -> Result<Json<Vec<DockerRegistry>>, ApiError> {
    let mut all = answer!(visitor.ask(Verb::ListRegistries).await?, VerbAnswer::Registries(all) => all)?;
    all.sort_by(|(_, a), (_, b)| (a.created_at_ms, &a.name).cmp(&(b.created_at_ms, &b.name)));
    Ok(Json(all.into_iter().map(present).collect()))
}

#[utoipa::path(
    get, path = "/docker-registry/{id}", operation_id = "getRegistry", tag = "docker-registry", security(("bearer" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = DockerRegistry), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn read(visitor: Visitor, path: Segments) -> Result<Json<DockerRegistry>, ApiError> {
    one(&visitor, Verb::GetRegistry { registry_id: registry_id(&path)? }).await
}

#[utoipa::path(
    patch, path = "/docker-registry/{id}", operation_id = "updateRegistry", tag = "docker-registry", security(("bearer" = [])),
    params(("id" = String, Path)), request_body = UpdateDockerRegistry,
    responses((status = 200, body = DockerRegistry), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn update(
    visitor: Visitor,
    path: Segments,
    Body(asked): Body<UpdateDockerRegistry>,
) -> Result<Json<DockerRegistry>, ApiError> {
    let UpdateDockerRegistry { name, url, username, password, project } = asked;
    let registry = wish(name, url, username, password, project)?;
    one(&visitor, Verb::UpdateRegistry { registry_id: registry_id(&path)?, registry }).await
}

#[utoipa::path(
    delete, path = "/docker-registry/{id}", operation_id = "deleteRegistry", tag = "docker-registry", security(("bearer" = [])),
    params(("id" = String, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn remove(visitor: Visitor, path: Segments) -> Result<StatusCode, ApiError> {
    let verb = Verb::DeleteRegistry { registry_id: registry_id(&path)? };
    answer!(visitor.ask(verb).await?, VerbAnswer::Done => StatusCode::NO_CONTENT)
}

async fn one(visitor: &Visitor, verb: Verb) -> Result<Json<DockerRegistry>, ApiError> {
    let mut found = answer!(visitor.ask(verb).await?, VerbAnswer::Registries(found) => found)?;
    found.pop().map(|found| Json(present(found))).ok_or_else(not_found)
}

fn present((id, registry): (uuid::Uuid, RegistryRecord)) -> DockerRegistry {
    let RegistryRecord { name, url, username, project, created_at_ms, updated_at_ms, .. } = registry;
    DockerRegistry {
        id,
        name,
        url,
        username,
        project,
        registry_type: RegistryType::Organization,
        created_at: Timestamp(created_at_ms),
        updated_at: Timestamp(updated_at_ms),
    }
}

fn registry_id(path: &Segments) -> Result<uuid::Uuid, ApiError> {
    path.text("id")?.parse().map_err(|_| not_found())
}

fn not_found() -> ApiError {
    ApiError::NotFound("registry not found".to_owned())
}

fn wish(
    name: String,
    url: String,
    username: String,
    password: Option<String>,
    project: Option<String>,
) -> Result<RegistryWish, ApiError> {
    let host = host_of(&url)?;
    let password = match password {
        Some(password) if password.is_empty() || password.len() > PASSWORD_BYTES_MAX => {
            return Err(ApiError::Invalid(format!("password must be 1 to {PASSWORD_BYTES_MAX} bytes")));
        }
        password => password.map(Password),
    };
    // Basic authentication ends the user's name at the first colon.
    let username = word("username", username, 1..=USERNAME_CHARS_MAX)?;
    if username.contains(':') {
        return Err(ApiError::Invalid("username must not contain ':'".to_owned()));
    }
    Ok(RegistryWish {
        name: word("name", name, 1..=NAME_CHARS_MAX)?,
        url,
        host,
        username,
        password,
        project: project.map(|project| word("project", project, 0..=PROJECT_CHARS_MAX)).transpose()?,
    })
}

fn word(field: &str, text: String, chars: std::ops::RangeInclusive<usize>) -> Result<String, ApiError> {
    if chars.contains(&text.chars().count()) && !text.chars().any(char::is_control) {
        return Ok(text);
    }
    let (least, most) = (chars.start(), chars.end());
    Err(ApiError::Invalid(format!(
        "{field} must be {least} to {most} characters, none of them control characters"
    )))
}

/// `https://ghcr.io/`, `ghcr.io` or `https://index.docker.io/v1/`, as images name it.
fn host_of(url: &str) -> Result<String, ApiError> {
    let wrong = || ApiError::Invalid("url must be that of a registry: https://host[:port]".to_owned());
    if url.is_empty() || url.chars().count() > URL_CHARS_MAX {
        return Err(wrong());
    }
    let (scheme, rest) = url.split_once("://").map_or((None, url), |(scheme, rest)| (Some(scheme), rest));
    let host = rest.split('/').next().unwrap_or_default().to_ascii_lowercase();
    // What cannot be in an image's name would never be found.
    let reads_as_host = format!("{host}/a:1").parse::<atoll_runner::store::Reference>();
    let is_host = reads_as_host.is_ok_and(|read| read.repository == "a" && read.host == host)
        || HUB_HOSTS.contains(&host.as_str());
    if !is_host {
        return Err(wrong());
    }
    let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
    let is_loopback = name == "localhost"
        || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match scheme {
        None | Some("https") => {}
        Some("http") if is_loopback => {}
        Some(_) => {
            return Err(ApiError::Invalid(
                "url must begin with https://: registries are asked over TLS".to_owned(),
            ));
        }
    }
    Ok(if HUB_HOSTS.contains(&host.as_str()) { HUB.to_owned() } else { host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_found_by_the_host_in_images_names() {
        for (url, host) in [
            ("https://registry.hub.docker.com", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("https://ghcr.io/", "ghcr.io"),
            ("GHCR.io", "ghcr.io"),
            ("https://r.example:5000/v2/", "r.example:5000"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000"),
            ("http://localhost:5000", "localhost:5000"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(host_of(url).unwrap(), host, "{url}");
        }
        for url in [
            "",
            "https://",
            "http://r.example",
            "ftp://r.example",
            "a b.c",
            "u@r.example",
            "r",
            "r.example:x",
        ] {
            assert!(host_of(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_wish_without_its_words_is_refused() {
        let wish = |name: &str, username: &str, password: Option<&str>| {
            let password = password.map(str::to_owned);
            super::wish(name.into(), "ghcr.io".into(), username.into(), password, None)
        };
        assert!(wish("a", "u", Some("p")).is_ok() && wish("a", "u", None).is_ok());
        for (name, username, password, word) in [
            ("", "u", Some("p"), "name"),
            ("a\n", "u", Some("p"), "name"),
            ("a", "", Some("p"), "username"),
            ("a", "u:v", Some("p"), "username"),
            ("a", "u", Some(""), "password"),
        ] {
            let error = wish(name, username, password).unwrap_err();
            assert!(matches!(&error, ApiError::Invalid(text) if text.starts_with(word)), "{error}");
        }
    }
}
