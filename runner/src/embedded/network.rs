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
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use atoll_api::egress::Allowed;
use atoll_api::ids::NodeId;
use atoll_api::sandbox::Egress;
use ipnet::Ipv4Net;
use serde_json::Value;

use self::elements::{Change, Set};
use self::ledger::{Ledger, Listed};
use self::link::{Lease, LinkError};
use self::resolver::{Resolver, nameservers};
use crate::runtime::{Finding, RuntimeError};

pub use layout::{Layout, LayoutError};

/// What surely fits into one message to the kernel, of some 100 KiB; `nft` knows how to send more.
const CHANGES_AT_ONCE_MAX: usize = 256;

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
    shared: Arc<Shared>,
    resolver: tokio::sync::Mutex<Option<Resolver>>,
}

struct Shared {
    layout: Layout,
    nameservers: RwLock<Vec<SocketAddr>>,
    /// Whether they are looked up again now and then, or given for good.
    nameservers_of: NameserversOf,
    /// Of restricted sandboxes only. The rules follow, the resolver asks here.
    wishes: RwLock<BTreeMap<Ipv4Addr, Wish>>,
    rules: tokio::sync::Mutex<Rules>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameserversOf {
    Config,
    Host,
}

#[derive(Debug, Clone)]
enum Wish {
    Told(Arc<Allowed>),
    /// A former process restricted it, and nobody has said yet to what: what is open stays open, no name is answered.
    Untold,
}

/// What the kernel was told. One change at a time.
struct Rules {
    ledger: Ledger,
    denied: Vec<Ipv4Net>,
    /// The ledger is what the sets hold. Not before [`Network::prepare`], nor after a change that may have gone wrong.
    sound: bool,
}

impl Network {
    /// Touches nothing yet.
    pub fn new(config: NetworkConfig) -> Result<Network, RuntimeError> {
        let layout = Layout::new(config.node_id, config.range)
            .map_err(|error| RuntimeError::Host(error.to_string()))?;
        let nameservers_of = match config.nameservers.is_empty() {
            true => NameserversOf::Host,
            false => NameserversOf::Config,
        };
        let rules = Rules { ledger: Ledger::default(), denied: Vec::new(), sound: false };
        Ok(Network {
            shared: Arc::new(Shared {
                layout,
                nameservers: RwLock::new(config.nameservers),
                nameservers_of,
                wishes: RwLock::default(),
                rules: tokio::sync::Mutex::new(rules),
            }),
            resolver: tokio::sync::Mutex::default(),
        })
    }

    /// For [`link::attach`] in another process.
    pub fn layout(&self) -> Layout {
        self.shared.layout
    }

    /// Makes what sandboxes share or finds it again, with the restrictions that a former process left in force. Called
    /// before anything else and then now and again, so that what somebody flushed comes back.
    pub async fn prepare(&self) -> Result<(), RuntimeError> {
        let layout = self.shared.layout;
        let routes = blocking(move || {
            let routes = link::step("list the host's routes", anchor::routes())?;
            if let Some(route) = anchor::overlapping(&layout, &routes) {
                return Ok(Err(overlap(&layout, route)));
            }
            anchor::ensure(&layout)?;
            Ok(Ok(routes))
        });
        let routes = routes.await??;
        self.shared.reload(&anchor::uplinks(&routes)).await?;
        iptables::ensure(&layout).await?;
        self.ensure_resolver().await
    }

    async fn ensure_resolver(&self) -> Result<(), RuntimeError> {
        if self.shared.nameservers_of == NameserversOf::Host {
            let found = nameservers::of_this_host();
            *self.shared.nameservers.write().unwrap_or_else(PoisonError::into_inner) = found;
        }
        let mut resolver = self.resolver.lock().await;
        if !resolver.as_ref().is_some_and(Resolver::is_running) {
            let gateway = self.shared.layout.gateway();
            let started = Resolver::start(self.shared.clone()).await.map_err(|error| {
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
        format!("nameserver {}\n", self.shared.layout.gateway())
    }

    /// Connects a new network namespace. See [`link::attach`], which may be called instead, also in another process.
    pub async fn attach(&self, slot: u16, netns: OwnedFd) -> Result<Lease, RuntimeError> {
        let layout = self.shared.layout;
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
        let layout = self.shared.layout;
        blocking(move || link::detach(&layout, slot)).await?;
        let address = self.address(slot)?;
        self.shared.free(address).await
    }

    /// Replaces whom the sandbox may reach: for new connections and for those it has. Must be told before a sandbox
    /// with restrictions runs, and again when a process takes over running sandboxes. `Spec` when `egress` is malformed.
    pub async fn set_egress(&self, slot: u16, egress: &Egress) -> Result<(), RuntimeError> {
        let allowed = Allowed::of(egress).map_err(|error| RuntimeError::Spec(error.to_string()))?;
        let address = self.address(slot)?;
        match allowed {
            Allowed::Everybody => self.shared.free(address).await,
            Allowed::Nobody | Allowed::Only { .. } => self.shared.restrict(address, Arc::new(allowed)).await,
        }
    }

    /// Replaces the networks that no sandbox may reach whatever its list says, such as the other nodes of the cluster.
    pub async fn set_denied(&self, networks: Vec<Ipv4Net>) -> Result<(), RuntimeError> {
        let mut rules = self.shared.rules.lock().await;
        rules.denied = networks;
        match rules.sound {
            true => nft::apply(&rules::deny(&self.shared.layout, &rules.denied)).await,
            // Comes with the next `prepare`.
            false => Ok(()),
        }
    }

    /// One line for each thing that an operator must do or know; none when all is well. Changes nothing.
    pub async fn check(&self) -> Result<Vec<Finding>, RuntimeError> {
        let configured = match self.shared.nameservers_of {
            NameserversOf::Config => self.shared.nameservers(),
            NameserversOf::Host => Vec::new(),
        };
        check::check(self.shared.layout, &configured).await
    }

    /// Removes all that bears the node's name: cables, rules, devices.
    pub async fn teardown(&self) -> Result<(), RuntimeError> {
        let layout = self.shared.layout;
        *self.resolver.lock().await = None;
        blocking(move || anchor::remove(&layout)).await?;
        let mut rules = self.shared.rules.lock().await;
        rules.sound = false;
        rules.ledger = Ledger::default();
        self.shared.wishes.write().unwrap_or_else(PoisonError::into_inner).clear();
        nft::apply(&rules::removal(&layout)).await?;
        iptables::remove(&layout).await
    }

    fn address(&self, slot: u16) -> Result<Ipv4Addr, RuntimeError> {
        let layout = &self.shared.layout;
        let address = layout.address(slot).ok_or_else(|| LinkError::NoSuchSlot(layout.range(), slot));
        address.map_err(host_error)
    }
}

impl Shared {
    /// The rules anew, and the sets as wished.
    async fn reload(&self, uplinks: &BTreeSet<String>) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        rules.sound = false;
        let (reconciled, _) = self.reconcile(&mut rules).await?;
        let script = rules::script(&self.layout, &rules.denied, uplinks)
            + &elements::script(&self.layout, &reconciled);
        nft::apply(&script).await?;
        rules.sound = true;
        Ok(())
    }

    /// After a change that may have gone wrong.
    async fn make_sound(&self, rules: &mut Rules) -> Result<(), RuntimeError> {
        if rules.sound {
            return Ok(());
        }
        match self.reconcile(rules).await? {
            (changes, Table::There) => {
                rules.sound = true;
                self.change(rules, changes).await
            }
            (_, Table::Gone) => Err(RuntimeError::Host(
                "the rules that keep sandboxes away from the host are not in place; they come back by themselves, or \
                 the log says why not"
                    .into(),
            )),
        }
    }

    /// Learns what the sets hold and says what must change.
    async fn reconcile(&self, rules: &mut Rules) -> Result<(Vec<Change>, Table), RuntimeError> {
        let listed = |set: Set| listed(&self.layout, set);
        let (restricted, allowed, pinned) =
            tokio::try_join!(listed(Set::Restricted), listed(Set::Allowed), listed(Set::Pinned))?;
        let table = if restricted.is_null() { Table::Gone } else { Table::There };
        let listed = Listed { restricted: &restricted, allowed: &allowed, pinned: &pinned };
        let mut changes = rules.ledger.adopt(&listed, Instant::now());
        let mut wishes = self.wishes.write().unwrap_or_else(PoisonError::into_inner);
        for address in rules.ledger.restricted() {
            wishes.entry(address).or_insert(Wish::Untold);
        }
        for (address, wish) in wishes.iter() {
            if let Wish::Told(allowed) = wish {
                changes.extend(
                    rules.ledger.restrict(*address, &networks(allowed), |name| allows(allowed, name)),
                );
            }
        }
        Ok((changes, table))
    }

    /// The resolver closes first: a change that fails leaves less open than is wished, never more.
    async fn restrict(&self, address: Ipv4Addr, allowed: Arc<Allowed>) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        self.wish(address, Some(Wish::Told(allowed.clone())));
        self.make_sound(&mut rules).await?;
        let changes = rules.ledger.restrict(address, &networks(&allowed), |name| allows(&allowed, name));
        self.change(&mut rules, changes).await
    }

    async fn free(&self, address: Ipv4Addr) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        self.make_sound(&mut rules).await?;
        let changes = rules.ledger.free(address);
        self.change(&mut rules, changes).await?;
        self.wish(address, None);
        Ok(())
    }

    /// Opens these addresses, which `name` was answered with, for this sandbox. Refuses when the name is not allowed any
    /// more by now.
    async fn pin(&self, sandbox: Ipv4Addr, name: &str, targets: &[Ipv4Addr]) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        self.make_sound(&mut rules).await?;
        match self.wish_of(sandbox) {
            Some(Wish::Told(allowed)) if allows(&allowed, name) => {}
            // Nothing is closed to it.
            None => return Ok(()),
            Some(_) => return Err(RuntimeError::Spec("the name is not allowed any more".into())),
        }
        let now = Instant::now();
        let fresh: Vec<Ipv4Addr> =
            targets.iter().copied().filter(|to| !rules.ledger.is_pinned(sandbox, name, *to, now)).collect();
        let changes = rules.ledger.pin(sandbox, name, &fresh, now);
        let changes =
            changes.ok_or_else(|| RuntimeError::Spec("too many addresses are open for it already".into()))?;
        self.change(&mut rules, changes).await
    }

    async fn change(&self, rules: &mut Rules, changes: Vec<Change>) -> Result<(), RuntimeError> {
        if changes.is_empty() {
            return Ok(());
        }
        // Also if this future is dropped in the middle.
        rules.sound = false;
        let layout = self.layout;
        match changes.len() <= CHANGES_AT_ONCE_MAX {
            true => {
                blocking(move || {
                    link::step("change what a sandbox may reach", elements::apply(&layout, &changes))
                })
                .await?;
            }
            false => nft::apply(&elements::script(&layout, &changes)).await?,
        }
        rules.sound = true;
        Ok(())
    }

    fn wish_of(&self, sandbox: Ipv4Addr) -> Option<Wish> {
        self.wishes.read().unwrap_or_else(PoisonError::into_inner).get(&sandbox).cloned()
    }

    fn nameservers(&self) -> Vec<SocketAddr> {
        self.nameservers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wish(&self, address: Ipv4Addr, wish: Option<Wish>) {
        let mut wishes = self.wishes.write().unwrap_or_else(PoisonError::into_inner);
        match wish {
            Some(wish) => drop(wishes.insert(address, wish)),
            None => drop(wishes.remove(&address)),
        }
    }
}

enum Table {
    There,
    Gone,
}

/// `Null` when there is no such set.
async fn listed(layout: &Layout, set: Set) -> Result<Value, RuntimeError> {
    let found = nft::list(&["set", "inet", &layout.table(), &set.name()]).await?;
    Ok(found.unwrap_or(Value::Null))
}

fn networks(allowed: &Allowed) -> Vec<Ipv4Net> {
    match allowed {
        Allowed::Everybody | Allowed::Nobody => Vec::new(),
        Allowed::Only { networks, .. } => networks
            .iter()
            .map(|network| Ipv4Net::new_assert(network.address(), network.prefix_bits()))
            .collect(),
    }
}

fn allows(allowed: &Allowed, name: &str) -> bool {
    match allowed {
        Allowed::Everybody => true,
        Allowed::Nobody => false,
        Allowed::Only { domains, .. } => domains.iter().any(|domain| domain.matches(name)),
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
