//! Brings an image from a registry to this node, as an organization that may have it.

use std::time::Duration;

use atoll_api::ids::OrganizationId;
use atoll_consensus::state::cluster::SnapshotReport;
use atoll_runner::image::ImageConfig;
use atoll_runner::store::{Progress, Pulled, Reference, Store, StoreError};
use tracing::info;

use super::failed;
use crate::credentials::RegistryPasswords;

/// Of one image, all tries together.
const PULL_DEADLINE: Duration = Duration::from_secs(45 * 60);
/// While its registry cannot be reached. A download goes on where it broke off.
const TRIES_MAX: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

pub struct Puller {
    pub store: Store,
    pub passwords: RegistryPasswords,
}

impl Puller {
    pub async fn pull(&self, organization_id: OrganizationId, image: &str) -> SnapshotReport {
        let deadline = PULL_DEADLINE;
        match tokio::time::timeout(deadline, self.try_often(organization_id, image)).await {
            Ok(Ok(pulled)) => ready(pulled),
            Ok(Err(error)) => failed(&error.to_string()),
            Err(_) => failed(&format!("{image} was not here after {} minutes", deadline.as_secs() / 60)),
        }
    }

    async fn try_often(&self, organization_id: OrganizationId, image: &str) -> Result<Pulled, StoreError> {
        let reference: Reference = image.parse()?;
        let mut pause = FIRST_PAUSE;
        let pull = || {
            let identities = self.passwords.of(organization_id, &reference);
            self.store.pull_as_any(image, identities, Progress::default())
        };
        for _ in 1..TRIES_MAX {
            match pull().await {
                Err(StoreError::Unreachable(why)) => info!(image, why, "a registry is asked again"),
                ended => return ended,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        pull().await
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
