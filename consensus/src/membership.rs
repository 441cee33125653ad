//! Who votes in a Raft group: 1, 3 or 5 nodes, spread over regions, then zones; everyone else is a learner.
//! Pure: the shell tells what is, and gets one step at a time.
//!
//! ```text
//! joined ──AddLearner──▶ learner ──caught up, wanted──▶ voter ──unwanted──▶ learner ──left──▶ Remove
//! ```

use std::collections::{BTreeMap, BTreeSet};

use atoll_api::ids::{NodeId, RegionName};

use crate::state::cluster::NodeRecord;

/// Voters of a group, at most: more would make each commit wait for more nodes and gain little.
pub const VOTERS_MAX: usize = 5;

/// Where a node is and since when, which is all that counts for its vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub region: RegionName,
    pub zone: Option<String>,
    pub joined_at_ms: u64,
}

impl From<&NodeRecord> for Member {
    fn from(node: &NodeRecord) -> Self {
        Member { region: node.region.clone(), zone: node.zone.clone(), joined_at_ms: node.joined_at_ms }
    }
}

/// A group as its leader sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupMembers {
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// Learners whose log is close enough to the leader's to vote without holding up commits.
    pub caught_up: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipChange {
    AddLearner(NodeId),
    /// The whole new set. Voters that are not in it stay as learners.
    ChangeVoters(BTreeSet<NodeId>),
    /// A learner that has left the cluster.
    Remove(NodeId),
}

/// How many of `nodes` nodes vote.
pub fn voter_count(nodes: usize) -> usize {
    match nodes {
        0 => 0,
        1 | 2 => 1,
        3 | 4 => 3,
        _ => VOTERS_MAX,
    }
}

/// The best set of voters among `nodes`. The present voters stay when there are as many as wanted, all of them still
/// members, and no other set is spread better.
pub fn wanted_voters(nodes: &BTreeMap<NodeId, Member>, voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let wanted = best_spread(nodes, voters);
    let is_sound = voters.len() == wanted.len() && voters.iter().all(|node_id| nodes.contains_key(node_id));
    if is_sound && crowding(nodes, voters) <= crowding(nodes, &wanted) { voters.clone() } else { wanted }
}

/// The next step towards the wanted membership; `None`: nothing to do now. Newcomers first, as a group must know everyone
/// before it can choose; a learner that has not caught up is never given a vote.
pub fn next_change(group: &GroupMembers, nodes: &BTreeMap<NodeId, Member>) -> Option<MembershipChange> {
    let GroupMembers { voters, learners, caught_up } = group;
    let newcomer = nodes
        .iter()
        .filter(|(node_id, _)| !voters.contains(node_id) && !learners.contains(node_id))
        .min_by_key(|(node_id, member)| (member.joined_at_ms, **node_id));
    if let Some((node_id, _)) = newcomer {
        return Some(MembershipChange::AddLearner(*node_id));
    }
    let mut able = nodes.clone();
    able.retain(|node_id, _| voters.contains(node_id) || caught_up.contains(node_id));
    let wanted = wanted_voters(&able, voters);
    if !wanted.is_empty() && wanted != *voters {
        return Some(MembershipChange::ChangeVoters(wanted));
    }
    let gone = learners.iter().find(|node_id| !nodes.contains_key(node_id) && !voters.contains(node_id));
    gone.map(|node_id| MembershipChange::Remove(*node_id))
}

/// Takes one node after the other: from the region that has fewest yet, there from the emptiest zone, a present voter
/// rather than another, the oldest rather than a newer one.
fn best_spread(nodes: &BTreeMap<NodeId, Member>, voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut chosen: BTreeSet<NodeId> = BTreeSet::new();
    let mut in_region: BTreeMap<&RegionName, usize> = BTreeMap::new();
    let mut in_zone: BTreeMap<(&RegionName, &Option<String>), usize> = BTreeMap::new();
    for _ in 0..voter_count(nodes.len()) {
        let rank = |(node_id, member): &(&NodeId, &Member)| {
            (
                in_region.get(&member.region).copied().unwrap_or(0),
                in_zone.get(&(&member.region, &member.zone)).copied().unwrap_or(0),
                !voters.contains(node_id),
                member.joined_at_ms,
                **node_id,
            )
        };
        let free = nodes.iter().filter(|(node_id, _)| !chosen.contains(node_id));
        let Some((node_id, member)) = free.min_by_key(rank) else { break };
        chosen.insert(*node_id);
        *in_region.entry(&member.region).or_default() += 1;
        *in_zone.entry((&member.region, &member.zone)).or_default() += 1;
    }
    chosen
}

/// Smaller is better spread: how many pairs of voters share a region; then, a zone.
fn crowding(nodes: &BTreeMap<NodeId, Member>, voters: &BTreeSet<NodeId>) -> (usize, usize) {
    let mut in_region: BTreeMap<&RegionName, usize> = BTreeMap::new();
    let mut in_zone: BTreeMap<(&RegionName, &Option<String>), usize> = BTreeMap::new();
    for member in voters.iter().filter_map(|node_id| nodes.get(node_id)) {
        *in_region.entry(&member.region).or_default() += 1;
        *in_zone.entry((&member.region, &member.zone)).or_default() += 1;
    }
    let pairs = |count: &usize| count * (count - 1) / 2;
    (in_region.values().map(pairs).sum(), in_zone.values().map(pairs).sum())
}

#[cfg(test)]
mod tests;
