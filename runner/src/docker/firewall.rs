//! The host's rules that keep sandboxes away from the host, its metadata service and each other. Calls `iptables`,
//! which stands for nftables or the legacy tables, whichever the host uses.
//!
//! They are in `raw` and `mangle`, where neither Docker nor ufw nor firewalld puts anything, so that no order of
//! starting can place an ACCEPT before them; and `raw` comes before address translation, so that a port which
//! Docker publishes for somebody else is closed to sandboxes too. Between sandboxes of one bridge the kernel asks these
//! rules only with br_netfilter on, which [`crate::docker::host::require_bridge_filtering`] checks.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::docker::BRIDGE_PREFIX;
use crate::runtime::RuntimeError;

/// For one call of iptables, its wait for the lock included.
const CALL_DEADLINE: Duration = Duration::from_secs(15);
const LOCK_WAIT_S: &str = "10";
/// Copies of one rule that a removal looks for.
const COPIES_MAX: usize = 16;

pub(crate) struct Firewall {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    table: &'static str,
    chain: &'static str,
    matching: Vec<String>,
}

impl Firewall {
    /// `network` becomes the comment by which the rules are known.
    pub(crate) fn new(network: &str, bridge: &str) -> Firewall {
        let rule = |table, chain, matches: &[&str]| {
            let (head, tail) = (["-i", bridge], ["-m", "comment", "--comment", network, "-j", "DROP"]);
            let words = head.iter().chain(matches).chain(&tail);
            let matching = words.map(|word| (*word).to_owned()).collect();
            Rule { table, chain, matching }
        };
        let any_bridge = format!("{BRIDGE_PREFIX}+");
        Firewall {
            rules: vec![
                // Cloud metadata and everything else that is link-local.
                rule("raw", "PREROUTING", &["-d", "169.254.0.0/16"]),
                // Any address of the host, before translation: ports of the node, the mesh, published containers.
                rule("raw", "PREROUTING", &["-m", "addrtype", "--dst-type", "LOCAL"]),
                // What reaches the host in other ways: broadcast and multicast.
                rule("mangle", "INPUT", &[]),
                // Sandboxes of this node and of any other node on the host.
                rule("mangle", "FORWARD", &["-o", &any_bridge]),
            ],
        }
    }

    /// Finds each rule or puts it first in its chain.
    pub(crate) async fn ensure(&self) -> Result<(), RuntimeError> {
        for rule in &self.rules {
            if call(&rule.arguments("-C")).await?.is_err() {
                call(&rule.arguments("-I")).await?.map_err(|words| refused(&words))?;
            }
        }
        Ok(())
    }

    /// Also removes copies. Not an error when there is none.
    pub(crate) async fn remove(&self) -> Result<(), RuntimeError> {
        for rule in &self.rules {
            for _ in 0..COPIES_MAX {
                if call(&rule.arguments("-D")).await?.is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether iptables works here at all.
    pub(crate) async fn probe(&self) -> Result<(), RuntimeError> {
        for rule in &self.rules {
            let list = ["-w", LOCK_WAIT_S, "-t", rule.table, "-S", rule.chain].map(str::to_owned);
            call(&list).await?.map_err(|words| refused(&words))?;
        }
        Ok(())
    }
}

impl Rule {
    fn arguments(&self, verb: &str) -> Vec<String> {
        let head = ["-w", LOCK_WAIT_S, "-t", self.table, verb, self.chain].map(str::to_owned);
        head.into_iter().chain(self.matching.iter().cloned()).collect()
    }
}

/// The inner result: iptables ran and said no, with these words.
async fn call(arguments: &[String]) -> Result<Result<(), String>, RuntimeError> {
    let child = Command::new("iptables")
        .args(arguments)
        // Services often start with a path that lacks sbin.
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            RuntimeError::Host(format!(
                "cannot run iptables, which keeps sandboxes away from the host: {error}; install the package \
                 iptables and run the node as root"
            ))
        })?;
    let output = tokio::time::timeout(CALL_DEADLINE, child.wait_with_output())
        .await
        .map_err(|_| RuntimeError::TimedOut("iptables; another program holds its lock".into()))?
        .map_err(|error| RuntimeError::Host(format!("cannot run iptables: {error}")))?;
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(words) })
}

fn refused(words: &str) -> RuntimeError {
    RuntimeError::Host(format!(
        "iptables refuses the rules that keep sandboxes away from the host: {words}; run the node as root on a \
         kernel with the tables raw and mangle and the match addrtype"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_bound_to_the_nodes_bridge_and_named_after_its_network() {
        let firewall = Firewall::new("atoll-n", "atl-n");

        for rule in &firewall.rules {
            let words = rule.arguments("-I").join(" ");
            assert!(words.contains("-i atl-n ") && words.contains("--comment atoll-n -j DROP"), "{words}");
        }
    }
}
