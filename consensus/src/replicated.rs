//! What a state must offer to be replicated: a pure, deterministic `apply`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::state::cluster::{ClusterCommand, ClusterOutcome, ClusterState};
use crate::state::region::{RegionCommand, RegionOutcome, RegionState};

/// Every replica applies the same commands in the same order and must come to the same value.
pub trait Replicated: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    type Command: Serialize + DeserializeOwned + Send + Sync + 'static;
    type Outcome: Serialize + DeserializeOwned + Send + 'static;

    fn apply(&mut self, command: Self::Command) -> Self::Outcome;
}

impl Replicated for ClusterState {
    type Command = ClusterCommand;
    type Outcome = ClusterOutcome;

    fn apply(&mut self, command: ClusterCommand) -> ClusterOutcome {
        ClusterState::apply(self, command)
    }
}

impl Replicated for RegionState {
    type Command = RegionCommand;
    type Outcome = RegionOutcome;

    fn apply(&mut self, command: RegionCommand) -> RegionOutcome {
        RegionState::apply(self, command)
    }
}
