//! The policies that stand outside the log: where a sandbox goes, and what a leader proposes on its tick.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

use atoll_api::ids::NodeId;
use atoll_api::sandbox::Resources;
use atoll_consensus::place::{NodeLoadView, PlaceRequest, place};
use atoll_consensus::plan::{Liveness, PlanConfig, plan};
use atoll_consensus::state::cluster::ClusterState;
use atoll_consensus::state::region::{NodeHealth, RegionCommand};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use world::{NODES, NOW_MS, SIZES, accept, create, empty_region, region_of};

const CONFIG: PlanConfig = PlanConfig { node_down_after_ms: 6_000, leader_since_ms: 0 };

fn place_one(c: &mut Criterion) {
    let mut group = c.benchmark_group("place");
    let cluster = ClusterState::default();
    let refused = BTreeSet::new();
    for nodes in [3, 100] {
        let region = empty_region(nodes);
        let heard =
            NodeLoadView { heard_ms_ago: Some(100), cpu_busy_permille: 300, ..NodeLoadView::default() };
        let loads: BTreeMap<NodeId, NodeLoadView> = (1..=nodes).map(|node| (NodeId(node), heard)).collect();
        let mut random = 0_u64;
        group.bench_function(BenchmarkId::new("nodes", nodes), |bencher| {
            bencher.iter(|| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let request = PlaceRequest {
                    resources: Resources { cpu: 1, memory_gib: 1, disk_gib: 3 },
                    asking_node_id: NodeId(1),
                    refused_by: &refused,
                    random,
                };
                place(&cluster, &region, &loads, black_box(&request))
            });
        });
    }
    group.finish();
}

fn plan_one(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan");
    let liveness: Liveness = (1..=NODES).map(|node| (NodeId(node), Some(100))).collect();
    for size in SIZES {
        let mut region = region_of(size);
        group.bench_function(BenchmarkId::new("nothing to do", size), |bencher| {
            bencher.iter(|| plan(black_box(&region), &liveness, NOW_MS, &CONFIG));
        });

        // The node dies with its share of the running, which are Lost, and a burst of creates that nobody has begun.
        for number in size..size + 1_000 {
            accept(&mut region, create(number));
        }
        let node_id = NodeId(1);
        accept(&mut region, RegionCommand::JudgeNode { node_id, health: NodeHealth::Down, now_ms: NOW_MS });
        let mut liveness = liveness.clone();
        liveness.insert(node_id, Some(60_000));
        group.bench_function(BenchmarkId::new("a node is down", size), |bencher| {
            bencher.iter(|| plan(black_box(&region), &liveness, NOW_MS, &CONFIG));
        });
    }
    group.finish();
}

criterion_group!(benches, place_one, plan_one);
criterion_main!(benches);
