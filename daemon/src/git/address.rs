//! Where a remote is, apart from the credentials that a URL may carry: those never reach an argument or a config file.

use serde::Deserialize;

use super::credentials::{Credentials, Secret};

const URL_BYTES_MAX: usize = 8 * 1024;

#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    url: String,
    origin: Option<Origin>,
    embedded: Option<Credentials>,
}

/// `https://host:port`: whom credentials are for, and nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Address {
    /// As git may see it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Absent where nothing asks for a user and password: SSH, folders.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    pub fn embedded(&self) -> Option<&Credentials> {
        self.embedded.as_ref()
    }

    /// No message repeats the text, which may be a secret.
    pub fn parse(text: &str) -> Result<Address, &'static str> {
        if text.is_empty() {
            return Err("url is empty");
        }
        if text.starts_with('-') {
            return Err("a url may not begin with \"-\"");
        }
        if text.len() > URL_BYTES_MAX || text.chars().any(char::is_control) {
            return Err("not a url");
        }
        if is_remote_helper(text) {
            return Err("a url of the form \"helper::address\" is not served");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            if text.to_ascii_lowercase().starts_with("http") && text.contains(":/") {
                return Err("not a url: after the scheme come \":\" and two slashes");
            }
            // A folder, or SSH's own short form, whose part before the `@` is a user's name and no secret.
            return Ok(Address { url: text.to_owned(), origin: None, embedded: None });
        };
        if !is_scheme(scheme) {
            return Err("the url's scheme is none");
        }
        let scheme = scheme.to_ascii_lowercase();
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let is_http = scheme == "http" || scheme == "https";
        if is_http && !is_host(host) {
            return Err("the url has no host that git could connect to");
        }
        let kept = match user {
            // SSH needs to know as whom; it takes no password from a URL.
            Some(user) if !is_http => match user.split(':').next().unwrap_or_default() {
                "" => String::new(),
                name => format!("{name}@"),
            },
            _ => String::new(),
        };
        let embedded = match user.filter(|user| is_http && !user.is_empty()) {
            Some(user) => Some(embedded(user)?),
            None => None,
        };
        let origin = is_http.then(|| Origin(format!("{scheme}://{}", host.to_ascii_lowercase())));
        Ok(Address { url: format!("{scheme}://{kept}{host}{path}"), origin, embedded })
    }
}

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Address, &'static str> {
        Address::parse(&text)
    }
}

fn embedded(user: &str) -> Result<Credentials, &'static str> {
    const BAD: &str = "the credentials in the url are not percent-encoded text";
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let name = decoded(name).ok_or(BAD)?;
    let password = decoded(password).ok_or(BAD)?;
    Credentials::new(name, Secret::new(password)).map_err(|_| BAD)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// `ext::sh -c …`, and `https::https://user:password@…`.
fn is_remote_helper(text: &str) -> bool {
    text.split_once("::").is_some_and(|(name, _)| name.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// `host`, `host:port`, `[::1]:port`.
pub fn is_host(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port = port.strip_prefix(':').map_or(port.is_empty(), is_port);
        return port && address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, is_port(port)),
        None => (text, true),
    };
    let is_name = |name: &str| {
        name.chars().all(|c| c.is_alphanumeric() || "-._".contains(c))
            && name.starts_with(|first: char| first.is_alphanumeric() || first == '_')
    };
    port && is_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn parsed(text: &str) -> (String, Option<String>, Option<(String, String)>) {
        let address = Address::parse(text).unwrap();
        let pair = |credentials: &Credentials| {
            (credentials.username().to_owned(), credentials.password().reveal().to_owned())
        };
        let origin = address.origin().map(|origin| origin.as_str().to_owned());
        (address.url().to_owned(), origin, address.embedded().map(pair))
    }

    #[test]
    fn credentials_are_taken_out_of_a_url() {
        let host = Some("https://host:8443".to_owned());
        let pair = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));

        for (text, found) in [
            ("https://host:8443/a/b.git", None),
            ("https://u:p@host:8443/a/b.git", pair("u", "p")),
            ("https://u%40x:p%3A%2f@HOST:8443/a/b.git", pair("u@x", "p:/")),
            ("https://u:p@ss@host:8443/a/b.git", pair("u", "p@ss")),
            ("HTTPS://token@host:8443/a/b.git", pair("token", "")),
            ("https://@host:8443/a/b.git", None),
        ] {
            let (url, origin, embedded) = parsed(text);
            assert_eq!(url.to_ascii_lowercase(), "https://host:8443/a/b.git", "{text}");
            assert_eq!((origin, embedded), (host.clone(), found), "{text}");
        }
        assert_eq!(parsed("http://[::1]:80?x@y").0, "http://[::1]:80?x@y");
    }

    #[test]
    fn ssh_keeps_its_user_and_loses_a_password() {
        for (text, url) in [
            ("ssh://git:secret@host:22/a", "ssh://git@host:22/a"),
            ("ssh://git@host/a", "ssh://git@host/a"),
            ("git@host:a/b.git", "git@host:a/b.git"),
            ("/srv/a.git", "/srv/a.git"),
            ("file:///srv/a.git", "file:///srv/a.git"),
        ] {
            assert_eq!(parsed(text), (url.to_owned(), None, None), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for bad in [
            "",
            "-u",
            "--upload-pack=touch /tmp/x",
            "https://",
            "https:///secret",
            "https://u:secret/x@host/a",
            "https://u:%zz@host/a",
            "https://u:%0a@host/a",
            "https://host =x/a",
            "https://host:99999/a",
            "https://h\nost/a",
            "ext::sh -c secret",
            "http::http://u:secret@host/",
            " https://u:secret@host/",
            "https:/u:secret@host/",
        ] {
            let refusal = Address::parse(bad).err().unwrap_or_else(|| panic!("{bad:?} was taken"));
            assert!(!refusal.contains("secret"), "{bad:?}");
        }
    }
}
