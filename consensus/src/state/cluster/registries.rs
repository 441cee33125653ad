//! Foreign registries whose images an organization may pull, with credentials that no replica can read without the
//! cluster's secret.

use std::fmt;

use atoll_api::ids::OrganizationId;
use serde::{Deserialize, Serialize};

use super::{ClusterRejection, ClusterState, Judged};

pub const REGISTRIES_PER_ORGANIZATION_MAX: usize = 100;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryRecord {
    pub organization_id: OrganizationId,
    /// As people call it.
    pub name: String,
    /// As it was given.
    pub url: String,
    /// As images name it: `docker.io`, `ghcr.io`, `registry.example:5000`.
    pub host: String,
    pub username: String,
    /// For the purpose that names this registry's id.
    pub sealed_password: Vec<u8>,
    pub project: String,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
}

impl fmt::Debug for RegistryRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryRecord")
            .field("name", &self.name)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl ClusterState {
    /// Replaces the one with this id. It stays its organization's.
    pub(super) fn put_registry(&mut self, registry_id: uuid::Uuid, registry: RegistryRecord) -> Judged {
        if !self.organizations.contains_key(&registry.organization_id) {
            return Err(ClusterRejection::NotFound);
        }
        let of_same = |other: &&RegistryRecord| other.organization_id == registry.organization_id;
        match self.registries.get(&registry_id) {
            Some(there) if there.organization_id != registry.organization_id => {
                return Err(ClusterRejection::NotFound);
            }
            Some(_) => {}
            None if self.registries.values().filter(of_same).count() >= REGISTRIES_PER_ORGANIZATION_MAX => {
                return Err(ClusterRejection::TooManyRegistries(REGISTRIES_PER_ORGANIZATION_MAX as u64));
            }
            None => {}
        }
        self.registries.insert(registry_id, registry);
        Ok(())
    }

    /// Applied also when there is none.
    pub(super) fn delete_registry(
        &mut self,
        registry_id: uuid::Uuid,
        organization_id: OrganizationId,
    ) -> Judged {
        if self.registries.get(&registry_id).is_some_and(|there| there.organization_id == organization_id) {
            self.registries.remove(&registry_id);
        }
        Ok(())
    }

    pub fn registries_of(
        &self,
        organization_id: OrganizationId,
    ) -> impl Iterator<Item = (&uuid::Uuid, &RegistryRecord)> {
        self.registries.iter().filter(move |(_, registry)| registry.organization_id == organization_id)
    }
}
