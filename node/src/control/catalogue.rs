//! The verbs on the catalogue: what an organization's sandboxes can be made from, and whose images it may pull.
//! Nothing is pulled here: see `crate::catalogue`.

use std::sync::Arc;

use atoll_api::access::Caller;
use atoll_api::ids::RegionName;
use atoll_api::sandbox::Resources;
use atoll_certs::seal::ClusterSecret;
use atoll_consensus::group::ClusterGroup;
use atoll_consensus::state::cluster::{
    Activation, ClusterCommand, ClusterOutcome, ClusterRejection, ClusterState, Listing, RegistryRecord,
    SnapshotRecord, SnapshotSource, SnapshotState,
};
use atoll_runner::store::Version;
use tracing::info;

use super::cluster::may_administer;
use super::region::unavailable;
use super::verb::*;
use crate::clock::now_ms;
use crate::duties::CATALOGUE_SINCE;
use crate::founding::DEFAULT_RESOURCES;
use crate::image_names;

pub struct CatalogueVerbs {
    pub home: RegionName,
    pub cluster: ClusterGroup,
    pub secret: Arc<ClusterSecret>,
}

impl CatalogueVerbs {
    pub async fn perform(&self, caller: &Caller, verb: Verb) -> Result<VerbAnswer, VerbError> {
        match verb {
            Verb::ListSnapshots => {
                self.linearize().await?;
                let listed = |state: &ClusterState| {
                    let all = state.snapshots_of(caller.organization_id);
                    let listed = all.filter(|(_, snapshot)| snapshot.listing == Listing::Listed);
                    listed.map(|(name, snapshot)| (name.clone(), snapshot.clone())).collect()
                };
                Ok(VerbAnswer::Snapshots(self.cluster.read(listed)))
            }
            Verb::GetSnapshot { id_or_name } => {
                self.linearize().await?;
                self.snapshot(caller, &id_or_name).map(answer)
            }
            Verb::CreateSnapshot(create) => self.create_snapshot(caller, create).await,
            Verb::ActivateSnapshot { id_or_name, activation } => {
                self.activate_snapshot(caller, &id_or_name, activation).await
            }
            Verb::DeleteSnapshot { id_or_name } => self.delete_snapshot(caller, &id_or_name).await,
            Verb::ListRegistries => {
                self.linearize().await?;
                let own = |state: &ClusterState| {
                    let own = state.registries_of(caller.organization_id);
                    own.map(|(registry_id, registry)| (*registry_id, registry.clone())).collect()
                };
                Ok(VerbAnswer::Registries(self.cluster.read(own)))
            }
            Verb::GetRegistry { registry_id } => {
                self.linearize().await?;
                Ok(VerbAnswer::Registries(vec![(registry_id, self.registry(caller, registry_id)?)]))
            }
            Verb::CreateRegistry(wish) => self.create_registry(caller, wish).await,
            Verb::UpdateRegistry { registry_id, registry } => {
                self.update_registry(caller, registry_id, registry).await
            }
            Verb::DeleteRegistry { registry_id } => {
                self.linearize().await?;
                self.registry(caller, registry_id)?;
                let organization_id = caller.organization_id;
                self.propose(ClusterCommand::DeleteRegistry { registry_id, organization_id }).await?;
                Ok(VerbAnswer::Done)
            }
            _ => Err(VerbError::Internal("not a verb of the catalogue".into())),
        }
    }

    async fn create_snapshot(&self, caller: &Caller, wish: CreateSnapshot) -> Result<VerbAnswer, VerbError> {
        let CreateSnapshot { name, source, entrypoint, cpu, memory_gib, disk_gib, region } = wish;
        if let Some(region) = &region {
            self.known_region(region)?;
        }
        let source = match source {
            SnapshotSource::Image { name } => SnapshotSource::Image { name: self.image_name(caller, &name)? },
            other => other,
        };
        let resources = Resources {
            cpu: cpu.unwrap_or(DEFAULT_RESOURCES.cpu),
            memory_gib: memory_gib.unwrap_or(DEFAULT_RESOURCES.memory_gib),
            disk_gib: disk_gib.unwrap_or(DEFAULT_RESOURCES.disk_gib),
        };
        let made_in = region.clone().unwrap_or_else(|| self.home.clone());
        let snapshot = SnapshotRecord {
            entrypoint,
            regions: region.into_iter().collect(),
            made_in: Some(made_in),
            ..SnapshotRecord::pending(
                uuid::Uuid::new_v4(),
                caller.organization_id,
                source,
                resources,
                now_ms(),
            )
        };
        let key = snapshot.key(&name);
        self.propose(ClusterCommand::CreateSnapshot { name, snapshot: Box::new(snapshot) }).await?;
        info!(snapshot = key.name, snapshot_id = %key.id, "snapshot to be made");
        self.snapshot(caller, &key.name).map(answer)
    }

    /// An image of a foreign registry, or of what the caller's organization has pushed to a node.
    fn image_name(&self, caller: &Caller, name: &str) -> Result<String, VerbError> {
        let image = self.cluster.read(|state| image_names::of(state, caller.organization_id, name));
        let image = image.map_err(|error| VerbError::BadRequest(format!("imageName: {error}")))?;
        if !image.is_local() && is_floating(&image.version) {
            return Err(VerbError::BadRequest(format!(
                "imageName: give {name} a tag that stays, or a digest: not latest, lts or stable"
            )));
        }
        Ok(image.to_string())
    }

    async fn activate_snapshot(
        &self,
        caller: &Caller,
        id_or_name: &str,
        activation: Activation,
    ) -> Result<VerbAnswer, VerbError> {
        self.linearize().await?;
        let (name, snapshot) = self.snapshot_to_change(caller, id_or_name)?;
        let wanted = match activation {
            Activation::Active => SnapshotState::Active,
            Activation::Inactive => SnapshotState::Inactive,
        };
        if activation == Activation::Active && snapshot.state == wanted {
            return Err(VerbError::BadRequest(format!("Snapshot {name} is already active")));
        }
        let key = snapshot.key(&name);
        self.propose(ClusterCommand::ActivateSnapshot { key, activation, now_ms: now_ms() }).await?;
        self.snapshot(caller, &name).map(answer)
    }

    async fn delete_snapshot(&self, caller: &Caller, id_or_name: &str) -> Result<VerbAnswer, VerbError> {
        self.linearize().await?;
        let (name, snapshot) = self.snapshot_to_change(caller, id_or_name)?;
        let key = snapshot.key(&name);
        self.propose(ClusterCommand::RemoveSnapshot { key }).await?;
        info!(snapshot = name, snapshot_id = %snapshot.id, "snapshot deleted");
        Ok(VerbAnswer::Done)
    }

    async fn create_registry(&self, caller: &Caller, wish: RegistryWish) -> Result<VerbAnswer, VerbError> {
        let RegistryWish { name, url, host, username, password, project } = wish;
        let password = password.ok_or_else(|| VerbError::BadRequest("password is required".into()))?;
        let (registry_id, now_ms) = (uuid::Uuid::new_v4(), now_ms());
        let registry = RegistryRecord {
            organization_id: caller.organization_id,
            name,
            url,
            host,
            username,
            sealed_password: self.secret.seal(&password_of(registry_id), password.0.as_bytes()),
            project: project.unwrap_or_default(),
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
        };
        self.propose(ClusterCommand::PutRegistry { registry_id, registry: registry.clone() }).await?;
        Ok(VerbAnswer::Registries(vec![(registry_id, registry)]))
    }

    async fn update_registry(
        &self,
        caller: &Caller,
        registry_id: uuid::Uuid,
        wish: RegistryWish,
    ) -> Result<VerbAnswer, VerbError> {
        self.linearize().await?;
        let before = self.registry(caller, registry_id)?;
        let RegistryWish { name, url, host, username, password, project } = wish;
        let sealed_password = match password {
            Some(password) => self.secret.seal(&password_of(registry_id), password.0.as_bytes()),
            // Or whoever may change a registry could have its password sent to a host of their own.
            None if host != before.host => {
                return Err(VerbError::BadRequest(
                    "give the password again when the registry's url changes".into(),
                ));
            }
            None => before.sealed_password.clone(),
        };
        let registry = RegistryRecord {
            name,
            url,
            host,
            username,
            sealed_password,
            project: project.unwrap_or(before.project),
            updated_at_ms: now_ms(),
            ..before
        };
        self.propose(ClusterCommand::PutRegistry { registry_id, registry: registry.clone() }).await?;
        Ok(VerbAnswer::Registries(vec![(registry_id, registry)]))
    }

    fn registry(&self, caller: &Caller, registry_id: uuid::Uuid) -> Result<RegistryRecord, VerbError> {
        let own = |registry: &&RegistryRecord| registry.organization_id == caller.organization_id;
        let found = self.cluster.read(|state| state.registries.get(&registry_id).filter(own).cloned());
        found.ok_or_else(|| VerbError::NotFound(format!("Registry {registry_id} not found")))
    }

    fn snapshot(&self, caller: &Caller, id_or_name: &str) -> Result<(String, SnapshotRecord), VerbError> {
        let found = self.cluster.read(|state| {
            let (name, snapshot) = state.snapshot(caller.organization_id, id_or_name)?;
            Some((name.clone(), snapshot.clone()))
        });
        found.ok_or_else(|| VerbError::NotFound(format!("Snapshot {id_or_name} not found")))
    }

    /// What is everybody's is for administrators to change.
    fn snapshot_to_change(
        &self,
        caller: &Caller,
        id_or_name: &str,
    ) -> Result<(String, SnapshotRecord), VerbError> {
        let (name, snapshot) = self.snapshot(caller, id_or_name)?;
        if snapshot.organization_id.is_none() && !self.cluster.read(|state| may_administer(state, caller)) {
            return Err(VerbError::Forbidden(format!(
                "Snapshot {name} is general: only a key that may administer the cluster changes it"
            )));
        }
        Ok((name, snapshot))
    }

    fn known_region(&self, region: &RegionName) -> Result<(), VerbError> {
        self.cluster.read(|state| match state.regions.contains_key(region) {
            true => Ok(()),
            false => {
                let known: Vec<&str> = state.regions.keys().map(RegionName::as_str).collect();
                let known = known.join(", ");
                Err(VerbError::BadRequest(format!("there is no region {region}; regions are: {known}")))
            }
        })
    }

    async fn propose(&self, command: ClusterCommand) -> Result<(), VerbError> {
        if self.cluster.read(ClusterState::command_version) < CATALOGUE_SINCE {
            return Err(VerbError::Unavailable {
                message: "some nodes are of an older version that does not know this: update them".into(),
                retry_after_s: 60,
            });
        }
        match self.cluster.propose(command).await.map_err(unavailable)? {
            ClusterOutcome::Applied => Ok(()),
            ClusterOutcome::Rejected(rejection) => Err(rejected(rejection)),
        }
    }

    async fn linearize(&self) -> Result<(), VerbError> {
        self.cluster.linearize().await.map_err(unavailable)
    }
}

/// What a registry's password is sealed for: one registry's does not open in another's place.
pub fn password_of(registry_id: uuid::Uuid) -> String {
    format!("password of registry {registry_id}")
}

/// Tags that their owners move at will: a snapshot of one would be another thing every day.
fn is_floating(version: &Version) -> bool {
    matches!(version, Version::Tag(tag) if matches!(tag.as_str(), "latest" | "lts" | "stable"))
}

fn answer(found: (String, SnapshotRecord)) -> VerbAnswer {
    VerbAnswer::Snapshots(vec![found])
}

pub(super) fn rejected(rejection: ClusterRejection) -> VerbError {
    let message = rejection.to_string();
    match rejection {
        ClusterRejection::NotFound => VerbError::NotFound(message),
        ClusterRejection::SnapshotNameTaken(_) => VerbError::Conflict(message),
        ClusterRejection::SnapshotIs(_)
        | ClusterRejection::TooManySnapshots(_)
        | ClusterRejection::TooManyRegistries(_) => VerbError::BadRequest(message),
        other => VerbError::Internal(other.to_string()),
    }
}
