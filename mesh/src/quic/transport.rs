//! How connections between nodes are tuned, and why.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use atoll_certs::identity::NodeIdentity;
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt};

use crate::endpoint::{MeshConfig, SegmentationOffload};

/// What one stream may have in flight: 20 MB/s at a round trip of 100 ms.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// What one connection may hold unread. Streams nobody reads use it up, so it is many stream windows wide.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024 * 1024;
/// What one connection may have sent and not yet acknowledged.
const SEND_WINDOW_BYTES: u64 = 64 * 1024 * 1024;
/// First guess of a round trip: a lost first packet is sent again after three times this.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// What the kernel should hold between two turns of ours; it gives what `net.core.rmem_max` allows.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

pub(crate) enum Role {
    /// Opens streams, and takes one from the peer: the welcome.
    Dialing,
    /// Takes streams.
    Accepting,
}

pub(crate) fn transport(config: &MeshConfig, role: Role) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let (bidirectional, unidirectional) = match role {
        Role::Dialing => (0, 1),
        Role::Accepting => (config.streams_per_connection_max, 0),
    };
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(bidirectional))
        .max_concurrent_uni_streams(VarInt::from_u32(unidirectional))
        .keep_alive_interval(Some(config.keep_alive_interval))
        .max_idle_timeout(IdleTimeout::try_from(config.idle_timeout).ok())
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(match config.segmentation_offload {
            SegmentationOffload::On => true,
            SegmentationOffload::Off => false,
        });
    Arc::new(transport)
}

/// A node that comes back tells its peers at once that their old connections are gone, instead of letting them wait for
/// silence: the key it proves this with survives the restart, and its connection ids carry no key at all.
pub(crate) fn endpoint_config(identity: &NodeIdentity) -> EndpointConfig {
    let reset_key = identity.derive_secret("quic stateless reset");
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset_key)));
    config.cid_generator(|| Box::new(RandomIds));
    config
}

struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

pub(crate) fn socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    use rustix::net::sockopt;
    let socket = UdpSocket::bind(listen)?;
    // As much as we may have; less is slower under load and nothing else.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    }
    Ok(socket)
}
