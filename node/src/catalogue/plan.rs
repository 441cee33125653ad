//! Which snapshots this node is to make ready, by what its replicas say. Pure.
//!
//! Every node of a snapshot's region comes to the same answer, so one of them begins; where two differ, the log takes the
//! first. When that one is down, another one of the region goes on.

use std::collections::BTreeMap;

use atoll_api::ids::{NodeId, RegionName};
use atoll_consensus::state::cluster::{
    ClusterState, SnapshotKey, SnapshotRecord, SnapshotSource, SnapshotState,
};
use atoll_consensus::state::region::{NodeHealth, RegionState};

/// What is being made ready here: snapshot and attempt.
pub type Working = BTreeMap<uuid::Uuid, u64>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub key: SnapshotKey,
    pub attempt: u64,
    /// Of these, how many since somebody last asked for it.
    pub tries: u64,
    pub source: SnapshotSource,
}

/// Tasks that this node should begin now.
pub fn tasks(
    me: NodeId,
    home: &RegionName,
    cluster: &ClusterState,
    region: &RegionState,
    working: &Working,
) -> Vec<Task> {
    let workers = workers(region);
    let mine = |(name, snapshot): (&String, &SnapshotRecord)| {
        let is_home = snapshot.made_in.as_ref() == Some(home);
        let begins =
            is_home && !working.contains_key(&snapshot.id) && is_begun_by(me, snapshot, &workers, region);
        begins.then(|| Task {
            key: snapshot.key(name),
            attempt: snapshot.attempt.saturating_add(1),
            tries: snapshot.attempt.saturating_add(1).saturating_sub(snapshot.attempts_before),
            source: snapshot.source.clone(),
        })
    };
    cluster.all_snapshots().filter_map(mine).collect()
}

/// Whether this attempt is still wanted: it has been claimed by this node, or may still be.
pub fn is_wanted(me: NodeId, snapshot: Option<&SnapshotRecord>, attempt: u64) -> bool {
    snapshot.is_some_and(|snapshot| {
        let is_claimed = snapshot.attempt == attempt && snapshot.worker == Some(me);
        let may_be_claimed = snapshot.attempt.checked_add(1) == Some(attempt);
        is_claimed || (may_be_claimed && is_open(snapshot))
    })
}

fn is_open(snapshot: &SnapshotRecord) -> bool {
    snapshot.state == SnapshotState::Pending || snapshot.state.is_in_work()
}

fn is_begun_by(me: NodeId, snapshot: &SnapshotRecord, workers: &[NodeId], region: &RegionState) -> bool {
    // A sandbox's layer is its owner's to take.
    if !matches!(snapshot.source, SnapshotSource::Image { .. } | SnapshotSource::Build { .. })
        || !is_open(snapshot)
    {
        return false;
    }
    match snapshot.worker.filter(|_| snapshot.state.is_in_work()) {
        // This process knows nothing of it: it began in an earlier one.
        Some(worker) if worker == me => true,
        Some(worker) => !is_up(region, worker) && chosen(snapshot, workers) == Some(me),
        None => chosen(snapshot, workers) == Some(me),
    }
}

fn is_up(region: &RegionState, node_id: NodeId) -> bool {
    region.nodes.get(&node_id).is_some_and(|node| node.health != NodeHealth::Down)
}

/// Those that take new work; where none does, those that are up.
fn workers(region: &RegionState) -> Vec<NodeId> {
    let of = |wanted: fn(NodeHealth) -> bool| {
        region.nodes.iter().filter(move |(_, node)| wanted(node.health)).map(|(node_id, _)| *node_id)
    };
    let ready: Vec<NodeId> = of(|health| health == NodeHealth::Ready).collect();
    match ready.is_empty() {
        false => ready,
        true => of(|health| health != NodeHealth::Down).collect(),
    }
}

/// Spreads snapshots over the workers; when one goes, only its own are given to others.
fn chosen(snapshot: &SnapshotRecord, workers: &[NodeId]) -> Option<NodeId> {
    let content = content(snapshot);
    workers.iter().copied().max_by_key(|node_id| (weight(content, *node_id), *node_id))
}

/// One Dockerfile is built on one node, whatever its snapshots are called: the steps that it has done are not done again.
fn content(snapshot: &SnapshotRecord) -> u64 {
    let (high, low) = match &snapshot.source {
        SnapshotSource::Build { dockerfile, .. } => {
            return dockerfile.bytes().map(u64::from).fold(SEED, mix);
        }
        SnapshotSource::Given | SnapshotSource::Image { .. } | SnapshotSource::Sandbox { .. } => {
            snapshot.id.as_u64_pair()
        }
    };
    mix(mix(SEED, high), low)
}

fn weight(content: u64, node_id: NodeId) -> u64 {
    mix(content, node_id.0)
}

const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// The same on every node and in every version.
fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use atoll_api::ids::OrganizationId;
    use atoll_api::sandbox::Resources;
    use atoll_consensus::state::region::RegionNode;

    use super::*;

    const RESOURCES: Resources = Resources { cpu: 1, memory_gib: 1, disk_gib: 1 };

    fn eu() -> RegionName {
        "eu".parse().unwrap()
    }

    fn region(healths: &[NodeHealth]) -> RegionState {
        let mut region = RegionState::default();
        for (n, health) in (1..).zip(healths) {
            let node = RegionNode {
                total: RESOURCES,
                sandboxes_max: 1,
                health: *health,
                changed_at_ms: 0,
                cordoned: false,
            };
            region.nodes.insert(NodeId(n), node);
        }
        region
    }

    fn snapshot(id: u128) -> SnapshotRecord {
        let source = SnapshotSource::Image { name: "a:1".into() };
        let organization_id = OrganizationId(uuid::Uuid::from_u128(1));
        let pending =
            SnapshotRecord::pending(uuid::Uuid::from_u128(id), organization_id, source, RESOURCES, 1);
        SnapshotRecord { made_in: Some(eu()), ..pending }
    }

    fn cluster(snapshots: impl IntoIterator<Item = SnapshotRecord>) -> ClusterState {
        let mut cluster = ClusterState::default();
        for snapshot in snapshots {
            let own = cluster.own_snapshots.entry(snapshot.organization_id.unwrap()).or_default();
            own.insert(format!("s{}", snapshot.id), snapshot);
        }
        cluster
    }

    fn begun(me: u64, cluster: &ClusterState, region: &RegionState) -> Vec<(u128, u64)> {
        let tasks = tasks(NodeId(me), &eu(), cluster, region, &Working::new());
        tasks.iter().map(|task| (task.key.id.as_u128(), task.attempt)).collect()
    }

    use NodeHealth::{Cordoned, Down, Ready};

    #[test]
    fn each_is_begun_by_one_node_and_all_nodes_get_some() {
        let cluster = cluster((0..60).map(snapshot));
        let region = region(&[Ready, Ready, Ready, Cordoned]);

        let shares: Vec<_> = (1..=4).map(|me| begun(me, &cluster, &region)).collect();

        assert!(shares[..3].iter().all(|share| share.len() > 5), "{shares:?}");
        assert!(shares[3].is_empty(), "a cordoned node takes nothing new");
        let all: BTreeSet<u128> = shares.iter().flatten().map(|(id, _)| *id).collect();
        assert_eq!((all.len(), shares.iter().flatten().count()), (60, 60));
        assert_eq!(begun(1, &cluster, &self::region(&[Cordoned, Down])).len(), 60);
        let us = tasks(NodeId(1), &"us".parse().unwrap(), &cluster, &region, &Working::new());
        assert!(us.is_empty(), "another region's");
    }

    #[test]
    fn another_goes_on_when_the_worker_is_down_and_only_then() {
        let in_work = SnapshotRecord {
            state: SnapshotState::Pulling,
            attempt: 3,
            worker: Some(NodeId(2)),
            ..snapshot(1)
        };
        let cluster = cluster([in_work]);
        let by = |region: &RegionState| -> Vec<Vec<(u128, u64)>> {
            [1, 3].map(|me| begun(me, &cluster, region)).to_vec()
        };

        assert!(by(&region(&[Ready, Ready, Ready])).concat().is_empty());
        assert!(by(&region(&[Ready, Cordoned, Ready])).concat().is_empty());
        assert_eq!(by(&region(&[Ready, Down, Ready])).concat(), [(1, 4)]);
        assert_eq!(begun(1, &cluster, &region(&[Ready])), [(1, 4)], "the worker has left");
    }

    #[test]
    fn what_an_earlier_process_began_is_begun_again() {
        let in_work = SnapshotRecord {
            state: SnapshotState::Building,
            source: SnapshotSource::Build { dockerfile: "FROM a".into(), context_hashes: vec![] },
            attempt: 1,
            worker: Some(NodeId(1)),
            ..snapshot(1)
        };
        let (cluster, region) = (cluster([in_work.clone()]), region(&[Ready, Ready]));

        assert_eq!(begun(1, &cluster, &region), [(1, 2)]);
        assert!(begun(2, &cluster, &region).is_empty());
        let working = Working::from([(in_work.id, 1)]);
        assert!(tasks(NodeId(1), &eu(), &cluster, &region, &working).is_empty());
    }

    #[test]
    fn an_attempt_is_wanted_until_another_overtakes_it_or_the_snapshot_goes() {
        let me = NodeId(1);
        let claimed =
            SnapshotRecord { state: SnapshotState::Pulling, attempt: 2, worker: Some(me), ..snapshot(1) };

        assert!(is_wanted(me, Some(&claimed), 2));
        assert!(is_wanted(me, Some(&claimed), 3), "about to be claimed");
        assert!(!is_wanted(me, Some(&claimed), 1));
        assert!(!is_wanted(NodeId(2), Some(&claimed), 2));
        assert!(!is_wanted(me, None, 2));
        let active = SnapshotRecord { state: SnapshotState::Active, ..claimed };
        assert!(!is_wanted(me, Some(&active), 3));
    }
}
