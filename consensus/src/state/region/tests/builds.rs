//! Sandboxes that wait for their image to be built.

use atoll_api::ids::NodeId;
use atoll_api::sandbox::{Desired, Phase};

use super::world::*;
use crate::state::region::RegionRejection::*;
use crate::state::region::*;

const BUILD: uuid::Uuid = uuid::Uuid::from_u128(7);

fn create_unbuilt(n: u8, node: u64) -> RegionCommand {
    let mut sandbox = new_sandbox(&format!("s{n}"), node);
    sandbox.spec.user = String::new();
    sandbox.spec.entrypoint = Vec::new();
    let sandbox = Box::new(sandbox);
    RegionCommand::CreateUnbuilt { sandbox_id: sandbox_id(n), snapshot_id: BUILD, sandbox, now_ms: NOW_MS }
}

fn report_build(n: u8, outcome: BuildOutcome) -> RegionCommand {
    RegionCommand::ReportBuild { sandbox_id: sandbox_id(n), snapshot_id: BUILD, outcome, now_ms: NOW_MS }
}

fn built() -> BuildOutcome {
    BuildOutcome::Built { image: "built".into(), user: "app".into(), entrypoint: vec!["serve".into()] }
}

fn not_built() -> BuildOutcome {
    BuildOutcome::Failed { reason: "no space".into() }
}

#[test]
fn a_sandbox_waits_for_its_build_and_then_begins_with_what_it_made() {
    let mut world = World::with_nodes(1);

    world.accept(create_unbuilt(1, 1));
    assert_eq!((world.record(1).image(), world.phase(1)), (None, &Phase::Pending));
    assert_eq!(
        world.state.unbuilt(NodeId(1)).map(|(id, _, build)| (id, build)).collect::<Vec<_>>(),
        [(sandbox_id(1), BUILD)]
    );
    world.refuse(world.report(1, Phase::Running), NotReportable);
    world.accept(report_build(1, built()));

    let record = world.record(1);
    assert_eq!((record.image(), record.spec.user.as_str()), (Some("built"), "app"));
    assert_eq!(record.spec.entrypoint, ["serve"]);
    assert_eq!(world.state.unbuilt(NodeId(1)).count(), 0);
    world.accept(world.report(1, Phase::Running));
}

#[test]
fn what_the_create_asked_for_is_not_changed_by_the_image() {
    let mut world = World::with_nodes(1);
    let mut sandbox = new_sandbox("s1", 1);
    sandbox.spec.user = "me".into();
    let sandbox = Box::new(sandbox);
    let command = RegionCommand::CreateUnbuilt {
        sandbox_id: sandbox_id(1),
        snapshot_id: BUILD,
        sandbox,
        now_ms: NOW_MS,
    };
    world.accept(command);

    world.accept(report_build(1, built()));

    assert_eq!(world.record(1).spec.user, "me");
}

#[test]
fn a_sandbox_whose_build_failed_says_why_and_can_only_be_deleted() {
    let mut world = World::with_nodes(1);
    world.accept(create_unbuilt(1, 1));

    world.accept(report_build(1, not_built()));

    assert_eq!(world.phase(1), &failed("no space"));
    for desired in [Desired::Running, Desired::Stopped] {
        world.refuse(world.wish(1, desired), NotBuilt);
    }
    world.accept(world.wish(1, Desired::Deleted));
    world.accept(report_deleted(1, world.record(1).placement));
}

#[test]
fn the_first_word_about_a_build_counts_and_only_that_of_its_own() {
    let mut world = World::with_nodes(1);
    world.accept(create_unbuilt(1, 1));
    let other = uuid::Uuid::from_u128(8);
    let outcome = built();
    world.refuse(
        RegionCommand::ReportBuild { sandbox_id: sandbox_id(1), snapshot_id: other, outcome, now_ms: NOW_MS },
        OtherBuild,
    );
    world.accept(report_build(1, built()));

    world.accept(report_build(1, not_built()));

    assert_eq!(world.record(1).image(), Some("built"));
    world.refuse(report_build(2, built()), NotFound);
    world.accept(world.wish(1, Desired::Deleted));
    world.refuse(report_build(1, built()), Deleting);
}

#[test]
fn a_create_that_is_said_again_is_the_same_also_after_the_build() {
    let mut world = World::with_nodes(1);
    world.accept(create_unbuilt(1, 1));
    world.accept(create_unbuilt(1, 1));
    world.accept(report_build(1, built()));

    world.accept(create_unbuilt(1, 1));

    world.refuse(create(1, new_sandbox("s1", 1)), IdTaken);
    world.refuse(create_unbuilt(2, 9), NodeUnknown);
}

#[test]
fn it_waits_elsewhere_when_its_node_dies() {
    let mut world = World::with_nodes(2);
    world.accept(create_unbuilt(1, 1));
    world.accept(judge(1, NodeHealth::Down));

    let (sandbox_id, placement) = (sandbox_id(1), at(2, 2));
    world.accept(RegionCommand::PlaceSandbox { sandbox_id, placement, now_ms: NOW_MS });
    world.accept(report_build(1, built()));

    assert_eq!((world.record(1).image(), world.record(1).placement), (Some("built"), at(2, 2)));
}
