//! Is this a request that every server behind us will read as we do? Pure checks of the request head; anything that
//! two readers could take differently is refused, not repaired.

use http::{HeaderMap, Method, Version, header};

use crate::refusal::Refusal;
use crate::target;

pub const TARGET_BYTES_MAX: usize = 16 * 1024;
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
pub const HEADERS_MAX: usize = 128;
pub const HOST_BYTES_MAX: usize = 255;

/// What the checks look at.
pub struct Head<'a> {
    pub method: &'a Method,
    pub version: Version,
    pub headers: &'a HeaderMap,
    /// As on the wire.
    pub raw_target: &'a [u8],
    /// The `:authority` of HTTP/2.
    pub authority: Option<&'a str>,
    /// HTTP/1: the head as on the wire. The HTTP library repairs what must be refused, so it is read again here.
    pub raw_head: Option<&'a [u8]>,
}

/// Who was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// As the client wrote it, port included.
    pub text: String,
    /// Lower case, without port and trailing dot: what routing looks at.
    pub name: String,
}

pub fn check(head: &Head<'_>) -> Result<Host, Refusal> {
    if *head.method == Method::CONNECT || *head.method == Method::TRACE {
        return Err(Refusal::MethodNotAllowed);
    }
    if head.raw_target.len() > TARGET_BYTES_MAX {
        return Err(Refusal::TargetTooLong);
    }
    let bytes: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if head.headers.len() > HEADERS_MAX || bytes > HEAD_BYTES_MAX {
        return Err(Refusal::HeadTooLarge);
    }
    if target::origin_form(head.raw_target).is_none() {
        return Err(Refusal::BadRequest("the request target must be a path"));
    }
    framing(head)?;
    host(head)
}

/// One way only to say how long the body is.
fn framing(head: &Head<'_>) -> Result<(), Refusal> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if head.version != Version::HTTP_11 {
            return Err(Refusal::BadRequest("Transfer-Encoding needs HTTP/1.1"));
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::BadRequest("the only Transfer-Encoding taken is chunked"));
        }
        let has_length = head.headers.contains_key(header::CONTENT_LENGTH)
            || head.raw_head.is_some_and(|raw| count_header(raw, b"content-length") > 0);
        if has_length {
            return Err(Refusal::BadRequest("both Content-Length and Transfer-Encoding"));
        }
        return Ok(());
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
        let repeated = lengths.next().is_some()
            || head.raw_head.is_some_and(|raw| count_header(raw, b"content-length") > 1);
        if repeated || !digits {
            return Err(Refusal::BadRequest("Content-Length must be one number"));
        }
    }
    Ok(())
}

fn count_header(raw_head: &[u8], name: &[u8]) -> usize {
    raw_head
        .split(|b| *b == b'\n')
        .skip(1)
        .filter_map(|line| line.split(|b| *b == b':').next())
        .filter(|field| field.trim_ascii().eq_ignore_ascii_case(name))
        .count()
}

fn host(head: &Head<'_>) -> Result<Host, Refusal> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let text = match (head.authority, hosts.next()) {
        (None, None) => return Err(Refusal::BadRequest("no Host header")),
        (Some(authority), None) => authority,
        (None, Some(host)) => host.to_str().map_err(|_| BAD_HOST)?,
        (Some(authority), Some(host)) if host.as_bytes() == authority.as_bytes() => authority,
        (Some(_), Some(_)) => return Err(Refusal::BadRequest("Host differs from the authority")),
    };
    if hosts.next().is_some() {
        return Err(Refusal::BadRequest("more than one Host header"));
    }
    parse_host(text).ok_or(BAD_HOST)
}

const BAD_HOST: Refusal = Refusal::BadRequest("malformed Host header");

/// A registered name or an address, and an optional port.
pub fn parse_host(text: &str) -> Option<Host> {
    if text.is_empty() || text.len() > HOST_BYTES_MAX {
        return None;
    }
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (&text[..address.len() + 2], after.strip_prefix(':').or((after.is_empty()).then_some("0"))?)
        }
        None => text.split_once(':').unwrap_or((text, "0")),
    };
    let port_ok = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if !port_ok {
        return None;
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    (name.starts_with('[') || name.split('.').all(label_ok)).then(|| Host { text: text.to_owned(), name })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request {
        head: String,
        method: Method,
        version: Version,
    }

    fn request(fields: &str) -> Request {
        Request {
            head: format!("GET /x HTTP/1.1\r\n{fields}\r\n"),
            method: Method::GET,
            version: Version::HTTP_11,
        }
    }

    impl Request {
        fn check(&self) -> Result<Host, Refusal> {
            let mut headers = HeaderMap::new();
            for line in self.head.split("\r\n").skip(1).filter(|line| !line.is_empty()) {
                let (name, value) = line.split_once(':').unwrap();
                let name = header::HeaderName::from_bytes(name.as_bytes()).unwrap();
                headers.append(name, value.trim().parse().unwrap());
            }
            // The HTTP library drops the length when both are there; the raw head still has it.
            if headers.contains_key(header::TRANSFER_ENCODING) {
                headers.remove(header::CONTENT_LENGTH);
            }
            check(&Head {
                method: &self.method,
                version: self.version,
                headers: &headers,
                raw_target: b"/x",
                authority: None,
                raw_head: Some(self.head.as_bytes()),
            })
        }
    }

    fn refused(fields: &str) {
        assert!(matches!(request(fields).check(), Err(Refusal::BadRequest(_))), "{fields}");
    }

    #[test]
    fn an_ordinary_request_passes() {
        for fields in
            ["Host: a\r\n", "Host: a\r\nContent-Length: 5\r\n", "Host: a\r\nTransfer-Encoding: Chunked\r\n"]
        {
            assert_eq!(request(fields).check().unwrap().name, "a", "{fields}");
        }
    }

    #[test]
    fn a_body_has_one_length_or_is_refused() {
        refused("Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n");
        refused("Host: a\r\nTransfer-Encoding: chunked\r\nCONTENT-length: 5\r\n");
        refused("Host: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n");
        refused("Host: a\r\nContent-Length: 5, 5\r\n");
        refused("Host: a\r\nContent-Length: +5\r\n");
        refused("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n");
        refused("Host: a\r\nTransfer-Encoding: xchunked\r\n");
        refused("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n");
    }

    #[test]
    fn there_is_exactly_one_host() {
        refused("");
        refused("Host: a\r\nHost: a\r\n");
        refused("Host: \r\n");
    }

    #[test]
    fn tunnels_and_echoes_are_refused() {
        for method in [Method::CONNECT, Method::TRACE] {
            let mut request = request("Host: a\r\n");
            request.method = method;
            assert_eq!(request.check(), Err(Refusal::MethodNotAllowed));
        }
    }

    #[test]
    fn heads_are_bounded() {
        let many = "X: y\r\n".repeat(HEADERS_MAX);
        assert_eq!(request(&format!("Host: a\r\n{many}")).check(), Err(Refusal::HeadTooLarge));
        let long = format!("Host: a\r\nX: {}\r\n", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(request(&long).check(), Err(Refusal::HeadTooLarge));
    }

    #[test]
    fn hosts_parse_strictly_and_case_does_not_matter() {
        for (text, name) in [
            ("Localhost:9100", Some("localhost")),
            ("3000-x.Preview.Example.", Some("3000-x.preview.example")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("[::1]:80", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("a:", None),
            ("a:b", None),
            ("a:70000", None),
            ("a:1:2", None),
            (".a", None),
            ("a..b", None),
            ("a/b", None),
            ("a b", None),
            ("user@a", None),
            ("é.example", None),
            ("[::1", None),
            ("[x]", None),
            ("[::1]x", None),
            ("", None),
        ] {
            assert_eq!(parse_host(text).map(|host| host.name).as_deref(), name, "{text}");
        }
        assert_eq!(parse_host(&"a.".repeat(200)), None);
    }
}
