//! Which headers go on to whom. User code is hostile: it sees no credential of ours, and no forwarding header that we
//! did not write ourselves.

use std::net::IpAddr;

use atoll_api::ids::RequestId;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::cookie::{self, Transport};
use crate::head;

/// Who will read the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A program in a sandbox that somebody else may have written.
    UserCode,
    /// Our daemon, but in the user's sandbox.
    Daemon,
    /// This node's API: it authenticates the caller itself.
    Api,
}

/// What we know of the client, said to whoever is behind us.
#[derive(Debug, Clone)]
pub struct Forwarded<'a> {
    pub client: Option<IpAddr>,
    pub transport: Transport,
    /// As the client wrote it.
    pub host: &'a str,
    pub request_id: &'a RequestId,
}

/// Changes to a request's headers. Removals come first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub remove: Vec<HeaderName>,
    pub set: Vec<(HeaderName, HeaderValue)>,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static(RequestId::HEADER);

pub fn changes(headers: &HeaderMap, audience: Audience, forwarded: &Forwarded<'_>) -> Changes {
    let remove = headers.keys().filter(|name| is_withheld(name.as_str(), audience)).cloned().collect();
    let mut set = Vec::with_capacity(5);
    if audience == Audience::UserCode && headers.contains_key(header::COOKIE) {
        // Also joins what HTTP/2 clients send as several headers, which HTTP/1 programs expect as one.
        set.extend(cookie::without_ours(headers).map(|value| (header::COOKIE, value)));
    }
    if let Some(client) = forwarded.client {
        set.extend(HeaderValue::try_from(client.to_string()).ok().map(|value| (X_FORWARDED_FOR, value)));
    }
    let scheme = match forwarded.transport {
        Transport::Plain => "http",
        Transport::Tls => "https",
    };
    set.push((X_FORWARDED_PROTO, HeaderValue::from_static(scheme)));
    set.extend(HeaderValue::from_str(forwarded.host).ok().map(|value| (X_FORWARDED_HOST, value)));
    set.extend(HeaderValue::from_str(forwarded.request_id.as_str()).ok().map(|value| (X_REQUEST_ID, value)));
    Changes { remove, set }
}

fn is_withheld(name: &str, audience: Audience) -> bool {
    // CGI-like servers read `_` as `-`, so a header with either is the same header.
    let name = name.replace('_', "-");
    let forwarding = name == "forwarded"
        || name.starts_with("x-forwarded-")
        || matches!(name.as_str(), "x-real-ip" | "x-request-id" | "x-original-host" | "x-client-ip");
    let internal = name.starts_with("x-atoll-");
    let from_user_code = match audience {
        Audience::UserCode => {
            matches!(name.as_str(), "authorization" | "proxy-authorization" | "cookie")
                || name.starts_with("x-daytona-")
        }
        // The daemon reads the SDK's version, and no cookie at all.
        Audience::Daemon => {
            matches!(
                name.as_str(),
                "authorization" | "proxy-authorization" | "cookie" | "x-daytona-preview-token"
            )
        }
        Audience::Api => false,
    };
    forwarding || internal || from_user_code
}

/// Whether a browser sent this for a page of another origin. To browsers the previews below one domain are one site, so
/// that a page out of one sandbox may use the cookies of another's, whatever their `SameSite` says. A user's own
/// programs may want that; the daemon, which runs commands, does not.
pub fn is_from_foreign_page(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let name = |text: &str| head::parse_host(text).map(|host| host.name);
    let origin = origin.to_str().ok().and_then(|text| name(text.split_once("://")?.1));
    let own = headers.get(header::HOST).and_then(|host| name(host.to_str().ok()?));
    origin.is_none() || origin != own
}

/// A redirect of the daemon, as the client of `/toolbox/{id}` must see it. `None` when it may stay as it is.
pub fn prefixed_location(location: &[u8], prefix: &str, host: &str) -> Option<Vec<u8>> {
    let same_host = |scheme: &str| {
        let origin = format!("{scheme}://{host}");
        let rest = location.strip_prefix(origin.as_bytes())?;
        rest.starts_with(b"/").then(|| [origin.as_bytes(), prefix.as_bytes(), rest].concat())
    };
    if location.starts_with(b"/") && !location.starts_with(b"//") {
        return Some([prefix.as_bytes(), location].concat());
    }
    same_host("http").or_else(|| same_host("https"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(given: &[(&str, &str)], audience: Audience) -> Vec<String> {
        let headers: HeaderMap = given
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        let request_id = "r1".parse().unwrap();
        let forwarded = Forwarded {
            client: Some("192.0.2.1".parse().unwrap()),
            transport: Transport::Tls,
            host: "H:1",
            request_id: &request_id,
        };
        let changes = changes(&headers, audience, &forwarded);
        let mut after = headers;
        for name in &changes.remove {
            after.remove(name);
        }
        for (name, value) in changes.set {
            after.insert(name, value);
        }
        let mut lines: Vec<String> =
            after.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    const OURS: [&str; 4] = [
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-host: H:1",
        "x-forwarded-proto: https",
        "x-request-id: r1",
    ];

    #[test]
    fn user_code_sees_no_credential_and_no_forged_forwarding_header() {
        let given = [
            ("authorization", "Bearer x"),
            ("cookie", "daytona-sandbox-auth-a=b"),
            ("x-daytona-preview-token", "t"),
            ("x-daytona-organization-id", "o"),
            ("x-atoll-anything", "i"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded-port", "1"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-request-id", "bad one"),
        ];

        assert_eq!(seen(&given, Audience::UserCode), OURS);
    }

    #[test]
    fn user_code_sees_everything_else() {
        let lines = seen(&[("cookie", "a=b"), ("x-custom", "1"), ("accept", "*/*")], Audience::UserCode);

        assert!(
            ["cookie: a=b", "x-custom: 1", "accept: */*"]
                .iter()
                .all(|line| lines.contains(&(*line).to_owned()))
        );
    }

    #[test]
    fn the_daemon_sees_the_sdks_version_and_no_credential() {
        let given = [
            ("authorization", "Bearer x"),
            ("cookie", "session=1"),
            ("x-daytona-preview-token", "t"),
            ("x-daytona-sdk-version", "0.226.1"),
        ];

        let mut expected = vec!["x-daytona-sdk-version: 0.226.1".to_owned()];
        expected.extend(OURS.map(str::to_owned));
        assert_eq!(seen(&given, Audience::Daemon), expected);
    }

    #[test]
    fn the_api_sees_the_callers_credential() {
        let lines = seen(&[("authorization", "Bearer x"), ("x-forwarded-for", "6.6.6.6")], Audience::Api);

        assert!(lines.contains(&"authorization: Bearer x".to_owned()));
        assert!(!lines.iter().any(|line| line.contains("6.6.6.6")));
    }

    #[test]
    fn a_page_is_foreign_unless_it_is_of_the_host_that_is_asked() {
        for (origin, foreign) in [
            (None, false),
            (Some("http://2280-a.p.example:9100"), false),
            (Some("https://2280-A.p.example"), false),
            (Some("http://3000-a.p.example:9100"), true),
            (Some("http://2280-b.p.example"), true),
            (Some("https://2280-a.p.example.evil"), true),
            (Some("null"), true),
            (Some(""), true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("2280-a.p.example:9100"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(is_from_foreign_page(&headers), foreign, "{origin:?}");
        }
    }

    #[test]
    fn the_daemons_redirects_come_back_through_the_toolbox_door() {
        for (location, expected) in [
            ("/a?b", Some("/toolbox/i/a?b")),
            ("http://h:1/a", Some("http://h:1/toolbox/i/a")),
            ("https://h:1/a", Some("https://h:1/toolbox/i/a")),
            ("http://h:12/a", None),
            ("//evil/a", None),
            ("a", None),
        ] {
            let got = prefixed_location(location.as_bytes(), "/toolbox/i", "h:1");
            assert_eq!(got.as_deref(), expected.map(str::as_bytes), "{location}");
        }
    }
}
