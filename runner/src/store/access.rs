//! How registries may be reached: with which credentials, and which of them without TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::reach::Reach;

/// Whose right is used to ask a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// This one's; `None` is the operator's where it has some, and nobody's elsewhere.
    Of(Option<Credentials>),
    /// That of anybody who may have it. Only for content whose digest somebody with a right to it has named before.
    Anybody,
}

/// Credentials that are not in the configuration.
pub trait KnownCredentials: Send + Sync + 'static {
    /// Those that somebody has given for this host. Must not block.
    fn of_host(&self, host: &str) -> Vec<Credentials>;
}

/// Never printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// By host as in an image's name (`ghcr.io`, `docker.io`, `registry.example:5000`).
    pub credentials: BTreeMap<String, Credentials>,
    /// Hosts that are asked over plain HTTP. This machine's own loopback always is.
    pub insecure: BTreeSet<String>,
    pub reach: Reach,
}

impl Registries {
    pub fn is_insecure(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').map_or(host, |(name, port)| match port.parse::<u16>() {
            Ok(_) => name,
            Err(_) => host,
        });
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost"
            || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            || self.insecure.contains(host)
    }
}
