//! Connections to peers: one for each (peer, class), made once however many ask at the same time, and made again when it
//! has died. An attempt belongs to nobody who waits for it: it goes on when a waiter's deadline passes.
//!
//!   (none) ──open──▶ Connecting ──welcome──▶ Connected ──dies──▶ Connecting …
//!                        └──────fails──────▶ Failed ──back-off over, open──▶ Connecting …

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_certs::ca::NODE_SERVER_NAME;
use atoll_certs::tls;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{Members, Shared, expel, lock, not_a_member, warn_unusable_identity};
use crate::link::LinkError;
use crate::quic::transport::{Role, transport};
use crate::quic::{CloseCode, alpn, link_error};
use crate::stream::StreamClass;

/// A peer that has not answered an attempt for this long is unreachable to those who wait. The attempt goes on.
/// One with which another connection is up is slow and not gone: for it they wait to the attempt's end.
const PATIENCE: Duration = Duration::from_millis(900);
/// An attempt ends after this, all addresses together.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(3);
/// After a failed attempt there is no other one for this long, doubled with each failure…
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
/// … up to this.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// Of the addresses a name resolves to, so many are tried.
const ADDRESSES_MAX: usize = 4;
/// What an accepting node says when it has admitted us: the version of this conversation.
pub(super) const WELCOME: &[u8] = &[1];

type Outcome = Result<quinn::Connection, LinkError>;

#[derive(Default)]
pub(super) struct Dialer {
    slots: Mutex<HashMap<(NodeId, StreamClass), Slot>>,
    stopped: CancellationToken,
}

#[derive(Default)]
struct Slot {
    state: State,
    /// Attempts in a row that failed.
    failures: u32,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Connecting {
        since: Instant,
        outcome: watch::Receiver<Option<Outcome>>,
    },
    Connected(quinn::Connection),
    Failed {
        at: Instant,
        error: LinkError,
    },
}

impl Dialer {
    pub(super) async fn connection(shared: &Arc<Shared>, peer: NodeId, class: StreamClass) -> Outcome {
        let (since, mut outcome) = match Dialer::look(shared, peer, class) {
            Look::Known(outcome) => return outcome,
            Look::Wait { since, outcome } => (since, outcome),
        };
        let unreachable = |cause: &str| LinkError::Unreachable { peer, cause: cause.into() };
        let patience = if shared.dialer.reaches(peer) { ATTEMPT_DEADLINE } else { PATIENCE };
        let decided = tokio::time::timeout_at(since + patience, outcome.wait_for(Option::is_some)).await;
        match decided {
            Ok(Ok(outcome)) => outcome.clone().expect("waited until it was there"),
            Ok(Err(_)) => Err(unreachable("this node is stopping")),
            Err(_) => Err(unreachable("no answer yet")),
        }
    }

    /// What is known of the connection now; starts an attempt if one is due.
    fn look(shared: &Arc<Shared>, peer: NodeId, class: StreamClass) -> Look {
        let mut slots = lock(&shared.dialer.slots);
        let slot = slots.entry((peer, class)).or_default();
        match &slot.state {
            State::Connected(connection) if connection.close_reason().is_none() => {
                return Look::Known(Ok(connection.clone()));
            }
            State::Connecting { since, outcome } => {
                return Look::Wait { since: *since, outcome: outcome.clone() };
            }
            State::Failed { at, error } if at.elapsed() < back_off(slot.failures) => {
                return Look::Known(Err(error.clone()));
            }
            State::Idle | State::Connected(_) | State::Failed { .. } => {}
        }
        if shared.members.address(peer).is_none() {
            // Nothing was tried, so nothing is remembered: the address may come with the next entry of the log.
            slots.remove(&(peer, class));
            return Look::Known(Err(LinkError::UnknownPeer(peer)));
        }
        let (decide, outcome) = watch::channel(None);
        let since = Instant::now();
        slot.state = State::Connecting { since, outcome: outcome.clone() };
        let (attempt, stopped) =
            (attempt(shared.clone(), peer, class, decide), shared.dialer.stopped.clone());
        // Bounded by its deadline and by `stopped`; its outcome comes back through the slot.
        shared.drivers.spawn(async move { stopped.run_until_cancelled(attempt).await });
        Look::Wait { since, outcome }
    }

    /// Whether some connection to the peer is up, of any class.
    fn reaches(&self, peer: NodeId) -> bool {
        lock(&self.slots).iter().any(|((p, _), slot)| {
            *p == peer
                && matches!(&slot.state, State::Connected(connection) if connection.close_reason().is_none())
        })
    }

    fn settle(&self, peer: NodeId, class: StreamClass, outcome: &Outcome) {
        let mut slots = lock(&self.slots);
        let slot = slots.entry((peer, class)).or_default();
        match outcome {
            Ok(connection) => {
                *slot = Slot { state: State::Connected(connection.clone()), failures: 0 };
            }
            Err(error) => {
                slot.failures = slot.failures.saturating_add(1);
                slot.state = State::Failed { at: Instant::now(), error: error.clone() };
            }
        }
    }

    /// Membership has changed. An attempt in flight finds out by itself: it asks again before it is used.
    pub(super) fn recheck(&self, admits: impl Fn(NodeId) -> bool) {
        lock(&self.slots).retain(|(peer, _), slot| match &slot.state {
            State::Connecting { .. } => true,
            State::Idle | State::Failed { .. } => false,
            State::Connected(connection) => {
                let stays = admits(*peer);
                if !stays {
                    expel(connection, *peer);
                }
                stays
            }
        });
    }

    /// The peer has just shown that it lives and takes us for a member: what failed before says nothing any more.
    pub(super) fn forgive(&self, peer: NodeId) {
        lock(&self.slots).retain(|(p, _), slot| *p != peer || !matches!(slot.state, State::Failed { .. }));
    }

    pub(super) fn live(&self) -> Vec<(NodeId, StreamClass, quinn::Connection)> {
        let slots = lock(&self.slots);
        let live = slots.iter().filter_map(|((peer, class), slot)| match &slot.state {
            State::Connected(connection) if connection.close_reason().is_none() => {
                Some((*peer, *class, connection.clone()))
            }
            _ => None,
        });
        live.collect()
    }

    pub(super) fn stop(&self) {
        self.stopped.cancel();
    }
}

enum Look {
    Known(Outcome),
    Wait { since: Instant, outcome: watch::Receiver<Option<Outcome>> },
}

fn back_off(failures: u32) -> Duration {
    BACK_OFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACK_OFF_MAX)
}

async fn attempt(
    shared: Arc<Shared>,
    peer: NodeId,
    class: StreamClass,
    decide: watch::Sender<Option<Outcome>>,
) {
    let outcome = match timeout(ATTEMPT_DEADLINE, connect(&shared, peer, class)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(LinkError::Unreachable { peer, cause: "no answer".into() }),
    };
    match &outcome {
        Ok(connection) => info!(%peer, ?class, address = %connection.remote_address(), "connected"),
        Err(error) => debug!(%peer, ?class, %error, "could not connect"),
    }
    shared.dialer.settle(peer, class, &outcome);
    let connected = outcome.is_ok();
    decide.send_replace(Some(outcome));
    if connected && class == StreamClass::Raft {
        // The first tunnel should not have to wait for a handshake.
        let _ = Dialer::look(&shared, peer, StreamClass::Bulk);
    }
}

async fn connect(shared: &Shared, peer: NodeId, class: StreamClass) -> Outcome {
    let address = shared.members.address(peer).ok_or(LinkError::UnknownPeer(peer))?;
    admitted(&*shared.members, peer)?;
    let addresses = resolve(shared, peer, &address).await?;
    let config = client_config(shared, peer, class)?;
    let share = ATTEMPT_DEADLINE / u32::try_from(addresses.len()).expect("at most ADDRESSES_MAX");
    let mut last = LinkError::Unreachable { peer, cause: format!("{address} resolves to no usable address") };
    for address in addresses {
        match timeout(share, connect_to(shared, peer, config.clone(), address)).await {
            Ok(Ok(connection)) => {
                if let Err(refused) = admitted(&*shared.members, peer) {
                    expel(&connection, peer);
                    return Err(refused);
                }
                return Ok(connection);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = LinkError::Unreachable { peer, cause: format!("no answer from {address}") },
        }
    }
    Err(last)
}

fn admitted(members: &dyn Members, peer: NodeId) -> Result<(), LinkError> {
    if members.admits(peer) { Ok(()) } else { Err(LinkError::Refused { peer, cause: not_a_member(peer) }) }
}

async fn resolve(shared: &Shared, peer: NodeId, address: &str) -> Result<Vec<SocketAddr>, LinkError> {
    let unreachable = |cause: String| LinkError::Unreachable { peer, cause };
    let found = tokio::net::lookup_host(address)
        .await
        .map_err(|e| unreachable(format!("{address} cannot be resolved: {e}")))?;
    // A socket bound to an IPv4 address can't send to an IPv6 one.
    let ipv4_only = shared.endpoint.local_addr().is_ok_and(|local| local.is_ipv4());
    let usable: Vec<_> = found.filter(|a| a.is_ipv4() || !ipv4_only).take(ADDRESSES_MAX).collect();
    if usable.is_empty() { Err(unreachable(format!("{address} has no usable address"))) } else { Ok(usable) }
}

fn client_config(
    shared: &Shared,
    peer: NodeId,
    class: StreamClass,
) -> Result<quinn::ClientConfig, LinkError> {
    let identity = shared.identity.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let unusable = |cause: String| LinkError::Unreachable { peer, cause };
    let tls = tls::mesh_client_config(&identity, peer, alpn(class)).map_err(|e| {
        warn_unusable_identity(&e);
        unusable(e.to_string())
    })?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| unusable(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(&shared.config, Role::Dialing));
    Ok(config)
}

/// TLS lets a client believe it is connected before the server has looked at its certificate, and membership is looked
/// at later still. So a connection counts only when the peer has said that it admitted us.
async fn connect_to(
    shared: &Shared,
    peer: NodeId,
    config: quinn::ClientConfig,
    address: SocketAddr,
) -> Outcome {
    let unreachable = |cause: String| LinkError::Unreachable { peer, cause };
    let connection = shared
        .endpoint
        .connect_with(config, address, NODE_SERVER_NAME)
        .map_err(|e| unreachable(e.to_string()))?
        .await
        .map_err(|e| link_error(peer, &e))?;
    let mut welcome = connection.accept_uni().await.map_err(|e| link_error(peer, &e))?;
    match welcome.read_to_end(WELCOME.len()).await {
        Ok(said) if said == WELCOME => Ok(connection),
        Ok(_) | Err(_) => {
            if let Some(closed) = connection.close_reason() {
                return Err(link_error(peer, &closed));
            }
            connection.close(CloseCode::Unfit.into(), b"the welcome was not understood");
            Err(LinkError::Refused { peer, cause: "it speaks another version of this protocol".into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_grows_to_its_bound() {
        assert_eq!(back_off(1), BACK_OFF_MIN);
        assert_eq!(back_off(2), BACK_OFF_MIN * 2);
        assert_eq!(back_off(u32::MAX), BACK_OFF_MAX);
    }
}
