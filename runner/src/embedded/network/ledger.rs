//! What the sets of the rules hold for each restricted sandbox, and how to bring them from one policy to the next. Pure:
//! it answers with changes. A sandbox that is not in here may reach everybody, and costs no element.
//!
//! Whoever writes a sandbox in here does so before the sandbox runs: with its first element it is cut off from all that
//! no other element opens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use serde_json::Value;

use super::elements::{Change, Element, Set};
use super::rules::PIN_S;

/// Addresses that one sandbox may have open by name at a time.
const PINS_PER_SANDBOX_MAX: usize = 512;

#[derive(Default)]
pub(super) struct Ledger {
    restricted: BTreeMap<Ipv4Addr, Held>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    networks: BTreeSet<Ipv4Net>,
    pins: BTreeMap<Ipv4Addr, Pin>,
}

#[derive(Debug, PartialEq, Eq)]
struct Pin {
    name: String,
    until: Instant,
}

/// What the kernel's sets held before this process.
pub(super) struct Listed<'a> {
    pub(super) restricted: &'a Value,
    pub(super) allowed: &'a Value,
    pub(super) pinned: &'a Value,
}

impl Ledger {
    /// Learns what the kernel's sets hold, which a former process may have left. Answers with the removal of what it
    /// does not understand: that closes.
    pub(super) fn adopt(&mut self, listed: &Listed<'_>, now: Instant) -> Vec<Change> {
        let known = std::mem::take(&mut self.restricted);
        let mut changes = Vec::new();
        for element in elements(listed.restricted) {
            match element.value.as_str().and_then(|address| address.parse().ok()) {
                Some(address) => drop(self.restricted.entry(address).or_default()),
                None => {
                    tracing::warn!(%element.value, "a set of restricted sandboxes holds a strange element")
                }
            }
        }
        for element in elements(listed.allowed) {
            let Some((from, to)) = pair(element.value) else {
                tracing::warn!(%element.value, "a set of allowed networks holds a strange element and is emptied");
                self.restricted.values_mut().for_each(|held| held.networks.clear());
                changes.push(Change::Flush(Set::Allowed));
                break;
            };
            self.restricted.entry(from).or_default().networks.insert(to);
        }
        for element in elements(listed.pinned) {
            let Some((from, to)) = pair(element.value).filter(|(_, to)| to.prefix_len() == 32) else {
                tracing::warn!(%element.value, "a set of pinned addresses holds a strange element and is emptied");
                self.restricted.values_mut().for_each(|held| held.pins.clear());
                changes.push(Change::Flush(Set::Pinned));
                break;
            };
            let to = to.addr();
            let known = known.get(&from).and_then(|held| held.pins.get(&to)).map(|pin| pin.name.clone());
            match element.comment.map(str::to_owned).or(known) {
                Some(name) => {
                    let until = now + Duration::from_secs(element.expires_s.unwrap_or(0));
                    self.restricted.entry(from).or_default().pins.insert(to, Pin { name, until });
                }
                None => changes.push(Change::Delete(pinned(from, to, ""))),
            }
        }
        changes
    }

    pub(super) fn restricted(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.restricted.keys().copied()
    }

    /// Nobody but these networks, and what is open for a name that is still allowed.
    pub(super) fn restrict(
        &mut self,
        address: Ipv4Addr,
        networks: &[Ipv4Net],
        still_allowed: impl Fn(&str) -> bool,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let held = self.restricted.entry(address).or_default();
        changes.push(Change::Add(Element::Restricted(address)));
        // Overlaps are refused by the kind of set that holds them.
        let networks: BTreeSet<Ipv4Net> = Ipv4Net::aggregate(&networks.to_vec()).into_iter().collect();
        for network in held.networks.difference(&networks) {
            changes.push(Change::Delete(Element::Allowed(address, *network)));
        }
        for network in &networks {
            changes.push(Change::Add(Element::Allowed(address, *network)));
        }
        held.networks = networks;
        held.pins.retain(|to, pin| {
            let stays = still_allowed(&pin.name);
            if !stays {
                changes.push(Change::Delete(pinned(address, *to, "")));
            }
            stays
        });
        changes
    }

    /// Everybody again.
    pub(super) fn free(&mut self, address: Ipv4Addr) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(held) = self.restricted.remove(&address) else { return changes };
        changes.push(Change::Delete(Element::Restricted(address)));
        for network in &held.networks {
            changes.push(Change::Delete(Element::Allowed(address, *network)));
        }
        for to in held.pins.keys() {
            changes.push(Change::Delete(pinned(address, *to, "")));
        }
        changes
    }

    /// Opens the addresses that `name` was answered with. `None` when the sandbox holds too many already.
    pub(super) fn pin(
        &mut self,
        address: Ipv4Addr,
        name: &str,
        targets: &[Ipv4Addr],
        now: Instant,
    ) -> Option<Vec<Change>> {
        let mut changes = Vec::new();
        let held = self.restricted.get_mut(&address)?;
        let fresh = targets.iter().filter(|to| !held.pins.contains_key(to)).count();
        if held.pins.len() + fresh > PINS_PER_SANDBOX_MAX {
            held.pins.retain(|to, pin| {
                let stays = pin.until > now;
                if !stays {
                    // A connection may have kept it open in the kernel.
                    changes.push(Change::Delete(pinned(address, *to, "")));
                }
                stays
            });
        }
        if held.pins.len() + fresh > PINS_PER_SANDBOX_MAX {
            return None;
        }
        let until = now + Duration::from_secs(PIN_S.into());
        for to in targets {
            // One that is there would keep its old end.
            changes.push(Change::Delete(pinned(address, *to, "")));
            changes.push(Change::Add(pinned(address, *to, name)));
            held.pins.insert(*to, Pin { name: name.to_owned(), until });
        }
        Some(changes)
    }

    /// Open for this name, and for so long that a repeated answer needs no new element.
    pub(super) fn is_pinned(&self, address: Ipv4Addr, name: &str, to: Ipv4Addr, now: Instant) -> bool {
        let enough = now + Duration::from_secs(u64::from(PIN_S) / 2);
        let held = self.restricted.get(&address).and_then(|held| held.pins.get(&to));
        held.is_some_and(|pin| pin.name == name && pin.until > enough)
    }
}

fn pinned(from: Ipv4Addr, to: Ipv4Addr, name: &str) -> Element {
    Element::Pinned { from, to, name: name.to_owned(), timeout_s: PIN_S }
}

struct ListedElement<'a> {
    value: &'a Value,
    comment: Option<&'a str>,
    expires_s: Option<u64>,
}

fn elements(listed: &Value) -> impl Iterator<Item = ListedElement<'_>> {
    let sets = listed["nftables"].as_array().into_iter().flatten();
    sets.filter_map(|entry| entry["set"]["elem"].as_array()).flatten().map(|element| {
        match element.get("elem") {
            Some(inner) => ListedElement {
                value: &inner["val"],
                comment: inner["comment"].as_str(),
                expires_s: inner["expires"].as_u64(),
            },
            None => ListedElement { value: element, comment: None, expires_s: None },
        }
    })
}

fn pair(value: &Value) -> Option<(Ipv4Addr, Ipv4Net)> {
    let [from, to] = value["concat"].as_array()?.as_slice() else { return None };
    let network = match to.as_str() {
        Some(address) => Ipv4Net::from(address.parse::<Ipv4Addr>().ok()?),
        None => {
            let bits = u8::try_from(to["prefix"]["len"].as_u64()?).ok()?;
            Ipv4Net::new(to["prefix"]["addr"].as_str()?.parse().ok()?, bits).ok()?
        }
    };
    Some((from.as_str()?.parse().ok()?, network))
}

#[cfg(test)]
mod tests;
