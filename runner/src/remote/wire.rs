//! What node and runner say to each other. Both come from one binary but may be of two versions for the length of an
//! update, so these shapes only grow: a new field has a default, a new call is refused in words by an older runner.

use std::path::PathBuf;

use atoll_api::ids::{Generation, SandboxId};
use atoll_api::sandbox::{Egress, SandboxSpec};
use serde::{Deserialize, Serialize};

use crate::image::{Digest, Image, Kept};
use crate::runtime::{Exit, Finding, Found, FoundState, Incarnation, RuntimeError};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// Of the node's program; for the runner's log.
    #[serde(default)]
    pub(super) version: String,
    pub(super) call: Call,
}

/// One per verb of [`crate::runtime::Runtime`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Call {
    Prepare,
    MissingBlobs {
        image: Image,
    },
    /// With one open file for each blob, in this order.
    Import {
        image: Image,
        blobs: Vec<Digest>,
    },
    Create {
        which: Which,
        spec: Box<SandboxSpec>,
        image: Box<Image>,
        /// Below the node's data folder.
        mount_dir: PathBuf,
    },
    Start {
        which: Which,
    },
    Pause {
        which: Which,
    },
    Resume {
        which: Which,
    },
    Commit {
        which: Which,
    },
    Base {
        which: Which,
    },
    CommitImage {
        which: Which,
        name: String,
    },
    SetEgress {
        which: Which,
        egress: Egress,
    },
    Stop {
        which: Which,
        grace_ms: u64,
    },
    Remove {
        which: Which,
    },
    List,
    Wait {
        which: Which,
    },
    Dial {
        which: Which,
        port: u16,
    },
    Check,
    Teardown,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    Blobs {
        digests: Vec<Digest>,
    },
    Found {
        sandboxes: Vec<FoundSandbox>,
    },
    Exit {
        code: Option<i64>,
        out_of_memory: bool,
    },
    Findings {
        findings: Vec<Said>,
    },
    Base {
        image: Box<Image>,
    },
    Kept {
        image: Option<Kept>,
    },
    /// With the connected socket.
    Connected,
    /// With a pipe's reading end; after its end comes [`Reply::Done`] or [`Reply::Failed`].
    Layer,
    Failed(Said),
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Which {
    pub(super) sandbox_id: SandboxId,
    pub(super) generation: Generation,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FoundSandbox {
    pub(super) which: Which,
    pub(super) running: bool,
    /// Beside `running`.
    #[serde(default)]
    pub(super) paused: bool,
    #[serde(default)]
    pub(super) exit_code: Option<i64>,
}

/// A kind by name, so that one side may know more kinds than the other.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) kind: String,
    #[serde(default)]
    pub(super) text: String,
}

impl From<Incarnation> for Which {
    fn from(incarnation: Incarnation) -> Which {
        Which { sandbox_id: incarnation.sandbox_id, generation: incarnation.generation }
    }
}

impl From<Which> for Incarnation {
    fn from(which: Which) -> Incarnation {
        Incarnation { sandbox_id: which.sandbox_id, generation: which.generation }
    }
}

impl From<Found> for FoundSandbox {
    fn from(found: Found) -> FoundSandbox {
        let (running, paused, exit_code) = match found.state {
            FoundState::Running => (true, false, None),
            FoundState::Paused => (true, true, None),
            FoundState::Stopped { exit_code } => (false, false, exit_code),
        };
        FoundSandbox { which: found.incarnation.into(), running, paused, exit_code }
    }
}

impl From<FoundSandbox> for Found {
    fn from(found: FoundSandbox) -> Found {
        let state = match (found.running, found.paused) {
            (true, false) => FoundState::Running,
            (true, true) => FoundState::Paused,
            (false, _) => FoundState::Stopped { exit_code: found.exit_code },
        };
        Found { incarnation: found.which.into(), state }
    }
}

impl From<Exit> for Reply {
    fn from(exit: Exit) -> Reply {
        Reply::Exit { code: exit.code, out_of_memory: exit.out_of_memory }
    }
}

impl From<RuntimeError> for Said {
    fn from(error: RuntimeError) -> Said {
        let (kind, text) = match error {
            RuntimeError::Refused => ("refused", String::new()),
            RuntimeError::NotFound => ("not found", String::new()),
            RuntimeError::NotRunning => ("not running", String::new()),
            RuntimeError::Spec(text) => ("spec", text),
            RuntimeError::Host(text) => ("host", text),
            RuntimeError::TimedOut(text) => ("timed out", text),
            RuntimeError::Overloaded => ("overloaded", String::new()),
        };
        Said { kind: kind.to_owned(), text }
    }
}

/// A kind that this side does not know is for the operator.
pub(super) fn runtime_error(said: Said) -> RuntimeError {
    match said.kind.as_str() {
        "refused" => RuntimeError::Refused,
        "not found" => RuntimeError::NotFound,
        "not running" => RuntimeError::NotRunning,
        "spec" => RuntimeError::Spec(said.text),
        "timed out" => RuntimeError::TimedOut(said.text),
        "overloaded" => RuntimeError::Overloaded,
        "host" => RuntimeError::Host(said.text),
        kind => RuntimeError::Host(format!("{kind}: {}", said.text)),
    }
}

impl From<Finding> for Said {
    fn from(finding: Finding) -> Said {
        let (kind, text) = match finding {
            Finding::Fault(text) => ("fault", text),
            Finding::Limitation(text) => ("limitation", text),
        };
        Said { kind: kind.to_owned(), text }
    }
}

impl From<Said> for Finding {
    fn from(said: Said) -> Finding {
        match said.kind.as_str() {
            "limitation" => Finding::Limitation(said.text),
            _ => Finding::Fault(said.text),
        }
    }
}

impl Call {
    /// For logs.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Call::Prepare => "prepare",
            Call::MissingBlobs { .. } => "missing_blobs",
            Call::Import { .. } => "import",
            Call::Create { .. } => "create",
            Call::Start { .. } => "start",
            Call::Pause { .. } => "pause",
            Call::Resume { .. } => "resume",
            Call::Commit { .. } => "commit",
            Call::Base { .. } => "base",
            Call::CommitImage { .. } => "commit_image",
            Call::SetEgress { .. } => "set_egress",
            Call::Stop { .. } => "stop",
            Call::Remove { .. } => "remove",
            Call::List => "list",
            Call::Wait { .. } => "wait",
            Call::Dial { .. } => "dial",
            Call::Check => "check",
            Call::Teardown => "teardown",
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_api::wire::{decode, encode};

    use super::*;

    #[test]
    fn every_error_arrives_as_it_was() {
        let errors = [
            RuntimeError::Refused,
            RuntimeError::NotFound,
            RuntimeError::NotRunning,
            RuntimeError::Spec("a".into()),
            RuntimeError::Host("b".into()),
            RuntimeError::TimedOut("c".into()),
            RuntimeError::Overloaded,
        ];
        for error in errors {
            assert_eq!(runtime_error(error.clone().into()), error);
        }
    }

    #[test]
    fn a_newer_sides_words_are_understood_as_far_as_they_go() {
        #[derive(Serialize)]
        struct Newer {
            version: &'static str,
            call: NewerCall,
            more: u8,
        }
        #[derive(Serialize)]
        enum NewerCall {
            Prepare,
            Checkpoint,
        }

        let known = encode(&Newer { version: "9", call: NewerCall::Prepare, more: 1 }).unwrap();
        let unknown = encode(&Newer { version: "9", call: NewerCall::Checkpoint, more: 1 }).unwrap();

        assert!(matches!(decode::<Request>(&known).unwrap().call, Call::Prepare));
        assert!(decode::<Request>(&unknown).unwrap_err().to_string().contains("Checkpoint"));
        let said = Said { kind: "on fire".into(), text: "the rack".into() };
        assert_eq!(runtime_error(said), RuntimeError::Host("on fire: the rack".into()));
    }
}
