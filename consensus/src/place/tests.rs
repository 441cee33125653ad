//! Where sandboxes go, and what is said when they go nowhere.

use atoll_api::ids::NodeId;
use proptest::prelude::*;

use super::*;
use crate::state::region::tests::world::{ROOM, SANDBOXES_MAX, SMALL, World, create, new_sandbox};

const HEARD: NodeLoadView =
    NodeLoadView { heard_ms_ago: Some(10), creates_in_flight: 0, cpu_busy_permille: 0, quarantined: false };

struct Scene {
    world: World,
    loads: BTreeMap<NodeId, NodeLoadView>,
    refused_by: BTreeSet<NodeId>,
    resources: Resources,
    asking: u64,
}

impl Scene {
    /// Empty nodes 1 to `count`, all heard from; node 99, which is elsewhere, asks.
    fn with_nodes(count: u64) -> Scene {
        Scene {
            world: World::with_nodes(count),
            loads: (1..=count).map(|node| (NodeId(node), HEARD)).collect(),
            refused_by: BTreeSet::new(),
            resources: SMALL,
            asking: 99,
        }
    }

    fn load(mut self, node: u64, load: NodeLoadView) -> Scene {
        self.loads.insert(NodeId(node), load);
        self
    }

    fn holding(mut self, node: u64, count: u8) -> Scene {
        for n in 0..count {
            let n = 10 * node as u8 + n;
            self.world.accept(create(n, new_sandbox(&format!("s{n}"), node)));
        }
        self
    }

    fn place(&self, random: u64) -> Result<NodeId, WhyNot> {
        let request = PlaceRequest {
            resources: self.resources,
            asking_node_id: NodeId(self.asking),
            refused_by: &self.refused_by,
            random,
        };
        place(&ClusterState::default(), &self.world.state, &self.loads, &request)
    }

    fn why_not(&self) -> String {
        let text = self.place(0).unwrap_err().to_string();
        text.strip_prefix("no node can take this sandbox: ").expect("says what failed").to_owned()
    }
}

#[test]
fn the_error_names_for_each_node_why_it_was_passed_over() {
    let id = |node: u64| NodeId(node).to_string();
    let one = |load| Scene::with_nodes(1).load(1, load).why_not();
    let needs = |resources| Scene { resources, ..Scene::with_nodes(1) }.why_not();
    let judged =
        |health| Scene { world: World::with_nodes(1).health(1, health), ..Scene::with_nodes(1) }.why_not();
    let n1 = id(1);

    assert_eq!(Scene::with_nodes(0).why_not(), "the region has no nodes");
    assert_eq!(judged(NodeHealth::Down), format!("{n1}: down"));
    assert_eq!(judged(NodeHealth::Cordoned), format!("{n1}: takes no new sandboxes"));
    assert_eq!(one(NodeLoadView::default()), format!("{n1}: not heard from yet"));
    assert_eq!(
        one(NodeLoadView { heard_ms_ago: Some(3_180), ..HEARD }),
        format!("{n1}: not heard from for 3.1 s")
    );
    assert_eq!(
        one(NodeLoadView { quarantined: true, ..HEARD }),
        format!("{n1}: creates failed there repeatedly")
    );
    assert_eq!(
        one(NodeLoadView { creates_in_flight: CREATES_IN_FLIGHT_MAX, ..HEARD }),
        format!("{n1}: busy with 128 other creates")
    );
    assert_eq!(needs(Resources { cpu: ROOM.cpu + 1, ..SMALL }), format!("{n1}: 4 of 4 CPUs free"));
    assert_eq!(
        needs(Resources { memory_gib: ROOM.memory_gib + 1, ..SMALL }),
        format!("{n1}: 8 of 8 GiB memory free")
    );
    assert_eq!(
        needs(Resources { disk_gib: ROOM.disk_gib + 1, ..SMALL }),
        format!("{n1}: 30 of 30 GiB disk free")
    );
    let both =
        Scene::with_nodes(2).holding(1, 4).load(2, NodeLoadView { heard_ms_ago: Some(9_000), ..HEARD });
    assert_eq!(both.why_not(), format!("{n1}: 0 of 4 CPUs free; {}: not heard from for 9.0 s", id(2)));
}

#[test]
fn a_node_full_of_sandboxes_says_so() {
    let mut scene = Scene::with_nodes(1);
    let nothing = Resources { cpu: 0, memory_gib: 0, disk_gib: 0 };
    for n in 0..SANDBOXES_MAX as u8 {
        let mut sandbox = new_sandbox(&format!("s{n}"), 1);
        sandbox.spec.resources = nothing;
        scene.world.accept(create(n, sandbox));
    }
    scene.resources = nothing;

    assert_eq!(scene.why_not(), format!("{}: holds all 6 sandboxes that it may", NodeId(1)));
}

#[test]
fn a_node_that_refused_is_not_asked_again() {
    let mut scene = Scene::with_nodes(2);
    scene.refused_by = [NodeId(1)].into();

    for random in 0..50 {
        assert_eq!(scene.place(random), Ok(NodeId(2)));
    }
    scene.refused_by.insert(NodeId(2));
    assert!(scene.why_not().contains("refused it just now"));
}

#[test]
fn of_two_nodes_the_less_burdened_one_is_taken() {
    let fuller = Scene::with_nodes(2).holding(1, 2);
    let busier = Scene::with_nodes(2).load(1, NodeLoadView { cpu_busy_permille: 900, ..HEARD });
    let creating = Scene::with_nodes(2).load(1, NodeLoadView { creates_in_flight: 20, ..HEARD });

    for scene in [fuller, busier, creating] {
        for random in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            assert_eq!(scene.place(random), Ok(NodeId(2)));
        }
    }
}

#[test]
fn the_asking_node_is_taken_unless_another_is_clearly_freer() {
    let mut scene = Scene::with_nodes(3);
    scene.asking = 2;
    for random in 0..50u64 {
        assert_eq!(scene.place(random.wrapping_mul(0x9e37_79b9_7f4a_7c15)), Ok(NodeId(2)));
    }

    let scene = scene.holding(2, 2);
    for random in 0..50u64 {
        assert_ne!(scene.place(random.wrapping_mul(0x9e37_79b9_7f4a_7c15)), Ok(NodeId(2)));
    }
}

#[test]
fn equal_nodes_share_the_work() {
    let scene = Scene::with_nodes(4);
    let mut chosen: BTreeMap<NodeId, u32> = BTreeMap::new();

    for draw in 1..=4_000u64 {
        *chosen.entry(scene.place(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap()).or_default() += 1;
    }

    assert!(chosen.len() == 4 && chosen.values().all(|count| *count > 600), "{chosen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_chosen_here_is_accepted_there(
        held in prop::collection::vec(0..5u8, 1..5),
        asking in 0..6u64,
        random in any::<u64>(),
        cpu in 0..6u32,
    ) {
        let mut scene = Scene::with_nodes(held.len() as u64);
        for (position, count) in held.iter().enumerate() {
            scene = scene.holding(position as u64 + 1, (*count).min(4));
        }
        scene.asking = asking;
        scene.resources = Resources { cpu, ..SMALL };
        match scene.place(random) {
            Ok(node_id) => {
                let mut sandbox = new_sandbox("new", node_id.0);
                sandbox.spec.resources = scene.resources;
                scene.world.accept(create(200, sandbox));
            }
            Err(why_not) => {
                prop_assert_eq!(why_not.nodes.len(), held.len());
                for node in 1..=held.len() as u64 {
                    let mut sandbox = new_sandbox("new", node);
                    sandbox.spec.resources = scene.resources;
                    scene.world.refuse(create(200, sandbox), crate::state::region::RegionRejection::NoRoom);
                }
            }
        }
    }
}
