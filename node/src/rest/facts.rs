//! What the door reads of the cluster's state without asking a verb: who a key is, which regions there are.

use atoll_api::ids::{OrganizationId, RegionName};
use atoll_api::tokens::TokenHash;
use atoll_consensus::group::ClusterGroup;
use atoll_consensus::state::cluster::{ApiKeyRecord, ClusterState, OrganizationRecord, RegionRecord};

/// Reads of this node's replica, which may be a moment behind. Never blocks.
pub trait ClusterFacts: Send + Sync + 'static {
    fn organization(&self, organization_id: OrganizationId) -> Option<OrganizationRecord>;
    fn api_key(&self, key_hash: TokenHash) -> Option<ApiKeyRecord>;
    fn regions(&self) -> Vec<(RegionName, RegionRecord)>;
}

impl ClusterFacts for ClusterGroup {
    fn organization(&self, organization_id: OrganizationId) -> Option<OrganizationRecord> {
        self.read(|state| ClusterFacts::organization(state, organization_id))
    }

    fn api_key(&self, key_hash: TokenHash) -> Option<ApiKeyRecord> {
        self.read(|state| ClusterFacts::api_key(state, key_hash))
    }

    fn regions(&self) -> Vec<(RegionName, RegionRecord)> {
        self.read(ClusterFacts::regions)
    }
}

impl ClusterFacts for ClusterState {
    fn organization(&self, organization_id: OrganizationId) -> Option<OrganizationRecord> {
        self.organizations.get(&organization_id).cloned()
    }

    fn api_key(&self, key_hash: TokenHash) -> Option<ApiKeyRecord> {
        self.api_keys.get(&key_hash).cloned()
    }

    fn regions(&self) -> Vec<(RegionName, RegionRecord)> {
        self.regions.iter().map(|(name, region)| (name.clone(), region.clone())).collect()
    }
}
