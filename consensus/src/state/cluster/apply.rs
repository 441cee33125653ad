//! Judges each command against the cluster's state. Total (no input makes it panic), deterministic, and every command may
//! be said twice.

use std::collections::BTreeSet;

use atoll_api::ids::{NodeId, RegionName, RegionOrdinal};
use atoll_api::tokens::TokenHash;

use super::{
    ApiKeyRecord, ClusterCommand, ClusterIdentity, ClusterOutcome, ClusterRejection, ClusterState,
    JoinTokenRecord, NodeAddresses, NodeCapacity, NodeRecord, RegionRecord,
};

/// How long an expired join token is kept, so that who comes with it learns that it has expired.
pub const JOIN_TOKEN_REMEMBERED_MS: u64 = 24 * 60 * 60 * 1_000;

pub(super) type Judged = Result<(), ClusterRejection>;

impl ClusterState {
    pub fn apply(&mut self, command: ClusterCommand) -> ClusterOutcome {
        use ClusterCommand::*;
        let judged = match command {
            Found { identity } => self.found(identity),
            CreateJoinToken { token_hash, uses, expires_at_ms, now_ms } => {
                self.create_join_token(token_hash, uses, expires_at_ms, now_ms)
            }
            AdmitNode { token_hash, node_id, node, now_ms } => {
                self.admit_node(token_hash, node_id, node, now_ms)
            }
            UpdateNode { node_id, addresses, capacity, command_version } => {
                self.update_node(node_id, addresses, capacity, command_version)
            }
            RemoveNode { node_id, now_ms } => self.remove_node(node_id, now_ms),
            PutOrganization { organization_id, organization } => {
                self.organizations.insert(organization_id, organization);
                Ok(())
            }
            PutApiKey { key_hash, key } => self.put_api_key(key_hash, key),
            DeleteApiKey { key_hash } => {
                self.api_keys.remove(&key_hash);
                Ok(())
            }
            PutSnapshot { name, snapshot } => {
                self.snapshots.insert(name, snapshot);
                Ok(())
            }
            DeleteSnapshot { name } => {
                self.snapshots.remove(&name);
                Ok(())
            }
            CreateWarmPool { pool_id, pool } => self.create_warm_pool(pool_id, pool),
            ResizeWarmPool { pool_id, size, now_ms } => self.resize_warm_pool(pool_id, size, now_ms),
            DeleteWarmPool { pool_id } => {
                self.warm_pools.remove(&pool_id);
                Ok(())
            }
            NoteWarmPool { pool_id, error_reason } => {
                self.note_warm_pool(pool_id, error_reason);
                Ok(())
            }
            CreateSnapshot { name, snapshot } => self.create_snapshot(name, *snapshot),
            ClaimSnapshot { key, attempt, node_id, now_ms } => {
                self.claim_snapshot(&key, attempt, node_id, now_ms)
            }
            ReportSnapshot { key, attempt, report, now_ms } => {
                self.report_snapshot(&key, attempt, report, now_ms)
            }
            RetrySnapshot { key, attempt, now_ms } => self.retry_snapshot(&key, attempt, now_ms),
            ActivateSnapshot { key, activation, now_ms } => self.activate_snapshot(&key, activation, now_ms),
            TouchSnapshot { key, now_ms } => self.touch_snapshot(&key, now_ms),
            RemoveSnapshot { key } => self.remove_snapshot(&key),
            PutRegistry { registry_id, registry } => self.put_registry(registry_id, registry),
            DeleteRegistry { registry_id, organization_id } => {
                self.delete_registry(registry_id, organization_id)
            }
        };
        match judged {
            Ok(()) => ClusterOutcome::Applied,
            Err(rejection) => ClusterOutcome::Rejected(rejection),
        }
    }

    fn found(&mut self, identity: ClusterIdentity) -> Judged {
        match &self.identity {
            Some(founded) if *founded != identity => Err(ClusterRejection::AlreadyFounded),
            Some(_) => Ok(()),
            None => {
                self.identity = Some(identity);
                Ok(())
            }
        }
    }

    fn create_join_token(
        &mut self,
        token_hash: TokenHash,
        uses: u32,
        expires_at_ms: u64,
        now_ms: u64,
    ) -> Judged {
        let remembered =
            |token: &JoinTokenRecord| now_ms < token.expires_at_ms.saturating_add(JOIN_TOKEN_REMEMBERED_MS);
        self.join_tokens.retain(|hash, token| *hash == token_hash || remembered(token));
        self.join_tokens.entry(token_hash).or_insert(JoinTokenRecord { uses_left: uses, expires_at_ms });
        Ok(())
    }

    fn admit_node(
        &mut self,
        token_hash: Option<TokenHash>,
        node_id: NodeId,
        node: NodeRecord,
        now_ms: u64,
    ) -> Judged {
        if self.removed_nodes.contains_key(&node_id) {
            return Err(ClusterRejection::NodeRemoved);
        }
        if let Some(member) = self.nodes.get(&node_id) {
            return match member.region == node.region {
                true => Ok(()),
                false => Err(ClusterRejection::NodeInRegion(member.region.clone())),
            };
        }
        // Whoever has no good token learns nothing else about the cluster.
        self.judge_join_token(token_hash, now_ms)?;
        if self.nodes.values().any(|member| member.name == node.name) {
            return Err(ClusterRejection::NodeNameTaken(node.name));
        }
        self.ensure_region(&node.region, node_id, now_ms)?;
        if let Some(token) = token_hash.and_then(|hash| self.join_tokens.get_mut(&hash)) {
            token.uses_left = token.uses_left.saturating_sub(1);
        }
        self.nodes.insert(node_id, node);
        Ok(())
    }

    fn judge_join_token(&self, token_hash: Option<TokenHash>, now_ms: u64) -> Judged {
        let Some(token_hash) = token_hash else {
            let is_founding = self.nodes.is_empty() && self.removed_nodes.is_empty();
            return if is_founding { Ok(()) } else { Err(ClusterRejection::JoinTokenUnknown) };
        };
        match self.join_tokens.get(&token_hash) {
            None => Err(ClusterRejection::JoinTokenUnknown),
            Some(token) if token.expires_at_ms <= now_ms => Err(ClusterRejection::JoinTokenExpired),
            Some(token) if token.uses_left == 0 => Err(ClusterRejection::JoinTokenUsedUp),
            Some(_) => Ok(()),
        }
    }

    fn ensure_region(&mut self, name: &RegionName, founder: NodeId, now_ms: u64) -> Judged {
        if self.regions.contains_key(name) {
            return Ok(());
        }
        let taken: BTreeSet<RegionOrdinal> = self.regions.values().map(|region| region.ordinal).collect();
        let mut ordinals = (0..RegionOrdinal::COUNT).filter_map(RegionOrdinal::new);
        let lowest_free = ordinals.find(|ordinal| !taken.contains(ordinal));
        let ordinal = lowest_free.ok_or(ClusterRejection::TooManyRegions(RegionOrdinal::COUNT))?;
        self.regions.insert(name.clone(), RegionRecord { ordinal, founder, created_at_ms: now_ms });
        Ok(())
    }

    fn update_node(
        &mut self,
        node_id: NodeId,
        addresses: NodeAddresses,
        capacity: NodeCapacity,
        command_version: u32,
    ) -> Judged {
        let node = self.member_mut(node_id)?;
        node.addresses = addresses;
        node.capacity = capacity;
        node.command_version = command_version;
        Ok(())
    }

    fn remove_node(&mut self, node_id: NodeId, now_ms: u64) -> Judged {
        if self.removed_nodes.contains_key(&node_id) {
            return Ok(());
        }
        self.nodes.remove(&node_id).ok_or(ClusterRejection::NodeUnknown)?;
        self.removed_nodes.insert(node_id, now_ms);
        Ok(())
    }

    fn put_api_key(&mut self, key_hash: TokenHash, key: ApiKeyRecord) -> Judged {
        if !self.organizations.contains_key(&key.organization_id) {
            return Err(ClusterRejection::NotFound);
        }
        // Many keys are made for an hour.
        self.api_keys.retain(|_, known| known.expires_at_ms.is_none_or(|at_ms| at_ms > key.created_at_ms));
        self.api_keys.insert(key_hash, key);
        Ok(())
    }

    fn member_mut(&mut self, node_id: NodeId) -> Result<&mut NodeRecord, ClusterRejection> {
        let is_removed = self.removed_nodes.contains_key(&node_id);
        self.nodes.get_mut(&node_id).ok_or(match is_removed {
            true => ClusterRejection::NodeRemoved,
            false => ClusterRejection::NodeUnknown,
        })
    }
}
