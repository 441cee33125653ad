//! The network of this node's sandboxes: a cable for each, one way out through address translation, and rules that keep
//! them away from the host, its neighbours and each other.
//!
//! ```text
//!   sandbox eth0 10.88.0.2 ──veth── atl<node><slot> ┐
//!   sandbox eth0 10.88.0.3 ──veth── atl<node><slot> ┼─ host routes ─ rules ─ masquerade ─▶ uplink
//!                    atl<node> 10.88.0.1: resolver  ┘
//! ```
//!
//! A slot is a place for one sandbox, numbered from 0 ([`Layout`]); who has which is the caller's business. Everything is
//! named after the node, so a new process finds what a crashed one left. What one sandbox may reach is told to
//! [`Network::set_egress`] before it runs: one that was not told reaches everybody outside.

mod anchor;
mod carrier;
mod check;
mod elements;
mod inside;
mod iptables;
mod layout;
mod ledger;
pub mod link;
mod netlink;
mod nft;
mod resolver;
mod restrictions;
mod rules;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use atoll_api::egress::Allowed;
use atoll_api::ids::NodeId;
use atoll_api::sandbox::Egress;
use ipnet::Ipv4Net;

use self::link::{Lease, LinkError};
use self::resolver::{Resolver, nameservers};
use self::restrictions::Restrictions;
use crate::runtime::{Finding, RuntimeError};

pub use layout::{Layout, LayoutError};

#[derive(Debug, Clone)]
pub struct NetworkConfig {
    pub node_id: NodeId,
    /// The sandboxes' addresses, of 8 to 24 bits; no other network of the host may have any of them. A node's own: nodes
    /// on one host have different ones.
    pub range: Ipv4Net,
    /// Who answers the sandboxes' names, through the node's own resolver. Empty: the nameservers of the host.
    pub nameservers: Vec<SocketAddr>,
}

impl NetworkConfig {
    pub fn new(node_id: NodeId) -> NetworkConfig {
        NetworkConfig { node_id, range: default_range(), nameservers: Vec::new() }
    }
}

/// 10.88.0.0/16: 65,533 slots.
pub fn default_range() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 0), 16)
}

pub struct Network {
    layout: Layout,
    /// As configured: empty for the host's.
    nameservers_given: Vec<SocketAddr>,
    nameservers: Arc<RwLock<Vec<SocketAddr>>>,
    restrictions: Arc<Restrictions>,
    resolver: tokio::sync::Mutex<Option<Resolver>>,
}

impl Network {
    /// Touches nothing yet.
    pub fn new(config: NetworkConfig) -> Result<Network, RuntimeError> {
        let layout = Layout::new(config.node_id, config.range)
            .map_err(|error| RuntimeError::Host(error.to_string()))?;
        Ok(Network {
            layout,
            nameservers: Arc::new(RwLock::new(config.nameservers.clone())),
            nameservers_given: config.nameservers,
            restrictions: Arc::new(Restrictions::new(layout)),
            resolver: tokio::sync::Mutex::default(),
        })
    }

    /// For [`link::attach`] in another process.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Makes what sandboxes share or finds it again, with the restrictions that a former process left in force. Called
    /// before anything else and then now and again, so that what somebody flushed comes back.
    pub async fn prepare(&self) -> Result<(), RuntimeError> {
        let layout = self.layout;
        let routes = blocking(move || {
            let routes = link::step("list the host's routes", anchor::routes())?;
            if let Some(route) = anchor::overlapping(&layout, &routes) {
                return Ok(Err(overlap(&layout, route)));
            }
            anchor::ensure(&layout)?;
            Ok(Ok(routes))
        });
        let routes = routes.await??;
        self.restrictions.reload(&anchor::uplinks(&routes)).await?;
        iptables::ensure(&layout).await?;
        self.ensure_resolver().await
    }

    async fn ensure_resolver(&self) -> Result<(), RuntimeError> {
        if self.nameservers_given.is_empty() {
            let found = nameservers::of_this_host();
            *self.nameservers.write().unwrap_or_else(PoisonError::into_inner) = found;
        }
        let mut resolver = self.resolver.lock().await;
        if !resolver.as_ref().is_some_and(Resolver::is_running) {
            let gateway = self.layout.gateway();
            let started = Resolver::start(self.layout.gateway(), self.nameservers.clone(), self.restrictions.clone()).await.map_err(|error| {
                RuntimeError::Host(format!(
                    "cannot answer the sandboxes' names on {gateway} port 53: {error}; another nameserver of this host \
                     that listens on every address must leave this one out"
                ))
            });
            *resolver = Some(started?);
        }
        Ok(())
    }

    /// What `/etc/resolv.conf` must say in a sandbox.
    pub fn resolv_conf(&self) -> String {
        format!("nameserver {}\n", self.layout.gateway())
    }

    /// Connects a new network namespace. See [`link::attach`], which may be called instead, also in another process.
    pub async fn attach(&self, slot: u16, netns: OwnedFd) -> Result<Lease, RuntimeError> {
        let layout = self.layout;
        // A thread of its own: should it not find back from the sandbox, nobody else runs on it.
        let (answer, attached) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("attach".into())
            .spawn(move || {
                use std::os::fd::AsFd;
                let _ = answer.send(link::attach(&layout, slot, netns.as_fd()));
            })
            .map_err(|error| RuntimeError::Host(format!("cannot start a thread: {error}")))?;
        let attached =
            attached.await.map_err(|_| RuntimeError::Host("attaching a sandbox broke off".into()))?;
        attached.map_err(host_error)
    }

    /// Takes the slot's cable away, if it did not go with its namespace, and then what was told of it. The slot is free
    /// for another sandbox afterwards. Fine if there is nothing.
    pub async fn detach(&self, slot: u16) -> Result<(), RuntimeError> {
        let layout = self.layout;
        blocking(move || link::detach(&layout, slot)).await?;
        let address = self.address(slot)?;
        self.restrictions.free(address).await
    }

    /// Replaces whom the sandbox may reach: for new connections and for those it has. Must be told before a sandbox
    /// with restrictions runs, and again when a process takes over running sandboxes. `Spec` when `egress` is malformed.
    pub async fn set_egress(&self, slot: u16, egress: &Egress) -> Result<(), RuntimeError> {
        let allowed = Allowed::of(egress).map_err(|error| RuntimeError::Spec(error.to_string()))?;
        let address = self.address(slot)?;
        match allowed {
            Allowed::Everybody => self.restrictions.free(address).await,
            Allowed::Nobody | Allowed::Only { .. } => {
                self.restrictions.restrict(address, Arc::new(allowed)).await
            }
        }
    }

    /// Replaces the networks that no sandbox may reach whatever its list says, such as the other nodes of the cluster.
    pub async fn set_denied(&self, networks: Vec<Ipv4Net>) -> Result<(), RuntimeError> {
        self.restrictions.deny(networks).await
    }

    /// One line for each thing that an operator must do or know; none when all is well. Changes nothing.
    pub async fn check(&self) -> Result<Vec<Finding>, RuntimeError> {
        check::check(self.layout, &self.nameservers_given).await
    }

    /// Removes all that bears the node's name: cables, rules, devices.
    pub async fn teardown(&self) -> Result<(), RuntimeError> {
        let layout = self.layout;
        *self.resolver.lock().await = None;
        blocking(move || anchor::remove(&layout)).await?;
        self.restrictions.remove().await?;
        iptables::remove(&layout).await
    }

    fn address(&self, slot: u16) -> Result<Ipv4Addr, RuntimeError> {
        let layout = &self.layout;
        let address = layout.address(slot).ok_or_else(|| LinkError::NoSuchSlot(layout.range(), slot));
        address.map_err(host_error)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LinkError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| RuntimeError::Host(format!("setting up the network broke off: {error}")))?
        .map_err(host_error)
}

fn host_error(error: LinkError) -> RuntimeError {
    RuntimeError::Host(format!(
        "{error}; sandboxes' networks need root and a kernel with veth and bridge devices"
    ))
}

fn overlap(layout: &Layout, route: &anchor::Route) -> RuntimeError {
    RuntimeError::Host(format!(
        "the sandboxes' network range {} overlaps {} on {}: give the node another range",
        layout.range(),
        route.to,
        route.device
    ))
}
