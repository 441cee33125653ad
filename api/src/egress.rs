//! Whom a sandbox may reach, from the words of the public API to rules that a runtime can hold. Door and runtime both
//! parse here, so what the one lets in the other understands. No I/O: names are matched, never looked up.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::sandbox::Egress;

/// Entries of either list.
pub const ENTRIES_MAX: usize = 10;
/// As DNS has it.
const DOMAIN_CHARS_MAX: usize = 253;
const LABEL_CHARS_MAX: usize = 63;

/// What an [`Egress`] comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// All but the host, its network and other sandboxes.
    Everybody,
    Nobody,
    /// Who is in a network or has an address that a name was answered with; at least one list has an entry.
    Only {
        networks: Vec<Network>,
        domains: Vec<Domain>,
    },
}

impl Allowed {
    /// Fails only for an [`Egress`] that did not come through [`Change`].
    pub fn of(egress: &Egress) -> Result<Allowed, EgressError> {
        if egress.block_all {
            return Ok(Allowed::Nobody);
        }
        let networks = egress.cidrs.iter().map(|cidr| cidr.parse()).collect::<Result<Vec<_>, _>>()?;
        let domains = egress.domains.iter().map(|domain| domain.parse()).collect::<Result<Vec<_>, _>>()?;
        match networks.is_empty() && domains.is_empty() {
            true => Ok(Allowed::Everybody),
            false => Ok(Allowed::Only { networks, domains }),
        }
    }
}

/// What a client asks for: `None` leaves as it is. A list is comma separated; one that is there and empty allows nothing,
/// so an [`Egress`] with no entry left blocks all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change<'a> {
    pub block_all: Option<bool>,
    pub networks: Option<&'a str>,
    pub domains: Option<&'a str>,
}

impl Change<'_> {
    /// The lists in their normal form (network addresses without host bits, names in lower case, no repetitions).
    pub fn applied_to(&self, before: &Egress) -> Result<Egress, EgressError> {
        let mut egress = before.clone();
        if let Some(networks) = self.networks {
            egress.cidrs = list::<Network>("networkAllowList", networks)?;
        }
        if let Some(domains) = self.domains {
            egress.domains = list::<Domain>("domainAllowList", domains)?;
        }
        let lists_given = self.networks.is_some() || self.domains.is_some();
        let nothing_listed = egress.cidrs.is_empty() && egress.domains.is_empty();
        // A block stays until somebody lifts it by its name, whatever is listed meanwhile.
        egress.block_all = self.block_all.unwrap_or(before.block_all) || (lists_given && nothing_listed);
        Ok(egress)
    }
}

fn list<T: FromStr<Err = EgressError> + fmt::Display>(
    field: &'static str,
    text: &str,
) -> Result<Vec<String>, EgressError> {
    let mut entries: Vec<String> = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let entry = entry.parse::<T>()?.to_string();
        if entries.contains(&entry) {
            continue;
        }
        if entries.len() == ENTRIES_MAX {
            return Err(EgressError::TooMany { field });
        }
        entries.push(entry);
    }
    Ok(entries)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    #[error("networkAllowList: {0:?} is not an IPv4 network such as 10.1.0.0/16")]
    NotANetwork(String),
    #[error("domainAllowList: {0:?} is not a host name such as example.org or *.example.org")]
    NotADomain(String),
    #[error("{field}: at most {ENTRIES_MAX} entries are allowed")]
    TooMany { field: &'static str },
}

/// An IPv4 network. Written `10.1.0.0/16`, without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: Ipv4Addr,
    prefix_bits: u8,
}

impl Network {
    /// The first address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// 0 to 32.
    pub fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix_bits) == self.address.to_bits()
    }
}

fn mask(prefix_bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_bits)).unwrap_or(0)
}

impl FromStr for Network {
    type Err = EgressError;

    /// Host bits are taken away, as every firewall does.
    fn from_str(text: &str) -> Result<Network, EgressError> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let address: Ipv4Addr = address.parse().ok()?;
            let digits = matches!(prefix.len(), 1..=2) && prefix.bytes().all(|b| b.is_ascii_digit());
            let prefix_bits: u8 = prefix.parse().ok().filter(|bits| digits && *bits <= 32)?;
            let address = Ipv4Addr::from_bits(address.to_bits() & mask(prefix_bits));
            Some(Network { address, prefix_bits })
        });
        parsed.ok_or_else(|| EgressError::NotANetwork(shortened(text)))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// A host name, or with `*.` before it everything below that name. Kept in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    Host(String),
    /// Not the name itself.
    Below(String),
}

impl Domain {
    /// Case does not count, nor the dot at the end of an absolute name.
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match self {
            Domain::Host(host) => name == *host,
            Domain::Below(parent) => name
                .strip_suffix(parent.as_str())
                .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
        }
    }
}

impl FromStr for Domain {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Domain, EgressError> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let label_ok = |label: &str| {
            (1..=LABEL_CHARS_MAX).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // An address is no name: nobody would look it up, and it belongs into the other list.
        let number_last =
            name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if name.len() > DOMAIN_CHARS_MAX || number_last || !name.split('.').all(label_ok) {
            return Err(EgressError::NotADomain(shortened(text)));
        }
        Ok(if text.starts_with("*.") { Domain::Below(name) } else { Domain::Host(name) })
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Domain::Host(host) => f.write_str(host),
            Domain::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

fn shortened(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 64;
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: &Egress, change: Change<'_>) -> Egress {
        change.applied_to(before).unwrap()
    }

    fn only(cidrs: &[&str], domains: &[&str]) -> Egress {
        let owned = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
        Egress { block_all: false, cidrs: owned(cidrs), domains: owned(domains) }
    }

    #[test]
    fn a_network_is_kept_without_its_host_bits() {
        for (text, normal) in [
            ("10.1.2.3/16", "10.1.0.0/16"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("255.255.255.255/1", "128.0.0.0/1"),
            ("192.0.2.7/32", "192.0.2.7/32"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), normal);
        }
        for wrong in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/008",
            "10.0.0/8",
            "::/0",
            "a/8",
        ] {
            assert!(matches!(wrong.parse::<Network>(), Err(EgressError::NotANetwork(_))), "{wrong}");
        }
    }

    #[test]
    fn a_network_contains_what_shares_its_prefix() {
        let network: Network = "10.1.0.0/16".parse().unwrap();
        assert!(network.contains(Ipv4Addr::new(10, 1, 255, 255)));
        assert!(!network.contains(Ipv4Addr::new(10, 2, 0, 0)));
        assert!("0.0.0.0/0".parse::<Network>().unwrap().contains(Ipv4Addr::new(1, 2, 3, 4)));
    }

    #[test]
    fn a_domain_matches_itself_and_a_star_only_what_is_below() {
        let host: Domain = "Example.ORG.".parse().unwrap();
        let below: Domain = "*.example.org".parse().unwrap();
        for (name, is_host, is_below) in [
            ("example.org", true, false),
            ("EXAMPLE.org.", true, false),
            ("a.example.org", false, true),
            ("a.b.example.org.", false, true),
            ("badexample.org", false, false),
            (".example.org", false, false),
            ("example.org.evil.net", false, false),
            ("", false, false),
        ] {
            assert_eq!((host.matches(name), below.matches(name)), (is_host, is_below), "{name}");
        }
    }

    #[test]
    fn what_is_no_host_name_is_refused() {
        let long = "a".repeat(64);
        for wrong in [
            "",
            "*",
            "*.",
            "a..b",
            "-a.org",
            "a-.org",
            "a b",
            "a.*.org",
            "10.0.0.1",
            "http://a.org",
            "a/b",
            "é.org",
            &long,
        ] {
            assert!(matches!(wrong.parse::<Domain>(), Err(EgressError::NotADomain(_))), "{wrong}");
        }
    }

    #[test]
    fn a_list_is_normalized_bounded_and_says_what_is_wrong_with_it() {
        let change = Change { networks: Some(" 10.0.0.1/8, ,10.0.0.0/8"), ..Change::default() };
        assert_eq!(changed(&Egress::default(), change), only(&["10.0.0.0/8"], &[]));

        let eleven: Vec<String> = (0..11).map(|n| format!("10.{n}.0.0/16")).collect();
        let change = Change { networks: Some(&eleven.join(",")), ..Change::default() };
        let refused = change.applied_to(&Egress::default());
        assert_eq!(refused, Err(EgressError::TooMany { field: "networkAllowList" }));
    }

    #[test]
    fn what_a_change_leaves_out_stays() {
        let before = only(&["10.0.0.0/8"], &["a.org"]);

        let blocked = changed(&before, Change { block_all: Some(true), ..Change::default() });
        assert_eq!(blocked, Egress { block_all: true, ..before.clone() });
        assert_eq!(changed(&blocked, Change::default()), blocked);
        assert_eq!(changed(&blocked, Change { block_all: Some(false), ..Change::default() }), before);
        let change = Change { networks: Some("10.0.0.0/8"), ..Change::default() };
        assert_eq!(changed(&blocked, change), blocked);
        let change = Change { domains: Some("*.b.org"), ..Change::default() };
        assert_eq!(changed(&before, change), only(&["10.0.0.0/8"], &["*.b.org"]));
    }

    #[test]
    fn an_empty_list_allows_nothing_and_opening_again_needs_a_word() {
        for change in [
            Change { networks: Some(""), ..Change::default() },
            Change { domains: Some(""), ..Change::default() },
            Change { block_all: Some(false), networks: Some(""), domains: Some("") },
        ] {
            let egress = changed(&Egress::default(), change);
            assert_eq!(Allowed::of(&egress), Ok(Allowed::Nobody));
            let opened = changed(&egress, Change { block_all: Some(false), ..Change::default() });
            assert_eq!(Allowed::of(&opened), Ok(Allowed::Everybody));
        }
        // An empty list beside one with entries denies its own axis only.
        let egress = changed(&only(&[], &["a.org"]), Change { networks: Some(""), ..Change::default() });
        assert_eq!(egress, only(&[], &["a.org"]));
    }

    #[test]
    fn an_egress_comes_to_everybody_nobody_or_whom_it_names() {
        assert_eq!(Allowed::of(&Egress::default()), Ok(Allowed::Everybody));
        let blocked = Egress { block_all: true, ..only(&["10.0.0.0/8"], &[]) };
        assert_eq!(Allowed::of(&blocked), Ok(Allowed::Nobody));
        let expected = Allowed::Only {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            domains: vec![Domain::Below("a.org".into())],
        };
        assert_eq!(Allowed::of(&only(&["10.0.0.0/8"], &["*.a.org"])), Ok(expected));
        assert!(Allowed::of(&only(&["nonsense"], &[])).is_err());
    }
}
