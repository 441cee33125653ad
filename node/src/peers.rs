//! What this node knows of the others right now: who was heard from, and how busy they say they are.
//! Volatile by design: it is sent every [`crate::config::Timing::node_heartbeat_ms`] and never logged.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use atoll_api::ids::NodeId;
use atoll_consensus::place::NodeLoadView;
use serde::{Deserialize, Serialize};

/// One node's word about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Sandboxes that are being created or started.
    pub creates_in_flight: u32,
    /// How busy the host's CPUs are, in thousandths of all of them.
    #[serde(default)]
    pub cpu_busy_permille: u32,
}

struct Heard {
    at: Instant,
    load: Load,
}

pub struct Peers {
    me: NodeId,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
}

impl Peers {
    pub fn new(me: NodeId) -> Peers {
        Peers { me, heard: Mutex::default() }
    }

    pub fn me(&self) -> NodeId {
        self.me
    }

    pub fn heard_from(&self, node_id: NodeId, load: Load) {
        self.heard.lock().expect("no holder panics").insert(node_id, Heard { at: Instant::now(), load });
    }

    /// Milliseconds since each node was last heard from.
    pub fn silence_ms(&self) -> BTreeMap<NodeId, u64> {
        let heard = self.heard.lock().expect("no holder panics");
        heard.iter().map(|(node_id, heard)| (*node_id, heard.at.elapsed().as_millis() as u64)).collect()
    }

    /// For placement.
    pub fn loads(&self) -> BTreeMap<NodeId, NodeLoadView> {
        let heard = self.heard.lock().expect("no holder panics");
        let view = |heard: &Heard| NodeLoadView {
            heard_ms_ago: Some(heard.at.elapsed().as_millis() as u64),
            creates_in_flight: heard.load.creates_in_flight,
            cpu_busy_permille: heard.load.cpu_busy_permille,
            quarantined: false,
        };
        heard.iter().map(|(node_id, heard)| (*node_id, view(heard))).collect()
    }
}
