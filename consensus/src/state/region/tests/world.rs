//! A small region to try rules on. After every command it checks the invariants and that the state survives storage.

use atoll_api::ids::{Generation, NodeId, OrganizationId, RegionOrdinal, SandboxId};
use atoll_api::sandbox::{Desired, Phase, Placement, Resources, SandboxSpec};
use atoll_api::tokens::TokenHash;
use atoll_api::wire;

use crate::state::region::*;

pub(crate) const NOW_MS: u64 = 1_000_000;
pub(crate) const SMALL: Resources = Resources { cpu: 1, memory_gib: 1, disk_gib: 3 };
pub(crate) const ROOM: Resources = Resources { cpu: 4, memory_gib: 8, disk_gib: 30 };
pub(crate) const SANDBOXES_MAX: u32 = 6;

pub(crate) const APPLIED: RegionOutcome = RegionOutcome::Applied;

pub(crate) fn rejected(rejection: RegionRejection) -> RegionOutcome {
    RegionOutcome::Rejected(rejection)
}

pub(crate) fn region(ordinal: u16) -> RegionOrdinal {
    RegionOrdinal::new(ordinal).unwrap()
}

pub(crate) fn sandbox_id(n: u8) -> SandboxId {
    SandboxId::new(region(0), [n; 14])
}

pub(crate) fn organization(n: u128) -> OrganizationId {
    OrganizationId(uuid::Uuid::from_u128(n))
}

pub(crate) fn token(n: u8) -> TokenHash {
    TokenHash::of(&format!("token {n}"))
}

pub(crate) fn at(node: u64, generation: u64) -> Placement {
    Placement { node_id: NodeId(node), generation: Generation(generation) }
}

pub(crate) fn failed(reason: &str) -> Phase {
    Phase::Failed { reason: reason.into() }
}

pub(crate) fn checkpoint(n: u8) -> Checkpoint {
    Checkpoint {
        image: format!("atoll.internal/o/s@sha256:{n}"),
        bytes: u64::from(n),
        taken_at_ms: NOW_MS,
        holders: [NodeId(1)].into(),
    }
}

pub(crate) fn new_sandbox(name: &str, node: u64) -> NewSandbox {
    NewSandbox {
        organization_id: organization(1),
        name: name.into(),
        spec: SandboxSpec {
            snapshot: "base".into(),
            image: "atoll/base:1".into(),
            user: "daytona".into(),
            env: [("LANG".into(), "C.UTF-8".into())].into(),
            entrypoint: vec![],
            resources: SMALL,
            egress: Default::default(),
            allow_sudo: true,
        },
        labels: Default::default(),
        public: false,
        intervals: Intervals {
            auto_stop_minutes: 15,
            auto_pause_minutes: 0,
            auto_archive_minutes: 10_080,
            auto_delete_minutes: -1,
        },
        preview_token_hash: TokenHash::of(name),
        node_id: NodeId(node),
    }
}

pub(crate) fn create(n: u8, sandbox: NewSandbox) -> RegionCommand {
    RegionCommand::CreateSandbox { sandbox_id: sandbox_id(n), sandbox: Box::new(sandbox), now_ms: NOW_MS }
}

pub(crate) fn offer(node: u64) -> RegionCommand {
    RegionCommand::OfferNode {
        node_id: NodeId(node),
        total: ROOM,
        sandboxes_max: SANDBOXES_MAX,
        now_ms: NOW_MS,
    }
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) state: RegionState,
}

impl World {
    /// Region 0 with the nodes 1 to `count`, all Ready.
    pub(crate) fn with_nodes(count: u64) -> World {
        let mut world = World::default();
        world.accept(RegionCommand::FoundRegion { ordinal: region(0) });
        for node in 1..=count {
            world.accept(offer(node));
        }
        world
    }

    /// A sandbox named `s<n>` that has been made on the node and not been started.
    pub(crate) fn pending(mut self, n: u8, node: u64) -> World {
        self.accept(create(n, new_sandbox(&format!("s{n}"), node)));
        self
    }

    pub(crate) fn running(self, n: u8, node: u64) -> World {
        let mut world = self.pending(n, node);
        world.accept(world.report(n, Phase::Running));
        world
    }

    pub(crate) fn stopped(self, n: u8, node: u64) -> World {
        let mut world = self.running(n, node);
        world.accept(world.wish(n, Desired::Stopped));
        world.accept(world.report(n, Phase::Stopped));
        world
    }

    pub(crate) fn doomed(self, n: u8, node: u64) -> World {
        let mut world = self.running(n, node);
        world.accept(world.wish(n, Desired::Deleted));
        world
    }

    pub(crate) fn health(mut self, node: u64, health: NodeHealth) -> World {
        self.accept(judge(node, health));
        self
    }

    pub(crate) fn apply(&mut self, command: RegionCommand) -> RegionOutcome {
        let outcome = self.state.apply(command);
        self.state.check_invariants();
        let stored = wire::encode(&self.state).unwrap();
        assert_eq!(wire::decode::<RegionState>(&stored).unwrap(), self.state, "the state survives storage");
        outcome
    }

    pub(crate) fn accept(&mut self, command: RegionCommand) {
        let said = format!("{command:?}");
        assert_eq!(self.apply(command), APPLIED, "{said}");
    }

    /// The command is rejected so, and changes nothing.
    pub(crate) fn refuse(&mut self, command: RegionCommand, rejection: RegionRejection) {
        let before = self.state.clone();
        let said = format!("{command:?}");
        assert_eq!(self.apply(command), rejected(rejection), "{said}");
        assert_eq!(self.state, before, "a rejected command changes nothing: {said}");
    }

    pub(crate) fn record(&self, n: u8) -> &SandboxRecord {
        &self.state.sandboxes[&sandbox_id(n)]
    }

    pub(crate) fn phase(&self, n: u8) -> &Phase {
        &self.record(n).phase
    }

    /// The owner's report about the newest wish.
    pub(crate) fn report(&self, n: u8, phase: Phase) -> RegionCommand {
        let record = self.record(n);
        report(n, record.placement, record.desired_version, phase)
    }

    pub(crate) fn wish(&self, n: u8, desired: Desired) -> RegionCommand {
        RegionCommand::SetDesired { sandbox_id: sandbox_id(n), desired, now_ms: NOW_MS + 1 }
    }
}

pub(crate) fn report(n: u8, placement: Placement, desired_version: u64, phase: Phase) -> RegionCommand {
    RegionCommand::ReportPhase {
        sandbox_id: sandbox_id(n),
        placement,
        desired_version,
        phase,
        now_ms: NOW_MS + 2,
    }
}

pub(crate) fn report_deleted(n: u8, placement: Placement) -> RegionCommand {
    RegionCommand::ReportDeleted { sandbox_id: sandbox_id(n), placement }
}

pub(crate) fn judge(node: u64, health: NodeHealth) -> RegionCommand {
    RegionCommand::JudgeNode { node_id: NodeId(node), health, now_ms: NOW_MS + 3 }
}

pub(crate) fn withdraw(node: u64) -> RegionCommand {
    RegionCommand::WithdrawNode { node_id: NodeId(node) }
}

pub(crate) fn place(n: u8, placement: Placement) -> RegionCommand {
    RegionCommand::PlaceSandbox { sandbox_id: sandbox_id(n), placement, now_ms: NOW_MS + 4 }
}

pub(crate) fn ssh_token(n: u8, token_number: u8, expires_at_ms: u64) -> RegionCommand {
    RegionCommand::IssueSshToken {
        token_hash: token(token_number),
        sandbox_id: sandbox_id(n),
        expires_at_ms,
        now_ms: NOW_MS,
    }
}

pub(crate) fn preview_token(n: u8, token_number: u8, port: u16, expires_at_ms: u64) -> RegionCommand {
    RegionCommand::IssuePreviewToken {
        token_hash: token(token_number),
        sandbox_id: sandbox_id(n),
        port,
        expires_at_ms,
    }
}
