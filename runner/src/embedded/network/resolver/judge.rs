//! Which questions are asked on, and what of an answer goes through. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use atoll_api::egress::{Allowed, Network};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::wire::Question;
use crate::embedded::network::restrictions::{Wish, allows};
use crate::embedded::network::rules;

pub(super) enum Verdict {
    Refuse,
    Nothing,
    Ask(Purpose),
}

pub(super) enum Purpose {
    /// Whatever is answered goes through.
    Everything,
    /// The addresses in the answer are to be opened, but none of a network of the host's, unless it is listed.
    Open(Arc<Allowed>),
    /// Only addresses that the sandbox may reach anyway go through.
    Within(Arc<Allowed>),
}

pub(super) struct Sifted {
    pub(super) message: Message,
    /// The addresses to open.
    pub(super) opens: Vec<Ipv4Addr>,
}

/// A sandbox with a list of names gets only those answered. One with a list of networks gets any name's address that is
/// in them; to ask is to tell, so such a list does not keep a sandbox from sending words out in its questions.
pub(super) fn judge(question: &Question, wish: Option<&Wish>) -> Verdict {
    let purpose = match wish {
        None => Purpose::Everything,
        Some(Wish::Untold) => return Verdict::Refuse,
        Some(Wish::Told(allowed)) => match &**allowed {
            Allowed::Everybody => Purpose::Everything,
            Allowed::Nobody => return Verdict::Refuse,
            Allowed::Only { .. } if !question.name.is_empty() && allows(allowed, &question.name) => {
                Purpose::Open(allowed.clone())
            }
            Allowed::Only { domains, .. } if domains.is_empty() => Purpose::Within(allowed.clone()),
            Allowed::Only { .. } => return Verdict::Refuse,
        },
    };
    match (question.query.query_type, &purpose) {
        (RecordType::ANY | RecordType::AXFR | RecordType::IXFR, _) => Verdict::Refuse,
        // No sandbox has IPv6.
        (RecordType::AAAA, _) => Verdict::Nothing,
        (_, Purpose::Everything) => Verdict::Ask(purpose),
        // They may name addresses that nobody opens.
        (RecordType::HTTPS | RecordType::SVCB, _) => Verdict::Nothing,
        (RecordType::A, _) | (_, Purpose::Open(_)) => Verdict::Ask(purpose),
        (_, Purpose::Within(_)) => Verdict::Refuse,
    }
}

/// `None` when the answer has addresses and the sandbox may have none of them.
pub(super) fn sift(found: Message, question: &Question, purpose: &Purpose) -> Option<Sifted> {
    let allowed = match purpose {
        Purpose::Everything => return Some(Sifted { message: found, opens: Vec::new() }),
        Purpose::Open(allowed) | Purpose::Within(allowed) => allowed,
    };
    let listed = |address: Ipv4Addr| match &**allowed {
        Allowed::Only { networks, .. } => networks.iter().any(|network: &Network| network.contains(address)),
        Allowed::Everybody | Allowed::Nobody => false,
    };
    let may_have = |address: Ipv4Addr| match purpose {
        Purpose::Within(_) => listed(address),
        Purpose::Open(_) | Purpose::Everything => listed(address) || rules::is_public(address),
    };
    let mut message = found;
    message.additionals.clear();
    // A record of a name that nobody asked for could open what it likes.
    let names = aliases(&message, &question.query.name);
    message.answers.retain(|record| names.contains(&record.name.to_lowercase()));
    let had_addresses = message.answers.iter().any(|record| matches!(record.data, RData::A(_)));
    message.answers.retain(|record| match &record.data {
        RData::A(address) => may_have(address.0),
        RData::AAAA(_) => false,
        _ => true,
    });
    let addresses: BTreeSet<Ipv4Addr> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        })
        .collect();
    if had_addresses && addresses.is_empty() {
        return None;
    }
    if message.metadata.response_code == ResponseCode::NoError && !addresses.is_empty() {
        message.authorities.clear();
    }
    let opens = match purpose {
        Purpose::Open(_) => addresses.into_iter().filter(|address| !listed(*address)).collect(),
        Purpose::Within(_) | Purpose::Everything => Vec::new(),
    };
    Some(Sifted { message, opens })
}

/// The name that was asked for and those that it stands for, in lower case.
fn aliases(message: &Message, asked: &Name) -> BTreeSet<Name> {
    let mut names = BTreeSet::from([asked.to_lowercase()]);
    // Each round follows at least one alias or is the last.
    for _ in 0..=message.answers.len() {
        let before = names.len();
        for record in &message.answers {
            if let RData::CNAME(target) = &record.data
                && names.contains(&record.name.to_lowercase())
            {
                names.insert(target.0.to_lowercase());
            }
        }
        if names.len() == before {
            break;
        }
    }
    names
}

#[cfg(test)]
mod tests;
