//! Brings an image from a registry to this node, as an organization that may have it.

use std::time::Duration;

use atoll_api::ids::OrganizationId;
use atoll_consensus::state::cluster::SnapshotReport;
use atoll_runner::image::ImageConfig;
use atoll_runner::store::{Credentials, Progress, Pulled, Reference, Store, StoreError};
use tracing::info;

use crate::credentials::RegistryPasswords;

/// Of one image, all tries together.
const PULL_DEADLINE: Duration = Duration::from_secs(45 * 60);
/// While its registry cannot be reached. A download goes on where it broke off.
const TRIES_MAX: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// In the reason of a failure.
const REASON_CHARS_MAX: usize = 1_000;

pub struct Puller {
    /// `None` where sandboxes are made by an engine that has images of its own.
    pub store: Option<Store>,
    pub passwords: RegistryPasswords,
}

impl Puller {
    pub async fn pull(&self, organization_id: OrganizationId, image: &str) -> SnapshotReport {
        let Some(store) = &self.store else {
            return failed(
                "this node makes sandboxes by Docker: images are pulled for the embedded runtime only",
            );
        };
        let deadline = PULL_DEADLINE;
        match tokio::time::timeout(deadline, self.try_often(store, organization_id, image)).await {
            Ok(Ok(pulled)) => ready(pulled),
            Ok(Err(error)) => failed(&error.to_string()),
            Err(_) => failed(&format!("{image} was not here after {} minutes", deadline.as_secs() / 60)),
        }
    }

    async fn try_often(
        &self,
        store: &Store,
        organization_id: OrganizationId,
        image: &str,
    ) -> Result<Pulled, StoreError> {
        let reference: Reference = image.parse()?;
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES_MAX {
            match self.try_identities(store, organization_id, &reference).await {
                Err(StoreError::Unreachable(why)) => info!(image, why, "a registry is asked again"),
                ended => return ended,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.try_identities(store, organization_id, &reference).await
    }

    /// As each of those that the organization has given for the registry, or as nobody in particular.
    async fn try_identities(
        &self,
        store: &Store,
        organization_id: OrganizationId,
        reference: &Reference,
    ) -> Result<Pulled, StoreError> {
        let given = self.passwords.of(organization_id, reference);
        let identities: Vec<Option<Credentials>> = match given.is_empty() {
            true => vec![None],
            false => given.into_iter().map(Some).collect(),
        };
        let mut refused = StoreError::Denied(format!("nobody may pull {reference}"));
        for identity in identities {
            match store.pull(&reference.to_string(), identity, Progress::default()).await {
                Err(error @ StoreError::Denied(_)) => refused = error,
                ended => return ended,
            }
        }
        Err(refused)
    }
}

fn ready(pulled: Pulled) -> SnapshotReport {
    let Pulled { pinned, image, bytes, .. } = pulled;
    let ImageConfig { entrypoint, cmd, user, .. } = image.config;
    SnapshotReport::Ready {
        image: pinned,
        size_bytes: bytes,
        // An image that names nobody runs as root.
        user: user.unwrap_or_else(|| "root".to_owned()),
        entrypoint: [entrypoint, cmd].concat(),
    }
}

fn failed(reason: &str) -> SnapshotReport {
    SnapshotReport::Failed { reason: reason.chars().take(REASON_CHARS_MAX).collect() }
}
