//! Policy of warm pools: which members to make and where, which to give up, which to hand out. Like placement it stands
//! outside the log: whoever proposes chooses from its own view, and `apply` judges.
//!
//! A pool never stands in the way of who asks for a sandbox: members leave a quarter of each node free, few are made at a
//! time, and a create that finds no room takes that of members.

use std::collections::{BTreeMap, BTreeSet};

use atoll_api::ids::{NodeId, OrganizationId, SandboxId, WarmPoolId};
use atoll_api::sandbox::{Desired, Phase, Resources, SandboxSpec};

use crate::place::{LOCAL_BONUS, NodeLoadView, PassedOver, SILENT_AFTER_MS, WhyNot, burden, why_not};
use crate::state::cluster::ClusterState;
use crate::state::region::{NodeHealth, NodeUsage, RegionNode, RegionState, SandboxRecord, is_claimable_as};

/// Members of a region that may be on their way at a time, over all pools.
pub const CREATES_IN_FLIGHT_MAX: usize = 4;
/// Members given up in one plan; the rest follows with the next.
pub const RETIRES_MAX: usize = 64;
/// Of each node, this part is not for members.
const KEPT_FREE_DIVISOR: u32 = 4;

/// A pool of this region, as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPool {
    pub organization_id: OrganizationId,
    pub size: u32,
    /// What a member is like now; or why there can be none.
    pub member: Result<SandboxSpec, String>,
    /// After failures none is made before this time.
    pub not_before_ms: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmPlan {
    pub steps: Vec<WarmStep>,
    /// What keeps a pool from being full.
    pub troubles: BTreeMap<WarmPoolId, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarmStep {
    Create { pool_id: WarmPoolId, node_id: NodeId },
    Retire { pool_id: WarmPoolId, sandbox_id: SandboxId, because: RetireCause },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetireCause {
    /// The pool is not there any more, or its snapshot is not.
    PoolGone,
    /// The snapshot is another by now.
    Outdated,
    Surplus,
    /// Its node takes no sandboxes or is down.
    NodeLeaves,
    /// It stopped, or somebody stopped it.
    NotRunning,
    Failed {
        reason: String,
    },
}

pub fn plan_warm(
    cluster: &ClusterState,
    region: &RegionState,
    loads: &BTreeMap<NodeId, NodeLoadView>,
    pools: &BTreeMap<WarmPoolId, WantedPool>,
    now_ms: u64,
) -> WarmPlan {
    let mut plan = WarmPlan::default();
    for pool_id in region.pools_with_members().filter(|pool_id| !pools.contains_key(pool_id)) {
        let members = living(region, pool_id).map(|(sandbox_id, _)| sandbox_id);
        plan.retire(pool_id, members, &RetireCause::PoolGone);
    }
    let mut kept = BTreeMap::new();
    let mut in_flight = 0;
    for (pool_id, pool) in pools {
        let members = plan.sort_out(region, *pool_id, pool);
        in_flight += members.iter().filter(|(_, record)| !record.is_ready()).count();
        kept.insert(*pool_id, members.len() as u32);
    }
    plan.refill(cluster, region, loads, pools, &mut kept, in_flight, now_ms);
    plan.steps.sort_by_key(|step| matches!(step, WarmStep::Create { .. }));
    let retires = plan.steps.iter().filter(|step| matches!(step, WarmStep::Retire { .. })).count();
    plan.steps.drain(..retires.saturating_sub(RETIRES_MAX));
    plan
}

impl WarmPlan {
    fn retire(
        &mut self,
        pool_id: WarmPoolId,
        members: impl Iterator<Item = SandboxId>,
        because: &RetireCause,
    ) {
        self.steps.extend(members.map(|sandbox_id| WarmStep::Retire {
            pool_id,
            sandbox_id,
            because: because.clone(),
        }));
    }

    /// Gives up what is of no use or too much; the others are what the pool has.
    fn sort_out<'a>(
        &mut self,
        region: &'a RegionState,
        pool_id: WarmPoolId,
        pool: &WantedPool,
    ) -> Vec<(SandboxId, &'a SandboxRecord)> {
        if let Err(reason) = &pool.member {
            self.troubles.insert(pool_id, reason.clone());
        }
        let mut kept = Vec::new();
        for (sandbox_id, record) in living(region, pool_id) {
            match why_retire(region, record, pool) {
                Some(because) => {
                    if let RetireCause::Failed { reason } = &because {
                        self.troubles.insert(pool_id, reason.clone());
                    }
                    self.retire(pool_id, std::iter::once(sandbox_id), &because);
                }
                None => kept.push((sandbox_id, record)),
            }
        }
        // Those that run stay, the oldest first.
        kept.sort_by_key(|(sandbox_id, record)| (!record.is_ready(), record.created_at_ms, *sandbox_id));
        let surplus = kept.split_off(kept.len().min(pool.size as usize));
        self.retire(pool_id, surplus.into_iter().map(|(sandbox_id, _)| sandbox_id), &RetireCause::Surplus);
        kept
    }

    /// The emptiest pool comes first, one member at a time.
    #[allow(clippy::too_many_arguments, reason = "one caller, which has each under this name")]
    fn refill(
        &mut self,
        cluster: &ClusterState,
        region: &RegionState,
        loads: &BTreeMap<NodeId, NodeLoadView>,
        pools: &BTreeMap<WarmPoolId, WantedPool>,
        kept: &mut BTreeMap<WarmPoolId, u32>,
        in_flight: usize,
        now_ms: u64,
    ) {
        // What this very plan gives to each node: the state doesn't know it yet.
        let mut planned: BTreeMap<NodeId, NodeUsage> = BTreeMap::new();
        let mut blocked: BTreeSet<WarmPoolId> = BTreeSet::new();
        for _ in in_flight..CREATES_IN_FLIGHT_MAX {
            loop {
                let emptiest = pools
                    .iter()
                    .filter(|(pool_id, pool)| {
                        kept[*pool_id] < pool.size
                            && now_ms >= pool.not_before_ms
                            && !blocked.contains(*pool_id)
                    })
                    .min_by_key(|(pool_id, pool)| (kept[*pool_id] * 1_000 / pool.size, **pool_id));
                let Some((pool_id, pool)) = emptiest else { return };
                let Ok(member) = &pool.member else {
                    blocked.insert(*pool_id);
                    continue;
                };
                match place_member(cluster, region, loads, &planned, member.resources) {
                    Ok(node_id) => {
                        self.steps.push(WarmStep::Create { pool_id: *pool_id, node_id });
                        *kept.entry(*pool_id).or_default() += 1;
                        let share = planned.entry(node_id).or_default();
                        *share = share.plus(NodeUsage::of(member.resources, Desired::Running));
                        break;
                    }
                    Err(reason) => {
                        self.troubles.entry(*pool_id).or_insert(reason);
                        blocked.insert(*pool_id);
                    }
                }
            }
        }
    }
}

fn living(region: &RegionState, pool_id: WarmPoolId) -> impl Iterator<Item = (SandboxId, &SandboxRecord)> {
    region.members(pool_id).filter(|(_, record)| record.desired != Desired::Deleted)
}

fn why_retire(region: &RegionState, record: &SandboxRecord, pool: &WantedPool) -> Option<RetireCause> {
    let Ok(member) = &pool.member else { return Some(RetireCause::PoolGone) };
    if let Phase::Failed { reason } = &record.phase {
        return Some(RetireCause::Failed { reason: reason.clone() });
    }
    let node = region.nodes.get(&record.placement.node_id);
    if node.is_none_or(|node| node.health != NodeHealth::Ready) || record.phase == Phase::Lost {
        Some(RetireCause::NodeLeaves)
    } else if record.spec != *member || record.organization_id != pool.organization_id {
        Some(RetireCause::Outdated)
    } else if record.desired != Desired::Running
        || !matches!(record.phase, Phase::Pending | Phase::Starting | Phase::Running)
    {
        Some(RetireCause::NotRunning)
    } else {
        None
    }
}

/// The least burdened of the nodes that keep enough for others.
fn place_member(
    cluster: &ClusterState,
    region: &RegionState,
    loads: &BTreeMap<NodeId, NodeLoadView>,
    planned: &BTreeMap<NodeId, NodeUsage>,
    resources: Resources,
) -> Result<NodeId, String> {
    let mut able = Vec::new();
    let mut nodes = Vec::new();
    for (node_id, node) in &region.nodes {
        let load = loads.get(node_id).copied().unwrap_or_default();
        let usage = region.usage(*node_id).plus(planned.get(node_id).copied().unwrap_or_default());
        match why_not(node, usage.plus(kept_free(node)), &load, resources) {
            None => able.push((burden(node, usage, &load, resources), *node_id)),
            Some(reason) => {
                nodes.push(PassedOver { node_id: *node_id, name: cluster.node_name(*node_id), reason });
            }
        }
    }
    let least = able.into_iter().min();
    least.map(|(_, node_id)| node_id).ok_or_else(|| {
        nodes.sort_by(|a, b| (&a.name, a.node_id).cmp(&(&b.name, b.node_id)));
        format!("a part of each node is kept free of warm sandboxes, and beside it {}", WhyNot { nodes })
    })
}

fn kept_free(node: &RegionNode) -> NodeUsage {
    let part = |total: u32| u64::from(total.div_ceil(KEPT_FREE_DIVISOR));
    let Resources { cpu, memory_gib, disk_gib } = node.total;
    NodeUsage {
        cpu: part(cpu),
        memory_gib: part(memory_gib),
        disk_gib: part(disk_gib),
        sandboxes: part(node.sandboxes_max),
    }
}

#[derive(Debug, Clone, Copy)]
pub struct PickRequest<'a> {
    pub pool_id: WarmPoolId,
    pub asked: &'a SandboxSpec,
    pub asking_node_id: NodeId,
    /// Those that other creates of this node are about to claim.
    pub taken: &'a BTreeSet<SandboxId>,
    pub random: u64,
}

/// A member for the asker, on the node with most room; the asking node is better by the hop that it saves. Any of that
/// node's, so that askers elsewhere seldom choose the same.
pub fn pick_member(
    region: &RegionState,
    loads: &BTreeMap<NodeId, NodeLoadView>,
    request: &PickRequest<'_>,
) -> Option<(SandboxId, NodeId)> {
    let mut by_node: BTreeMap<NodeId, Vec<SandboxId>> = BTreeMap::new();
    for (sandbox_id, record) in region.members(request.pool_id) {
        let fits = record.is_ready()
            && !request.taken.contains(&sandbox_id)
            && is_claimable_as(&record.spec, request.asked);
        if fits {
            by_node.entry(record.placement.node_id).or_default().push(sandbox_id);
        }
    }
    let weight = |node_id: NodeId| {
        let node = region.nodes.get(&node_id).filter(|node| node.health == NodeHealth::Ready)?;
        let load = loads.get(&node_id).copied().unwrap_or_default();
        load.heard_ms_ago.filter(|ms| *ms <= SILENT_AFTER_MS)?;
        let handicap = if node_id == request.asking_node_id { 0 } else { LOCAL_BONUS };
        Some(burden(node, region.usage(node_id), &load, request.asked.resources) + handicap)
    };
    let best = by_node.keys().filter_map(|node_id| Some((weight(*node_id)?, *node_id))).min();
    let (_, node_id) = best?;
    let members = &by_node[&node_id];
    Some((members[(request.random % members.len() as u64) as usize], node_id))
}

/// Which members must go so that a new sandbox fits, and where: as few as can be. `None` when that would not help.
pub fn make_room(
    region: &RegionState,
    loads: &BTreeMap<NodeId, NodeLoadView>,
    resources: Resources,
    refused_by: &BTreeSet<NodeId>,
) -> Option<(NodeId, Vec<SandboxId>)> {
    let mut choices = Vec::new();
    for (node_id, node) in region.nodes.iter().filter(|(node_id, _)| !refused_by.contains(node_id)) {
        let load = loads.get(node_id).copied().unwrap_or_default();
        let fits = |usage| why_not(node, usage, &load, resources).is_none();
        if let Some(members) = evictions(region, *node_id, fits) {
            choices.push((members.len(), *node_id, members));
        }
    }
    choices.into_iter().min().map(|(_, node_id, members)| (node_id, members))
}

/// The same for a sandbox that is on the node already and is to run again, for which it needs this much more.
pub fn make_room_on(
    region: &RegionState,
    node_id: NodeId,
    more_cpu: u64,
    more_memory_gib: u64,
) -> Option<Vec<SandboxId>> {
    let node = region.nodes.get(&node_id)?;
    evictions(region, node_id, |usage| {
        let free = node.free(usage);
        more_cpu <= free.cpu && more_memory_gib <= free.memory_gib
    })
}

/// Members on their way go before those that run already.
fn evictions(
    region: &RegionState,
    node_id: NodeId,
    fits: impl Fn(NodeUsage) -> bool,
) -> Option<Vec<SandboxId>> {
    let mut members: Vec<_> = region
        .assignments(node_id)
        .filter(|(_, record)| record.member_of().is_some() && record.desired != Desired::Deleted)
        .map(|(sandbox_id, record)| (record.is_ready(), sandbox_id, record))
        .collect();
    members.sort_by_key(|(is_ready, sandbox_id, _)| (*is_ready, *sandbox_id));
    let mut usage = region.usage(node_id);
    let mut gone = Vec::new();
    for (_, sandbox_id, record) in members {
        if fits(usage) {
            break;
        }
        usage = usage.less(NodeUsage::of(record.spec.resources, record.desired));
        gone.push(sandbox_id);
    }
    (!gone.is_empty() && fits(usage)).then_some(gone)
}

#[cfg(test)]
mod tests;
