//! The seam between nodes, implemented by the QUIC endpoint and by the simulated network of the tests.

use std::time::Duration;

use async_trait::async_trait;
use atoll_api::ids::NodeId;

use crate::dial::ByteStream;
use crate::stream::StreamHeader;

#[async_trait]
pub trait Link: Send + Sync + 'static {
    fn local_node(&self) -> NodeId;

    /// Opens a stream to a peer and sends its header. Connecting is bounded by `deadline`.
    /// A stream to this node itself reaches its own handler without the network.
    ///
    /// Shutting a stream down finishes its write half, and what was written still arrives. Dropping it without that
    /// resets it: the other side reads an error, not an end, and may miss what was written last.
    async fn open(
        &self,
        peer: NodeId,
        header: StreamHeader,
        deadline: Duration,
    ) -> Result<ByteStream, LinkError>;
}

/// Serves the streams that peers open. Called on a task of its own for each stream.
/// End a conversation with [`crate::stream::answer`] or a shutdown; a dropped stream is a reset one.
#[async_trait]
pub trait StreamHandler: Send + Sync + 'static {
    async fn handle(&self, peer: NodeId, header: StreamHeader, stream: ByteStream);
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No address is known for the peer.
    #[error("no address known for node {0}")]
    UnknownPeer(NodeId),
    /// Nobody answered, or the connection was refused: back off.
    #[error("node {peer} cannot be reached: {cause}")]
    Unreachable { peer: NodeId, cause: String },
    /// The other side, or this one, is not (any longer) a member.
    #[error("refused by node {peer}: {cause}")]
    Refused { peer: NodeId, cause: String },
    #[error("node {0} did not answer in time")]
    TimedOut(NodeId),
    /// An established stream broke.
    #[error("stream to node {peer} broke: {cause}")]
    Broken { peer: NodeId, cause: String },
}
