//! What sandboxes can be made from.

use std::cmp::Ordering;

use atoll_api::rest::{CreateSnapshot as Asked, ErrorBody, PaginatedSnapshots, SnapshotDto};
use atoll_consensus::state::cluster::{Activation, SnapshotRecord, SnapshotSource};
use axum::Json;
use http::StatusCode;

use super::create::{CPU_MAX, DISK_GIB_MAX, MEMORY_GIB_MAX, build_wish};
use super::errors::ApiError;
use super::input::{Body, Queries, Segments, within};
use super::present;
use super::sandbox::answer;
use super::visitor::Visitor;
use crate::control::verb::{BuildWish, CreateSnapshot, Verb, VerbAnswer};

const PAGE_LIMIT_DEFAULT: i64 = 100;
const PAGE_LIMIT_MAX: i64 = 200;
const PAGES_MAX: i64 = 1_000_000;
const NAME_CHARS_MAX: usize = 128;
const IMAGE_CHARS_MAX: usize = 512;
const ENTRYPOINT_WORDS_MAX: usize = 64;
const ENTRYPOINT_BYTES_MAX: usize = 8 * 1024;

#[utoipa::path(
    post, path = "/snapshots", operation_id = "createSnapshot", tag = "snapshots", security(("bearer" = [])),
    request_body = Asked,
    responses((status = 200, body = SnapshotDto, description = "It is being made ready: look again until its state is active, error or build_failed"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn create(
    visitor: Visitor,
    Body(asked): Body<Asked>,
) -> Result<Json<SnapshotDto>, ApiError> {
    one(&visitor, Verb::CreateSnapshot(parse(asked)?)).await
}

#[utoipa::path(
    get, path = "/snapshots", operation_id = "getAllSnapshots", tag = "snapshots", security(("bearer" = [])),
    params(
        ("page" = Option<u32>, Query, minimum = 1, description = "1 when left out"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "100 when left out"),
        ("name" = Option<String>, Query, description = "part of the name"),
        ("sourceSandboxId" = Option<String>, Query, description = "made of this sandbox"),
        ("sort" = Option<String>, Query, description = "name, state, lastUsedAt or createdAt; lastUsedAt when left out"),
        ("order" = Option<String>, Query, description = "asc or desc; desc when left out"),
    ),
    responses((status = 200, body = PaginatedSnapshots), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(visitor: Visitor, queries: Queries) -> Result<Json<PaginatedSnapshots>, ApiError> {
    let page = queries.number("page", 1..=PAGES_MAX)?.unwrap_or(1).unsigned_abs();
    let limit = queries.number("limit", 1..=PAGE_LIMIT_MAX)?.unwrap_or(PAGE_LIMIT_DEFAULT).unsigned_abs();
    let part = queries.text("name")?.unwrap_or_default().to_lowercase();
    let source = queries.text("sourceSandboxId")?;
    let sort = Sort::parse(queries.text("sort")?)?;
    let is_ascending = match queries.text("order")? {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(_) => return Err(ApiError::Invalid("order must be asc or desc".to_owned())),
    };

    let mut all = answer!(visitor.ask(Verb::ListSnapshots).await?, VerbAnswer::Snapshots(all) => all)?;
    all.retain(|(name, snapshot)| {
        name.to_lowercase().contains(&part) && source.is_none_or(|source| is_of(snapshot, source))
    });
    all.sort_by(|a, b| match is_ascending {
        true => sort.compare(a, b),
        false => sort.compare(b, a),
    });
    let total = all.len() as u64;
    // Both are at most a million and two hundred: neither the product nor its use as an index can overflow.
    let before = (page - 1) * limit;
    let items = all
        .into_iter()
        .skip(before as usize)
        .take(limit as usize)
        .map(|(name, record)| present::snapshot(name, record))
        .collect();
    Ok(Json(PaginatedSnapshots { items, total, page, total_pages: total.div_ceil(limit) }))
}

/// One snapshot by id or name.
#[utoipa::path(
    get, path = "/snapshots/{id}", operation_id = "getSnapshot", tag = "snapshots", security(("bearer" = [])),
    params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = SnapshotDto), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn read(visitor: Visitor, path: Segments) -> Result<Json<SnapshotDto>, ApiError> {
    one(&visitor, Verb::GetSnapshot { id_or_name: reference(&path)? }).await
}

/// Sandboxes that were made of it stay.
#[utoipa::path(
    delete, path = "/snapshots/{id}", operation_id = "removeSnapshot", tag = "snapshots", security(("bearer" = [])),
    params(("id" = String, Path, description = "id or name")),
    responses((status = 200), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn remove(visitor: Visitor, path: Segments) -> Result<StatusCode, ApiError> {
    let verb = Verb::DeleteSnapshot { id_or_name: reference(&path)? };
    answer!(visitor.ask(verb).await?, VerbAnswer::Done => StatusCode::OK)
}

#[utoipa::path(
    post, path = "/snapshots/{id}/activate", operation_id = "activateSnapshot", tag = "snapshots", security(("bearer" = [])),
    params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = SnapshotDto), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn activate(visitor: Visitor, path: Segments) -> Result<Json<SnapshotDto>, ApiError> {
    let id_or_name = reference(&path)?;
    one(&visitor, Verb::ActivateSnapshot { id_or_name, activation: Activation::Active }).await
}

/// From now on no sandbox can be made of it.
#[utoipa::path(
    post, path = "/snapshots/{id}/deactivate", operation_id = "deactivateSnapshot", tag = "snapshots", security(("bearer" = [])),
    params(("id" = String, Path, description = "id or name")),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn deactivate(visitor: Visitor, path: Segments) -> Result<StatusCode, ApiError> {
    let id_or_name = reference(&path)?;
    let Json(_) =
        one(&visitor, Verb::ActivateSnapshot { id_or_name, activation: Activation::Inactive }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn one(visitor: &Visitor, verb: Verb) -> Result<Json<SnapshotDto>, ApiError> {
    let mut found = answer!(visitor.ask(verb).await?, VerbAnswer::Snapshots(found) => found)?;
    match found.pop() {
        Some((name, record)) => Ok(Json(present::snapshot(name, record))),
        None => Err(ApiError::NotFound("snapshot not found".to_owned())),
    }
}

/// What is too long to be a name is an unknown snapshot, not a mistake of another kind.
pub(super) fn reference(path: &Segments) -> Result<String, ApiError> {
    let text = path.text("id")?;
    match text.chars().count() > NAME_CHARS_MAX {
        true => Err(ApiError::NotFound("snapshot not found".to_owned())),
        false => Ok(text.to_owned()),
    }
}

#[derive(Debug, Clone, Copy)]
enum Sort {
    Name,
    State,
    LastUsed,
    Created,
}

impl Sort {
    fn parse(text: Option<&str>) -> Result<Sort, ApiError> {
        match text {
            Some("name") => Ok(Sort::Name),
            Some("state") => Ok(Sort::State),
            None | Some("lastUsedAt") => Ok(Sort::LastUsed),
            Some("createdAt") => Ok(Sort::Created),
            Some(_) => Err(ApiError::Invalid("sort must be name, state, lastUsedAt or createdAt".to_owned())),
        }
    }

    /// Names are different, so that a page never repeats what another one had.
    fn compare(
        self,
        (a_name, a): &(String, SnapshotRecord),
        (b_name, b): &(String, SnapshotRecord),
    ) -> Ordering {
        let ordered = match self {
            Sort::Name => Ordering::Equal,
            Sort::State => a.state.name().cmp(b.state.name()),
            Sort::LastUsed => (a.last_used_at_ms, a.created_at_ms).cmp(&(b.last_used_at_ms, b.created_at_ms)),
            Sort::Created => a.created_at_ms.cmp(&b.created_at_ms),
        };
        ordered.then_with(|| a_name.cmp(b_name))
    }
}

fn is_of(snapshot: &SnapshotRecord, sandbox: &str) -> bool {
    matches!(&snapshot.source, SnapshotSource::Sandbox { sandbox_id } if sandbox_id.to_string() == sandbox)
}

fn parse(asked: Asked) -> Result<CreateSnapshot, ApiError> {
    let Asked {
        name,
        image_name,
        entrypoint,
        cpu,
        gpu,
        gpu_type,
        memory,
        disk,
        build_info,
        region_id,
        sandbox_class,
    } = asked;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let wants_gpu = gpu.is_some_and(|gpu| gpu != 0)
        || gpu_type.is_some_and(|kinds| kinds.as_array().is_none_or(|kinds| !kinds.is_empty()));
    if wants_gpu {
        return Err(ApiError::Unsupported("the field gpu".to_owned()));
    }
    if let Some(class) = given(sandbox_class)
        && class != present::SANDBOX_CLASS
    {
        return Err(ApiError::Unsupported(format!("the sandboxClass {class}")));
    }
    let source = match (given(image_name), build_info) {
        (Some(name), None) if name.chars().count() > IMAGE_CHARS_MAX => {
            return Err(ApiError::Invalid(format!("imageName must be at most {IMAGE_CHARS_MAX} characters")));
        }
        (Some(name), None) => SnapshotSource::Image { name },
        (None, Some(build_info)) => {
            let BuildWish { dockerfile, context_hashes } = build_wish(build_info)?;
            SnapshotSource::Build { dockerfile, context_hashes }
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::Invalid("give imageName or buildInfo, not both".to_owned()));
        }
        (None, None) => {
            return Err(ApiError::Invalid(
                "give the image of the snapshot as imageName, or a Dockerfile as buildInfo".to_owned(),
            ));
        }
    };
    let resource = |name, value: Option<i64>, max: u32| {
        let checked = value.map(|value| within(name, value, 1..=i64::from(max))).transpose()?;
        Ok::<_, ApiError>(checked.map(|value| u32::try_from(value).expect("the range is below 2^32")))
    };
    Ok(CreateSnapshot {
        name: snapshot_name(name)?,
        source,
        entrypoint: self::entrypoint(entrypoint.unwrap_or_default())?,
        cpu: resource("cpu", cpu, CPU_MAX)?,
        memory_gib: resource("memory", memory, MEMORY_GIB_MAX)?,
        disk_gib: resource("disk", disk, DISK_GIB_MAX)?,
        region: given(region_id)
            .map(|region| region.parse().map_err(|error| ApiError::Invalid(format!("regionId: {error}"))))
            .transpose()?,
    })
}

/// Like an image's name, which is what many are called after.
fn snapshot_name(name: String) -> Result<String, ApiError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    let ok = (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.chars().all(inner)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !ok {
        return Err(ApiError::Invalid(format!(
            "name must be 1 to {NAME_CHARS_MAX} letters, digits, '-', '_', '.', '/' or ':', and begin with a letter or digit"
        )));
    }
    match name.parse::<uuid::Uuid>() {
        Ok(_) => Err(ApiError::Invalid("name must not look like an id".to_owned())),
        Err(_) => Ok(name),
    }
}

fn entrypoint(words: Vec<String>) -> Result<Vec<String>, ApiError> {
    let bytes: usize = words.iter().map(|word| word.len() + 1).sum();
    if words.len() > ENTRYPOINT_WORDS_MAX || bytes > ENTRYPOINT_BYTES_MAX {
        return Err(ApiError::Invalid(format!(
            "entrypoint must be at most {ENTRYPOINT_WORDS_MAX} words of {ENTRYPOINT_BYTES_MAX} bytes in all"
        )));
    }
    if words.first().is_some_and(String::is_empty) || words.iter().any(|word| word.contains('\0')) {
        return Err(ApiError::Invalid(
            "entrypoint must name a program, and hold no NUL character".to_owned(),
        ));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(body: Value) -> Result<CreateSnapshot, ApiError> {
        parse(serde_json::from_value(body).unwrap())
    }

    #[test]
    fn what_sdks_send_is_understood() {
        let body = json!({"name": "me/python:3.12", "imageName": "python:3.12", "entrypoint": ["sleep", "infinity"],
            "cpu": 2, "memory": 4, "disk": 8, "gpu": 0, "gpuType": [], "regionId": "eu", "sandboxClass": "container",
            "buildInfo": null});
        let expected = CreateSnapshot {
            name: "me/python:3.12".into(),
            source: SnapshotSource::Image { name: "python:3.12".into() },
            entrypoint: vec!["sleep".into(), "infinity".into()],
            cpu: Some(2),
            memory_gib: Some(4),
            disk_gib: Some(8),
            region: Some("eu".parse().unwrap()),
        };
        assert_eq!(parsed(body).unwrap(), expected);
    }

    #[test]
    fn a_dockerfile_takes_the_place_of_an_image() {
        let hash = "d41d8cd98f00b204e9800998ecf8427e";
        let body =
            json!({"name": "a", "buildInfo": {"dockerfileContent": "FROM b\n", "contextHashes": [hash]}});

        let source = parsed(body).unwrap().source;

        let expected =
            SnapshotSource::Build { dockerfile: "FROM b\n".into(), context_hashes: vec![hash.into()] };
        assert_eq!(source, expected);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let id = uuid::Uuid::nil().to_string();
        for (change, word) in [
            (json!({"name": ""}), "name"),
            (json!({"name": "a b"}), "name"),
            (json!({"name": "-a"}), "name"),
            (json!({"name": "a".repeat(129)}), "name"),
            (json!({"name": id}), "name"),
            (json!({"imageName": ""}), "imageName"),
            (json!({"imageName": "a".repeat(513)}), "imageName"),
            (json!({"buildInfo": {"dockerfileContent": "FROM a"}}), "not both"),
            (json!({"imageName": "", "buildInfo": {"dockerfileContent": ""}}), "dockerfileContent"),
            (json!({"cpu": 0}), "cpu"),
            (json!({"memory": -1}), "memory"),
            (json!({"disk": 65_537}), "disk"),
            (json!({"gpu": 1}), "gpu"),
            (json!({"gpuType": ["H100"]}), "gpu"),
            (json!({"sandboxClass": "windows"}), "windows"),
            (json!({"regionId": "EU"}), "regionId"),
            (json!({"entrypoint": [""]}), "entrypoint"),
            (json!({"entrypoint": ["a\u{0}"]}), "entrypoint"),
            (json!({"entrypoint": vec!["a"; 65]}), "entrypoint"),
            (json!({"entrypoint": ["a".repeat(9_000)]}), "entrypoint"),
        ] {
            let mut body = json!({"name": "a", "imageName": "alpine:3"});
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());

            let error = parsed(body.clone()).unwrap_err();
            let is_refusal = matches!(error, ApiError::Invalid(_) | ApiError::Unsupported(_));
            assert!(is_refusal && error.to_string().contains(word), "{body}: {error}");
        }
    }
}
