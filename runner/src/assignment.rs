//! What the rest of the node says to the runner and hears from it. No runtime's word appears here.

use std::sync::Arc;

use atoll_api::ids::{Generation, SandboxId};
use atoll_api::sandbox::{Desired, Phase, SandboxSpec};

use crate::image::Kept;
use crate::runtime::Incarnation;

/// One sandbox that is placed on this node, as the node's replica has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub sandbox_id: SandboxId,
    pub generation: Generation,
    pub spec: Arc<SandboxSpec>,
    pub desired: Desired,
    /// Counts changes of `desired`. A sandbox that failed is tried again when it grows.
    pub desired_version: u64,
    /// What the record holds now. A report is repeated until this agrees with it.
    pub phase: Phase,
    /// The wish that asked for its disk to be made: the first one, or that of its last return from the archive.
    pub made_by_version: u64,
    /// Its disk is wanted as an image. An archive without it has its checkpoint: the disk goes.
    pub capture: Option<CaptureWish>,
    pub origin: Origin,
}

/// What of a disk is wanted as an image, at the earliest at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureWish {
    /// Later wishes have greater numbers; a capture answers all before it.
    pub number: u64,
    /// Of the image, for the node's store.
    pub name: String,
}

/// What a running sandbox was when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// What it is.
    Asked,
    /// It may have been started before anybody asked for it, for another user and with another environment. Until its
    /// daemon has been told of those of the specification, nobody may reach it.
    Claimed,
}

impl Assignment {
    pub fn incarnation(&self) -> Incarnation {
        Incarnation { sandbox_id: self.sandbox_id, generation: self.generation }
    }
}

/// What has become of an assignment. May be repeated; the newest one stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub sandbox_id: SandboxId,
    pub generation: Generation,
    /// The wish that this answers.
    pub desired_version: u64,
    pub kind: ReportKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportKind {
    Phase(Phase),
    /// Nothing of the sandbox is left on this node.
    Deleted,
    /// What has become of a [`CaptureWish`]: the image, or in words for the user why there is none.
    Captured {
        number: u64,
        result: Result<Kept, String>,
    },
}
