//! Serves the streams that peers open: looks at the header, hands the stream to whom it concerns.

use std::sync::Arc;
use std::sync::OnceLock;

use async_trait::async_trait;
use atoll_api::ids::NodeId;
use atoll_consensus::Consensus;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::StreamHandler;
use atoll_mesh::stream::StreamHeader;
use atoll_runner::store::Store;
use tracing::{Instrument, debug, info_span};

use crate::blobs::BlobServer;
use crate::build_logs::BuildLogs;
use crate::claims::Claims;
use crate::control::forward::{serve_forward, serve_status};
use crate::control::plane::ControlPlane;
use crate::copies::serve_hold;
use crate::directory::MeshDirectory;
use crate::heartbeat::serve_heartbeat;
use crate::local::LocalSandboxes;
use crate::peers::Peers;
use crate::tunnel::serve_tunnel;

/// Raft must be answered before the rest of the node exists, since the rest waits for the first replica.
pub struct Streams {
    pub consensus: Arc<Consensus>,
    pub peers: Arc<Peers>,
    pub services: OnceLock<Services>,
}

pub struct Services {
    pub control: Arc<ControlPlane>,
    pub directory: Arc<MeshDirectory>,
    pub sandboxes: LocalSandboxes,
    pub blobs: BlobServer,
    pub store: Store,
    pub build_logs: BuildLogs,
    pub claims: Arc<Claims>,
}

#[async_trait]
impl StreamHandler for Streams {
    async fn handle(&self, peer: NodeId, header: StreamHeader, stream: ByteStream) {
        let span = info_span!("stream", node_id = %self.peers.me(), %peer);
        let result = self.dispatch(peer, header, stream).instrument(span).await;
        if let Err(error) = result {
            debug!(%peer, %error, "stream ended with an error");
        }
    }
}

impl Streams {
    async fn dispatch(&self, peer: NodeId, header: StreamHeader, stream: ByteStream) -> anyhow::Result<()> {
        match header {
            StreamHeader::Raft { .. } | StreamHeader::RaftSnapshot { .. } | StreamHeader::Propose { .. } => {
                self.consensus.serve(peer, header, stream).await;
                Ok(())
            }
            StreamHeader::Heartbeat => serve_heartbeat(&self.peers, peer, stream).await,
            StreamHeader::Tunnel { sandbox_id, generation, target, request_id } => {
                let sandboxes = &self.services()?.sandboxes;
                let span = info_span!("tunnel", %sandbox_id, %generation, %request_id);
                serve_tunnel(sandboxes, peer, sandbox_id, generation, target, request_id, stream)
                    .instrument(span)
                    .await
            }
            StreamHeader::Forward { request_id } => {
                let span = info_span!("forward", %request_id);
                serve_forward(&self.services()?.control, stream).instrument(span).await
            }
            StreamHeader::Locate => self.services()?.directory.serve_locate(stream).await,
            StreamHeader::Claim => self.services()?.claims.serve(stream).await,
            StreamHeader::Status => serve_status(&self.services()?.control, stream).await,
            StreamHeader::Blob => self.services()?.blobs.serve(stream).await,
            StreamHeader::BuildLog => self.services()?.build_logs.serve(stream).await,
            StreamHeader::Hold => serve_hold(&self.services()?.store, stream).await,
        }
    }

    fn services(&self) -> anyhow::Result<&Services> {
        self.services.get().ok_or_else(|| anyhow::anyhow!("this node is still starting"))
    }
}
