//! What follows from a region's records, kept up with every command so that no command scans all of them.
//! Never stored: it is computed again when a state is decoded.

use std::collections::{BTreeMap, BTreeSet};

use atoll_api::ids::{NodeId, OrganizationId, SandboxId, WarmPoolId};
use atoll_api::sandbox::{Desired, Resources};
use atoll_api::tokens::TokenHash;

use super::capture::Forks;
use super::query::Cursor;
use super::{PreviewTokenRecord, RegionState, SandboxRecord, SshTokenRecord};

/// What the sandboxes of a node have been promised together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeUsage {
    pub cpu: u64,
    pub memory_gib: u64,
    pub disk_gib: u64,
    pub sandboxes: u64,
}

impl NodeUsage {
    /// A running sandbox takes all it was promised, a paused one all but its CPUs, a stopped one only its disk and its
    /// place. One that is to be deleted
    /// takes nothing, from the moment that this was decided: its limits are its own, so the little time until the owner has
    /// removed it hurts nobody.
    pub fn of(resources: Resources, desired: Desired) -> NodeUsage {
        let Resources { cpu, memory_gib, disk_gib } = resources;
        let stopped = NodeUsage { cpu: 0, memory_gib: 0, disk_gib: u64::from(disk_gib), sandboxes: 1 };
        match desired {
            Desired::Running => {
                NodeUsage { cpu: u64::from(cpu), memory_gib: u64::from(memory_gib), ..stopped }
            }
            Desired::Stopped | Desired::Archived => stopped,
            Desired::Paused => NodeUsage { memory_gib: u64::from(memory_gib), ..stopped },
            Desired::Deleted => NodeUsage::default(),
        }
    }

    /// What its own node keeps for a sandbox. One that is archived has no node.
    pub fn by(record: &SandboxRecord) -> NodeUsage {
        match record.is_archived() {
            true => NodeUsage::default(),
            false => NodeUsage::of(record.spec.resources, record.desired),
        }
    }

    pub fn plus(self, other: NodeUsage) -> NodeUsage {
        NodeUsage {
            cpu: self.cpu + other.cpu,
            memory_gib: self.memory_gib + other.memory_gib,
            disk_gib: self.disk_gib + other.disk_gib,
            sandboxes: self.sandboxes + other.sandboxes,
        }
    }

    /// Without a part of it; nothing is less than nothing.
    pub fn less(self, part: NodeUsage) -> NodeUsage {
        NodeUsage {
            cpu: self.cpu.saturating_sub(part.cpu),
            memory_gib: self.memory_gib.saturating_sub(part.memory_gib),
            disk_gib: self.disk_gib.saturating_sub(part.disk_gib),
            sandboxes: self.sandboxes.saturating_sub(part.sandboxes),
        }
    }

    pub(super) fn minus(self, other: NodeUsage) -> NodeUsage {
        NodeUsage {
            cpu: self.cpu - other.cpu,
            memory_gib: self.memory_gib - other.memory_gib,
            disk_gib: self.disk_gib - other.disk_gib,
            sandboxes: self.sandboxes - other.sandboxes,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// Nodes without a sandbox have no entry. What is archived is on none.
    pub(super) by_node: BTreeMap<NodeId, OnNode>,
    pub(super) forks: Forks,
    /// Without members of warm pools.
    pub(super) by_age: BTreeMap<OrganizationId, BTreeSet<Cursor>>,
    /// Pools without a member have no entry.
    pub(super) members: BTreeMap<WarmPoolId, BTreeSet<SandboxId>>,
    pub(super) ssh_tokens: BTreeMap<SandboxId, TokenHash>,
    pub(super) preview_tokens: BTreeMap<SandboxId, BTreeSet<TokenHash>>,
    pub(super) expiries: BTreeSet<(u64, Expiring)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OnNode {
    pub(super) sandbox_ids: BTreeSet<SandboxId>,
    pub(super) usage: NodeUsage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expiring {
    SshToken(TokenHash),
    PreviewToken(TokenHash),
    Tombstone(SandboxId),
}

impl Index {
    pub(super) fn of(state: &RegionState) -> Index {
        let mut index = Index::default();
        for (sandbox_id, record) in &state.sandboxes {
            index.add_sandbox(*sandbox_id, record);
        }
        for (token_hash, token) in &state.ssh_tokens {
            index.add_ssh_token(*token_hash, token);
        }
        for (token_hash, token) in &state.preview_tokens {
            index.add_preview_token(*token_hash, token);
        }
        for (sandbox_id, expires_at_ms) in &state.tombstones {
            index.expiries.insert((*expires_at_ms, Expiring::Tombstone(*sandbox_id)));
        }
        index
    }

    pub(super) fn add_sandbox(&mut self, sandbox_id: SandboxId, record: &SandboxRecord) {
        if !record.is_archived() {
            let on_node = self.by_node.entry(record.placement.node_id).or_default();
            on_node.sandbox_ids.insert(sandbox_id);
            on_node.usage = on_node.usage.plus(NodeUsage::by(record));
        }
        if let Some(parent) = record.parent {
            self.forks.entry(parent).or_default().insert(sandbox_id);
        }
        match record.member_of() {
            None => {
                self.by_age.entry(record.organization_id).or_default().insert(Cursor::of(sandbox_id, record));
            }
            Some(pool_id) => {
                self.members.entry(pool_id).or_default().insert(sandbox_id);
            }
        }
    }

    /// `record` is as it was when it was added.
    pub(super) fn drop_sandbox(&mut self, sandbox_id: SandboxId, record: &SandboxRecord) {
        let node_id = record.placement.node_id;
        if !record.is_archived()
            && let Some(on_node) = self.by_node.get_mut(&node_id)
        {
            on_node.sandbox_ids.remove(&sandbox_id);
            on_node.usage = on_node.usage.minus(NodeUsage::by(record));
            if on_node.sandbox_ids.is_empty() {
                self.by_node.remove(&node_id);
            }
        }
        if let Some(parent) = record.parent
            && let Some(forks) = self.forks.get_mut(&parent)
        {
            forks.remove(&sandbox_id);
            if forks.is_empty() {
                self.forks.remove(&parent);
            }
        }
        if let Some(pool_id) = record.member_of() {
            if let Some(members) = self.members.get_mut(&pool_id) {
                members.remove(&sandbox_id);
                if members.is_empty() {
                    self.members.remove(&pool_id);
                }
            }
        } else if let Some(ages) = self.by_age.get_mut(&record.organization_id) {
            ages.remove(&Cursor::of(sandbox_id, record));
            if ages.is_empty() {
                self.by_age.remove(&record.organization_id);
            }
        }
    }

    pub(super) fn add_ssh_token(&mut self, token_hash: TokenHash, token: &SshTokenRecord) {
        self.ssh_tokens.insert(token.sandbox_id, token_hash);
        self.expiries.insert((token.expires_at_ms, Expiring::SshToken(token_hash)));
    }

    pub(super) fn drop_ssh_token(&mut self, token_hash: TokenHash, token: &SshTokenRecord) {
        self.ssh_tokens.remove(&token.sandbox_id);
        self.expiries.remove(&(token.expires_at_ms, Expiring::SshToken(token_hash)));
    }

    pub(super) fn add_preview_token(&mut self, token_hash: TokenHash, token: &PreviewTokenRecord) {
        self.preview_tokens.entry(token.sandbox_id).or_default().insert(token_hash);
        self.expiries.insert((token.expires_at_ms, Expiring::PreviewToken(token_hash)));
    }

    pub(super) fn drop_preview_token(&mut self, token_hash: TokenHash, token: &PreviewTokenRecord) {
        if let Some(hashes) = self.preview_tokens.get_mut(&token.sandbox_id) {
            hashes.remove(&token_hash);
            if hashes.is_empty() {
                self.preview_tokens.remove(&token.sandbox_id);
            }
        }
        self.expiries.remove(&(token.expires_at_ms, Expiring::PreviewToken(token_hash)));
    }
}
