//! What may be asked of a region's state. Nothing here changes it, and nothing here knows the time but by argument.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use atoll_api::access::{PreviewGrant, SandboxFacts, SshGrant};
use atoll_api::ids::{NodeId, OrganizationId, ParseIdError, SandboxId, WarmPoolId};
use atoll_api::sandbox::{Desired, Phase, Resources, SandboxSpec};
use atoll_api::tokens::TokenHash;

use super::index::NodeUsage;
use super::{RegionNode, RegionState, SandboxRecord};

/// A place in the list of an organization's sandboxes, which is sorted newest first (equal ages: greater id first).
/// It stays valid when the sandbox that it names is gone. Ordered by age, so pages of several regions can be merged.
/// Written as `<created_at_ms>.<sandbox id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    created_at_ms: u64,
    sandbox_id: SandboxId,
}

impl Cursor {
    /// The place of this sandbox: a page `after` it begins with the next older one.
    pub fn of(sandbox_id: SandboxId, record: &SandboxRecord) -> Cursor {
        Cursor { created_at_ms: record.created_at_ms, sandbox_id }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.created_at_ms, self.sandbox_id)
    }
}

impl FromStr for Cursor {
    type Err = ParseIdError;

    /// Only what [`Cursor`] prints.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const ERROR: ParseIdError =
            ParseIdError { what: "cursor", expected: "the nextCursor of an earlier answer" };
        let (created_at_ms, sandbox_id) = text.split_once('.').ok_or(ERROR)?;
        let cursor = Cursor {
            created_at_ms: created_at_ms.parse().map_err(|_| ERROR)?,
            sandbox_id: sandbox_id.parse().map_err(|_| ERROR)?,
        };
        (cursor.to_string() == text).then_some(cursor).ok_or(ERROR)
    }
}

/// Which sandboxes of a list are wanted. The default wants all but those that are to be deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    pub id_prefix: Option<String>,
    pub name_prefix: Option<String>,
    /// Every pair must be there.
    pub labels: BTreeMap<String, String>,
    /// Any of these; empty: every snapshot.
    pub snapshots: Vec<String>,
    /// Also those that are to be deleted and that their owner has not removed yet.
    pub with_deleted: bool,
}

impl SandboxFilter {
    pub fn matches(&self, sandbox_id: SandboxId, record: &SandboxRecord) -> bool {
        (self.with_deleted || record.desired != Desired::Deleted)
            && self.name_prefix.as_ref().is_none_or(|prefix| record.name.starts_with(prefix))
            && self.id_prefix.as_ref().is_none_or(|prefix| sandbox_id.to_string().starts_with(prefix))
            && (self.snapshots.is_empty() || self.snapshots.contains(&record.spec.snapshot))
            && self.labels.iter().all(|(key, value)| record.labels.get(key) == Some(value))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<'a> {
    pub items: Vec<(SandboxId, &'a SandboxRecord)>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<Cursor>,
}

impl RegionState {
    /// What decides about access and routing. `None` also for a sandbox that is to be deleted and for a member of a warm
    /// pool: nobody may reach it.
    pub fn facts(&self, sandbox_id: SandboxId) -> Option<SandboxFacts> {
        let is_somebodys =
            |record: &&SandboxRecord| record.desired != Desired::Deleted && record.member_of().is_none();
        let record = self.sandboxes.get(&sandbox_id).filter(is_somebodys)?;
        Some(SandboxFacts {
            sandbox_id,
            organization_id: record.organization_id,
            public: record.public,
            preview_token_hash: record.preview_token_hash,
            phase: record.phase.clone(),
            placement: record.placement,
            signing_key_version: record.signing_key_version,
        })
    }

    /// Every sandbox placed on the node, in the order of their ids: those to run, to keep stopped, and to remove.
    pub fn assignments(&self, node_id: NodeId) -> impl Iterator<Item = (SandboxId, &SandboxRecord)> {
        let sandbox_ids = self.index.by_node.get(&node_id).map(|on_node| &on_node.sandbox_ids);
        sandbox_ids
            .into_iter()
            .flatten()
            .filter_map(|sandbox_id| Some((*sandbox_id, self.sandboxes.get(sandbox_id)?)))
    }

    /// The sandbox that has this name now.
    pub fn by_name(
        &self,
        organization_id: OrganizationId,
        name: &str,
    ) -> Option<(SandboxId, &SandboxRecord)> {
        let sandbox_id = *self.names.get(&organization_id)?.get(name)?;
        Some((sandbox_id, self.sandboxes.get(&sandbox_id)?))
    }

    /// One page of an organization's sandboxes that `wanted` accepts (see [`SandboxFilter::matches`]), newest first.
    /// `after` is the `next` of the page before. Sandboxes made meanwhile are newer than any cursor, so no page repeats one.
    pub fn list(
        &self,
        organization_id: OrganizationId,
        wanted: impl Fn(SandboxId, &SandboxRecord) -> bool,
        after: Option<Cursor>,
        limit: usize,
    ) -> Page<'_> {
        use std::ops::Bound::{Excluded, Unbounded};
        let older_than = after.map_or(Unbounded, Excluded);
        let mut matches = self
            .index
            .by_age
            .get(&organization_id)
            .into_iter()
            .flat_map(|ages| ages.range((Unbounded, older_than)).rev())
            .filter_map(|cursor| Some((cursor.sandbox_id, self.sandboxes.get(&cursor.sandbox_id)?)))
            .filter(|(sandbox_id, record)| wanted(*sandbox_id, record));
        let items: Vec<_> = matches.by_ref().take(limit).collect();
        let last = items.last().map(|(sandbox_id, record)| Cursor::of(*sandbox_id, record));
        let next = last.filter(|_| matches.next().is_some());
        Page { items, next }
    }

    /// `None` when the token is unknown, revoked or expired.
    pub fn ssh_grant(&self, token_hash: TokenHash, now_ms: u64) -> Option<SshGrant> {
        let token = self.ssh_tokens.get(&token_hash).filter(|token| now_ms < token.expires_at_ms)?;
        Some(SshGrant { sandbox_id: token.sandbox_id, expires_at_ms: token.expires_at_ms, token_hash })
    }

    /// `None` when the token is unknown, revoked or expired.
    pub fn preview_grant(&self, token_hash: TokenHash, now_ms: u64) -> Option<PreviewGrant> {
        let token = self.preview_tokens.get(&token_hash).filter(|token| now_ms < token.expires_at_ms)?;
        Some(PreviewGrant {
            sandbox_id: token.sandbox_id,
            port: token.port,
            expires_at_ms: token.expires_at_ms,
        })
    }

    /// The members of a warm pool, those that are to be deleted too.
    pub fn members(&self, pool_id: WarmPoolId) -> impl Iterator<Item = (SandboxId, &SandboxRecord)> {
        let sandbox_ids = self.index.members.get(&pool_id);
        sandbox_ids
            .into_iter()
            .flatten()
            .filter_map(|sandbox_id| Some((*sandbox_id, self.sandboxes.get(sandbox_id)?)))
    }

    /// Every warm pool that has members here, also when there is no such pool any more.
    pub fn pools_with_members(&self) -> impl Iterator<Item = WarmPoolId> {
        self.index.members.keys().copied()
    }

    /// How many members of the pool wait to be claimed.
    pub fn ready_members(&self, pool_id: WarmPoolId) -> usize {
        self.members(pool_id).filter(|(_, record)| record.is_ready()).count()
    }

    /// What the node's sandboxes have been promised together.
    pub fn usage(&self, node_id: NodeId) -> NodeUsage {
        self.index.by_node.get(&node_id).map(|on_node| on_node.usage).unwrap_or_default()
    }

    /// When the next token or tombstone can be dropped.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.index.expiries.first().map(|(expires_at_ms, _)| *expires_at_ms)
    }
}

impl SandboxRecord {
    /// The warm pool whose member it is: nobody has it yet.
    pub fn member_of(&self) -> Option<WarmPoolId> {
        self.warm.filter(|warm| warm.claim_id.is_none()).map(|warm| warm.pool_id)
    }

    /// A member that waits to be claimed.
    pub fn is_ready(&self) -> bool {
        self.member_of().is_some() && self.desired == Desired::Running && self.phase == Phase::Running
    }
}

/// Whether a running sandbox can become what is asked for: all that differs can be changed while it runs.
pub fn is_claimable_as(member: &SandboxSpec, asked: &SandboxSpec) -> bool {
    let same_start = SandboxSpec { user: member.user.clone(), env: member.env.clone(), ..asked.clone() };
    // The image's own command runs already, as the member's user and with its environment.
    let command_is_right =
        member.entrypoint.is_empty() || (member.user == asked.user && member.env == asked.env);
    command_is_right && *member == SandboxSpec { egress: member.egress.clone(), ..same_start }
}

impl RegionNode {
    /// What is not promised yet. A node that shrank may have promised more than it holds: then nothing is free.
    pub fn free(&self, usage: NodeUsage) -> NodeUsage {
        let Resources { cpu, memory_gib, disk_gib } = self.total;
        NodeUsage {
            cpu: u64::from(cpu).saturating_sub(usage.cpu),
            memory_gib: u64::from(memory_gib).saturating_sub(usage.memory_gib),
            disk_gib: u64::from(disk_gib).saturating_sub(usage.disk_gib),
            sandboxes: u64::from(self.sandboxes_max).saturating_sub(usage.sandboxes),
        }
    }
}
