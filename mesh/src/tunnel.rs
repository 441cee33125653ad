//! What the owner of a sandbox answers before the bytes of a tunnel flow.

use atoll_api::sandbox::Placement;
use serde::{Deserialize, Serialize};

use crate::dial::DialError;

/// Room for one [`TunnelAnswer`].
pub const TUNNEL_ANSWER_BYTES_MAX: usize = 16 * 1024;

/// The one message of a `Tunnel` stream, from its receiver. Raw bytes follow `Connected`, nothing follows the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelAnswer {
    Connected,
    Refused(DialFault),
    /// The receiver does not own this generation. Where it believes the sandbox is, if it knows: look again, dial once more.
    Moved {
        current: Option<Placement>,
    },
}

/// [`DialError`] as it travels: a promise to older and newer nodes, so it only grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DialFault {
    NotFound,
    NotRunning { state: String },
    PortClosed { port: u16 },
    Unreachable { cause: String },
    Overloaded,
    TimedOut,
    Internal { cause: String },
}

impl From<DialError> for DialFault {
    fn from(error: DialError) -> DialFault {
        match error {
            DialError::NotFound => DialFault::NotFound,
            DialError::NotRunning { state } => DialFault::NotRunning { state },
            DialError::PortClosed { port } => DialFault::PortClosed { port },
            DialError::Unreachable(cause) => DialFault::Unreachable { cause },
            DialError::Overloaded => DialFault::Overloaded,
            DialError::TimedOut => DialFault::TimedOut,
            DialError::Internal(cause) => DialFault::Internal { cause },
        }
    }
}

impl From<DialFault> for DialError {
    fn from(fault: DialFault) -> DialError {
        match fault {
            DialFault::NotFound => DialError::NotFound,
            DialFault::NotRunning { state } => DialError::NotRunning { state },
            DialFault::PortClosed { port } => DialError::PortClosed { port },
            DialFault::Unreachable { cause } => DialError::Unreachable(cause),
            DialFault::Overloaded => DialError::Overloaded,
            DialFault::TimedOut => DialError::TimedOut,
            DialFault::Internal { cause } => DialError::Internal(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_api::ids::{Generation, NodeId};
    use atoll_api::wire;

    #[test]
    fn an_answer_survives_the_wire_and_an_error_its_fault() {
        for error in [
            DialError::NotFound,
            DialError::NotRunning { state: "stopped".into() },
            DialError::PortClosed { port: 80 },
            DialError::Unreachable("x".into()),
            DialError::Overloaded,
            DialError::TimedOut,
            DialError::Internal("y".into()),
        ] {
            let sent = TunnelAnswer::Refused(error.clone().into());
            let got: TunnelAnswer = wire::decode(&wire::encode(&sent).unwrap()).unwrap();
            let TunnelAnswer::Refused(fault) = got else { panic!("{got:?}") };
            assert_eq!(DialError::from(fault), error);
        }
        let placement = Placement { node_id: NodeId(1), generation: Generation(2) };
        for sent in [TunnelAnswer::Connected, TunnelAnswer::Moved { current: Some(placement) }] {
            assert_eq!(wire::decode::<TunnelAnswer>(&wire::encode(&sent).unwrap()).unwrap(), sent);
        }
    }
}
