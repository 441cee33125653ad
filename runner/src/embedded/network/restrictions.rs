//! What each restricted sandbox may reach: as wished, which the resolver goes by, and as the kernel's sets hold it. One
//! change at a time; after one that may have gone wrong, what the sets hold is looked up before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use atoll_api::egress::Allowed;
use ipnet::Ipv4Net;
use serde_json::Value;

use super::elements::{self, Change, Set};
use super::layout::Layout;
use super::ledger::{Ledger, Listed};
use super::{blocking, link, nft, rules};
use crate::runtime::RuntimeError;

/// What surely fits into one message to the kernel, of some 100 KiB; `nft` knows how to send more.
const CHANGES_AT_ONCE_MAX: usize = 256;

pub(super) struct Restrictions {
    layout: Layout,
    /// Of restricted sandboxes only. The rules follow.
    wishes: RwLock<BTreeMap<Ipv4Addr, Wish>>,
    rules: tokio::sync::Mutex<Rules>,
}

#[derive(Debug, Clone)]
pub(super) enum Wish {
    Told(Arc<Allowed>),
    /// A former process restricted it, and nobody has said yet to what: what is open stays open, no name is answered.
    Untold,
}

/// What the kernel was told. One change at a time.
#[derive(Default)]
struct Rules {
    ledger: Ledger,
    denied: Vec<Ipv4Net>,
    /// The ledger is what the sets hold. Not before [`Restrictions::reload`], nor after a change that may have gone wrong.
    sound: bool,
}

impl Restrictions {
    pub(super) fn new(layout: Layout) -> Restrictions {
        Restrictions { layout, wishes: RwLock::default(), rules: tokio::sync::Mutex::default() }
    }

    /// The rules anew, and the sets as wished.
    pub(super) async fn reload(&self, uplinks: &BTreeSet<String>) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        rules.sound = false;
        let (reconciled, _) = self.reconcile(&mut rules).await?;
        let script = rules::script(&self.layout, &rules.denied, uplinks)
            + &elements::script(&self.layout, &reconciled);
        nft::apply(&script).await?;
        rules.sound = true;
        Ok(())
    }

    /// Replaces the networks that no sandbox may reach. Before the rules are there, it holds when they come.
    pub(super) async fn deny(&self, networks: Vec<Ipv4Net>) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        rules.denied = networks;
        match rules.sound {
            true => nft::apply(&rules::deny(&self.layout, &rules.denied)).await,
            false => Ok(()),
        }
    }

    /// Removes all rules and forgets every wish.
    pub(super) async fn remove(&self) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        rules.sound = false;
        rules.ledger = Ledger::default();
        self.wishes.write().unwrap_or_else(PoisonError::into_inner).clear();
        nft::apply(&rules::removal(&self.layout)).await
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
    pub(super) async fn restrict(
        &self,
        address: Ipv4Addr,
        allowed: Arc<Allowed>,
    ) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        self.wish(address, Some(Wish::Told(allowed.clone())));
        self.make_sound(&mut rules).await?;
        let changes = rules.ledger.restrict(address, &networks(&allowed), |name| allows(&allowed, name));
        self.change(&mut rules, changes).await
    }

    pub(super) async fn free(&self, address: Ipv4Addr) -> Result<(), RuntimeError> {
        let mut rules = self.rules.lock().await;
        self.make_sound(&mut rules).await?;
        let changes = rules.ledger.free(address);
        self.change(&mut rules, changes).await?;
        self.wish(address, None);
        Ok(())
    }

    /// Opens these addresses, which `name` was answered with, for this sandbox. Refuses when the name is not allowed any
    /// more by now.
    pub(super) async fn pin(
        &self,
        sandbox: Ipv4Addr,
        name: &str,
        targets: &[Ipv4Addr],
    ) -> Result<(), RuntimeError> {
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

    pub(super) fn wish_of(&self, sandbox: Ipv4Addr) -> Option<Wish> {
        self.wishes.read().unwrap_or_else(PoisonError::into_inner).get(&sandbox).cloned()
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

pub(super) fn allows(allowed: &Allowed, name: &str) -> bool {
    match allowed {
        Allowed::Everybody => true,
        Allowed::Nobody => false,
        Allowed::Only { domains, .. } => domains.iter().any(|domain| domain.matches(name)),
    }
}
