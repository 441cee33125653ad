//! A user and password, and how git learns them: from a piece of memory that only its own processes can open.
//!
//! Arguments and environments are read by others, and files outlive a crash. So git inherits a sealed memory file, and is told
//! of a credential helper that prints it; both are gone with the last of its processes. Like anything that a process of the user
//! knows, the user's other processes could read it while the operation runs; nobody else can.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fchown, fcntl_add_seals, memfd_create};
use rustix::process::{Gid, Uid};
use serde::{Deserialize, Deserializer};

use super::address::Origin;
use crate::accounts::Account;
use crate::errors::ApiError;

/// With a token for a password the servers want any name, but one.
const ANY_USERNAME: &str = "git";
const BYTES_MAX: usize = 64 * 1024;

/// A text that is never shown: it has no `Debug`, and a wrong type is refused without repeating it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Secret(text)),
            _ => Err(serde::de::Error::custom("a user name or password is a string")),
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: Secret,
    password: Secret,
}

impl Credentials {
    pub fn new(username: String, password: Secret) -> Result<Credentials, ApiError> {
        // Lines of `name=value` are all that a helper can say.
        let is_bad = |text: &str| text.len() > BYTES_MAX || text.contains(['\n', '\r', '\0']);
        if is_bad(&username) || is_bad(&password.0) {
            return Err(ApiError::bad_request("a user name and a password are lines of text"));
        }
        let username = if username.is_empty() { ANY_USERNAME.to_owned() } else { username };
        Ok(Credentials { username: Secret(username), password })
    }

    /// What a request said beside its URL; both empty is nothing.
    pub fn of_request(
        username: Option<Secret>,
        password: Option<Secret>,
    ) -> Result<Option<Credentials>, ApiError> {
        let username = username.map_or_else(String::new, |username| username.0);
        let password = password.unwrap_or_else(|| Secret(String::new()));
        if username.is_empty() && password.0.is_empty() {
            return Ok(None);
        }
        Credentials::new(username, password).map(Some)
    }

    pub fn username(&self) -> &str {
        &self.username.0
    }

    pub fn password(&self) -> &Secret {
        &self.password
    }

    /// What no message may contain. A name without a password is often a token.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let secret = if self.password.0.is_empty() { &self.username } else { &self.password };
        std::iter::once(secret.reveal())
    }

    /// To the processes of one call of git, and there to this origin only: neither a redirect nor a submodule elsewhere gets it.
    pub fn offer(&self, origin: &Origin, account: &Account) -> std::io::Result<Offer> {
        let memory = memfd_create("git-credentials", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut memory = std::fs::File::from(memory);
        write!(memory, "username={}\npassword={}\n", self.username.0, self.password.0)?;
        fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        // The helper opens it anew, to read it from its beginning each time it is asked.
        fchmod(&memory, Mode::RUSR)?;
        fchown(&memory, Some(Uid::from_raw(account.uid)), Some(Gid::from_raw(account.gid)))?;
        let memory = OwnedFd::from(memory);
        let helper = format!(
            "credential.{}.helper=!f() {{ test \"$1\" != get || cat /proc/self/fd/{}; }}; f",
            origin.as_str(),
            memory.as_raw_fd()
        );
        // A name alone is the last thing to try: the user's own helpers may know its password.
        let config = match self.password.0.is_empty() {
            true => vec![helper],
            false => vec!["credential.helper=".to_owned(), helper],
        };
        Ok(Offer { memory, config })
    }
}

pub struct Offer {
    memory: OwnedFd,
    /// For `-c`.
    pub config: Vec<String>,
}

impl Offer {
    pub fn kept(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}
