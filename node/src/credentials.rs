//! Passwords of foreign registries, opened from this node's replica when they are needed and never kept.

use std::sync::Arc;

use atoll_api::ids::OrganizationId;
use atoll_certs::seal::ClusterSecret;
use atoll_consensus::group::ClusterGroup;
use atoll_consensus::state::cluster::RegistryRecord;
use atoll_runner::store::{Credentials, KnownCredentials, Reference};
use tracing::error;

use crate::control::catalogue::password_of;

#[derive(Clone)]
pub struct RegistryPasswords {
    pub cluster: ClusterGroup,
    pub secret: Arc<ClusterSecret>,
}

impl RegistryPasswords {
    /// What an organization may show for an image: what it gave for the image's project comes first.
    pub fn of(&self, organization_id: OrganizationId, image: &Reference) -> Vec<Credentials> {
        let mut own: Vec<(uuid::Uuid, RegistryRecord)> = self.cluster.read(|state| {
            let own = state.registries_of(organization_id);
            let of_host = own.filter(|(_, registry)| registry.host == image.host);
            of_host.map(|(registry_id, registry)| (*registry_id, registry.clone())).collect()
        });
        own.sort_by_key(|(_, registry)| !is_in_project(&image.repository, &registry.project));
        own.into_iter().filter_map(|(registry_id, registry)| self.open(registry_id, registry)).collect()
    }

    fn open(&self, registry_id: uuid::Uuid, registry: RegistryRecord) -> Option<Credentials> {
        let opened = self.secret.unseal(&password_of(registry_id), &registry.sealed_password);
        match opened.map(String::from_utf8) {
            Ok(Ok(password)) => Some(Credentials { username: registry.username, password }),
            Ok(Err(_)) | Err(_) => {
                error!(%registry_id, host = registry.host, "cannot open a registry's password: give it again");
                None
            }
        }
    }
}

impl KnownCredentials for RegistryPasswords {
    fn of_host(&self, host: &str) -> Vec<Credentials> {
        let all: Vec<(uuid::Uuid, RegistryRecord)> = self.cluster.read(|state| {
            let of_host = state.registries.iter().filter(|(_, registry)| registry.host == host);
            of_host.map(|(registry_id, registry)| (*registry_id, registry.clone())).collect()
        });
        all.into_iter().filter_map(|(registry_id, registry)| self.open(registry_id, registry)).collect()
    }
}

fn is_in_project(repository: &str, project: &str) -> bool {
    !project.is_empty()
        && repository.strip_prefix(project).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_whole_segments() {
        for (repository, project, expected) in [
            ("team/app", "team", true),
            ("team", "team", true),
            ("teams/app", "team", false),
            ("team/app", "", false),
            ("app", "team", false),
        ] {
            assert_eq!(is_in_project(repository, project), expected, "{repository} {project}");
        }
    }
}
