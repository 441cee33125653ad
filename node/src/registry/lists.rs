//! What repositories and tags there are, by the words of all nodes that answer.

use std::collections::{BTreeMap, BTreeSet};

use atoll_api::ids::OrganizationId;
use atoll_runner::store::{Named, Reference, Version};
use axum::response::Response;
use http::header::LINK;
use http::{HeaderName, StatusCode};
use serde_json::json;

use super::errors::RegistryError;
use super::path::Repository;
use super::{Asked, Registry, json as json_response, value};
use crate::blobs::{Silent, names_of};

/// Nodes whose part of a list is missing.
const UNREACHABLE_NODES: HeaderName = HeaderName::from_static("x-atoll-unreachable-nodes");
const PAGE_MAX: usize = 1_000;

impl Registry {
    pub(super) async fn tags(
        &self,
        repository: &Repository,
        asked: &Asked<'_>,
    ) -> Result<Response, RegistryError> {
        let page = Page::read(asked)?;
        let (words, silent) = self.words_in(repository).await?;
        if words.is_empty() {
            return Err(RegistryError::NameUnknown(silent));
        }
        let tag = |named: &Named| match named.name.parse::<Reference>() {
            Ok(Reference { version: Version::Tag(tag), .. }) => Some(tag),
            _ => None,
        };
        let tags = words.iter().filter_map(tag).collect();
        let (tags, more) = page.cut(tags);
        let next = more.then(|| repository.location("tags/list"));
        list(&json!({ "name": repository.written, "tags": tags }), next, &page, tags.last(), &silent)
    }

    pub(super) async fn catalog(
        &self,
        owner: OrganizationId,
        asked: &Asked<'_>,
    ) -> Result<Response, RegistryError> {
        let page = Page::read(asked)?;
        let (words, silent) = self.words_below(names_of(owner)).await?;
        let repository = |named: &Named| Some(named.name.parse::<Reference>().ok()?.repository);
        let (repositories, more) = page.cut(words.iter().filter_map(repository).collect());
        let next = more.then(|| "/v2/_catalog".to_owned());
        list(&json!({ "repositories": repositories }), next, &page, repositories.last(), &silent)
    }

    /// All tags and digests of one repository.
    pub(super) async fn words_in(
        &self,
        repository: &Repository,
    ) -> Result<(Vec<Named>, Silent), RegistryError> {
        let prefix = format!("{}{}", names_of(repository.organization_id), repository.path);
        let (mut words, silent) = self.words_below(prefix.clone()).await?;
        // `app` is no part of `apple` or `app/x`.
        words.retain(|word| word.name[prefix.len()..].starts_with([':', '@']));
        Ok((words, silent))
    }

    /// The latest about each name that begins so, but for those that were removed.
    async fn words_below(&self, prefix: String) -> Result<(Vec<Named>, Silent), RegistryError> {
        let (store, below) = (self.store.clone(), prefix.clone());
        let here = tokio::task::spawn_blocking(move || store.words_below(&below));
        let (elsewhere, silent) = self.peers.words_below(&prefix).await;
        let here = here.await.map_err(|error| RegistryError::Bug(error.to_string()))??;
        let mut latest: BTreeMap<String, Named> = BTreeMap::new();
        for word in here.into_iter().chain(elsewhere).filter(|word| word.name.starts_with(&prefix)) {
            let before = latest.remove(&word.name);
            latest.extend(Named::later(before, Some(word)).map(|word| (word.name.clone(), word)));
        }
        Ok((latest.into_values().filter(|word| !word.is_removed()).collect(), silent))
    }
}

/// What part of a list is wanted.
struct Page {
    count: usize,
    after: Option<String>,
}

impl Page {
    fn read(asked: &Asked<'_>) -> Result<Page, RegistryError> {
        let count = match asked.query("n") {
            None => PAGE_MAX,
            Some(text) => {
                let count = text.parse::<u32>().map_err(|_| {
                    RegistryError::NumberInvalid("n must be a whole number, and not negative".to_owned())
                })?;
                usize::try_from(count).unwrap_or(PAGE_MAX).min(PAGE_MAX)
            }
        };
        Ok(Page { count, after: asked.query("last").map(str::to_owned) })
    }

    /// The page, and whether there is more.
    fn cut(&self, all: BTreeSet<String>) -> (Vec<String>, bool) {
        let is_after = |text: &String| self.after.as_ref().is_none_or(|after| text > after);
        let mut rest = all.into_iter().filter(is_after);
        let page: Vec<String> = rest.by_ref().take(self.count).collect();
        let more = !page.is_empty() && rest.next().is_some();
        (page, more)
    }
}

fn list(
    body: &serde_json::Value,
    next: Option<String>,
    page: &Page,
    last: Option<&String>,
    silent: &Silent,
) -> Result<Response, RegistryError> {
    let mut response = json_response(StatusCode::OK, body.to_string().into_bytes());
    let headers = response.headers_mut();
    if let (Some(next), Some(last)) = (next, last) {
        // Tags and repositories have no character that would have to be encoded but the slash, which may stay.
        let link = format!("<{next}?n={}&last={last}>; rel=\"next\"", page.count);
        headers.insert(LINK, value(&link)?);
    }
    if !silent.0.is_empty() {
        let nodes: Vec<String> = silent.0.iter().map(ToString::to_string).collect();
        headers.insert(UNREACHABLE_NODES, value(&nodes.join(","))?);
    }
    Ok(response)
}
