//! Tells the nodes of the region that this one lives and how busy it is, and hears the same from them.

use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{NodeId, RegionName};
use atoll_consensus::group::ClusterGroup;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{StreamHeader, answer, call, read_message};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::trace;

use crate::peers::{Load, Peers};

const HEARTBEAT_BYTES_MAX: usize = 1024;

pub struct Heartbeats {
    pub home: RegionName,
    pub cluster: ClusterGroup,
    pub peers: Arc<Peers>,
    pub link: Arc<dyn Link>,
    pub every: Duration,
    pub load: Box<dyn Fn() -> Load + Send + Sync>,
}

impl Heartbeats {
    pub async fn run(self, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sending = JoinSet::new();
        loop {
            tokio::select! {
                _ = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            let load = (self.load)();
            self.peers.heard_from(self.peers.me(), load);
            while sending.try_join_next().is_some() {}
            for node_id in self.neighbours() {
                let (link, every) = (self.link.clone(), self.every);
                // A heartbeat that takes longer than a few beats is worth nothing; that bounds what is in flight.
                sending.spawn(send(link, node_id, load, every * 4));
            }
        }
    }

    fn neighbours(&self) -> Vec<NodeId> {
        let me = self.peers.me();
        self.cluster
            .read(|state| state.node_ids_of_region(&self.home).filter(|node_id| *node_id != me).collect())
    }
}

async fn send(link: Arc<dyn Link>, node_id: NodeId, load: Load, deadline: Duration) {
    let sent: Result<(), _> = call(link.as_ref(), node_id, StreamHeader::Heartbeat, &load, deadline).await;
    if let Err(error) = sent {
        trace!(%node_id, %error, "heartbeat not delivered");
    }
}

pub async fn serve_heartbeat(peers: &Peers, peer: NodeId, mut stream: ByteStream) -> anyhow::Result<()> {
    let load: Load = read_message(&mut stream, HEARTBEAT_BYTES_MAX).await?;
    peers.heard_from(peer, load);
    Ok(answer(&mut stream, &()).await?)
}
