//! What holds of a region's state after every command, whatever the commands were.

use atoll_api::ids::Generation;
use atoll_api::ids::SandboxId;
use atoll_api::sandbox::{Desired, Phase};

use super::index::Index;
use super::{CapturePurpose, Disk, RegionState, SandboxRecord};

impl RegionState {
    /// Panics with the broken rule. Costs a walk over everything: for tests and for checking an imported snapshot.
    pub fn check_invariants(&self) {
        for (sandbox_id, record) in &self.sandboxes {
            assert_eq!(Some(sandbox_id.region()), self.ordinal, "{sandbox_id} belongs to the region");
            let node_id = record.placement.node_id;
            assert!(
                record.is_archived() || self.nodes.contains_key(&node_id),
                "{sandbox_id} is placed on a known node, not {node_id}"
            );
            check_disk(self, *sandbox_id, record);
            assert!(record.placement.generation >= Generation::FIRST, "{sandbox_id} has had an owner");
            assert!(record.desired_version >= 1, "{sandbox_id} was wished for");
            assert!(record.created_at_ms <= record.updated_at_ms, "{sandbox_id} changed after it was made");
            assert!(!self.tombstones.contains_key(sandbox_id), "{sandbox_id} is here, so not gone");
            let holder = self.names.get(&record.organization_id).and_then(|names| names.get(&record.name));
            match record.desired {
                _ if record.member_of().is_some() => {
                    assert_ne!(holder, Some(sandbox_id), "{sandbox_id} is in a warm pool and has no name");
                }
                Desired::Running | Desired::Stopped | Desired::Paused | Desired::Archived => {
                    assert_eq!(holder, Some(sandbox_id), "{sandbox_id} holds its name {:?}", record.name);
                }
                Desired::Deleted => {
                    assert_ne!(holder, Some(sandbox_id), "{sandbox_id} is doomed and has freed its name");
                }
            }
        }
        for (organization_id, names) in &self.names {
            assert!(!names.is_empty(), "{organization_id} has names or no entry");
            for (name, sandbox_id) in names {
                let record = self.sandboxes.get(sandbox_id);
                let holds =
                    |r: &super::SandboxRecord| r.organization_id == *organization_id && r.name == *name;
                assert!(record.is_some_and(holds), "the name {name:?} is that of {sandbox_id}");
            }
        }
        let alive = |sandbox_id| {
            self.sandboxes.get(sandbox_id).is_some_and(|record| record.desired != Desired::Deleted)
        };
        for (token_hash, token) in &self.ssh_tokens {
            assert!(alive(&token.sandbox_id), "{token_hash:?} opens a sandbox that lives");
            let of_sandbox = self.index.ssh_tokens.get(&token.sandbox_id);
            assert_eq!(of_sandbox, Some(token_hash), "{} has one SSH token", token.sandbox_id);
        }
        for (token_hash, token) in &self.preview_tokens {
            assert!(alive(&token.sandbox_id), "{token_hash:?} opens a sandbox that lives");
        }
        assert_eq!(self.index, Index::of(self), "the index follows from the records");
    }
}

fn check_disk(state: &RegionState, sandbox_id: SandboxId, record: &SandboxRecord) {
    let has_checkpoint = matches!(record.disk, Disk::Checkpoint(_));
    if record.is_archived() {
        assert_eq!(
            record.desired,
            Desired::Archived,
            "{sandbox_id} was to be archived, or its record is gone"
        );
        assert!(record.captures.is_empty(), "{sandbox_id} has no owner who could take its disk");
    }
    if record.desired == Desired::Archived {
        let either = has_checkpoint || record.is_archive_awaited();
        assert!(either, "{sandbox_id} is archived in a checkpoint, or will be");
    } else {
        assert!(!record.is_archive_awaited(), "{sandbox_id} is not wished archived");
        assert!(record.phase != Phase::Archiving || record.desired == Desired::Deleted, "{sandbox_id} stays");
    }
    if record.is_disk_awaited() && record.build.is_none() && !matches!(record.phase, Phase::Failed { .. }) {
        let parent = record.parent.and_then(|parent| state.sandboxes.get(&parent));
        let mut asked = parent.into_iter().flat_map(|parent| parent.captures.values());
        let is_asked = asked.any(|purpose| *purpose == CapturePurpose::Fork { child: sandbox_id });
        assert!(is_asked, "somebody is to take the disk that {sandbox_id} waits for");
    }
    assert!(record.parent.is_none() || record.build.is_none(), "{sandbox_id} has one origin");
    if record.build.is_some() && record.is_disk_awaited() {
        assert!(record.spec.image.is_empty(), "{sandbox_id} has no image before it is built");
    }
    if record.member_of().is_some() {
        assert!(record.captures.is_empty(), "{sandbox_id} is nobody's, so nobody copies its disk");
        assert!(matches!(record.desired, Desired::Running | Desired::Deleted), "{sandbox_id} is nobody's");
    }
    let newest = record.captures.last_key_value().map_or(0, |(number, _)| *number);
    assert!(newest <= record.captures_asked, "{sandbox_id} counts its captures");
    assert!(record.restored_version <= record.desired_version, "{sandbox_id} was restored by a wish");
}
