//! The verbs on the cluster itself: its nodes and join tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::access::Caller;
use atoll_api::ids::{NodeId, RegionName, WarmPoolId};
use atoll_api::tokens::{ApiKey, TokenHash};
use atoll_certs::ca::CaFingerprint;
use atoll_certs::join_token::JoinToken;
use atoll_consensus::group::ClusterGroup;
use atoll_consensus::state::cluster::{
    ApiKeyRecord, ClusterCommand, ClusterOutcome, ClusterRejection, ClusterState,
};
use atoll_consensus::state::region::NodeHealth;
use atoll_consensus::{Consensus, RegionGroup};
use atoll_mesh::stream::StreamHeader;
use serde::{Deserialize, Serialize};

use super::forward::Forwarder;
use super::region::unavailable;
use super::verb::*;
use crate::clock::now_ms;
use crate::founding::hint;

const JOIN_TTL_S_MAX: u64 = 7 * 24 * 3600;
const JOIN_USES_MAX: u32 = 1000;
/// Long enough to push a large image over a slow line.
const PUSH_GRANT_MS: u64 = 3_600_000;
/// Of one organization at a time; every `snapshot push` of the CLI takes one.
const PUSH_GRANTS_MAX: usize = 500;
/// Names of keys that were granted for a push begin so.
const PUSH_GRANT_NAME: &str = "registry push ";
/// A region that does not say how its nodes are within this is shown without it.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);

pub struct ClusterVerbs {
    pub home: RegionName,
    pub cluster: ClusterGroup,
    pub region: RegionGroup,
    pub consensus: Arc<Consensus>,
    pub forwarder: Arc<Forwarder>,
    /// Pinned by every join token.
    pub ca_fingerprint: CaFingerprint,
}

/// What a region says of itself to a node of another one. Asked by a `Status` stream.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RegionStatus {
    pub health: BTreeMap<NodeId, NodeHealth>,
    pub sandboxes: BTreeMap<NodeId, u32>,
    pub groups: Vec<GroupStatusView>,
    /// How many sandboxes of each warm pool wait to be claimed; pools without any have no entry.
    #[serde(default)]
    pub warm: BTreeMap<WarmPoolId, u32>,
}

impl ClusterVerbs {
    pub async fn perform(&self, caller: &Caller, verb: Verb) -> Result<VerbAnswer, VerbError> {
        match verb {
            Verb::GrantPush => self.grant_push(caller).await,
            Verb::ClusterStatus => self.status().await,
            Verb::CreateJoinToken { ttl_s, uses } => {
                self.administrator(caller)?;
                self.create_join_token(ttl_s, uses).await
            }
            Verb::RemoveNode { node_id } => {
                self.administrator(caller)?;
                self.propose(ClusterCommand::RemoveNode { node_id, now_ms: now_ms() }).await?;
                Ok(VerbAnswer::Done)
            }
            Verb::ListWarmPools => self.list_warm_pools(caller).await,
            Verb::CreateWarmPool { snapshot, size, target } => {
                self.create_warm_pool(caller, &snapshot, size, target).await
            }
            Verb::ResizeWarmPool { pool_id, size } => self.resize_warm_pool(caller, pool_id, size).await,
            Verb::DeleteWarmPool { pool_id } => self.delete_warm_pool(caller, pool_id).await,
            _ => Err(VerbError::Internal("not a verb of the cluster".into())),
        }
    }

    async fn create_join_token(&self, ttl_s: u64, uses: u32) -> Result<VerbAnswer, VerbError> {
        if !(1..=JOIN_TTL_S_MAX).contains(&ttl_s) || !(1..=JOIN_USES_MAX).contains(&uses) {
            let message = format!("ttlSeconds must be 1 to {JOIN_TTL_S_MAX} and uses 1 to {JOIN_USES_MAX}");
            return Err(VerbError::BadRequest(message));
        }
        let token = JoinToken::generate(self.ca_fingerprint);
        let expires_at_ms = now_ms() + ttl_s * 1000;
        let token_hash: TokenHash = token.hash();
        self.propose(ClusterCommand::CreateJoinToken { token_hash, uses, expires_at_ms, now_ms: now_ms() })
            .await?;
        Ok(VerbAnswer::JoinToken { token: token.reveal(), expires_at_ms })
    }

    /// The registry takes API keys as passwords, so this is one, for a while.
    async fn grant_push(&self, caller: &Caller) -> Result<VerbAnswer, VerbError> {
        let now_ms = now_ms();
        let live = self.cluster.read(|state| {
            let is_live = |key: &&ApiKeyRecord| {
                key.organization_id == caller.organization_id
                    && key.name.starts_with(PUSH_GRANT_NAME)
                    && key.expires_at_ms.is_some_and(|at| at > now_ms)
            };
            state.api_keys.values().filter(is_live).count()
        });
        if live >= PUSH_GRANTS_MAX {
            return Err(VerbError::Conflict(format!(
                "the organization holds {live} credentials for pushes: use one of them until it expires"
            )));
        }
        let key = ApiKey::from_random(rand::random());
        let expires_at_ms = now_ms + PUSH_GRANT_MS;
        let record = ApiKeyRecord {
            name: format!("{PUSH_GRANT_NAME}{}", hex::encode(rand::random::<[u8; 8]>())),
            organization_id: caller.organization_id,
            user_id: caller.user_id,
            hint: hint(&key),
            may_administer: false,
            created_at_ms: now_ms,
            expires_at_ms: Some(expires_at_ms),
        };
        self.propose(ClusterCommand::PutApiKey { key_hash: key.hash(), key: record }).await?;
        Ok(VerbAnswer::PushGrant { secret: key.reveal().to_owned(), expires_at_ms })
    }

    async fn status(&self) -> Result<VerbAnswer, VerbError> {
        let (cluster_id, nodes, regions) = self.cluster.read(|state| {
            let id = state.identity.as_ref().map(|identity| identity.cluster_id);
            (id, state.nodes.clone(), state.regions.keys().cloned().collect::<Vec<_>>())
        });
        let cluster_id = cluster_id.ok_or_else(|| VerbError::Unavailable {
            message: "the cluster is being founded".into(),
            retry_after_s: 1,
        })?;
        let mut all = self.own_status();
        all.groups.insert(0, self.cluster.status().into());
        let others =
            regions.iter().filter(|region| **region != self.home).map(|region| self.status_of(region));
        for status in futures_util::future::join_all(others).await.into_iter().flatten() {
            let RegionStatus { health, sandboxes, groups, warm: _ } = status;
            all.health.extend(health);
            all.sandboxes.extend(sandboxes);
            all.groups.extend(groups);
        }
        let nodes = nodes.into_iter().map(|(node_id, record)| NodeView {
            node_id,
            record,
            health: all.health.get(&node_id).copied(),
            sandboxes: all.sandboxes.get(&node_id).copied().unwrap_or(0),
        });
        Ok(VerbAnswer::Cluster(ClusterView { cluster_id, nodes: nodes.collect(), groups: all.groups }))
    }

    /// `None` when no node of the other region says in time.
    pub(super) async fn status_of(&self, region: &RegionName) -> Option<RegionStatus> {
        let asked = self.forwarder.ask_region(region, StreamHeader::Status, &(), STATUS_DEADLINE);
        tokio::time::timeout(STATUS_DEADLINE, asked).await.ok()?.ok()?
    }

    /// How this node's own region is, by the local replica.
    pub fn own_status(&self) -> RegionStatus {
        let (health, sandboxes, warm) = self.region.read(|state| {
            let health = state.nodes.iter().map(|(node_id, node)| (*node_id, node.health)).collect();
            let sandboxes = state
                .nodes
                .keys()
                .map(|node_id| (*node_id, state.usage(*node_id).sandboxes as u32))
                .collect();
            let ready = |pool_id| (pool_id, state.ready_members(pool_id) as u32);
            (health, sandboxes, state.pools_with_members().map(ready).collect())
        });
        let groups = self.consensus.statuses().into_iter().filter(|group| group.name != "cluster");
        RegionStatus { health, sandboxes, groups: groups.map(GroupStatusView::from).collect(), warm }
    }

    fn administrator(&self, caller: &Caller) -> Result<(), VerbError> {
        let may = self.cluster.read(|state| may_administer(state, caller));
        if may {
            Ok(())
        } else {
            Err(VerbError::Forbidden("this API key may not administer the cluster".into()))
        }
    }

    async fn propose(&self, command: ClusterCommand) -> Result<(), VerbError> {
        match self.cluster.propose(command).await.map_err(unavailable)? {
            ClusterOutcome::Applied => Ok(()),
            ClusterOutcome::Rejected(ClusterRejection::NodeUnknown) => {
                Err(VerbError::NotFound("no such node in the cluster".into()))
            }
            ClusterOutcome::Rejected(rejection) => Err(VerbError::Conflict(rejection.to_string())),
        }
    }
}

pub fn may_administer(state: &ClusterState, caller: &Caller) -> bool {
    let mut keys = state.api_keys.values();
    keys.any(|key| key.name == caller.key_name && key.user_id == caller.user_id && key.may_administer)
}
