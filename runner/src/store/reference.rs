//! Names of images as people write them, made whole: `alpine` is `docker.io/library/alpine:latest`.

use std::fmt;
use std::str::FromStr;

use super::StoreError;
use crate::image::Digest;

/// Host of what was pushed to the nodes themselves; no such host can exist outside.
pub const LOCAL_HOST: &str = "atoll.internal";
const HUB: &str = "docker.io";
const REFERENCE_BYTES_MAX: usize = 512;
const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// With its port if it was written.
    pub host: String,
    /// `library/alpine`.
    pub repository: String,
    pub version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// What was pushed by an organization as `repository` to whichever node.
    pub fn local(organization: &str, repository: &str, version: Version) -> Result<Reference, StoreError> {
        let repository = format!("{}/{repository}", organization.to_lowercase());
        check_repository(&repository)?;
        Ok(Reference { host: LOCAL_HOST.to_owned(), repository, version })
    }

    pub fn is_local(&self) -> bool {
        self.host == LOCAL_HOST
    }

    /// The same image, whatever its tag will stand for later.
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference { version: Version::Digest(digest), ..self.clone() }
    }

    pub fn digest(&self) -> Option<Digest> {
        match self.version {
            Version::Digest(digest) => Some(digest),
            Version::Tag(_) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = StoreError;

    /// `[host[:port]/]repository[:tag][@sha256:…]`; with both, the digest counts.
    fn from_str(text: &str) -> Result<Reference, StoreError> {
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(bad(text, "it is too long"));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                let digest = digest.parse().map_err(|_| bad(text, "after @ stands no sha256 digest"))?;
                (named, Some(digest))
            }
            None => (text, None),
        };
        let (host, rest) = match named.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
            _ => (HUB, named),
        };
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_host(host) {
            return Err(bad(text, "its host is malformed"));
        }
        let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { HUB } else { host };
        let repository = match host == HUB && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository.to_owned(),
        };
        check_repository(&repository)?;
        let version = match (digest, tag) {
            (_, Some(tag)) if !is_tag(tag) => return Err(bad(text, "its tag is malformed")),
            (Some(digest), _) => Version::Digest(digest),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Reference { host: host.to_owned(), repository, version })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Version {
    type Err = StoreError;

    /// A tag or `sha256:…`, as in the path of a registry's manifest.
    fn from_str(text: &str) -> Result<Version, StoreError> {
        match text.parse() {
            Ok(digest) => Ok(Version::Digest(digest)),
            Err(_) if is_tag(text) => Ok(Version::Tag(text.to_owned())),
            Err(_) => Err(bad(text, "it is neither a tag nor a sha256 digest")),
        }
    }
}

fn check_repository(repository: &str) -> Result<(), StoreError> {
    let is_name = |name: &str| {
        let ends_well =
            |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = name.as_bytes();
        ends_well(bytes.first())
            && ends_well(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(b))
            && !name.contains("..")
    };
    match repository.len() <= REPOSITORY_BYTES_MAX && repository.split('/').all(is_name) {
        true => Ok(()),
        false => Err(bad(repository, "a repository is made of a-z, 0-9, '.', '_', '-' and '/'")),
    }
}

fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    (1..=TAG_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
        && !b".-".contains(&bytes[0])
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
                && !name.starts_with(['-', '.'])
        }
    };
    is_name && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn bad(text: &str, why: &str) -> StoreError {
    let text: String = text.chars().take(120).collect();
    StoreError::Bad(format!("\"{}\" is not the name of an image: {why}", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_made_whole() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (written, whole) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("me/app:v1", "docker.io/me/app:v1"),
            ("index.docker.io/me/app", "docker.io/me/app:latest"),
            ("ghcr.io/a/b/c:1.2-x_Y", "ghcr.io/a/b/c:1.2-x_Y"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/x:1", "127.0.0.1:5000/x:1"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            (&format!("a/b:1@{digest}"), &format!("docker.io/a/b@{digest}")),
        ] {
            assert_eq!(written.parse::<Reference>().unwrap().to_string(), whole, "{written}");
            assert_eq!(whole.parse::<Reference>().unwrap().to_string(), whole, "{whole}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(600);
        for written in [
            "",
            ":tag",
            "A",
            "a//b",
            "../a",
            "a/../b",
            "a:",
            "a:-x",
            "a b",
            "a@sha256:12",
            "x.y:99999/a",
            "-.x/a",
            "http://x/y",
            "a/b/",
            "x.y/a?b",
            "x.y/a#b",
            "user@x.y/a",
            &long,
        ] {
            assert!(written.parse::<Reference>().is_err(), "{written}");
        }
    }
}
