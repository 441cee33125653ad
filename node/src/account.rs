//! A user of this host, by name or by number.

use std::fmt;

use anyhow::{Context, Result};
use nix::unistd::User;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// As the configuration says it. A number needs no entry in the host's list of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account(String);

/// Who that is on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    pub fn of_uid(uid: u32) -> Account {
        Account(uid.to_string())
    }

    /// A number without an entry has the group of the same number.
    pub fn ids(&self) -> Result<Ids> {
        if let Ok(uid) = self.0.parse::<u32>() {
            let entry = User::from_uid(uid.into()).with_context(|| format!("look for the user {uid}"))?;
            return Ok(Ids { uid, gid: entry.map_or(uid, |user| user.gid.as_raw()) });
        }
        let entry = User::from_name(&self.0).with_context(|| format!("look for the user {self}"))?;
        let user = entry.with_context(|| {
            format!("this host has no user {self} (runtime.node_user): `useradd --system {self}`, or give a number")
        })?;
        Ok(Ids { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
    }
}

impl std::str::FromStr for Account {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Account, Self::Err> {
        Ok(Account(text.to_owned()))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Account {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Account, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u32),
            Name(String),
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::Number(uid) => Account::of_uid(uid),
            Written::Name(name) => Account(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_needs_no_entry_and_a_name_does() {
        let ids = |text: &str| Account(text.to_owned()).ids();

        assert_eq!(ids("61999").unwrap(), Ids { uid: 61_999, gid: 61_999 });
        assert_eq!(ids("root").unwrap(), Ids { uid: 0, gid: 0 });
        assert!(ids("no-such-user").unwrap_err().to_string().contains("useradd"));
    }
}
