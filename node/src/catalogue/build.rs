//! Makes a snapshot from a Dockerfile, as an organization that may have what it begins with.

use std::sync::Arc;

use async_trait::async_trait;
use atoll_api::ids::OrganizationId;
use atoll_consensus::group::ClusterGroup;
use atoll_consensus::state::cluster::{SnapshotKey, SnapshotReport, SnapshotState};
use atoll_runner::build::{Admitted, BaseAccess, BuildRequest, BuildState, Builds};
use atoll_runner::image::{Digest, Image, ImageConfig};
use atoll_runner::store::{Origin, Reference, Store, StoreError, Version};
use tracing::warn;

use super::failed;
use crate::build_logs::BuildId;
use crate::copies::Copies;
use crate::credentials::RegistryPasswords;
use crate::image_names;
use crate::objects::Contexts;

pub struct Builder {
    /// `None` where sandboxes are made by an engine that has images of its own.
    pub builds: Option<Builds>,
    pub store: Store,
    pub contexts: Contexts,
    pub copies: Copies,
    pub cluster: ClusterGroup,
    pub passwords: RegistryPasswords,
}

impl Builder {
    /// Dropping it ends the build.
    pub async fn build(
        &self,
        key: &SnapshotKey,
        attempt: u64,
        organization_id: OrganizationId,
        dockerfile: &str,
        context_hashes: &[String],
    ) -> SnapshotReport {
        let Some(builds) = &self.builds else {
            return failed(
                "this node makes sandboxes by Docker: images are built for the embedded runtime only",
            );
        };
        let id = BuildId { snapshot_id: key.id, attempt }.to_string();
        let request = match self.request(organization_id, dockerfile, context_hashes).await {
            Ok(request) => request,
            Err(reason) => return failed(&reason),
        };
        let mut states = match builds.start(&id, request) {
            Ok(states) => states,
            Err(error) => return failed(&error.to_string()),
        };
        let mut unfinished = Unfinished { builds, id: Some(id) };
        let ended = states.wait_for(BuildState::is_final).await.map(|state| state.clone());
        unfinished.id = None;
        match ended {
            Ok(BuildState::Built(image)) => match self.keep(key, organization_id, &image).await {
                Ok(report) => report,
                Err(error) => failed(&error.to_string()),
            },
            Ok(BuildState::Failed(reason)) => failed(&reason),
            Ok(BuildState::Waiting | BuildState::Running) | Err(_) => failed("the build broke off"),
        }
    }

    async fn request(
        &self,
        organization_id: OrganizationId,
        dockerfile: &str,
        context_hashes: &[String],
    ) -> Result<BuildRequest, String> {
        let mut contexts = Vec::with_capacity(context_hashes.len());
        for hash in context_hashes {
            let hash = hash.parse().map_err(|error| format!("contextHashes: {error}"))?;
            contexts
                .push(self.contexts.open(organization_id, &hash).await.map_err(|error| error.to_string())?);
        }
        let access = OrganizationImages {
            organization_id,
            cluster: self.cluster.clone(),
            passwords: self.passwords.clone(),
        };
        Ok(BuildRequest {
            dockerfile: dockerfile.to_owned(),
            build_args: Default::default(),
            contexts,
            access: Arc::new(access),
        })
    }

    /// Gives it a name before anything else, or the store would take it for garbage; then a copy on another node.
    async fn keep(
        &self,
        key: &SnapshotKey,
        organization_id: OrganizationId,
        image: &Image,
    ) -> Result<SnapshotReport, StoreError> {
        let digest: Digest = image.reference.parse().map_err(|_| StoreError::Bad("no digest".to_owned()))?;
        let repository = format!("build-{}", key.id);
        let name = Reference::local(&organization_id.to_string(), &repository, Version::Digest(digest))?;
        self.store.set_name(&name, digest, Origin::Given)?;
        let pinned = name.to_string();
        if self.copies.copy(&pinned).await.is_empty() {
            warn!(image = pinned, "what was built is on this node only");
        }
        let ImageConfig { entrypoint, cmd, user, .. } = image.config.clone();
        Ok(SnapshotReport::Ready {
            image: pinned,
            size_bytes: image.layers.iter().map(|layer| layer.blob_bytes).sum(),
            user: user.unwrap_or_else(|| "root".to_owned()),
            entrypoint: [entrypoint, cmd].concat(),
        })
    }
}

/// A build that nobody waits for any more is ended.
struct Unfinished<'a> {
    builds: &'a Builds,
    id: Option<String>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(id) = &self.id {
            self.builds.cancel(id);
        }
    }
}

/// What an organization's Dockerfiles may begin with: its snapshots by their names, its own images, any foreign one.
#[derive(Clone)]
struct OrganizationImages {
    organization_id: OrganizationId,
    cluster: ClusterGroup,
    passwords: RegistryPasswords,
}

impl std::fmt::Debug for OrganizationImages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OrganizationImages({})", self.organization_id)
    }
}

#[async_trait]
impl BaseAccess for OrganizationImages {
    async fn admit(&self, reference: &str) -> Result<Admitted, String> {
        let of_snapshot = self.cluster.read(|state| {
            let snapshot = state.snapshot_named(self.organization_id, reference)?;
            (snapshot.state == SnapshotState::Active).then(|| snapshot.image.clone())
        });
        if let Some(reference) = of_snapshot {
            return Ok(Admitted { reference, identities: Vec::new() });
        }
        let image = self.cluster.read(|state| image_names::of(state, self.organization_id, reference))?;
        let identities = self.passwords.of(self.organization_id, &image);
        Ok(Admitted { reference: image.to_string(), identities })
    }
}
