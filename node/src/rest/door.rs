//! The way a client came in, from which the links that it gets are built: what it could reach once it can reach again.

use std::str::FromStr;

use atoll_api::ids::{ParseIdError, SandboxId};
use http::HeaderMap;

/// Scheme and authority of the door that a client used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    scheme: Scheme,
    /// `host` or `host:port`.
    authority: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn parse(text: &str) -> Option<Scheme> {
        match text {
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

impl FromStr for Door {
    type Err = ParseIdError;

    /// `http://host:port`, as a node advertises itself.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let parsed = text.split_once("://").and_then(|(scheme, authority)| {
            Door::new(scheme, authority.strip_suffix('/').unwrap_or(authority))
        });
        parsed.ok_or(ParseIdError { what: "base URL", expected: "http://host:port or https://host:port" })
    }
}

impl Door {
    fn new(scheme: &str, authority: &str) -> Option<Door> {
        is_authority(authority)
            .then(|| Scheme::parse(scheme))
            .flatten()
            .map(|scheme| Door { scheme, authority: authority.to_owned() })
    }

    /// Reads what our own edge wrote. Only it can reach our socket, so these headers are never a visitor's.
    pub(super) fn of(headers: &HeaderMap, otherwise: &Door) -> Door {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        text("x-forwarded-proto")
            .zip(text("x-forwarded-host"))
            .and_then(|(scheme, authority)| Door::new(scheme, authority))
            .unwrap_or_else(|| otherwise.clone())
    }

    pub(super) fn is_secure(&self) -> bool {
        self.scheme == Scheme::Https
    }

    /// `http://host:port`.
    pub(super) fn base(&self) -> String {
        format!("{}://{}", self.scheme.name(), self.authority)
    }

    /// `host:port`, as the names of images begin that are pushed this way.
    pub(super) fn registry(&self) -> &str {
        &self.authority
    }

    pub(super) fn toolbox(&self) -> String {
        format!("{}/toolbox", self.base())
    }

    pub(super) fn preview(&self, port: u16, sandbox_id: SandboxId, preview_domain: &str) -> String {
        self.below(preview_domain, &format!("{port}-{sandbox_id}"))
    }

    pub(super) fn signed_preview(&self, port: u16, token: &str, preview_domain: &str) -> String {
        self.below(preview_domain, &format!("{port}-{token}"))
    }

    pub(super) fn preview_template(&self, preview_domain: &str) -> String {
        self.below(preview_domain, "{{PORT}}-{{sandboxId}}")
    }

    fn below(&self, domain: &str, label: &str) -> String {
        let port = self.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{label}.{domain}{port}", self.scheme.name())
    }

    fn port(&self) -> Option<&str> {
        self.authority.rsplit_once(':').map(|(_, port)| port).filter(|port| is_port(port))
    }
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|p| p > 0)
}

fn is_authority(text: &str) -> bool {
    const AUTHORITY_BYTES_MAX: usize = 255 + 6;
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    text.len() <= AUTHORITY_BYTES_MAX && host_ok && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_api::ids::RegionOrdinal;
    use http::HeaderValue;

    fn check(proto: &str, host: &str, base: &str, preview: &str) {
        let advertised: Door = "http://advertised:1".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-proto", HeaderValue::from_str(proto).unwrap());
        headers.insert("x-forwarded-host", HeaderValue::from_bytes(host.as_bytes()).unwrap());
        let id = SandboxId::new(RegionOrdinal::new(0).unwrap(), [1; 14]);

        let door = Door::of(&headers, &advertised);

        assert_eq!(door.base(), base, "{proto} {host}");
        assert_eq!(door.preview(80, id, "p.example"), preview.replace("ID", &id.to_string()), "{host}");
    }

    #[test]
    fn links_lead_back_through_the_door_the_client_used() {
        check("https", "a.example", "https://a.example", "https://80-ID.p.example");
        check("http", "127.0.0.1:9100", "http://127.0.0.1:9100", "http://80-ID.p.example:9100");
        check("https", "[::1]:9100", "https://[::1]:9100", "https://80-ID.p.example:9100");
        check("https", "[::1]", "https://[::1]", "https://80-ID.p.example");
    }

    #[test]
    fn a_door_that_is_no_address_is_not_repeated() {
        let ours = ("http://advertised:1", "http://80-ID.p.example:1");
        let too_long = "a".repeat(300);
        for (proto, host) in [
            ("ftp", "a"),
            ("http", ""),
            ("http", "a b"),
            ("http", "a/b"),
            ("http", "user@a"),
            ("http", "a:"),
            ("http", "a:0"),
            ("http", "a:70000"),
            ("http", "[::1"),
            ("http", "[x]"),
            ("http", "é"),
            ("http", too_long.as_str()),
        ] {
            check(proto, host, ours.0, ours.1);
        }
    }

    #[test]
    fn a_base_url_is_parsed_strictly() {
        assert_eq!("https://a.example/".parse::<Door>().unwrap().base(), "https://a.example");
        for text in ["", "a.example", "http://", "http://a/b", "ws://a"] {
            assert!(text.parse::<Door>().is_err(), "{text}");
        }
    }
}
