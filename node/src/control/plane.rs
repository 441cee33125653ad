//! Decides which region must carry a verb out, and merges what several regions answer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::access::Caller;
use atoll_api::ids::{RegionName, RegionOrdinal, RequestId, SandboxId};
use atoll_api::tokens::SshToken;
use atoll_consensus::group::ClusterGroup;
use futures_util::future::join_all;

use super::catalogue::CatalogueVerbs;
use super::cluster::ClusterVerbs;
use super::forward::Forwarder;
use super::region::RegionVerbs;
use super::verb::*;
use crate::cursor::merge_pages;

/// How long one other region may take to answer a list before it is named as unreachable.
const LIST_DEADLINE: Duration = Duration::from_secs(5);

pub struct ControlPlane {
    pub home: RegionName,
    pub cluster: ClusterGroup,
    pub cluster_verbs: ClusterVerbs,
    pub catalogue_verbs: CatalogueVerbs,
    pub region_verbs: RegionVerbs,
    pub forwarder: Arc<Forwarder>,
}

#[async_trait]
impl Control for ControlPlane {
    async fn perform(
        &self,
        caller: &Caller,
        request_id: &RequestId,
        verb: Verb,
    ) -> Result<VerbAnswer, VerbError> {
        let deadline = Duration::from_millis(VERB_DEADLINE_MS);
        match tokio::time::timeout(deadline, self.route(caller, request_id, verb)).await {
            Ok(answer) => answer,
            Err(_) => Err(VerbError::TimedOut(format!("no answer within {} s", deadline.as_secs()))),
        }
    }
}

impl ControlPlane {
    /// Carries out a verb that another region's node forwarded: here or not at all, never onward.
    pub async fn perform_forwarded(&self, caller: &Caller, verb: Verb) -> Result<VerbAnswer, VerbError> {
        let deadline = Duration::from_millis(VERB_DEADLINE_MS);
        match tokio::time::timeout(deadline, self.region_verbs.perform(caller, verb)).await {
            Ok(answer) => answer,
            Err(_) => Err(VerbError::TimedOut(format!("no answer within {} s", deadline.as_secs()))),
        }
    }

    async fn route(
        &self,
        caller: &Caller,
        request_id: &RequestId,
        verb: Verb,
    ) -> Result<VerbAnswer, VerbError> {
        match &verb {
            Verb::ClusterStatus
            | Verb::CreateJoinToken { .. }
            | Verb::RemoveNode { .. }
            | Verb::ListWarmPools
            | Verb::CreateWarmPool { .. }
            | Verb::ResizeWarmPool { .. }
            | Verb::DeleteWarmPool { .. }
            | Verb::GrantPush => self.cluster_verbs.perform(caller, verb).await,
            Verb::ListSnapshots
            | Verb::GetSnapshot { .. }
            | Verb::CreateSnapshot(_)
            | Verb::ActivateSnapshot { .. }
            | Verb::DeleteSnapshot { .. }
            | Verb::ListRegistries
            | Verb::GetRegistry { .. }
            | Verb::CreateRegistry(_)
            | Verb::UpdateRegistry { .. }
            | Verb::DeleteRegistry { .. } => self.catalogue_verbs.perform(caller, verb).await,
            Verb::Create(create) => {
                let region = create.target.clone().unwrap_or_else(|| self.home.clone());
                self.known_region(&region)?;
                self.perform_in(&region, caller, request_id, verb).await
            }
            Verb::List(list) => self.list(caller, request_id, list.clone()).await,
            Verb::ValidateSsh { token } => match token.parse::<SshToken>() {
                Ok(parsed) => match self.region_by_ordinal(parsed.region()) {
                    Some(region) => self.perform_in(&region, caller, request_id, verb).await,
                    None => Ok(VerbAnswer::SshValidity { sandbox_id: None }),
                },
                Err(_) => Ok(VerbAnswer::SshValidity { sandbox_id: None }),
            },
            Verb::Get { sandbox }
            | Verb::Start { sandbox }
            | Verb::Stop { sandbox, .. }
            | Verb::Delete { sandbox }
            | Verb::Pause { sandbox }
            | Verb::SetEgress { sandbox, .. }
            | Verb::SetLabels { sandbox, .. }
            | Verb::SetPublic { sandbox, .. }
            | Verb::SetIntervals { sandbox, .. }
            | Verb::PreviewToken { sandbox, .. }
            | Verb::SignPreview { sandbox, .. }
            | Verb::ExpirePreview { sandbox, .. }
            | Verb::SigningKey { sandbox }
            | Verb::RotateSigningKey { sandbox }
            | Verb::IssueSsh { sandbox, .. }
            | Verb::RevokeSsh { sandbox, .. }
            | Verb::Snapshot { sandbox, .. }
            | Verb::Fork { sandbox, .. }
            | Verb::Forks { sandbox }
            | Verb::Ancestors { sandbox }
            | Verb::Archive { sandbox }
            | Verb::Touch { sandbox } => match sandbox.clone() {
                SandboxReference::Id(id) => {
                    let region = self.region_by_ordinal(id.region()).ok_or_else(|| not_found(&id))?;
                    self.perform_in(&region, caller, request_id, verb).await
                }
                SandboxReference::Name(name) => self.perform_by_name(&name, caller, request_id, verb).await,
            },
        }
    }

    async fn perform_in(
        &self,
        region: &RegionName,
        caller: &Caller,
        request_id: &RequestId,
        verb: Verb,
    ) -> Result<VerbAnswer, VerbError> {
        if *region == self.home {
            self.region_verbs.perform(caller, verb).await
        } else {
            self.forwarder.forward(region, caller, request_id, verb).await
        }
    }

    /// A name does not say its region: home is asked first, then the others at once.
    async fn perform_by_name(
        &self,
        name: &str,
        caller: &Caller,
        request_id: &RequestId,
        verb: Verb,
    ) -> Result<VerbAnswer, VerbError> {
        match self.region_verbs.perform(caller, verb.clone()).await {
            Err(VerbError::NotFound(_)) => {}
            answer => return answer,
        }
        let others = self.other_regions();
        let asked =
            others.iter().map(|region| self.forwarder.forward(region, caller, request_id, verb.clone()));
        let mut unreachable = None;
        for answer in join_all(asked).await {
            match answer {
                Err(VerbError::NotFound(_)) => {}
                Err(error @ VerbError::Unavailable { .. }) => unreachable = Some(error),
                answer => return answer,
            }
        }
        // "Not found" may only be said when every region was asked.
        Err(unreachable.unwrap_or_else(|| not_found(&name)))
    }

    async fn list(
        &self,
        caller: &Caller,
        request_id: &RequestId,
        list: ListSandboxes,
    ) -> Result<VerbAnswer, VerbError> {
        for region in &list.regions {
            self.known_region(region)?;
        }
        let limit = list.limit as usize;
        let wanted = |region: &RegionName| list.regions.is_empty() || list.regions.contains(region);
        let regions: Vec<RegionName> =
            std::iter::once(self.home.clone()).chain(self.other_regions()).filter(wanted).collect();
        let asked = regions.iter().map(|region| async {
            let verb = Verb::List(list.clone());
            let answer = self.perform_in(region, caller, request_id, verb);
            let answer = tokio::time::timeout(LIST_DEADLINE, answer).await;
            (region.clone(), answer)
        });
        let (mut pages, mut unreachable_regions) = (Vec::new(), Vec::new());
        for (region, answer) in join_all(asked).await {
            match answer {
                Ok(Ok(VerbAnswer::Page(page))) => pages.push(page),
                Ok(Ok(_)) => {
                    return Err(VerbError::Internal("a list was answered with something else".into()));
                }
                // Home's own failure is the caller's failure; another region's is named, never hidden.
                Ok(Err(error)) if region == self.home => return Err(error),
                Ok(Err(VerbError::Unavailable { .. })) | Err(_) => unreachable_regions.push(region),
                Ok(Err(error)) => return Err(error),
            }
        }
        let (items, next_cursor) = merge_pages(pages, limit);
        Ok(VerbAnswer::Page(SandboxPage { items, next_cursor, unreachable_regions }))
    }

    fn other_regions(&self) -> Vec<RegionName> {
        self.cluster
            .read(|state| state.regions.keys().filter(|region| **region != self.home).cloned().collect())
    }

    fn region_by_ordinal(&self, ordinal: RegionOrdinal) -> Option<RegionName> {
        self.cluster.read(|state| state.region_by_ordinal(ordinal).map(|(name, _)| name.clone()))
    }

    fn known_region(&self, region: &RegionName) -> Result<(), VerbError> {
        self.cluster.read(|state| {
            if state.regions.contains_key(region) {
                return Ok(());
            }
            let known: Vec<&str> = state.regions.keys().map(RegionName::as_str).collect();
            Err(VerbError::BadRequest(format!(
                "there is no region {region}; regions are: {}",
                known.join(", ")
            )))
        })
    }
}

pub fn not_found(reference: &dyn std::fmt::Display) -> VerbError {
    VerbError::NotFound(format!("Sandbox {reference} not found"))
}

impl std::fmt::Display for SandboxReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SandboxReference::Id(id) => id.fmt(f),
            SandboxReference::Name(name) => name.fmt(f),
        }
    }
}

impl From<SandboxId> for SandboxReference {
    fn from(id: SandboxId) -> Self {
        SandboxReference::Id(id)
    }
}
