//! Where a new sandbox goes. Policy, so it stands outside the log: any node chooses from its own view, and `apply` judges.
//!
//! Two candidates, the less burdened one wins: that spreads a burst of creates made by many nodes at once, none of which
//! sees the others' choices yet. The asking node is one of the two when it can be, with a bonus: a sandbox here saves a hop.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use atoll_api::ids::NodeId;
use atoll_api::sandbox::{Desired, Resources};

use crate::state::cluster::ClusterState;
use crate::state::region::{NodeHealth, NodeUsage, RegionNode, RegionState};

/// A node that was silent for longer (five heartbeats) gets no new sandbox, well before it is judged Down.
pub const SILENT_AFTER_MS: u64 = 2_500;
/// Creates under way on one node, beyond which it is passed over.
pub const CREATES_IN_FLIGHT_MAX: u32 = 128;

/// Burdens are in thousandths of a node. Each create under way adds this.
const CREATE_BURDEN: u64 = 20;
/// The asking node wins over another unless it is burdened by this much more.
pub(crate) const LOCAL_BONUS: u64 = 150;

/// What was last heard from a node. Nodes without a view count as never heard from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeLoadView {
    /// `None`: never.
    pub heard_ms_ago: Option<u64>,
    pub creates_in_flight: u32,
    /// How busy the host's CPUs are, in thousandths of all of them.
    pub cpu_busy_permille: u32,
    /// Creates failed there repeatedly, and no probe has succeeded since.
    pub quarantined: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct PlaceRequest<'a> {
    pub resources: Resources,
    pub asking_node_id: NodeId,
    /// Nodes that have refused this very sandbox already.
    pub refused_by: &'a BTreeSet<NodeId>,
    pub random: u64,
}

/// Why each node of the region was passed over. Prints the sentence that the user reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhyNot {
    /// Sorted by name.
    pub nodes: Vec<PassedOver>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    pub node_id: NodeId,
    pub name: String,
    pub reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Down,
    Cordoned,
    NeverHeardFrom,
    NotHeardFrom { ms: u64 },
    Quarantined,
    Refused,
    Busy { creates_in_flight: u32 },
    Cpus { free: u64, total: u64 },
    Memory { free_gib: u64, total_gib: u64 },
    Disk { free_gib: u64, total_gib: u64 },
    Full { sandboxes_max: u32 },
}

/// The node that should run the sandbox. `cluster` only lends the nodes' names.
pub fn place(
    cluster: &ClusterState,
    region: &RegionState,
    loads: &BTreeMap<NodeId, NodeLoadView>,
    request: &PlaceRequest<'_>,
) -> Result<NodeId, WhyNot> {
    let mut able = Vec::new();
    let mut passed_over = Vec::new();
    for (node_id, node) in &region.nodes {
        let load = loads.get(node_id).copied().unwrap_or_default();
        let usage = region.usage(*node_id);
        let refused = request.refused_by.contains(node_id).then_some(Reason::Refused);
        match refused.or_else(|| why_not(node, usage, &load, request.resources)) {
            None => able.push((*node_id, burden(node, usage, &load, request.resources))),
            Some(reason) => {
                passed_over.push(PassedOver { node_id: *node_id, name: cluster.node_name(*node_id), reason });
            }
        }
    }
    let Some((first, second)) = two_of(&able, request) else {
        passed_over.sort_by(|a, b| (&a.name, a.node_id).cmp(&(&b.name, b.node_id)));
        return Err(WhyNot { nodes: passed_over });
    };
    let handicap = |node_id| if node_id == request.asking_node_id { 0 } else { LOCAL_BONUS };
    let weight = |(node_id, burden): (NodeId, u64)| burden + handicap(node_id);
    Ok(if weight(second) < weight(first) { second.0 } else { first.0 })
}

/// The two candidates, the asking node first if it is able; the same one twice when it is alone.
fn two_of(able: &[(NodeId, u64)], request: &PlaceRequest<'_>) -> Option<((NodeId, u64), (NodeId, u64))> {
    let count = able.len();
    if count == 0 {
        return None;
    }
    let draw = |random: u64, below: usize| (random % below as u64) as usize;
    let asking = able.iter().position(|(node_id, _)| *node_id == request.asking_node_id);
    let first = asking.unwrap_or_else(|| draw(request.random >> 32, count));
    if count == 1 {
        return Some((able[first], able[first]));
    }
    // One of the others: skip over the first.
    let other = draw(request.random & 0xffff_ffff, count - 1);
    let second = if other < first { other } else { other + 1 };
    Some((able[first], able[second]))
}

/// The first thing that keeps the node from taking a sandbox, the most lasting cause first.
pub(crate) fn why_not(
    node: &RegionNode,
    usage: NodeUsage,
    load: &NodeLoadView,
    resources: Resources,
) -> Option<Reason> {
    match node.health {
        NodeHealth::Ready => {}
        NodeHealth::Cordoned => return Some(Reason::Cordoned),
        NodeHealth::Down => return Some(Reason::Down),
    }
    match load.heard_ms_ago {
        None => return Some(Reason::NeverHeardFrom),
        Some(ms) if ms > SILENT_AFTER_MS => return Some(Reason::NotHeardFrom { ms }),
        Some(_) => {}
    }
    if load.quarantined {
        return Some(Reason::Quarantined);
    }
    let free = node.free(usage);
    let total = node.total;
    let wanted = NodeUsage::of(resources, Desired::Running);
    if wanted.cpu > free.cpu {
        Some(Reason::Cpus { free: free.cpu, total: total.cpu.into() })
    } else if wanted.memory_gib > free.memory_gib {
        Some(Reason::Memory { free_gib: free.memory_gib, total_gib: total.memory_gib.into() })
    } else if wanted.disk_gib > free.disk_gib {
        Some(Reason::Disk { free_gib: free.disk_gib, total_gib: total.disk_gib.into() })
    } else if free.sandboxes == 0 {
        Some(Reason::Full { sandboxes_max: node.sandboxes_max })
    } else if load.creates_in_flight >= CREATES_IN_FLIGHT_MAX {
        Some(Reason::Busy { creates_in_flight: load.creates_in_flight })
    } else {
        None
    }
}

/// Thousandths of the node that are taken once the sandbox is there: the scarcest resource counts, and what goes on now.
pub(crate) fn burden(node: &RegionNode, usage: NodeUsage, load: &NodeLoadView, resources: Resources) -> u64 {
    let after = usage.plus(NodeUsage::of(resources, Desired::Running));
    let share = |used: u64, total: u32| used.saturating_mul(1_000) / u64::from(total).max(1);
    let promised = [
        share(after.cpu, node.total.cpu),
        share(after.memory_gib, node.total.memory_gib),
        share(after.disk_gib, node.total.disk_gib),
        share(after.sandboxes, node.sandboxes_max),
    ];
    let scarcest = promised.into_iter().fold(u64::from(load.cpu_busy_permille), u64::max);
    scarcest.saturating_add(u64::from(load.creates_in_flight) * CREATE_BURDEN)
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no node can take this sandbox: ")?;
        if self.nodes.is_empty() {
            return f.write_str("the region has no nodes");
        }
        for (position, PassedOver { name, reason, .. }) in self.nodes.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{name}: {reason}")?;
        }
        Ok(())
    }
}

impl std::error::Error for WhyNot {}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Down => f.write_str("down"),
            Reason::Cordoned => f.write_str("takes no new sandboxes"),
            Reason::NeverHeardFrom => f.write_str("not heard from yet"),
            Reason::NotHeardFrom { ms } => {
                write!(f, "not heard from for {}.{} s", ms / 1_000, ms % 1_000 / 100)
            }
            Reason::Quarantined => f.write_str("creates failed there repeatedly"),
            Reason::Refused => f.write_str("refused it just now"),
            Reason::Busy { creates_in_flight } => write!(f, "busy with {creates_in_flight} other creates"),
            Reason::Cpus { free, total } => write!(f, "{free} of {total} CPUs free"),
            Reason::Memory { free_gib, total_gib } => write!(f, "{free_gib} of {total_gib} GiB memory free"),
            Reason::Disk { free_gib, total_gib } => write!(f, "{free_gib} of {total_gib} GiB disk free"),
            Reason::Full { sandboxes_max } => write!(f, "holds all {sandboxes_max} sandboxes that it may"),
        }
    }
}

#[cfg(test)]
mod tests;
