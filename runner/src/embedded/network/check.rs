//! What an operator must do or know before sandboxes have a network here. Changes nothing.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;

use super::layout::{DEVICE_PREFIX, Layout};
use super::link;
use super::resolver::nameservers;
use super::{anchor, blocking, nft, overlap, rules};
use crate::runtime::{Finding, RuntimeError};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const CONNECTIONS_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// A few hundred sandboxes that each hold a few hundred.
const CONNECTIONS_FEW: u64 = 65_536;

pub(super) async fn check(layout: Layout, configured: &[SocketAddr]) -> Result<Vec<Finding>, RuntimeError> {
    let mut findings = Vec::new();
    if !rustix::process::geteuid().is_root() {
        let words = "sandboxes' networks need root: run the runner as root (`atoll runner`)";
        findings.push(Finding::Fault(words.into()));
        return Ok(findings);
    }
    let routes = blocking(|| link::step("list the host's routes", anchor::routes())).await?;
    if let Some(route) = anchor::overlapping(&layout, &routes) {
        findings.push(Finding::Fault(overlap(&layout, route).to_string()));
    }
    let uplinks = anchor::uplinks(&routes);
    if uplinks.is_empty() {
        let words =
            "this host has no route beyond itself, so sandboxes reach nobody: give it a default route";
        findings.push(Finding::Limitation(words.into()));
    }
    match nft::probe(&rules::script(&layout, &[], &uplinks)).await {
        Ok(()) => findings.extend(others(nft::list(&["chains"]).await?.as_ref(), &layout)),
        Err(error) => findings.push(Finding::Fault(error.to_string())),
    }
    if configured.is_empty() && nameservers::of_this_host().is_empty() {
        let words = "/etc/resolv.conf names no nameserver, so sandboxes find nobody by name: name one there or in the \
                     node's configuration";
        findings.push(Finding::Limitation(words.into()));
    }
    findings.extend(forwarding(&fs::read_to_string(FORWARDING).unwrap_or_default()));
    findings.extend(connections(&fs::read_to_string(CONNECTIONS_MAX).unwrap_or_default()));
    Ok(findings)
}

/// Tables that drop what is forwarded unless they know it, which no rule of ours can overrule. Those of iptables get
/// rules from [`super::iptables`].
fn others(chains: Option<&Value>, layout: &Layout) -> Vec<Finding> {
    let chains = chains.and_then(|chains| chains["nftables"].as_array()).into_iter().flatten();
    let mut findings = Vec::new();
    for chain in chains.map(|entry| &entry["chain"]).filter(|chain| chain["hook"] == "forward") {
        let (family, table) = (text(&chain["family"]), text(&chain["table"]));
        if table == "firewalld" {
            findings.push(Finding::Limitation(format!(
                "firewalld runs here and rejects what it does not know: sandboxes reach nobody before `firewall-cmd \
                 --permanent --zone=trusted --add-source={} && firewall-cmd --reload`",
                layout.range()
            )));
        } else if chain["policy"] == "drop" && family != "ip6" && (family, table) != ("ip", "filter") {
            findings.push(Finding::Fault(format!(
                "the nftables table {family} {table} drops what it does not know, sandboxes' packets too: add \
                 `iifname \"{DEVICE_PREFIX}*\" accept` and `oifname \"{DEVICE_PREFIX}*\" accept` to its chain {}",
                text(&chain["name"])
            )));
        }
    }
    findings.dedup();
    findings
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn forwarding(value: &str) -> Option<Finding> {
    (value.trim() != "1").then(|| {
        Finding::Limitation(
            "this host does not forward packets yet; the runner will switch that on (net.ipv4.ip_forward), and from \
             then on the host routes for whoever sends it packets, unless a firewall keeps them away"
                .into(),
        )
    })
}

fn connections(value: &str) -> Option<Finding> {
    let max: u64 = value.trim().parse().ok()?;
    (max < CONNECTIONS_FEW).then(|| {
        Finding::Limitation(format!(
            "this host keeps track of {max} connections only, which a busy sandbox can use up for all: `sysctl \
             net.netfilter.nf_conntrack_max=262144`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use atoll_api::ids::NodeId;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_foreign_table_that_drops_is_named_with_what_to_do() {
        let layout = Layout::new(NodeId(1), "10.88.0.0/16".parse().unwrap()).unwrap();
        let chain = |family: &str, table: &str, policy: &str| json!({ "chain": { "family": family, "table": table, "name": "fwd", "hook": "forward", "policy": policy } });
        let listed = json!({ "nftables": [
            { "metainfo": {} },
            chain("ip", "filter", "drop"),
            chain("inet", "mine", "accept"),
            chain("ip6", "six", "drop"),
            chain("inet", "site", "drop"),
            chain("inet", "firewalld", "accept"),
            chain("inet", "firewalld", "accept"),
        ] });

        let findings = others(Some(&listed), &layout);

        let [Finding::Fault(site), Finding::Limitation(firewalld)] = findings.as_slice() else {
            panic!("{findings:?}")
        };
        assert!(site.contains("inet site") && site.contains("chain fwd"), "{site}");
        assert!(firewalld.contains("--add-source=10.88.0.0/16"), "{firewalld}");
    }

    #[test]
    fn what_the_kernel_is_set_to_is_said_only_when_it_matters() {
        assert!(forwarding("1\n").is_none() && forwarding("0\n").is_some());
        assert!(connections("262144\n").is_none() && connections("").is_none());
        assert!(matches!(connections("8192\n"), Some(Finding::Limitation(words)) if words.contains("8192")));
    }
}
