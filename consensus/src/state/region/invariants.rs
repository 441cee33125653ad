//! What holds of a region's state after every command, whatever the commands were.

use atoll_api::ids::Generation;
use atoll_api::sandbox::Desired;

use super::RegionState;
use super::index::Index;

impl RegionState {
    /// Panics with the broken rule. Costs a walk over everything: for tests and for checking an imported snapshot.
    pub fn check_invariants(&self) {
        for (sandbox_id, record) in &self.sandboxes {
            assert_eq!(Some(sandbox_id.region()), self.ordinal, "{sandbox_id} belongs to the region");
            let node_id = record.placement.node_id;
            assert!(
                self.nodes.contains_key(&node_id),
                "{sandbox_id} is placed on a known node, not {node_id}"
            );
            assert!(record.placement.generation >= Generation::FIRST, "{sandbox_id} has had an owner");
            assert!(record.desired_version >= 1, "{sandbox_id} was wished for");
            assert!(record.created_at_ms <= record.updated_at_ms, "{sandbox_id} changed after it was made");
            assert!(!self.tombstones.contains_key(sandbox_id), "{sandbox_id} is here, so not gone");
            let holder = self.names.get(&record.organization_id).and_then(|names| names.get(&record.name));
            match record.desired {
                Desired::Running | Desired::Stopped | Desired::Paused => {
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
