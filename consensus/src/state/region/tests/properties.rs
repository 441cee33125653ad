//! Whatever commands come, in whatever order, these hold.

use std::collections::{BTreeMap, BTreeSet};

use atoll_api::ids::{ClaimId, Generation, NodeId, SandboxId, WarmPoolId};
use atoll_api::sandbox::{Desired, Phase, Placement, Resources};
use atoll_api::wire;
use proptest::collection::vec;
use proptest::prelude::*;

use super::world::*;
use crate::state::region::*;

/// A command, and whether what only an informed proposer knows (placement, generation, version) is put in from the state.
/// Without that, random commands would hardly ever get past the first check.
#[derive(Debug, Clone)]
struct Step {
    informed: bool,
    command: RegionCommand,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        (prop::bool::weighted(0.8), any_command()).prop_map(|(informed, command)| Step { informed, command });
    let run = prop_oneof![
        30 => step.prop_map(|step| vec![step]),
        1 => (1..=4u8).prop_map(|n| archiving(sandbox_id(n))),
    ];
    vec(run, 1..40).prop_map(|runs| runs.concat())
}

/// Fewer than elsewhere, as each case is a long history. `PROPTEST_CASES` raises it.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases / 4, failure_persistence: None, ..default }
}

/// Few of everything, so that commands meet.
fn any_command() -> impl Strategy<Value = RegionCommand> {
    use RegionCommand::*;
    let a_node = || (1..=3u64).prop_map(NodeId);
    let a_sandbox = || {
        prop_oneof![
            12 => (1..=4u8).prop_map(sandbox_id),
            1 => Just(SandboxId::new(region(1), [1; 14])),
        ]
    };
    let a_placement = || {
        (a_node(), 0..4u64)
            .prop_map(|(node_id, generation)| Placement { node_id, generation: Generation(generation) })
    };
    let a_desired = || {
        prop_oneof![
            Just(Desired::Running),
            Just(Desired::Stopped),
            Just(Desired::Paused),
            Just(Desired::Archived),
            Just(Desired::Deleted)
        ]
    };
    let a_phase = || {
        prop_oneof![
            Just(Phase::Pending),
            Just(Phase::Starting),
            Just(Phase::Running),
            Just(Phase::Stopping),
            Just(Phase::Stopped),
            Just(Phase::Pausing),
            Just(Phase::Paused),
            Just(Phase::Resuming),
            Just(Phase::Archiving),
            Just(Phase::Archived),
            Just(failed("reason")),
            Just(Phase::Lost),
        ]
    };
    let a_health =
        || prop_oneof![Just(NodeHealth::Ready), Just(NodeHealth::Cordoned), Just(NodeHealth::Down)];
    let a_time = || (0..4u64).prop_map(|step| NOW_MS + step * REPEAT_WINDOW_MS / 2);
    let a_token = || (0..6u8).prop_map(token);
    let resources = || {
        (0..3u32, 0..3u32, 0..6u32).prop_map(|(cpu, memory_gib, disk_gib)| Resources {
            cpu,
            memory_gib,
            disk_gib,
        })
    };
    let a_pool = || (1..=2u128).prop_map(|n| WarmPoolId(uuid::Uuid::from_u128(n)));
    let a_claim = || (1..=3u128).prop_map(|n| ClaimId(uuid::Uuid::from_u128(n)));
    let a_new_sandbox = || {
        (1..=2u128, 1..=3u8, resources(), a_node(), -1..2i32).prop_map(
            |(organization_number, name, resources, node_id, auto_delete_minutes)| {
                let mut sandbox = new_sandbox(&format!("n{name}"), 0);
                sandbox.organization_id = organization(organization_number);
                sandbox.spec.resources = resources;
                sandbox.node_id = node_id;
                sandbox.intervals.auto_delete_minutes = auto_delete_minutes;
                Box::new(sandbox)
            },
        )
    };
    prop_oneof![
        1 => (0..2u16).prop_map(|ordinal| FoundRegion { ordinal: region(ordinal) }),
        2 => (a_node(), resources(), 0..5u32, a_time()).prop_map(|(node_id, total, sandboxes_max, now_ms)| {
            let total = Resources { cpu: total.cpu * 4, memory_gib: total.memory_gib * 4, disk_gib: 30 };
            OfferNode { node_id, total, sandboxes_max, now_ms }
        }),
        3 => (a_node(), a_health(), a_time()).prop_map(|(node_id, health, now_ms)| JudgeNode { node_id, health, now_ms }),
        1 => a_node().prop_map(|node_id| WithdrawNode { node_id }),
        8 => (a_sandbox(), a_new_sandbox(), a_time())
            .prop_map(|(sandbox_id, sandbox, now_ms)| CreateSandbox { sandbox_id, sandbox, now_ms }),
        4 => (a_sandbox(), a_placement(), a_time())
            .prop_map(|(sandbox_id, placement, now_ms)| PlaceSandbox { sandbox_id, placement, now_ms }),
        8 => (a_sandbox(), a_desired(), a_time())
            .prop_map(|(sandbox_id, desired, now_ms)| SetDesired { sandbox_id, desired, now_ms }),
        8 => (a_sandbox(), a_placement(), 0..4u64, a_phase(), a_time()).prop_map(
            |(sandbox_id, placement, desired_version, phase, now_ms)| {
                ReportPhase { sandbox_id, placement, desired_version, phase, now_ms }
            }
        ),
        3 => (a_sandbox(), a_placement())
            .prop_map(|(sandbox_id, placement)| ReportDeleted { sandbox_id, placement }),
        1 => (a_sandbox(), a_time())
            .prop_map(|(sandbox_id, now_ms)| SetLabels { sandbox_id, labels: Default::default(), now_ms }),
        1 => (a_sandbox(), any::<bool>(), a_time()).prop_map(|(sandbox_id, block_all, now_ms)| {
            let egress = atoll_api::sandbox::Egress { block_all, ..Default::default() };
            SetEgress { sandbox_id, egress, now_ms }
        }),
        1 => (a_sandbox(), any::<bool>(), a_time())
            .prop_map(|(sandbox_id, public, now_ms)| SetPublic { sandbox_id, public, now_ms }),
        1 => (a_sandbox(), -1..2i32, a_time()).prop_map(|(sandbox_id, auto_delete_minutes, now_ms)| {
            let intervals = Intervals { auto_stop_minutes: 1, auto_pause_minutes: 0, auto_archive_minutes: 1, auto_delete_minutes };
            SetIntervals { sandbox_id, intervals, now_ms }
        }),
        1 => (a_sandbox(), 0..3u32, a_time())
            .prop_map(|(sandbox_id, version, now_ms)| RotateSigningKey { sandbox_id, version, now_ms }),
        2 => (a_token(), a_sandbox(), a_time()).prop_map(|(token_hash, sandbox_id, expires_at_ms)| {
            IssueSshToken { token_hash, sandbox_id, expires_at_ms, now_ms: NOW_MS }
        }),
        1 => (a_sandbox(), prop::option::of(a_token()))
            .prop_map(|(sandbox_id, token_hash)| RevokeSshTokens { sandbox_id, token_hash }),
        2 => (a_token(), a_sandbox(), 1..3u16, a_time()).prop_map(|(token_hash, sandbox_id, port, expires_at_ms)| {
            IssuePreviewToken { token_hash, sandbox_id, port, expires_at_ms }
        }),
        1 => (a_sandbox(), 1..3u16, a_token()).prop_map(|(sandbox_id, port, token_hash)| {
            RevokePreviewToken { sandbox_id, port, token_hash }
        }),
        4 => (a_sandbox(), a_sandbox(), a_new_sandbox(), a_time()).prop_map(
            |(parent, sandbox_id, sandbox, now_ms)| ForkSandbox { parent, sandbox_id, sandbox, now_ms }
        ),
        4 => (a_sandbox(), 1..=2u128, a_new_sandbox(), a_time()).prop_map(|(sandbox_id, id, sandbox, now_ms)| {
            CreateUnbuilt { sandbox_id, snapshot_id: uuid::Uuid::from_u128(id), sandbox, now_ms }
        }),
        4 => (a_sandbox(), 1..=2u128, any::<bool>(), a_time()).prop_map(|(sandbox_id, id, built, now_ms)| {
            let outcome = match built {
                true => BuildOutcome::Built { image: "built".into(), user: "u".into(), entrypoint: vec!["e".into()] },
                false => BuildOutcome::Failed { reason: "reason".into() },
            };
            ReportBuild { sandbox_id, snapshot_id: uuid::Uuid::from_u128(id), outcome, now_ms }
        }),
        2 => (a_sandbox(), 1..=3u128, a_time()).prop_map(|(sandbox_id, id, now_ms)| {
            SnapshotSandbox { sandbox_id, id: uuid::Uuid::from_u128(id), name: format!("snapshot{id}"), now_ms }
        }),
        6 => (a_sandbox(), a_placement(), 0..4u64, any::<bool>(), a_time()).prop_map(
            |(sandbox_id, placement, number, taken, now_ms)| {
                let outcome = match taken {
                    true => CaptureOutcome::Taken(checkpoint(number as u8)),
                    false => CaptureOutcome::Failed { reason: "reason".into() },
                };
                ReportCapture { sandbox_id, placement, number, outcome, refused: Default::default(), now_ms }
            }
        ),
        4 => (a_sandbox(), a_placement(), a_time())
            .prop_map(|(sandbox_id, placement, now_ms)| RestoreSandbox { sandbox_id, placement, now_ms }),
        1 => a_time().prop_map(|now_ms| ExpireTokens { now_ms }),
        6 => (a_sandbox(), a_pool(), a_new_sandbox(), a_time())
            .prop_map(|(sandbox_id, pool_id, sandbox, now_ms)| CreateWarm { sandbox_id, pool_id, sandbox, now_ms }),
        6 => (a_sandbox(), a_claim(), a_new_sandbox(), a_time())
            .prop_map(|(sandbox_id, claim_id, sandbox, now_ms)| ClaimWarm { sandbox_id, claim_id, sandbox, now_ms }),
        2 => (a_sandbox(), a_time()).prop_map(|(sandbox_id, now_ms)| RetireWarm { sandbox_id, now_ms }),
    ]
}

/// What leads to an archived sandbox: by chance alone that hardly ever happens.
fn archiving(sandbox_id: SandboxId) -> Vec<Step> {
    let (placement, now_ms) = (at(1, 1), NOW_MS);
    let report =
        |phase| RegionCommand::ReportPhase { sandbox_id, placement, desired_version: 0, phase, now_ms };
    let wish = |desired| RegionCommand::SetDesired { sandbox_id, desired, now_ms };
    let taken = CaptureOutcome::Taken(checkpoint(1));
    let commands = [
        report(Phase::Running),
        wish(Desired::Stopped),
        report(Phase::Stopped),
        wish(Desired::Archived),
        RegionCommand::ReportCapture {
            sandbox_id,
            placement,
            number: u64::MAX,
            outcome: taken,
            refused: Default::default(),
            now_ms,
        },
        report(Phase::Archived),
    ];
    commands.into_iter().map(|command| Step { informed: true, command }).collect()
}

impl Step {
    fn command(&self, state: &RegionState) -> RegionCommand {
        let mut command = self.command.clone();
        if !self.informed {
            return command;
        }
        match &mut command {
            RegionCommand::PlaceSandbox { sandbox_id, placement, .. }
            | RegionCommand::RestoreSandbox { sandbox_id, placement, .. } => {
                if let Some(record) = state.sandboxes.get(sandbox_id) {
                    placement.generation = record.placement.generation.next();
                }
            }
            RegionCommand::ReportPhase { sandbox_id, placement, desired_version, .. } => {
                if let Some(record) = state.sandboxes.get(sandbox_id) {
                    *placement = record.placement;
                    *desired_version = record.desired_version;
                }
            }
            RegionCommand::ReportDeleted { sandbox_id, placement }
            | RegionCommand::ReportCapture { sandbox_id, placement, .. } => {
                if let Some(record) = state.sandboxes.get(sandbox_id) {
                    *placement = record.placement;
                }
            }
            RegionCommand::ReportBuild { sandbox_id, snapshot_id, .. } => {
                if let Some(build) = state.sandboxes.get(sandbox_id).and_then(|record| record.build) {
                    *snapshot_id = build;
                }
            }
            RegionCommand::ClaimWarm { sandbox_id, sandbox, .. } => {
                if let Some(record) = state.sandboxes.get(sandbox_id) {
                    sandbox.organization_id = record.organization_id;
                    sandbox.spec = record.spec.clone();
                    sandbox.preview_token_hash = record.preview_token_hash;
                    sandbox.node_id = record.placement.node_id;
                }
            }
            _ => {}
        }
        command
    }
}

/// Plays the steps on a region of three nodes; `each` sees the state before, the command, the outcome, the state after.
fn play(steps: &[Step], mut each: impl FnMut(&RegionState, &RegionCommand, &RegionOutcome, &RegionState)) {
    let mut state = World::with_nodes(3).state;
    for step in steps {
        let before = state.clone();
        let command = step.command(&before);
        let outcome = state.apply(command.clone());
        each(&before, &command, &outcome, &state);
    }
}

fn was_archived(state: &RegionState, sandbox_id: &SandboxId) -> bool {
    state.sandboxes.get(sandbox_id).is_some_and(SandboxRecord::is_archived)
}

/// Living, and somebody's: members of warm pools have neither name nor place in a list.
fn named(state: &RegionState) -> impl Iterator<Item = (&SandboxId, &SandboxRecord)> {
    live(state).filter(|(_, record)| record.member_of().is_none())
}

fn live(state: &RegionState) -> impl Iterator<Item = (&SandboxId, &SandboxRecord)> {
    state.sandboxes.iter().filter(|(_, record)| record.desired != Desired::Deleted)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn invariants_hold_and_the_state_survives_storage_at_every_step(steps in steps()) {
        play(&steps, |_, command, _, after| {
            after.check_invariants();
            let stored = wire::encode(after).unwrap();
            let read: RegionState = wire::decode(&stored).unwrap();
            assert_eq!(&read, after);
            assert_eq!(wire::encode(&read).unwrap(), stored, "byte for byte");
            let said: RegionCommand = wire::decode(&wire::encode(command).unwrap()).unwrap();
            assert_eq!(&said, command);
        });
    }

    #[test]
    fn a_command_said_twice_counts_once_and_a_rejected_one_not_at_all(steps in steps()) {
        play(&steps, |before, command, outcome, after| {
            if *outcome != APPLIED {
                assert_eq!(before, after, "{command:?}");
            }
            let mut again = after.clone();
            let second = again.apply(command.clone());
            assert_eq!(&again, after, "{command:?}");
            // The first report of the stop has doomed the ephemeral sandbox.
            let doomed_it = matches!(command, RegionCommand::ReportPhase { phase: Phase::Stopped, .. })
                && second == rejected(RegionRejection::Deleting);
            // The first delete has removed the archived sandbox's record.
            let removed_it = matches!(command, RegionCommand::SetDesired { sandbox_id, .. } if was_archived(before, sandbox_id))
                && second == rejected(RegionRejection::NotFound);
            assert!(second == *outcome || doomed_it || removed_it, "{command:?}: {outcome:?}, then {second:?}");
        });
    }

    #[test]
    fn replicas_that_apply_the_same_bytes_are_equal(steps in steps()) {
        let mut log = Vec::new();
        let mut last = RegionState::default();
        play(&steps, |_, command, _, after| {
            log.push(wire::encode(command).unwrap());
            last = after.clone();
        });
        // One that was restored from a snapshot half-way and one that was not.
        let mut replica = World::with_nodes(3).state;
        for (position, entry) in log.iter().enumerate() {
            if position == log.len() / 2 {
                replica = wire::decode(&wire::encode(&replica).unwrap()).unwrap();
            }
            replica.apply(wire::decode(entry).unwrap());
        }
        prop_assert_eq!(wire::encode(&replica).unwrap(), wire::encode(&last).unwrap());
        prop_assert_eq!(replica, last);
    }

    #[test]
    fn a_generation_has_one_owner_and_never_decreases(steps in steps()) {
        let mut owners: BTreeMap<(SandboxId, Generation), NodeId> = BTreeMap::new();
        play(&steps, |before, command, _, after| {
            for (sandbox_id, record) in &after.sandboxes {
                let Placement { node_id, generation } = record.placement;
                match before.sandboxes.get(sandbox_id) {
                    Some(earlier) => assert!(generation >= earlier.placement.generation, "{command:?}"),
                    // A new life: nobody remembers the earlier one (see tombstones).
                    None => owners.retain(|(owned, _), _| owned != sandbox_id),
                }
                let owner = *owners.entry((*sandbox_id, generation)).or_insert(node_id);
                assert_eq!(owner, node_id, "{sandbox_id} generation {generation} after {command:?}");
            }
        });
    }

    #[test]
    fn a_delete_always_wins(steps in steps()) {
        play(&steps, |before, command, _, after| {
            for (sandbox_id, record) in &before.sandboxes {
                if record.desired == Desired::Deleted {
                    let still = after.sandboxes.get(sandbox_id).map(|record| record.desired);
                    assert!(matches!(still, None | Some(Desired::Deleted)), "{command:?}");
                }
                if let RegionCommand::SetDesired { sandbox_id: wished, desired: Desired::Deleted, .. } = command
                    && wished == sandbox_id
                {
                    let still = after.sandboxes.get(sandbox_id).map(|record| record.desired);
                    assert!(still == Some(Desired::Deleted) || record.is_archived() && still.is_none());
                }
            }
        });
    }

    #[test]
    fn an_archived_sandbox_keeps_its_checkpoint_until_it_is_deleted(steps in steps()) {
        play(&steps, |before, command, _, after| {
            for (sandbox_id, record) in live(before).filter(|(_, record)| record.is_archived()) {
                let Some(later) = after.sandboxes.get(sandbox_id) else { continue };
                assert_eq!(later.disk, record.disk, "{command:?}");
                let restored = later.desired == Desired::Running
                    && later.placement.generation == record.placement.generation.next();
                assert!(later.is_archived() && later.placement == record.placement || restored, "{command:?}");
            }
        });
    }

    #[test]
    fn every_capture_is_answered_or_still_asked_for(steps in steps()) {
        play(&steps, |before, command, _, after| {
            for (sandbox_id, record) in &before.sandboxes {
                let Some(later) = after.sandboxes.get(sandbox_id) else { continue };
                for (number, purpose) in record.captures.iter().filter(|(n, _)| !later.captures.contains_key(n)) {
                    match purpose {
                        CapturePurpose::Snapshot { .. } => assert!(later.snapshot_taken.is_some()),
                        CapturePurpose::Fork { child } => {
                            let child = after.sandboxes.get(child);
                            let waits = child.is_some_and(|child| {
                                child.is_disk_awaited() && !matches!(child.phase, Phase::Failed { .. })
                            });
                            assert!(!waits, "capture {number}, {command:?}");
                        }
                        CapturePurpose::Archive => {
                            let settled = later.desired != Desired::Archived || later.disk != Disk::Image;
                            assert!(settled, "capture {number}, {command:?}");
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn a_record_goes_only_when_it_was_to_be_deleted(steps in steps()) {
        play(&steps, |before, command, _, after| {
            for (sandbox_id, record) in live(before) {
                let is_wished = matches!(command, RegionCommand::SetDesired { sandbox_id: wished, desired: Desired::Deleted, .. } if wished == sandbox_id);
                // Without an owner there is nobody who would have to remove anything first.
                let deleted = record.is_archived() && is_wished;
                assert!(deleted || after.sandboxes.contains_key(sandbox_id), "{command:?} lost {sandbox_id}");
            }
        });
    }

    #[test]
    fn names_of_living_sandboxes_are_unique(steps in steps()) {
        play(&steps, |_, command, _, after| {
            let mut names = BTreeSet::new();
            for (_, record) in named(after) {
                assert!(names.insert((record.organization_id, &record.name)), "{command:?}");
            }
            assert_eq!(after.names.values().map(BTreeMap::len).sum::<usize>(), names.len());
        });
    }

    #[test]
    fn a_claim_is_for_one_create_and_nothing_takes_it_back(steps in steps()) {
        play(&steps, |before, command, outcome, after| {
            for (sandbox_id, earlier) in &before.sandboxes {
                let (Some(earlier), Some(later)) = (earlier.warm, after.sandboxes.get(sandbox_id)) else { continue };
                let later = later.warm.expect("it stays a pool's sandbox");
                assert_eq!(later.pool_id, earlier.pool_id);
                let claimed_now = later.claim_id != earlier.claim_id;
                let by_this = matches!(command, RegionCommand::ClaimWarm { sandbox_id: claimed, claim_id, .. }
                    if claimed == sandbox_id && later.claim_id == Some(*claim_id));
                assert!(!claimed_now || (earlier.claim_id.is_none() && by_this && *outcome == APPLIED), "{command:?}");
            }
        });
    }

    #[test]
    fn no_command_promises_more_than_a_node_has(steps in steps()) {
        play(&steps, |before, command, _, after| {
            for (node_id, node) in &after.nodes {
                let mut promised = NodeUsage::default();
                for (_, record) in after.sandboxes.iter().filter(|(_, r)| r.placement.node_id == *node_id) {
                    promised = promised.plus(NodeUsage::by(record));
                }
                assert_eq!(after.usage(*node_id), promised);
                let grew = promised.cpu > before.usage(*node_id).cpu
                    || promised.memory_gib > before.usage(*node_id).memory_gib;
                let fits = promised.cpu <= u64::from(node.total.cpu)
                    && promised.memory_gib <= u64::from(node.total.memory_gib);
                // A node that shrank holds too much; nothing may be added to it in that resource.
                if grew && node == &before.nodes[node_id] {
                    let cpu_ok = promised.cpu <= u64::from(node.total.cpu).max(before.usage(*node_id).cpu);
                    let memory_ok =
                        promised.memory_gib <= u64::from(node.total.memory_gib).max(before.usage(*node_id).memory_gib);
                    assert!(fits || (cpu_ok && memory_ok), "{command:?}");
                }
            }
        });
    }

    #[test]
    fn pages_of_any_size_join_up_to_the_whole_list(steps in steps(), limit in 1..5usize) {
        let mut last = RegionState::default();
        play(&steps, |_, _, _, after| last = after.clone());
        for number in 1..=2 {
            let whole = last.list(organization(number), |_, _| true, None, usize::MAX).items;
            let of_organization =
                last.sandboxes.values().filter(|record| {
                    record.organization_id == organization(number) && record.member_of().is_none()
                }).count();
            prop_assert_eq!(whole.len(), of_organization);
            let mut joined = Vec::new();
            let mut after = None;
            loop {
                let page = last.list(organization(number), |_, _| true, after, limit);
                joined.extend(page.items);
                let Some(next) = page.next else { break };
                after = Some(next.to_string().parse().unwrap());
            }
            prop_assert_eq!(joined, whole);
        }
    }
}

/// The plainest thing that could be right about ids, names and deletes, with nodes that always have room.
#[derive(Default)]
struct Model {
    sandboxes: Vec<Modelled>,
}

struct Modelled {
    n: u8,
    name: u8,
    life: Life,
}

#[derive(PartialEq)]
enum Life {
    Alive,
    Doomed,
    Gone,
}

#[derive(Debug, Clone, Copy)]
enum Deed {
    Create { n: u8, name: u8 },
    Delete { n: u8 },
    Removed { n: u8 },
}

impl Model {
    fn expect(&mut self, deed: Deed) -> RegionOutcome {
        let name_taken = |name| self.sandboxes.iter().any(|s| s.name == name && s.life == Life::Alive);
        let (Deed::Create { n, .. } | Deed::Delete { n } | Deed::Removed { n }) = deed;
        let taken = if let Deed::Create { name, .. } = deed { name_taken(name) } else { false };
        let known = self.sandboxes.iter_mut().find(|s| s.n == n);
        match (deed, known) {
            (Deed::Create { name, .. }, Some(s)) if s.life != Life::Gone && s.name == name => APPLIED,
            (Deed::Create { .. }, Some(s)) if s.life != Life::Gone => rejected(RegionRejection::IdTaken),
            (Deed::Create { .. }, Some(_)) => rejected(RegionRejection::Deleting),
            (Deed::Create { name, .. }, None) if taken => {
                rejected(RegionRejection::NameTaken(format!("n{name}")))
            }
            (Deed::Create { name, .. }, None) => {
                self.sandboxes.push(Modelled { n, name, life: Life::Alive });
                APPLIED
            }
            (Deed::Delete { .. }, Some(s)) if s.life != Life::Gone => {
                s.life = Life::Doomed;
                APPLIED
            }
            (Deed::Delete { .. }, _) => rejected(RegionRejection::NotFound),
            (Deed::Removed { .. }, Some(s)) if s.life == Life::Alive => {
                rejected(RegionRejection::StaleReport)
            }
            (Deed::Removed { .. }, Some(s)) => {
                s.life = Life::Gone;
                APPLIED
            }
            (Deed::Removed { .. }, None) => APPLIED,
        }
    }
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        3 => (1..=6u8, 1..=3u8).prop_map(|(n, name)| Deed::Create { n, name }),
        2 => (1..=6u8).prop_map(|n| Deed::Delete { n }),
        1 => (1..=6u8).prop_map(|n| Deed::Removed { n }),
    ];
    vec(deed, 1..60)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn create_and_delete_do_what_the_plainest_model_does(deeds in deeds()) {
        let mut world = World::with_nodes(1);
        let total = Resources { cpu: 1_000, memory_gib: 1_000, disk_gib: 1_000 };
        world.accept(RegionCommand::OfferNode { node_id: NodeId(1), total, sandboxes_max: 1_000, now_ms: NOW_MS });
        let mut model = Model::default();
        for deed in deeds {
            let command = match deed {
                Deed::Create { n, name } => create(n, new_sandbox(&format!("n{name}"), 1)),
                Deed::Delete { n } => world.wish(n, Desired::Deleted),
                Deed::Removed { n } => report_deleted(n, at(1, 1)),
            };

            let outcome = world.apply(command);

            prop_assert_eq!(outcome, model.expect(deed), "{:?}", deed);
            for modelled in &model.sandboxes {
                let holder = world.state.by_name(organization(1), &format!("n{}", modelled.name));
                let holds = holder.is_some_and(|(sandbox_id, _)| sandbox_id == super::world::sandbox_id(modelled.n));
                prop_assert_eq!(holds, modelled.life == Life::Alive);
            }
        }
    }
}

#[test]
fn tens_of_thousands_of_records_do_not_slow_the_next_create() {
    let mut state = World::with_nodes(0).state;
    let total = Resources { cpu: u32::MAX, memory_gib: u32::MAX, disk_gib: u32::MAX };
    for node in 1..=10 {
        state.apply(RegionCommand::OfferNode {
            node_id: NodeId(node),
            total,
            sandboxes_max: u32::MAX,
            now_ms: NOW_MS,
        });
    }
    let mut create = |n: u32| {
        let mut random = [0u8; 14];
        random[8..12].copy_from_slice(&n.to_be_bytes());
        let command = RegionCommand::CreateSandbox {
            sandbox_id: SandboxId::new(region(0), random),
            sandbox: Box::new(new_sandbox(&format!("n{n}"), u64::from(n) % 10 + 1)),
            now_ms: NOW_MS + u64::from(n),
        };
        let start = std::time::Instant::now();
        assert_eq!(state.apply(command), APPLIED);
        start.elapsed()
    };
    // The fastest of many creates: what else the machine does can only add to it, and a scan of all records would too.
    const BATCH: u32 = 200;
    const RECORDS: u32 = 40_000;
    let early = (0..BATCH).map(&mut create).min().unwrap();
    for n in BATCH..RECORDS - BATCH {
        create(n);
    }
    let late = (RECORDS - BATCH..RECORDS).map(&mut create).min().unwrap();

    // A walk over all records takes a hundred times as long as a few steps down some trees.
    assert!(late < early * 20, "early {early:?}, late {late:?}");
}
