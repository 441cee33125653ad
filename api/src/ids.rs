//! Identities. Each is its own type, parses strictly, and prints the way it is written in URLs and logs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is malformed: expected {expected}")]
pub struct ParseIdError {
    pub what: &'static str,
    pub expected: &'static str,
}

/// A node of the cluster: the first eight bytes of the SHA-256 of its public key, written as 16 hex digits.
/// Derived, never assigned, so that nodes can join at the same moment without agreeing on a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

/// How many times a sandbox has been given an owner. Only the owner of the newest generation may run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    pub const FIRST: Generation = Generation(1);

    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A region's number, below 36² so that two base-36 digits hold it at the front of every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegionOrdinal(u16);

impl RegionOrdinal {
    pub const COUNT: u16 = 36 * 36;

    pub fn new(ordinal: u16) -> Option<RegionOrdinal> {
        (ordinal < Self::COUNT).then_some(RegionOrdinal(ordinal))
    }

    pub fn value(self) -> u16 {
        self.0
    }

    /// Two digits of `0-9a-z`.
    pub fn to_base36(self) -> [u8; 2] {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        [DIGITS[usize::from(self.0 / 36)], DIGITS[usize::from(self.0 % 36)]]
    }

    pub fn from_base36(digits: [u8; 2]) -> Option<RegionOrdinal> {
        let digit = |d: u8| match d {
            b'0'..=b'9' => Some(u16::from(d - b'0')),
            b'a'..=b'z' => Some(u16::from(d - b'a') + 10),
            _ => None,
        };
        Some(RegionOrdinal(digit(digits[0])? * 36 + digit(digits[1])?))
    }
}

/// A region's name: 1 to 32 of `a-z0-9-`, beginning and ending with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionName(String);

impl RegionName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegionName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let ok = (1..=32).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        ok.then(|| RegionName(text.to_owned()))
            .ok_or(ParseIdError { what: "region", expected: "1 to 32 of a-z, 0-9 and -" })
    }
}

/// A sandbox. A UUIDv8 whose first two bytes are the ordinal of its region, so that the id alone says where to ask.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(Uuid);

impl SandboxId {
    pub fn new(region: RegionOrdinal, random: [u8; 14]) -> SandboxId {
        let mut bytes = [0u8; 16];
        bytes[..2].copy_from_slice(&region.value().to_be_bytes());
        bytes[2..].copy_from_slice(&random);
        SandboxId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    pub fn region(self) -> RegionOrdinal {
        let bytes = self.0.as_bytes();
        RegionOrdinal(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

impl FromStr for SandboxId {
    type Err = ParseIdError;

    /// Only the hyphenated lower-case form, only version 8: anything else is not one of our ids, so a name.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const ERROR: ParseIdError = ParseIdError { what: "sandbox id", expected: "a UUID of version 8" };
        if text.len() != 36 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ERROR);
        }
        let uuid = Uuid::try_parse(text).map_err(|_| ERROR)?;
        let id = SandboxId(uuid);
        let ours = uuid.get_version_num() == 8 && id.region().value() < RegionOrdinal::COUNT;
        ours.then_some(id).ok_or(ERROR)
    }
}

/// An organization: the unit that owns sandboxes, names and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrganizationId(pub Uuid);

impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A warm pool: sandboxes that run before anybody has asked for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WarmPoolId(pub Uuid);

impl fmt::Display for WarmPoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One create that takes a sandbox out of a warm pool, so that saying it again is told from another create.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClaimId(pub Uuid);

/// A user of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub Uuid);

/// One request, from the edge to the daemon and back, in the header `X-Request-Id`. 1 to 64 of `A-Za-z0-9-_.`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    pub const HEADER: &'static str = "x-request-id";

    pub fn from_random(random: [u8; 16]) -> RequestId {
        RequestId(hex::encode(random))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let ok = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        ok.then(|| RequestId(text.to_owned()))
            .ok_or(ParseIdError { what: "request id", expected: "1 to 64 of A-Z, a-z, 0-9, -, _ and ." })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const ERROR: ParseIdError = ParseIdError { what: "node id", expected: "16 hex digits" };
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ERROR);
        }
        u64::from_str_radix(text, 16).map(NodeId).map_err(|_| ERROR)
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ids travel as the text they print, so that JSON never rounds a number and a log line can be pasted into a URL.
macro_rules! as_text {
    ($($id:ty),*) => {$(
        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
as_text!(NodeId, RegionName, SandboxId, RequestId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_id_carries_its_region() {
        let region = RegionOrdinal::new(1295).unwrap();

        let id = SandboxId::new(region, [0xff; 14]);

        assert_eq!(id.region(), region);
        assert_eq!(id.to_string().parse::<SandboxId>().unwrap(), id);
    }

    #[test]
    fn a_foreign_uuid_is_not_a_sandbox_id() {
        assert!("7f2c3f0e-8b1e-4c7e-9a51-5a4f3a1f0c11".parse::<SandboxId>().is_err());
        assert!("ffff0000-0000-8000-8000-000000000000".parse::<SandboxId>().is_err());
        assert!("{00000000-0000-8000-8000-000000000000}".parse::<SandboxId>().is_err());
    }

    #[test]
    fn region_ordinals_survive_base36() {
        for ordinal in 0..RegionOrdinal::COUNT {
            let region = RegionOrdinal::new(ordinal).unwrap();
            assert_eq!(RegionOrdinal::from_base36(region.to_base36()), Some(region));
        }
        assert_eq!(RegionOrdinal::new(RegionOrdinal::COUNT), None);
        assert_eq!(RegionOrdinal::from_base36(*b"A0"), None);
    }

    #[test]
    fn ids_are_text_in_json() {
        let node = NodeId(u64::MAX - 1);

        let json = serde_json::to_string(&node).unwrap();

        assert_eq!(json, "\"fffffffffffffffe\"");
        assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), node);
        assert!("+000000000000001".parse::<NodeId>().is_err());
    }
}
