//! A blob as one stream of bytes, whichever nodes they come from.

use std::io;
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_mesh::dial::ByteStream;
use atoll_runner::image::Digest;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;
use tracing::info;

use super::peers::{Offer, PeerStores};

/// A node that sends nothing for so long is left for another.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// One after the other, without a byte between them.
const BREAKS_MAX: u32 = 4;
const CHUNK_BYTES: usize = 128 * 1024;

struct Reading {
    peers: PeerStores,
    digest: Digest,
    bytes: u64,
    at: u64,
    source: Source,
    breaks: u32,
}

enum Source {
    Offered(Offer),
    Taken(ByteStream, NodeId),
    /// It broke off, and another must be found.
    Lost,
}

/// From byte `from` on of what `offer` has, and of what others have when that breaks off.
pub fn read(
    peers: PeerStores,
    digest: Digest,
    offer: Offer,
    from: u64,
) -> impl AsyncRead + Send + Unpin + use<> {
    let bytes = offer.bytes;
    let reading = Reading { peers, digest, bytes, at: from, source: Source::Offered(offer), breaks: 0 };
    StreamReader::new(Box::pin(futures_util::stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })))
}

impl Reading {
    /// `None` when all of it was read.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.at >= self.bytes {
                return Ok(None);
            }
            let (mut stream, peer) = match std::mem::replace(&mut self.source, Source::Lost) {
                Source::Taken(stream, peer) => (stream, peer),
                Source::Offered(offer) => {
                    let peer = offer.peer;
                    match offer.take(self.at).await {
                        Ok(stream) => (stream, peer),
                        Err(error) => {
                            self.lost(peer, &error)?;
                            continue;
                        }
                    }
                }
                Source::Lost => {
                    let found = self.peers.find(self.digest).await;
                    let offer =
                        found.map_err(|_| io::Error::other("no other node has the rest of the blob"))?;
                    if offer.bytes != self.bytes {
                        return Err(io::Error::other("two nodes have blobs of different lengths"));
                    }
                    self.source = Source::Offered(offer);
                    continue;
                }
            };
            let left = usize::try_from(self.bytes - self.at).unwrap_or(usize::MAX);
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES.min(left));
            let mut limited = (&mut stream).take(chunk.capacity() as u64);
            match tokio::time::timeout(SILENCE_MAX, limited.read_buf(&mut chunk)).await {
                Ok(Ok(count @ 1..)) => {
                    self.source = Source::Taken(stream, peer);
                    self.at += count as u64;
                    self.breaks = 0;
                    return Ok(Some(chunk.freeze()));
                }
                Ok(Ok(_)) => self.lost(peer, &"it ended too early")?,
                Ok(Err(error)) => self.lost(peer, &error)?,
                Err(_) => self.lost(peer, &"it fell silent")?,
            }
        }
    }

    fn lost(&mut self, peer: NodeId, cause: &dyn std::fmt::Display) -> io::Result<()> {
        info!(digest = %self.digest, %peer, at = self.at, %cause, "a blob broke off, asking another node");
        self.peers.forget(&self.digest, peer);
        self.breaks += 1;
        match self.breaks > BREAKS_MAX {
            true => Err(io::Error::other(format!("{peer} and others before broke off: {cause}"))),
            false => Ok(()),
        }
    }
}
