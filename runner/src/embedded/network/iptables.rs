//! Living with others' firewalls. A packet must be accepted by every table, and Docker and ufw drop in theirs what they
//! do not know; so there, and only where something is dropped, stand a few rules of ours that let sandboxes' packets
//! pass. What sandboxes may do is not decided here but in [`super::rules`], which nobody else's rules can overrule.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::layout::Layout;
use super::nft::PROGRAM_PATH;
use crate::runtime::RuntimeError;

const CALL_DEADLINE: Duration = Duration::from_secs(15);
const LOCK_WAIT_S: &str = "10";

/// Puts our rules first in the chains that hold rules or drop; asks the host for nothing else. A host without iptables
/// has nothing to live with.
pub(super) async fn ensure(layout: &Layout) -> Result<(), RuntimeError> {
    for chain in ["FORWARD", "INPUT"] {
        let Some(listed) = list(chain).await? else { return Ok(()) };
        if !is_in_use(&listed, layout) {
            continue;
        }
        for rule in rules(layout).iter().filter(|rule| rule.chain == chain) {
            let there = call(&rule.arguments("-C")).await?.is_some_and(|answer| answer.is_ok());
            if !there && let Some(Err(words)) = call(&rule.arguments("-I")).await? {
                return Err(refused(&words));
            }
        }
    }
    Ok(())
}

/// Also removes copies. Fine if there is none.
pub(super) async fn remove(layout: &Layout) -> Result<(), RuntimeError> {
    for chain in ["FORWARD", "INPUT"] {
        let Some(listed) = list(chain).await? else { return Ok(()) };
        for line in listed.lines().filter(|line| is_ours(line, layout)) {
            let Some(rule) = line.strip_prefix("-A ") else { continue };
            let arguments: Vec<String> = ["-w", LOCK_WAIT_S, "-D"]
                .into_iter()
                .chain(rule.split_whitespace())
                .map(str::to_owned)
                .collect();
            if let Some(Err(words)) = call(&arguments).await? {
                return Err(refused(&words));
            }
        }
    }
    Ok(())
}

struct Rule {
    chain: &'static str,
    matching: Vec<String>,
}

impl Rule {
    fn arguments(&self, verb: &str) -> Vec<String> {
        let head = ["-w", LOCK_WAIT_S, verb, self.chain].map(str::to_owned);
        head.into_iter().chain(self.matching.iter().cloned()).collect()
    }
}

fn rules(layout: &Layout) -> Vec<Rule> {
    let (devices, comment) = (format!("{}+", layout.anchor()), layout.comment());
    let rule = |chain, words: &str| {
        let tail = ["-m", "comment", "--comment", &comment, "-j", "ACCEPT"].map(str::to_owned);
        let matching = words.split_whitespace().map(|word| word.replace("OURS", &devices)).chain(tail);
        Rule { chain, matching: matching.collect() }
    };
    vec![
        rule("FORWARD", "-o OURS -m conntrack --ctstate RELATED,ESTABLISHED"),
        rule("FORWARD", "-i OURS"),
        rule("INPUT", "-i OURS -p udp -m udp --dport 53"),
        rule("INPUT", "-i OURS -p tcp -m tcp --dport 53"),
    ]
}

/// A policy that drops, or rules of somebody else.
fn is_in_use(listed: &str, layout: &Layout) -> bool {
    listed.lines().any(|line| match line.strip_prefix("-P ") {
        Some(policy) => !policy.ends_with(" ACCEPT"),
        None => line.starts_with("-A ") && !is_ours(line, layout),
    })
}

fn is_ours(line: &str, layout: &Layout) -> bool {
    let comment = layout.comment();
    line.split_whitespace().any(|word| word.trim_matches('"') == comment)
}

/// `None` on a host without iptables, or without its tables in the kernel.
async fn list(chain: &str) -> Result<Option<String>, RuntimeError> {
    let listed = call(&["-w", LOCK_WAIT_S, "-S", chain].map(str::to_owned)).await?;
    Ok(listed.and_then(Result::ok))
}

/// `None` when there is no such program; the inner error is what it said.
async fn call(arguments: &[String]) -> Result<Option<Result<String, String>>, RuntimeError> {
    let spawned = Command::new("iptables")
        .args(arguments)
        .env("PATH", PROGRAM_PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RuntimeError::Host(format!("cannot run iptables: {error}"))),
    };
    let output = tokio::time::timeout(CALL_DEADLINE, child.wait_with_output())
        .await
        .map_err(|_| RuntimeError::TimedOut("iptables; another program holds its lock".into()))?
        .map_err(|error| RuntimeError::Host(format!("cannot run iptables: {error}")))?;
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Some(match output.status.success() {
        true => Ok(words(&output.stdout)),
        false => Err(words(&output.stderr)),
    }))
}

fn refused(words: &str) -> RuntimeError {
    RuntimeError::Host(format!(
        "iptables refuses the rules that let sandboxes' packets pass this host's firewall: {words}; run as root"
    ))
}

#[cfg(test)]
mod tests {
    use atoll_api::ids::NodeId;

    use super::*;

    #[test]
    fn only_a_chain_that_drops_or_is_used_by_others_needs_ours() {
        let layout = Layout::new(NodeId(0xabcd), "10.88.0.0/16".parse().unwrap()).unwrap();
        let ours = "-A FORWARD -i atl00000000+ -m comment --comment \"atoll-000000000000abcd\" -j ACCEPT";

        assert!(!is_in_use("-P FORWARD ACCEPT", &layout));
        assert!(!is_in_use(&format!("-P FORWARD ACCEPT\n{ours}"), &layout));
        assert!(is_in_use("-P FORWARD DROP", &layout));
        assert!(is_in_use("-P FORWARD ACCEPT\n-A FORWARD -j DOCKER-USER", &layout));
        assert!(is_ours(ours, &layout));
        assert!(!is_ours("-A FORWARD -m comment --comment atoll-000000000000abcde -j ACCEPT", &layout));
    }
}
