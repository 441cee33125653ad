//! The rules that all sandboxes of a node live under, as one nftables script. What single sandboxes may reach lies in
//! sets (see [`super::ledger`]), so that a change touches no rule and a reload of the rules no set.
//!
//! No rule trusts an existing connection: every packet is asked for anew, both ways, so that what is no longer allowed
//! is cut at once. `raw` comes before address translation, so a port that Docker publishes for somebody else is closed
//! to sandboxes too.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::elements::Set;
use super::layout::{DEVICE_PREFIX, Layout};

/// How long an address that a name was answered with stays open after the last answer, or after the last packet of a
/// connection there. Answers are valid for less (see [`super::resolver`]).
pub(super) const PIN_S: u32 = 3600;
const PINS_MAX: u32 = 1 << 18;
/// Connections that one sandbox has at once, as the host follows them: for as long as two minutes after their end. The host's table
/// (`nf_conntrack_max`, often 262144) is everybody's, and when it is full nobody opens another.
pub(super) const FLOWS_MAX: u32 = 8192;
/// Never anybody's on the other side of the gateway: this host, loopback, link-local with the clouds' metadata services,
/// multicast, reserved and broadcast.
const NOWHERE: &str = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4";
/// Makes the table or renews all of it but the elements of the sandboxes' sets. `uplinks` are the devices that lead
/// beyond this host.
pub(super) fn script(layout: &Layout, denied: &[Ipv4Net], uplinks: &BTreeSet<String>) -> String {
    let table = layout.table();
    let (ours, gateway, range) = (format!("\"{}*\"", layout.anchor()), layout.gateway(), layout.range());
    let [restricted, allowed, pinned] =
        [Set::Restricted, Set::Allowed, Set::Pinned].map(|set| format!("@{}", set.name()));
    let mut script = format!(
        "add table inet {table}\n\
         add set inet {table} {} {{ type ipv4_addr; }}\n\
         add set inet {table} {} {{ type ipv4_addr . ipv4_addr; flags interval; }}\n\
         add set inet {table} {} {{ type ipv4_addr . ipv4_addr; size {PINS_MAX}; flags dynamic,timeout; timeout {PIN_S}s; }}\n\
         add set inet {table} flows {{ type ipv4_addr; size 65535; flags dynamic; }}\n\
         add set inet {table} denied {{ type ipv4_addr; flags interval; }}\n\
         add set inet {table} uplinks {{ type ifname; }}\n\
         flush set inet {table} uplinks\n",
        Set::Restricted.name(),
        Set::Allowed.name(),
        Set::Pinned.name(),
    );
    let mut elements = |set: &str, elements: Vec<String>| {
        if !elements.is_empty() {
            let _ = writeln!(script, "add element inet {table} {set} {{ {} }}", elements.join(", "));
        }
    };
    elements("uplinks", uplinks.iter().map(|device| format!("\"{device}\"")).collect());
    script += &deny(layout, denied);

    let mut chain = |name: &str, hook: &str, rules: &[String]| {
        let _ = writeln!(script, "add chain inet {table} {name} {hook}\nflush chain inet {table} {name}");
        for rule in rules {
            let _ = writeln!(script, "add rule inet {table} {name} {rule}");
        }
    };
    // Told at once instead of being kept waiting.
    chain(
        "refuse",
        "",
        &strings(&[
            "meta l4proto tcp reject with tcp reset",
            "meta nfproto ipv4 reject with icmp type admin-prohibited",
            "drop",
        ]),
    );
    chain(
        "limited",
        "",
        &[
            format!("ip saddr . ip daddr {allowed} accept"),
            format!(
                "ct state established ip saddr . ip daddr {pinned} update {pinned} {{ ip saddr . ip daddr timeout {PIN_S}s }} accept"
            ),
            format!("ip saddr . ip daddr {pinned} accept"),
            "goto refuse".into(),
        ],
    );
    chain(
        "limited_replies",
        "",
        &[
            format!("ip daddr . ip saddr {allowed} accept"),
            format!("ip daddr . ip saddr {pinned} accept"),
            // A router on the way says why nothing arrives.
            "ct state related icmp type { destination-unreachable, time-exceeded } accept".into(),
            "drop".into(),
        ],
    );
    chain(
        "from_sandbox",
        "",
        &[
            // Sandboxes of this node, and of any other on this host, whichever runtime has them.
            format!("oifname \"{DEVICE_PREFIX}*\" goto refuse"),
            // Other people's containers and virtual machines on this host.
            "oifname != @uplinks meta oifkind { \"bridge\", \"veth\", \"dummy\" } goto refuse".into(),
            "tcp flags syn tcp option maxseg size set rt mtu".into(),
            format!("ct state new add @flows {{ ip saddr ct count over {FLOWS_MAX} }} goto refuse"),
            format!("ip saddr {restricted} goto limited"),
            "accept".into(),
        ],
    );
    chain(
        "to_sandbox",
        "",
        &[
            "ct state != { established, related } drop".into(),
            format!("ip daddr {restricted} goto limited_replies"),
            "accept".into(),
        ],
    );
    chain(
        "entry",
        "{ type filter hook prerouting priority raw; policy accept; }",
        &[
            format!("iifname != {ours} accept"),
            "meta nfproto != ipv4 drop".into(),
            // An address that the host does not route over this very cable: forged.
            "fib saddr . iif oif missing drop".into(),
            format!("ip daddr {gateway} udp dport 53 accept"),
            format!("ip daddr {gateway} tcp dport 53 accept"),
            "fib daddr type != unicast goto refuse".into(),
            format!("ip daddr {{ {NOWHERE} }} goto refuse"),
            "ip daddr @denied goto refuse".into(),
        ],
    );
    // What comes this far is for the resolver. Silence makes whoever asked ask again.
    chain(
        "arrive",
        "{ type filter hook input priority filter - 10; policy accept; }",
        &[format!("iifname {ours} ct state new add @flows {{ ip saddr ct count over {FLOWS_MAX} }} drop")],
    );
    chain(
        "forward",
        "{ type filter hook forward priority filter - 10; policy accept; }",
        &[format!("iifname {ours} goto from_sandbox"), format!("oifname {ours} goto to_sandbox")],
    );
    chain(
        "translate",
        "{ type nat hook postrouting priority srcnat; policy accept; }",
        &[format!("ip saddr {range} oifname != \"{DEVICE_PREFIX}*\" masquerade")],
    );
    script
}

/// Replaces the networks that no sandbox may reach.
pub(super) fn deny(layout: &Layout, denied: &[Ipv4Net]) -> String {
    let (table, mut script) = (layout.table(), String::new());
    let _ = writeln!(script, "flush set inet {table} denied");
    let networks: Vec<String> = Ipv4Net::aggregate(&denied.to_vec()).iter().map(Ipv4Net::to_string).collect();
    if !networks.is_empty() {
        let _ = writeln!(script, "add element inet {table} denied {{ {} }}", networks.join(", "));
    }
    script
}

/// Fine if there is no such table.
pub(super) fn removal(layout: &Layout) -> String {
    let table = layout.table();
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// Whether a resolver's answer may open this address at all: no name may be made to lead into a network of the host.
pub(super) fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmark = a == 198 && (b == 18 || b == 19);
    let protocol = (a, b, c) == (192, 0, 0);
    !(a == 0
        || a >= 224
        || shared
        || benchmark
        || protocol
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local())
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for inside in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.53",
            "169.254.169.254",
            "172.31.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "192.0.2.1"] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }
}
