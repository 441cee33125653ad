//! A sandbox's disk as an image: for snapshots of it, for forks, and for its own archive. The owner takes it and reports;
//! here is what was asked for and what becomes of the answer.
//!
//! ```text
//!  SnapshotSandbox ┐                      ┌ Taken ──▶ a fork begins with it; an archive is that from now on
//!  ForkSandbox     ┼─▶ captures[number] ──┤
//!  Archived wished ┘      (owner)         └ Failed ─▶ the fork fails; the archive is stopped again
//! ```

use std::collections::{BTreeMap, BTreeSet};

use atoll_api::ids::{NodeId, SandboxId};
use atoll_api::sandbox::{Desired, Phase, Placement};
use serde::{Deserialize, Serialize};

use super::apply::Judged;
use super::index::NodeUsage;
use super::{NewSandbox, RegionRejection, RegionState, SandboxRecord};

/// Of one sandbox at a time. One look at the disk answers them all, but each is in every replica's memory.
pub const CAPTURES_MAX: usize = 64;

/// What a sandbox's disk begins with, wherever it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disk {
    /// The specification's image.
    #[default]
    Image,
    /// That of its parent, which has not been taken yet, or an image that is still being built: nobody makes it.
    Awaited,
    Checkpoint(Checkpoint),
}

/// A disk as it was at one moment, as an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Pinned by its digest; any node's store understands it.
    pub image: String,
    /// Of what the sandbox itself has written.
    pub bytes: u64,
    pub taken_at_ms: u64,
    /// Nodes that had all of it when this was decided, the owner first of all.
    pub holders: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CapturePurpose {
    /// For the catalogue, where the owner enters it before it reports.
    Snapshot {
        id: uuid::Uuid,
        name: String,
    },
    Fork {
        child: SandboxId,
    },
    Archive,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureOutcome {
    Taken(Checkpoint),
    Failed { reason: String },
}

/// An owner's answer to all captures up to `number`.
pub(super) struct CaptureReport {
    pub(super) number: u64,
    pub(super) outcome: CaptureOutcome,
    /// Snapshots that the catalogue did not take.
    pub(super) refused: BTreeMap<uuid::Uuid, String>,
}

/// What has become of a snapshot. Kept of the last one, for whoever waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    pub id: uuid::Uuid,
    pub failure: Option<String>,
}

impl SandboxRecord {
    /// What its disk is made from; `None` while that is awaited.
    pub fn image(&self) -> Option<&str> {
        match &self.disk {
            Disk::Image => Some(&self.spec.image),
            Disk::Awaited => None,
            Disk::Checkpoint(checkpoint) => Some(&checkpoint.image),
        }
    }

    /// No node owns it.
    pub fn is_archived(&self) -> bool {
        self.phase == Phase::Archived
    }

    /// The newest capture that the owner still has to take.
    pub fn capture_wanted(&self) -> Option<u64> {
        self.captures.last_key_value().map(|(number, _)| *number)
    }

    /// Whether its disk still has to be taken for the archive.
    pub fn is_archive_awaited(&self) -> bool {
        self.captures.values().any(|purpose| *purpose == CapturePurpose::Archive)
    }

    pub fn is_being_snapshotted(&self) -> bool {
        self.captures.values().any(|purpose| matches!(purpose, CapturePurpose::Snapshot { .. }))
    }

    /// It is a fork or waits for a build, and has no disk yet or will never have one.
    pub fn is_disk_awaited(&self) -> bool {
        self.disk == Disk::Awaited && self.desired != Desired::Deleted
    }

    pub(super) fn ask_capture(&mut self, purpose: CapturePurpose) {
        self.captures_asked = self.captures_asked.saturating_add(1);
        self.captures.insert(self.captures_asked, purpose);
    }
}

impl RegionState {
    /// Forks of the sandbox that are not to be deleted, in the order of their ids.
    pub fn forks(&self, parent: SandboxId) -> impl Iterator<Item = (SandboxId, &SandboxRecord)> {
        let forks = self.index.forks.get(&parent).into_iter().flatten();
        let records = forks.filter_map(|fork| Some((*fork, self.sandboxes.get(fork)?)));
        records.filter(|(_, record)| record.desired != Desired::Deleted)
    }

    pub(super) fn fork_sandbox(
        &mut self,
        parent: SandboxId,
        sandbox_id: SandboxId,
        sandbox: NewSandbox,
        now_ms: u64,
    ) -> Judged {
        if let Some(record) = self.sandboxes.get(&sandbox_id) {
            let said_again = record.parent == Some(parent) && record.is_made_of(&sandbox);
            return if said_again { Ok(()) } else { Err(RegionRejection::IdTaken) };
        }
        let source = self.live_record(parent)?;
        if source.organization_id != sandbox.organization_id {
            return Err(RegionRejection::NotFound);
        }
        if source.member_of().is_some() {
            return Err(RegionRejection::Unclaimed);
        }
        let archived = match (&source.phase, &source.disk) {
            (Phase::Archived, Disk::Checkpoint(checkpoint)) => Some(checkpoint.clone()),
            _ => {
                judge_capture(source)?;
                None
            }
        };
        self.create_sandbox(sandbox_id, None, sandbox, now_ms)?;
        let disk = archived.clone().map_or(Disk::Awaited, Disk::Checkpoint);
        self.revise(sandbox_id, |record| {
            record.parent = Some(parent);
            record.disk = disk;
        });
        if archived.is_none()
            && let Some(source) = self.sandboxes.get_mut(&parent)
        {
            source.ask_capture(CapturePurpose::Fork { child: sandbox_id });
        }
        Ok(())
    }

    pub(super) fn snapshot_sandbox(
        &mut self,
        sandbox_id: SandboxId,
        id: uuid::Uuid,
        name: String,
        now_ms: u64,
    ) -> Judged {
        let record = self.live_record(sandbox_id)?;
        let purpose = CapturePurpose::Snapshot { id, name };
        let was_last = record.snapshot_taken.as_ref().is_some_and(|taken| taken.id == id);
        if was_last || record.captures.values().any(|pending| *pending == purpose) {
            return Ok(());
        }
        if record.is_archived() {
            return Err(RegionRejection::Archived);
        }
        if record.member_of().is_some() {
            return Err(RegionRejection::Unclaimed);
        }
        judge_capture(record)?;
        if let Some(record) = self.sandboxes.get_mut(&sandbox_id) {
            record.ask_capture(purpose);
            record.touch(now_ms);
        }
        Ok(())
    }

    pub(super) fn report_capture(
        &mut self,
        sandbox_id: SandboxId,
        placement: Placement,
        report: CaptureReport,
        now_ms: u64,
    ) -> Judged {
        let record = self.sandboxes.get(&sandbox_id).ok_or(RegionRejection::NotFound)?;
        if record.placement != placement {
            return Err(RegionRejection::StaleGeneration { current: record.placement.generation });
        }
        if record.desired == Desired::Deleted {
            return Err(RegionRejection::Deleting);
        }
        self.answer_captures(sandbox_id, |asked, _| asked <= report.number, &report, now_ms);
        Ok(())
    }

    /// Those that somebody waits for, as nobody is there to take the disk. An archive can wait for its owner.
    pub(super) fn fail_captures(&mut self, sandbox_id: SandboxId, reason: &str, now_ms: u64) {
        let outcome = CaptureOutcome::Failed { reason: reason.to_owned() };
        let report = CaptureReport { number: u64::MAX, outcome, refused: BTreeMap::new() };
        let waited_for = |_, purpose: &CapturePurpose| *purpose != CapturePurpose::Archive;
        self.answer_captures(sandbox_id, waited_for, &report, now_ms);
    }

    fn answer_captures(
        &mut self,
        sandbox_id: SandboxId,
        answers: impl Fn(u64, &CapturePurpose) -> bool,
        report: &CaptureReport,
        now_ms: u64,
    ) {
        let outcome = &report.outcome;
        let Some(record) = self.sandboxes.get_mut(&sandbox_id) else { return };
        let all = std::mem::take(&mut record.captures);
        let (answered, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(number, purpose)| answers(*number, purpose));
        record.captures = left;
        for purpose in answered.into_values() {
            match purpose {
                CapturePurpose::Snapshot { id, .. } => self.note_snapshot(sandbox_id, id, report, now_ms),
                CapturePurpose::Fork { child } => self.give_disk(child, outcome, now_ms),
                CapturePurpose::Archive => self.note_archive(sandbox_id, outcome, now_ms),
            }
        }
    }

    fn note_snapshot(&mut self, sandbox_id: SandboxId, id: uuid::Uuid, report: &CaptureReport, now_ms: u64) {
        let Some(record) = self.sandboxes.get_mut(&sandbox_id) else { return };
        let failure = match &report.outcome {
            CaptureOutcome::Taken(_) => report.refused.get(&id).cloned(),
            CaptureOutcome::Failed { reason } => Some(reason.clone()),
        };
        record.snapshot_taken = Some(SnapshotTaken { id, failure });
        record.touch(now_ms);
    }

    fn give_disk(&mut self, child: SandboxId, outcome: &CaptureOutcome, now_ms: u64) {
        // It may be gone, and its id may even be another one's by now.
        let Some(record) = self.sandboxes.get_mut(&child).filter(|record| record.is_disk_awaited()) else {
            return;
        };
        match outcome {
            CaptureOutcome::Taken(checkpoint) => record.disk = Disk::Checkpoint(checkpoint.clone()),
            CaptureOutcome::Failed { reason } => {
                record.phase =
                    Phase::Failed { reason: format!("its parent's disk was not copied: {reason}") };
            }
        }
        record.touch(now_ms);
    }

    fn note_archive(&mut self, sandbox_id: SandboxId, outcome: &CaptureOutcome, now_ms: u64) {
        self.revise(sandbox_id, |record| {
            match outcome {
                CaptureOutcome::Taken(checkpoint) => record.disk = Disk::Checkpoint(checkpoint.clone()),
                CaptureOutcome::Failed { reason } => {
                    record.archive_failure = Some(reason.clone());
                    record.desired = Desired::Stopped;
                    record.desired_version = record.desired_version.saturating_add(1);
                    if record.phase == Phase::Archiving {
                        record.phase = Phase::Stopped;
                    }
                }
            }
            record.touch(now_ms);
        });
    }

    pub(super) fn restore_sandbox(
        &mut self,
        sandbox_id: SandboxId,
        placement: Placement,
        now_ms: u64,
    ) -> Judged {
        let record = self.live_record(sandbox_id)?;
        let current = record.placement.generation;
        if !record.is_archived() {
            let said_again =
                record.placement == placement && record.restored_version == record.desired_version;
            return if said_again { Ok(()) } else { Err(RegionRejection::NotArchived) };
        }
        if placement.generation.0.checked_sub(1) != Some(current.0) {
            return Err(RegionRejection::StaleGeneration { current });
        }
        self.judge_room(placement.node_id, NodeUsage::of(record.spec.resources, Desired::Running))?;
        self.revise(sandbox_id, |record| {
            record.placement = placement;
            record.desired = Desired::Running;
            record.desired_version = record.desired_version.saturating_add(1);
            record.restored_version = record.desired_version;
            record.phase = Phase::Pending;
            record.touch(now_ms);
        });
        Ok(())
    }
}

/// May the disk be taken as the sandbox is now? Not while it is on its way: what would be on the disk then?
pub(super) fn judge_capture(record: &SandboxRecord) -> Judged {
    match (record.desired, &record.phase) {
        (Desired::Running, Phase::Running)
        | (Desired::Stopped, Phase::Stopped)
        | (Desired::Paused, Phase::Paused) => {}
        (_, Phase::Failed { .. } | Phase::Lost) => return Err(RegionRejection::NoDisk),
        _ => return Err(RegionRejection::InTransition),
    }
    match record.captures.len() {
        held if held >= CAPTURES_MAX => Err(RegionRejection::TooManyCaptures(held as u64)),
        _ => Ok(()),
    }
}

/// Forks by their parents; parents without any have no entry.
pub(super) type Forks = BTreeMap<SandboxId, BTreeSet<SandboxId>>;
