//! A network of nodes in one process, with delays, losses, partitions and crashes drawn from one seed.
//!
//! On tokio's paused clock and a current-thread runtime a run is a function of its seed. The failures are those of QUIC:
//! bytes arrive in order or not at all, a lost packet costs a retransmission, a cut path first looks like a slow one and
//! breaks its streams only after [`BREAKS_AFTER`]; a node that was killed says nothing until it is up again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atoll_api::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::dial::ByteStream;
use crate::link::{Link, LinkError, StreamHandler};
use crate::memory;
use crate::stream::StreamHeader;

/// How long a path may be cut before the streams over it break, like a connection's idle timeout.
pub const BREAKS_AFTER: Duration = Duration::from_secs(5);
const STREAM_BYTES: usize = 256 * 1024;
const PACKET_BYTES: usize = 64 * 1024;

/// What every packet goes through.
#[derive(Debug, Clone)]
pub struct Weather {
    pub delay_ms: RangeInclusive<u64>,
    /// Of a thousand packets, how many are lost and sent again.
    pub lost_per_mille: u64,
    pub retransmit_ms: RangeInclusive<u64>,
}

impl Weather {
    /// A data centre.
    pub fn fair() -> Weather {
        Weather { delay_ms: 0..=2, lost_per_mille: 0, retransmit_ms: 0..=0 }
    }

    /// A line that loses one packet in ten.
    pub fn lossy() -> Weather {
        Weather { delay_ms: 1..=10, lost_per_mille: 100, retransmit_ms: 20..=200 }
    }
}

/// Clones are the same network.
#[derive(Clone)]
pub struct SimNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Told when paths or nodes change. Not a `watch`, which wakes those that wait in random order.
    changed: Notify,
}

struct State {
    random: SplitMix,
    weather: Weather,
    nodes: BTreeMap<NodeId, Up>,
    /// From, to.
    cut: BTreeSet<(NodeId, NodeId)>,
}

/// One run of a node, from `start` to `crash`.
#[derive(Clone)]
struct Up {
    handler: Arc<dyn StreamHandler>,
    /// Cancelled by the crash.
    life: CancellationToken,
}

impl SimNetwork {
    pub fn new(seed: u64, weather: Weather) -> SimNetwork {
        let state = State { random: SplitMix(seed), weather, nodes: BTreeMap::new(), cut: BTreeSet::new() };
        SimNetwork { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// The node's way to the others. It works while the node is up.
    pub fn link(&self, node: NodeId) -> Arc<dyn Link> {
        Arc::new(SimLink { network: self.clone(), node })
    }

    /// The node is up from now on, and serves its peers' streams.
    pub fn start(&self, node: NodeId, handler: Arc<dyn StreamHandler>) {
        self.change(|state| {
            let up = Up { handler, life: CancellationToken::new() };
            if let Some(before) = state.nodes.insert(node, up) {
                before.life.cancel();
            }
        });
    }

    /// The node is gone without a word. Its own ends of streams break; its peers find out in time.
    pub fn crash(&self, node: NodeId) {
        self.change(|state| {
            if let Some(up) = state.nodes.remove(&node) {
                up.life.cancel();
            }
        });
    }

    /// Nothing gets from one to the other any more. The other way is another path.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.change(|state| {
            state.cut.insert((from, to));
        });
    }

    pub fn cut(&self, one: NodeId, other: NodeId) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Cuts all paths between the two sides.
    pub fn partition(&self, one_side: &[NodeId], other_side: &[NodeId]) {
        for one in one_side {
            for other in other_side {
                self.cut(*one, *other);
            }
        }
    }

    pub fn heal(&self) {
        self.change(|state| state.cut.clear());
    }

    pub fn set_weather(&self, weather: Weather) {
        self.change(|state| state.weather = weather);
    }

    /// A number below `bound`, from the network's seed.
    pub fn random_below(&self, bound: u64) -> u64 {
        self.state().random.below(bound)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self, node: NodeId) -> Option<Up> {
        self.state().nodes.get(&node).cloned()
    }

    fn packet_delay(&self) -> Duration {
        let mut state = self.state();
        let Weather { delay_ms, lost_per_mille, retransmit_ms } = state.weather.clone();
        let mut delay = state.random.within(&delay_ms);
        while state.random.below(1000) < lost_per_mille.min(900) {
            delay += state.random.within(&retransmit_ms);
        }
        Duration::from_millis(delay)
    }

    /// Waits until a packet can pass. `Err` when the path has been cut for too long.
    async fn passage(&self, from: NodeId, to: NodeId, deadline: Instant) -> Result<(), PathCut> {
        loop {
            let changed = self.shared.changed.notified();
            let open = {
                let state = self.state();
                state.nodes.contains_key(&to) && !state.cut.contains(&(from, to))
            };
            if open {
                return Ok(());
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(PathCut);
            }
        }
    }
}

struct PathCut;

struct SimLink {
    network: SimNetwork,
    node: NodeId,
}

#[async_trait]
impl Link for SimLink {
    fn local_node(&self) -> NodeId {
        self.node
    }

    async fn open(
        &self,
        peer: NodeId,
        header: StreamHeader,
        deadline: Duration,
    ) -> Result<ByteStream, LinkError> {
        let network = &self.network;
        let deadline = Instant::now() + deadline;
        let down = || LinkError::Unreachable { peer, cause: "this node is down".to_owned() };
        let here = network.up(self.node).ok_or_else(down)?;
        let opened = async {
            network.passage(self.node, peer, deadline).await?;
            sleep(network.packet_delay()).await;
            Ok::<_, PathCut>(network.up(peer))
        };
        let there = match timeout_at(deadline, opened).await {
            Ok(Ok(Some(there))) => there,
            Ok(Ok(None) | Err(PathCut)) | Err(_) => return Err(LinkError::TimedOut(peer)),
        };
        let (near, near_wire) = memory::pair(STREAM_BYTES);
        let (far_wire, far) = memory::pair(STREAM_BYTES);
        tokio::spawn(Wire { network: network.clone(), from: self.node, to: peer }.carry(
            near_wire,
            far_wire,
            here.life.clone(),
            there.life.clone(),
        ));
        let from = self.node;
        tokio::spawn(async move {
            there.life.run_until_cancelled(there.handler.handle(from, header, far)).await;
        });
        Ok(near)
    }
}

/// Carries the bytes of one stream, until both sides are done, or it breaks.
struct Wire {
    network: SimNetwork,
    from: NodeId,
    to: NodeId,
}

impl Wire {
    async fn carry(
        self,
        near: ByteStream,
        far: ByteStream,
        near_life: CancellationToken,
        far_life: CancellationToken,
    ) {
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let there = self.carry_one_way(near_read, far_write, self.from, self.to);
        let back = self.carry_one_way(far_read, near_write, self.to, self.from);
        let both = async { tokio::try_join!(there, back) };
        // Who has crashed is silent at first; the other side finds out when the path breaks, or when the node is up again.
        tokio::select! {
            biased;
            () = near_life.cancelled() => self.silence_of(self.from).await,
            () = far_life.cancelled() => self.silence_of(self.to).await,
            _ = both => {}
        }
    }

    async fn carry_one_way(
        &self,
        mut read: ReadHalf<ByteStream>,
        mut write: WriteHalf<ByteStream>,
        from: NodeId,
        to: NodeId,
    ) -> Result<(), Broken> {
        let mut packet = vec![0; PACKET_BYTES];
        loop {
            let length = read.read(&mut packet).await.map_err(|_| Broken)?;
            self.network.passage(from, to, Instant::now() + BREAKS_AFTER).await.map_err(|PathCut| Broken)?;
            sleep(self.network.packet_delay()).await;
            if length == 0 {
                return write.shutdown().await.map_err(|_| Broken);
            }
            write.write_all(&packet[..length]).await.map_err(|_| Broken)?;
        }
    }

    async fn silence_of(&self, node: NodeId) {
        let breaks_at = Instant::now() + BREAKS_AFTER;
        loop {
            let changed = self.network.shared.changed.notified();
            if self.network.up(node).is_some() || timeout_at(breaks_at, changed).await.is_err() {
                return;
            }
        }
    }
}

struct Broken;

/// A small generator whose sequence never changes with a library.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn within(&mut self, range: &RangeInclusive<u64>) -> u64 {
        let width = range.end().saturating_sub(*range.start()).saturating_add(1);
        range.start() + self.below(width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);
    const SOON: Duration = Duration::from_millis(200);

    /// Sends back what it gets.
    struct Echo;

    #[async_trait]
    impl StreamHandler for Echo {
        async fn handle(&self, _peer: NodeId, _header: StreamHeader, stream: ByteStream) {
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    }

    fn network() -> SimNetwork {
        let network = SimNetwork::new(7, Weather::fair());
        network.start(ONE, Arc::new(Echo));
        network.start(TWO, Arc::new(Echo));
        network
    }

    async fn echoed(stream: &mut ByteStream) -> bool {
        let mut answer = [0; 4];
        let echo = async {
            stream.write_all(b"ping").await?;
            stream.read_exact(&mut answer).await
        };
        matches!(tokio::time::timeout(SOON, echo).await, Ok(Ok(_)))
    }

    async fn open(network: &SimNetwork) -> Result<ByteStream, LinkError> {
        network.link(ONE).open(TWO, StreamHeader::Heartbeat, SOON).await
    }

    #[tokio::test]
    async fn a_stream_carries_bytes_both_ways() {
        let mut stream = open(&network()).await.unwrap();

        assert!(echoed(&mut stream).await);
    }

    #[tokio::test]
    async fn a_path_cut_one_way_lets_nothing_come_back_until_it_heals() {
        let network = network();
        let mut stream = open(&network).await.unwrap();

        network.cut_one_way(TWO, ONE);
        assert!(!echoed(&mut stream).await);
        network.heal();

        let mut late = [0; 4];
        stream.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"ping");
    }

    #[tokio::test]
    async fn a_crashed_node_cannot_be_opened_and_its_streams_break_when_it_is_up_again() {
        let network = network();
        let mut stream = open(&network).await.unwrap();

        network.crash(TWO);
        assert_eq!(open(&network).await.err(), Some(LinkError::TimedOut(TWO)));
        network.start(TWO, Arc::new(Echo));

        assert!(!echoed(&mut stream).await);
        assert!(echoed(&mut open(&network).await.unwrap()).await);
    }
}
