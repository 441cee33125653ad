//! Judges each command against the region's state. Total (no input makes it panic), deterministic, and every command may
//! be said twice. It makes no policy: a proposal that does not fit is rejected, and the proposer looks again.

use std::collections::BTreeMap;

use atoll_api::ids::{ClaimId, Generation, NodeId, RegionOrdinal, SandboxId, WarmPoolId};
use atoll_api::sandbox::{Desired, Phase, Placement, Resources, SandboxSpec};
use atoll_api::tokens::TokenHash;

use super::capture::CaptureReport;
use super::index::{Expiring, NodeUsage};
use super::{
    CapturePurpose, Disk, Intervals, NewSandbox, NodeHealth, PreviewTokenRecord, RegionCommand, RegionNode,
    RegionOutcome, RegionRejection, RegionState, SandboxRecord, SshTokenRecord, Warm, is_claimable_as,
};

/// How long after its creation a sandbox's id is remembered although it is gone. Longer than any proposer repeats a
/// `CreateSandbox` whose answer was lost (the public API gives up after 40 s).
pub const REPEAT_WINDOW_MS: u64 = 120_000;

/// Signed preview links of one sandbox that may be valid at a time: users issue them, so their number has a bound.
pub const PREVIEW_TOKENS_PER_SANDBOX_MAX: usize = 1_000;

pub(super) type Judged = Result<(), RegionRejection>;

impl RegionState {
    pub fn apply(&mut self, command: RegionCommand) -> RegionOutcome {
        use RegionCommand::*;
        let judged = match command {
            FoundRegion { ordinal } => self.found_region(ordinal),
            OfferNode { node_id, total, sandboxes_max, now_ms } => {
                self.offer_node(node_id, total, sandboxes_max, now_ms)
            }
            JudgeNode { node_id, health, now_ms } => self.judge_node(node_id, health, now_ms),
            WithdrawNode { node_id } => self.withdraw_node(node_id),
            CreateSandbox { sandbox_id, sandbox, now_ms } => {
                self.create_sandbox(sandbox_id, None, *sandbox, now_ms)
            }
            PlaceSandbox { sandbox_id, placement, now_ms } => {
                self.place_sandbox(sandbox_id, placement, now_ms)
            }
            SetDesired { sandbox_id, desired, now_ms } => self.set_desired(sandbox_id, desired, now_ms),
            ReportPhase { sandbox_id, placement, desired_version, phase, now_ms } => {
                self.report_phase(sandbox_id, placement, desired_version, phase, now_ms)
            }
            SetEgress { sandbox_id, egress, now_ms } => {
                self.set_setting(sandbox_id, now_ms, |record| record.spec.egress = egress)
            }
            ReportDeleted { sandbox_id, placement } => self.report_deleted(sandbox_id, placement),
            SetLabels { sandbox_id, labels, now_ms } => {
                self.set_setting(sandbox_id, now_ms, |record| record.labels = labels)
            }
            SetPublic { sandbox_id, public, now_ms } => {
                self.set_setting(sandbox_id, now_ms, |record| record.public = public)
            }
            SetIntervals { sandbox_id, intervals, now_ms } => {
                self.set_setting(sandbox_id, now_ms, |record| record.set_intervals(intervals))
            }
            RotateSigningKey { sandbox_id, version, now_ms } => {
                self.rotate_signing_key(sandbox_id, version, now_ms)
            }
            IssueSshToken { token_hash, sandbox_id, expires_at_ms, now_ms } => {
                self.issue_ssh_token(token_hash, sandbox_id, expires_at_ms, now_ms)
            }
            RevokeSshTokens { sandbox_id, token_hash } => self.revoke_ssh_tokens(sandbox_id, token_hash),
            IssuePreviewToken { token_hash, sandbox_id, port, expires_at_ms } => {
                self.issue_preview_token(token_hash, sandbox_id, port, expires_at_ms)
            }
            RevokePreviewToken { sandbox_id, port, token_hash } => {
                self.revoke_preview_token(sandbox_id, port, token_hash)
            }
            ForkSandbox { parent, sandbox_id, sandbox, now_ms } => {
                self.fork_sandbox(parent, sandbox_id, *sandbox, now_ms)
            }
            CreateUnbuilt { sandbox_id, snapshot_id, sandbox, now_ms } => {
                self.create_unbuilt(sandbox_id, snapshot_id, *sandbox, now_ms)
            }
            ReportBuild { sandbox_id, snapshot_id, outcome, now_ms } => {
                self.report_build(sandbox_id, snapshot_id, outcome, now_ms)
            }
            SnapshotSandbox { sandbox_id, id, name, now_ms } => {
                self.snapshot_sandbox(sandbox_id, id, name, now_ms)
            }
            ReportCapture { sandbox_id, placement, number, outcome, refused, now_ms } => {
                let report = CaptureReport { number, outcome, refused };
                self.report_capture(sandbox_id, placement, report, now_ms)
            }
            RestoreSandbox { sandbox_id, placement, now_ms } => {
                self.restore_sandbox(sandbox_id, placement, now_ms)
            }
            ExpireTokens { now_ms } => self.expire_tokens(now_ms),
            CreateWarm { sandbox_id, pool_id, sandbox, now_ms } => {
                self.create_sandbox(sandbox_id, Some(pool_id), *sandbox, now_ms)
            }
            ClaimWarm { sandbox_id, claim_id, sandbox, now_ms } => {
                self.claim_warm(sandbox_id, claim_id, *sandbox, now_ms)
            }
            RetireWarm { sandbox_id, now_ms } => self.retire_warm(sandbox_id, now_ms),
        };
        match judged {
            Ok(()) => RegionOutcome::Applied,
            Err(rejection) => RegionOutcome::Rejected(rejection),
        }
    }

    fn found_region(&mut self, ordinal: RegionOrdinal) -> Judged {
        match *self.ordinal.get_or_insert(ordinal) == ordinal {
            true => Ok(()),
            false => Err(RegionRejection::WrongRegion),
        }
    }

    fn offer_node(&mut self, node_id: NodeId, total: Resources, sandboxes_max: u32, now_ms: u64) -> Judged {
        let node = self.nodes.entry(node_id).or_insert(RegionNode {
            total,
            sandboxes_max,
            health: NodeHealth::Ready,
            changed_at_ms: now_ms,
            cordoned: false,
        });
        node.total = total;
        node.sandboxes_max = sandboxes_max;
        Ok(())
    }

    fn judge_node(&mut self, node_id: NodeId, health: NodeHealth, now_ms: u64) -> Judged {
        let node = self.nodes.get_mut(&node_id).ok_or(RegionRejection::NodeUnknown)?;
        match health {
            NodeHealth::Ready => node.cordoned = false,
            NodeHealth::Cordoned => node.cordoned = true,
            NodeHealth::Down => {}
        }
        if node.health == health {
            return Ok(());
        }
        node.health = health;
        node.changed_at_ms = now_ms;
        if health == NodeHealth::Down {
            self.lose_sandboxes(node_id, now_ms);
        }
        Ok(())
    }

    fn lose_sandboxes(&mut self, node_id: NodeId, now_ms: u64) {
        let sandbox_ids: Vec<SandboxId> =
            self.assignments(node_id).map(|(sandbox_id, _)| sandbox_id).collect();
        for sandbox_id in sandbox_ids {
            self.fail_captures(sandbox_id, "the sandbox's node cannot be reached", now_ms);
            let Some(record) = self.sandboxes.get(&sandbox_id) else { continue };
            match record.phase {
                // All that the owner had left to do was to remove its copy. It does when it is back.
                Phase::Archiving if !record.is_archive_awaited() => self.revise(sandbox_id, |record| {
                    record.phase = Phase::Archived;
                    record.touch(now_ms);
                }),
                Phase::Starting
                | Phase::Running
                | Phase::Stopping
                | Phase::Stopped
                | Phase::Pausing
                | Phase::Paused
                | Phase::Resuming
                | Phase::Archiving => self.revise(sandbox_id, |record| {
                    record.phase = Phase::Lost;
                    record.touch(now_ms);
                }),
                Phase::Pending | Phase::Failed { .. } | Phase::Lost | Phase::Archived => {}
            }
        }
    }

    fn withdraw_node(&mut self, node_id: NodeId) -> Judged {
        let Some(node) = self.nodes.get(&node_id) else { return Ok(()) };
        let owner_is_down = node.health == NodeHealth::Down;
        let placed = self.assignments(node_id);
        let in_use =
            placed.filter(|(_, record)| !(owner_is_down && record.desired == Desired::Deleted)).count();
        if in_use > 0 {
            return Err(RegionRejection::NodeInUse { sandboxes: in_use as u64 });
        }
        let orphans: Vec<SandboxId> = self.assignments(node_id).map(|(sandbox_id, _)| sandbox_id).collect();
        for sandbox_id in orphans {
            self.forget_sandbox(sandbox_id);
        }
        self.nodes.remove(&node_id);
        Ok(())
    }

    pub(super) fn create_sandbox(
        &mut self,
        sandbox_id: SandboxId,
        pool_id: Option<WarmPoolId>,
        sandbox: NewSandbox,
        now_ms: u64,
    ) -> Judged {
        if self.ordinal != Some(sandbox_id.region()) {
            return Err(RegionRejection::WrongRegion);
        }
        if let Some(record) = self.sandboxes.get(&sandbox_id) {
            let said_again = record.warm.map(|warm| warm.pool_id) == pool_id
                && record.parent.is_none()
                && record.build.is_none()
                && record.is_made_of(&sandbox);
            return if said_again { Ok(()) } else { Err(RegionRejection::IdTaken) };
        }
        if self.tombstones.contains_key(&sandbox_id) {
            return Err(RegionRejection::Deleting);
        }
        // The name comes first: no other node would make it free.
        if pool_id.is_none() && self.by_name(sandbox.organization_id, &sandbox.name).is_some() {
            return Err(RegionRejection::NameTaken(sandbox.name));
        }
        self.judge_room(sandbox.node_id, NodeUsage::of(sandbox.spec.resources, Desired::Running))?;

        let NewSandbox {
            organization_id,
            name,
            spec,
            labels,
            public,
            intervals,
            preview_token_hash,
            node_id,
        } = sandbox;
        if pool_id.is_none() {
            self.names.entry(organization_id).or_default().insert(name.clone(), sandbox_id);
        }
        let record = SandboxRecord {
            organization_id,
            name,
            spec,
            labels,
            public,
            auto_stop_minutes: intervals.auto_stop_minutes,
            auto_pause_minutes: intervals.auto_pause_minutes,
            auto_archive_minutes: intervals.auto_archive_minutes,
            auto_delete_minutes: intervals.auto_delete_minutes,
            preview_token_hash,
            desired: Desired::Running,
            phase: Phase::Pending,
            placement: Placement { node_id, generation: Generation::FIRST },
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            desired_version: 1,
            disk: Disk::Image,
            parent: None,
            build: None,
            captures: BTreeMap::new(),
            captures_asked: 0,
            snapshot_taken: None,
            archive_failure: None,
            restored_version: 0,
            warm: pool_id.map(|pool_id| Warm { pool_id, claim_id: None }),
            signing_key_version: 0,
        };
        self.index.add_sandbox(sandbox_id, &record);
        self.sandboxes.insert(sandbox_id, record);
        Ok(())
    }

    fn claim_warm(
        &mut self,
        sandbox_id: SandboxId,
        claim_id: ClaimId,
        sandbox: NewSandbox,
        now_ms: u64,
    ) -> Judged {
        let record = self.sandboxes.get(&sandbox_id).ok_or(RegionRejection::NotFound)?;
        let warm = record.warm.ok_or(RegionRejection::NotClaimable)?;
        match warm.claim_id {
            Some(claimed_by) if claimed_by == claim_id => return Ok(()),
            Some(_) => return Err(RegionRejection::Claimed),
            None if record.desired == Desired::Deleted => return Err(RegionRejection::Deleting),
            None => {}
        }
        let fits = record.is_ready()
            && record.organization_id == sandbox.organization_id
            && record.placement.node_id == sandbox.node_id
            && record.preview_token_hash == sandbox.preview_token_hash
            && is_claimable_as(&record.spec, &sandbox.spec);
        if !fits {
            return Err(RegionRejection::NotClaimable);
        }
        if self.nodes.get(&sandbox.node_id).is_none_or(|node| node.health != NodeHealth::Ready) {
            return Err(RegionRejection::NodeNotReady);
        }
        if self.by_name(sandbox.organization_id, &sandbox.name).is_some() {
            return Err(RegionRejection::NameTaken(sandbox.name));
        }

        self.drop_tokens_of(sandbox_id);
        let names = self.names.entry(sandbox.organization_id).or_default();
        names.insert(sandbox.name.clone(), sandbox_id);
        self.revise(sandbox_id, |record| {
            record.name = sandbox.name;
            record.spec = sandbox.spec;
            record.labels = sandbox.labels;
            record.public = sandbox.public;
            record.set_intervals(sandbox.intervals);
            record.warm = Some(Warm { claim_id: Some(claim_id), ..warm });
            record.desired_version = record.desired_version.saturating_add(1);
            record.created_at_ms = now_ms;
            record.touch(now_ms);
        });
        Ok(())
    }

    fn retire_warm(&mut self, sandbox_id: SandboxId, now_ms: u64) -> Judged {
        let record = self.sandboxes.get(&sandbox_id).ok_or(RegionRejection::NotFound)?;
        if record.member_of().is_none() {
            return Err(RegionRejection::Claimed);
        }
        if record.desired != Desired::Deleted {
            self.doom(sandbox_id, now_ms);
        }
        Ok(())
    }

    fn place_sandbox(&mut self, sandbox_id: SandboxId, placement: Placement, now_ms: u64) -> Judged {
        let record = self.live_record(sandbox_id)?;
        let current = record.placement.generation;
        if record.placement == placement {
            return Ok(());
        }
        if placement.generation.0.checked_sub(1) != Some(current.0) {
            return Err(RegionRejection::StaleGeneration { current });
        }
        if record.desired == Desired::Archived {
            return Err(RegionRejection::Archived);
        }
        if record.will_have_no_disk() {
            return Err(record.why_no_disk());
        }
        let owner = self.nodes.get(&record.placement.node_id);
        let owner_is_down = owner.is_none_or(|node| node.health == NodeHealth::Down);
        if !owner_is_down && record.phase != Phase::Pending {
            return Err(RegionRejection::OwnerAlive);
        }
        let share = NodeUsage::of(record.spec.resources, record.desired);
        // On the node where it is already, its own share does not stand in its way.
        let own = if record.placement.node_id == placement.node_id { share } else { NodeUsage::default() };
        self.judge_room_beside(placement.node_id, share, own)?;

        self.revise(sandbox_id, |record| {
            record.placement = placement;
            record.phase = Phase::Pending;
            record.touch(now_ms);
        });
        Ok(())
    }

    fn set_desired(&mut self, sandbox_id: SandboxId, desired: Desired, now_ms: u64) -> Judged {
        let record = self.sandboxes.get(&sandbox_id).ok_or(RegionRejection::NotFound)?;
        let desired = match desired {
            Desired::Stopped if record.is_ephemeral() => Desired::Deleted,
            other => other,
        };
        if record.desired == Desired::Deleted && desired != Desired::Deleted {
            return Err(RegionRejection::Deleting);
        }
        if record.desired == desired && !came_to_nothing(desired, &record.phase) {
            return Ok(());
        }
        if desired == Desired::Deleted {
            self.doom(sandbox_id, now_ms);
            return Ok(());
        }
        if record.member_of().is_some() {
            return Err(RegionRejection::Unclaimed);
        }
        if record.desired == Desired::Archived {
            let archived = record.is_archived();
            return Err(if archived { RegionRejection::Archived } else { RegionRejection::InTransition });
        }
        if record.will_have_no_disk() {
            return Err(record.why_no_disk());
        }
        match desired {
            Desired::Running => {
                let own = NodeUsage::of(record.spec.resources, record.desired);
                self.judge_return(record.placement.node_id, record.spec.resources, own)?;
            }
            Desired::Paused => judge_pause(record)?,
            Desired::Archived => judge_archive(record)?,
            Desired::Stopped | Desired::Deleted => {}
        }
        let under_way = under_way(desired, &record.phase);
        self.revise(sandbox_id, |record| {
            record.desired = desired;
            record.desired_version = record.desired_version.saturating_add(1);
            if !matches!(record.phase, Phase::Pending | Phase::Lost) {
                record.phase = under_way;
            }
            if desired == Desired::Archived {
                record.archive_failure = None;
                record.ask_capture(CapturePurpose::Archive);
            }
            record.touch(now_ms);
        });
        Ok(())
    }

    fn report_phase(
        &mut self,
        sandbox_id: SandboxId,
        placement: Placement,
        desired_version: u64,
        phase: Phase,
        now_ms: u64,
    ) -> Judged {
        let record = self.sandboxes.get(&sandbox_id).ok_or(RegionRejection::NotFound)?;
        if record.placement != placement {
            return Err(RegionRejection::StaleGeneration { current: record.placement.generation });
        }
        if record.desired == Desired::Deleted {
            return Err(RegionRejection::Deleting);
        }
        if record.desired_version != desired_version {
            return Err(RegionRejection::StaleReport);
        }
        if record.is_archived() && phase == Phase::Archived {
            return Ok(());
        }
        let is_archive_due = record.desired == Desired::Archived && !record.is_archive_awaited();
        match phase {
            Phase::Pending | Phase::Lost => return Err(RegionRejection::NotReportable),
            // Nobody owns it, or nobody has its disk yet.
            _ if record.is_archived() || record.is_disk_awaited() => {
                return Err(RegionRejection::NotReportable);
            }
            Phase::Archived if !is_archive_due => return Err(RegionRejection::NotReportable),
            Phase::Archiving if record.desired != Desired::Archived => {
                return Err(RegionRejection::NotReportable);
            }
            Phase::Starting
            | Phase::Running
            | Phase::Stopping
            | Phase::Stopped
            | Phase::Pausing
            | Phase::Paused
            | Phase::Resuming
            | Phase::Archiving
            | Phase::Archived
            | Phase::Failed { .. } => {}
        }
        let is_doomed = phase == Phase::Stopped && record.is_ephemeral();
        if record.phase != phase {
            self.revise(sandbox_id, |record| {
                record.phase = phase;
                record.touch(now_ms);
            });
        }
        if is_doomed {
            self.doom(sandbox_id, now_ms);
        }
        Ok(())
    }

    fn report_deleted(&mut self, sandbox_id: SandboxId, placement: Placement) -> Judged {
        let Some(record) = self.sandboxes.get(&sandbox_id) else { return Ok(()) };
        if record.placement != placement {
            return Err(RegionRejection::StaleGeneration { current: record.placement.generation });
        }
        if record.desired != Desired::Deleted {
            return Err(RegionRejection::StaleReport);
        }
        self.forget_sandbox(sandbox_id);
        Ok(())
    }

    /// For what is neither indexed nor a wish.
    fn set_setting(
        &mut self,
        sandbox_id: SandboxId,
        now_ms: u64,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Judged {
        self.live_record(sandbox_id)?;
        if let Some(record) = self.sandboxes.get_mut(&sandbox_id) {
            change(record);
            record.touch(now_ms);
        }
        Ok(())
    }

    fn rotate_signing_key(&mut self, sandbox_id: SandboxId, version: u32, now_ms: u64) -> Judged {
        let current = self.live_record(sandbox_id)?.signing_key_version;
        if version == current {
            return Ok(());
        }
        if current.checked_add(1) != Some(version) {
            return Err(RegionRejection::StaleSigningKey { current });
        }
        self.set_setting(sandbox_id, now_ms, |record| record.signing_key_version = version)
    }

    fn issue_ssh_token(
        &mut self,
        token_hash: TokenHash,
        sandbox_id: SandboxId,
        expires_at_ms: u64,
        now_ms: u64,
    ) -> Judged {
        self.live_record(sandbox_id)?;
        match self.ssh_tokens.get(&token_hash) {
            Some(token) if token.sandbox_id == sandbox_id => return Ok(()),
            Some(_) => return Err(RegionRejection::TokenTaken),
            None => {}
        }
        self.drop_ssh_token_of(sandbox_id);
        let token = SshTokenRecord { sandbox_id, expires_at_ms, created_at_ms: now_ms };
        self.index.add_ssh_token(token_hash, &token);
        self.ssh_tokens.insert(token_hash, token);
        Ok(())
    }

    fn revoke_ssh_tokens(&mut self, sandbox_id: SandboxId, token_hash: Option<TokenHash>) -> Judged {
        if !self.sandboxes.contains_key(&sandbox_id) {
            return Err(RegionRejection::NotFound);
        }
        let current = self.index.ssh_tokens.get(&sandbox_id).copied();
        if token_hash.is_none() || token_hash == current {
            self.drop_ssh_token_of(sandbox_id);
        }
        Ok(())
    }

    fn issue_preview_token(
        &mut self,
        token_hash: TokenHash,
        sandbox_id: SandboxId,
        port: u16,
        expires_at_ms: u64,
    ) -> Judged {
        self.live_record(sandbox_id)?;
        match self.preview_tokens.get(&token_hash) {
            Some(token) if token.sandbox_id == sandbox_id && token.port == port => return Ok(()),
            Some(_) => return Err(RegionRejection::TokenTaken),
            None => {}
        }
        let held = self.index.preview_tokens.get(&sandbox_id).map_or(0, |hashes| hashes.len());
        if held >= PREVIEW_TOKENS_PER_SANDBOX_MAX {
            return Err(RegionRejection::TooManyTokens(held as u64));
        }
        let token = PreviewTokenRecord { sandbox_id, port, expires_at_ms };
        self.index.add_preview_token(token_hash, &token);
        self.preview_tokens.insert(token_hash, token);
        Ok(())
    }

    fn revoke_preview_token(&mut self, sandbox_id: SandboxId, port: u16, token_hash: TokenHash) -> Judged {
        if !self.sandboxes.contains_key(&sandbox_id) {
            return Err(RegionRejection::NotFound);
        }
        let token = self.preview_tokens.get(&token_hash);
        if token.is_some_and(|token| token.sandbox_id == sandbox_id && token.port == port) {
            self.drop_preview_token(token_hash);
        }
        Ok(())
    }

    fn expire_tokens(&mut self, now_ms: u64) -> Judged {
        while let Some((expires_at_ms, expiring)) = self.index.expiries.first().copied() {
            if expires_at_ms > now_ms {
                break;
            }
            self.index.expiries.pop_first();
            match expiring {
                Expiring::SshToken(token_hash) => self.drop_ssh_token(token_hash),
                Expiring::PreviewToken(token_hash) => self.drop_preview_token(token_hash),
                Expiring::Tombstone(sandbox_id) => {
                    self.tombstones.remove(&sandbox_id);
                }
            }
        }
        Ok(())
    }

    /// The record, if there is one and it is not to be deleted.
    pub(super) fn live_record(&self, sandbox_id: SandboxId) -> Result<&SandboxRecord, RegionRejection> {
        match self.sandboxes.get(&sandbox_id) {
            None => Err(RegionRejection::NotFound),
            Some(record) if record.desired == Desired::Deleted => Err(RegionRejection::Deleting),
            Some(record) => Ok(record),
        }
    }

    /// May the node take a new sandbox that needs `wanted`?
    pub(super) fn judge_room(&self, node_id: NodeId, wanted: NodeUsage) -> Judged {
        self.judge_room_beside(node_id, wanted, NodeUsage::default())
    }

    fn judge_room_beside(&self, node_id: NodeId, wanted: NodeUsage, own: NodeUsage) -> Judged {
        let node = self.nodes.get(&node_id).ok_or(RegionRejection::NodeUnknown)?;
        if node.health != NodeHealth::Ready {
            return Err(RegionRejection::NodeNotReady);
        }
        let free = node.free(self.usage(node_id).minus(own));
        let fits = wanted.cpu <= free.cpu
            && wanted.memory_gib <= free.memory_gib
            && wanted.disk_gib <= free.disk_gib
            && wanted.sandboxes <= free.sandboxes;
        if fits { Ok(()) } else { Err(RegionRejection::NoRoom) }
    }

    /// May a sandbox that is on the node already run again? It has its disk and its place; only CPU and memory were given
    /// up, and a cordoned node takes back its own.
    fn judge_return(&self, node_id: NodeId, resources: Resources, own: NodeUsage) -> Judged {
        let node = self.nodes.get(&node_id).ok_or(RegionRejection::NodeUnknown)?;
        let wanted = NodeUsage::of(resources, Desired::Running);
        let free = node.free(self.usage(node_id));
        let fits = wanted.cpu - own.cpu <= free.cpu && wanted.memory_gib - own.memory_gib <= free.memory_gib;
        if fits { Ok(()) } else { Err(RegionRejection::NoRoom) }
    }

    /// Changes what is indexed of a record.
    pub(super) fn revise(&mut self, sandbox_id: SandboxId, change: impl FnOnce(&mut SandboxRecord)) {
        if let Some(record) = self.sandboxes.get_mut(&sandbox_id) {
            self.index.drop_sandbox(sandbox_id, record);
            change(record);
            self.index.add_sandbox(sandbox_id, record);
        }
    }

    /// From here on the sandbox is only its owner's task to remove it; without an owner it goes at once.
    fn doom(&mut self, sandbox_id: SandboxId, now_ms: u64) {
        self.fail_captures(sandbox_id, "the sandbox was deleted", now_ms);
        self.free_name(sandbox_id);
        self.drop_tokens_of(sandbox_id);
        self.revise(sandbox_id, |record| {
            record.desired = Desired::Deleted;
            record.desired_version = record.desired_version.saturating_add(1);
            record.captures.clear();
            record.touch(now_ms);
        });
        if self.sandboxes.get(&sandbox_id).is_some_and(SandboxRecord::is_archived) {
            self.forget_sandbox(sandbox_id);
        }
    }

    fn free_name(&mut self, sandbox_id: SandboxId) {
        let Some(record) = self.sandboxes.get(&sandbox_id) else { return };
        let Some(names) = self.names.get_mut(&record.organization_id) else { return };
        if names.get(&record.name) == Some(&sandbox_id) {
            names.remove(&record.name);
        }
        if names.is_empty() {
            self.names.remove(&record.organization_id);
        }
    }

    /// Removes the record of a doomed sandbox.
    fn forget_sandbox(&mut self, sandbox_id: SandboxId) {
        let Some(record) = self.sandboxes.remove(&sandbox_id) else { return };
        self.index.drop_sandbox(sandbox_id, &record);
        // When it was deleted later than that, nobody repeats its creation any more.
        let remembered_until_ms = record.created_at_ms.saturating_add(REPEAT_WINDOW_MS);
        if record.updated_at_ms < remembered_until_ms {
            self.tombstones.insert(sandbox_id, remembered_until_ms);
            self.index.expiries.insert((remembered_until_ms, Expiring::Tombstone(sandbox_id)));
        }
    }

    fn drop_tokens_of(&mut self, sandbox_id: SandboxId) {
        self.drop_ssh_token_of(sandbox_id);
        for token_hash in self.index.preview_tokens.get(&sandbox_id).cloned().unwrap_or_default() {
            self.drop_preview_token(token_hash);
        }
    }

    fn drop_ssh_token_of(&mut self, sandbox_id: SandboxId) {
        if let Some(token_hash) = self.index.ssh_tokens.get(&sandbox_id).copied() {
            self.drop_ssh_token(token_hash);
        }
    }

    fn drop_ssh_token(&mut self, token_hash: TokenHash) {
        if let Some(token) = self.ssh_tokens.remove(&token_hash) {
            self.index.drop_ssh_token(token_hash, &token);
        }
    }

    fn drop_preview_token(&mut self, token_hash: TokenHash) {
        if let Some(token) = self.preview_tokens.remove(&token_hash) {
            self.index.drop_preview_token(token_hash, &token);
        }
    }
}

impl SandboxRecord {
    /// It lives until it stops.
    pub fn is_ephemeral(&self) -> bool {
        self.auto_delete_minutes == 0
    }

    /// Whether a create with these words would have made it.
    pub(super) fn is_made_of(&self, sandbox: &NewSandbox) -> bool {
        self.organization_id == sandbox.organization_id
            && self.name == sandbox.name
            && is_same_but_egress(&self.spec, &sandbox.spec)
            && self.preview_token_hash == sandbox.preview_token_hash
    }

    /// Its parent's disk was not copied, or its image not built.
    pub(super) fn will_have_no_disk(&self) -> bool {
        self.disk == Disk::Awaited && matches!(self.phase, Phase::Failed { .. })
    }

    fn why_no_disk(&self) -> RegionRejection {
        match self.build {
            Some(_) => RegionRejection::NotBuilt,
            None => RegionRejection::NoDisk,
        }
    }

    fn set_intervals(&mut self, intervals: Intervals) {
        let Intervals { auto_stop_minutes, auto_pause_minutes, auto_archive_minutes, auto_delete_minutes } =
            intervals;
        self.auto_stop_minutes = auto_stop_minutes;
        self.auto_pause_minutes = auto_pause_minutes;
        self.auto_archive_minutes = auto_archive_minutes;
        self.auto_delete_minutes = auto_delete_minutes;
    }

    /// Proposers' clocks differ: the time of the last change never goes back.
    pub(super) fn touch(&mut self, now_ms: u64) {
        self.updated_at_ms = self.updated_at_ms.max(now_ms);
    }
}

/// The wish was granted once and holds no longer, or it failed: saying it again asks for another try.
fn came_to_nothing(desired: Desired, phase: &Phase) -> bool {
    match desired {
        Desired::Running => matches!(
            phase,
            Phase::Stopping | Phase::Stopped | Phase::Pausing | Phase::Paused | Phase::Failed { .. }
        ),
        Desired::Stopped => matches!(
            phase,
            Phase::Starting
                | Phase::Running
                | Phase::Pausing
                | Phase::Paused
                | Phase::Resuming
                | Phase::Failed { .. }
        ),
        Desired::Paused => matches!(phase, Phase::Running),
        Desired::Archived | Desired::Deleted => false,
    }
}

/// The phase that shows at once that the wish was taken.
fn under_way(desired: Desired, phase: &Phase) -> Phase {
    match desired {
        Desired::Running if matches!(phase, Phase::Pausing | Phase::Paused) => Phase::Resuming,
        Desired::Running => Phase::Starting,
        Desired::Paused => Phase::Pausing,
        Desired::Archived => Phase::Archiving,
        Desired::Stopped | Desired::Deleted => Phase::Stopping,
    }
}

fn judge_pause(record: &SandboxRecord) -> Judged {
    match record.phase {
        Phase::Running => Ok(()),
        Phase::Pending
        | Phase::Starting
        | Phase::Stopping
        | Phase::Pausing
        | Phase::Resuming
        | Phase::Archiving => Err(RegionRejection::InTransition),
        Phase::Stopped | Phase::Paused | Phase::Failed { .. } | Phase::Lost | Phase::Archived => {
            Err(RegionRejection::NotRunning)
        }
    }
}

fn judge_archive(record: &SandboxRecord) -> Judged {
    if record.is_ephemeral() {
        return Err(RegionRejection::Ephemeral);
    }
    match (record.desired, &record.phase) {
        (Desired::Stopped, Phase::Stopped) => Ok(()),
        (_, Phase::Stopping) | (Desired::Stopped, Phase::Pending) => Err(RegionRejection::InTransition),
        _ => Err(RegionRejection::NotStopped),
    }
}

fn is_same_but_egress(one: &SandboxSpec, other: &SandboxSpec) -> bool {
    *one == SandboxSpec { egress: one.egress.clone(), ..other.clone() }
}
