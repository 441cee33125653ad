//! A region of any size, made by the same commands that a cluster would apply.
#![allow(dead_code, reason = "each benchmark uses its own part")]

use atoll_api::ids::{Generation, NodeId, OrganizationId, RegionOrdinal, SandboxId};
use atoll_api::sandbox::{Phase, Placement, Resources, SandboxSpec};
use atoll_api::tokens::TokenHash;
use atoll_consensus::state::region::{Intervals, NewSandbox, RegionCommand, RegionOutcome, RegionState};

pub const NOW_MS: u64 = 1_700_000_000_000;
pub const NODES: u64 = 10;
pub const SIZES: [u64; 2] = [1_000, 50_000];

const SMALL: Resources = Resources { cpu: 1, memory_gib: 1, disk_gib: 3 };
/// Room for every sandbox of the greatest region, so that placement never says no.
const ROOM: Resources = Resources { cpu: 100_000, memory_gib: 100_000, disk_gib: 300_000 };

pub fn ordinal() -> RegionOrdinal {
    RegionOrdinal::new(0).expect("0 is an ordinal")
}

/// Spread like the random ids of a real region.
pub fn sandbox_id(number: u64) -> SandboxId {
    let mut bytes = [0; 14];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[6..].copy_from_slice(&number.to_be_bytes());
    SandboxId::new(ordinal(), bytes)
}

pub fn placement(number: u64) -> Placement {
    Placement { node_id: NodeId(1 + number % NODES), generation: Generation::FIRST }
}

pub fn create(number: u64) -> RegionCommand {
    let name = format!("sandbox-{number}");
    let sandbox = NewSandbox {
        organization_id: OrganizationId(uuid::Uuid::from_u128(1)),
        spec: SandboxSpec {
            snapshot: "atoll-base".into(),
            image: "atoll-base:latest".into(),
            user: "daytona".into(),
            env: [("LANG".into(), "C.UTF-8".into())].into(),
            entrypoint: Vec::new(),
            resources: SMALL,
            egress: Default::default(),
            allow_sudo: true,
        },
        labels: [("team".into(), "research".into())].into(),
        public: false,
        intervals: Intervals {
            auto_stop_minutes: 15,
            auto_pause_minutes: 0,
            auto_archive_minutes: 10_080,
            auto_delete_minutes: -1,
        },
        preview_token_hash: TokenHash::of(&name),
        node_id: placement(number).node_id,
        name,
    };
    RegionCommand::CreateSandbox {
        sandbox_id: sandbox_id(number),
        sandbox: Box::new(sandbox),
        now_ms: NOW_MS + number,
    }
}

pub fn report(number: u64, phase: Phase) -> RegionCommand {
    RegionCommand::ReportPhase {
        sandbox_id: sandbox_id(number),
        placement: placement(number),
        desired_version: 1,
        phase,
        now_ms: NOW_MS + number,
    }
}

pub fn accept(state: &mut RegionState, command: RegionCommand) {
    assert_eq!(state.apply(command), RegionOutcome::Applied);
}

pub fn empty_region(nodes: u64) -> RegionState {
    let mut state = RegionState::default();
    accept(&mut state, RegionCommand::FoundRegion { ordinal: ordinal() });
    for node in 1..=nodes {
        let (node_id, sandboxes_max) = (NodeId(node), 100_000);
        accept(&mut state, RegionCommand::OfferNode { node_id, total: ROOM, sandboxes_max, now_ms: NOW_MS });
    }
    state
}

/// So many running sandboxes on ten nodes.
pub fn region_of(sandboxes: u64) -> RegionState {
    let mut state = empty_region(NODES);
    for number in 0..sandboxes {
        accept(&mut state, create(number));
        accept(&mut state, report(number, Phase::Running));
    }
    state
}
