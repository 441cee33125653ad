//! What may be asked of the cluster's state, and what always holds of it.

use std::collections::BTreeSet;

use atoll_api::ids::{NodeId, RegionName, RegionOrdinal};
use atoll_api::tokens::TokenHash;

use super::{ApiKeyRecord, ClusterState, RegionRecord};

impl ClusterState {
    /// `None` when the key is unknown, deleted or expired.
    pub fn api_key(&self, key_hash: TokenHash, now_ms: u64) -> Option<&ApiKeyRecord> {
        let is_valid =
            |key: &&ApiKeyRecord| key.expires_at_ms.is_none_or(|expires_at_ms| now_ms < expires_at_ms);
        self.api_keys.get(&key_hash).filter(is_valid)
    }

    /// The region that an id or a token names.
    pub fn region_by_ordinal(&self, ordinal: RegionOrdinal) -> Option<(&RegionName, &RegionRecord)> {
        self.regions.iter().find(|(_, region)| region.ordinal == ordinal)
    }

    pub fn node_ids_of_region<'a>(&'a self, region: &'a RegionName) -> impl Iterator<Item = NodeId> + 'a {
        self.nodes.iter().filter(move |(_, node)| node.region == *region).map(|(node_id, _)| *node_id)
    }

    /// The name that people gave the node; its id when it is no member (any more).
    pub fn node_name(&self, node_id: NodeId) -> String {
        self.nodes.get(&node_id).map_or_else(|| node_id.to_string(), |node| node.name.clone())
    }

    /// The newest command kind that every node understands; only such may be proposed.
    pub fn command_version(&self) -> u32 {
        self.nodes.values().map(|node| node.command_version).min().unwrap_or(0)
    }

    /// Panics with the broken rule: for tests and for checking an imported snapshot.
    pub fn check_invariants(&self) {
        let mut names = BTreeSet::new();
        for (node_id, node) in &self.nodes {
            assert!(self.regions.contains_key(&node.region), "{node_id} is in a region that exists");
            assert!(!self.removed_nodes.contains_key(node_id), "{node_id} is a member, so not removed");
            assert!(names.insert(&node.name), "{node_id} alone is named {:?}", node.name);
        }
        let mut ordinals = BTreeSet::new();
        for (name, region) in &self.regions {
            assert!(ordinals.insert(region.ordinal), "{name} alone has the ordinal {:?}", region.ordinal);
            let founder = region.founder;
            let is_known = self.nodes.contains_key(&founder) || self.removed_nodes.contains_key(&founder);
            assert!(is_known, "{name} was founded by a node, {founder}");
        }
        self.check_warm_pools();
        for (key_hash, key) in &self.api_keys {
            let organization_id = key.organization_id;
            assert!(self.organizations.contains_key(&organization_id), "{key_hash:?} is of an organization");
        }
        for (organization_id, own) in &self.own_snapshots {
            assert!(self.organizations.contains_key(organization_id), "{organization_id} has snapshots");
            assert!(!own.is_empty(), "{organization_id} has a list with something in it");
            for (name, snapshot) in own {
                assert_eq!(snapshot.organization_id, Some(*organization_id), "{name} is whose it says");
            }
        }
        for (name, snapshot) in self.all_snapshots() {
            assert!(!snapshot.state.is_in_work() || snapshot.worker.is_some(), "somebody works on {name}");
        }
        for (registry_id, registry) in &self.registries {
            let organization_id = registry.organization_id;
            assert!(self.organizations.contains_key(&organization_id), "{registry_id} is of an organization");
        }
    }
}
