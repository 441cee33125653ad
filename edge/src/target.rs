//! The request target as bytes: what is taken out of it, and what must reach the sandbox exactly as it was sent.

use std::borrow::Cow;

/// The path and query of a request target, also when the client sent the absolute form. `None` for anything else
/// (`*`, an authority, nothing).
pub fn origin_form(raw_target: &[u8]) -> Option<Cow<'_, [u8]>> {
    if raw_target.first() == Some(&b'/') {
        return Some(Cow::Borrowed(raw_target));
    }
    let after_scheme = ["http://", "https://"].iter().find_map(|scheme| {
        let (head, rest) = raw_target.split_at_checked(scheme.len())?;
        head.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    })?;
    let path_at = after_scheme.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(after_scheme.len());
    match after_scheme.get(path_at) {
        Some(b'/') => Some(Cow::Borrowed(&after_scheme[path_at..])),
        _ => Some(Cow::Owned([b"/", &after_scheme[path_at..]].concat())),
    }
}

/// Splits at the first `?`; the query is without it.
pub fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match target.iter().position(|b| *b == b'?') {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

/// Takes every parameter called `name` out of the query. Returns the target without it, all else byte for byte, and
/// the decoded value of the first one.
pub fn take_query_parameter<'a>(target: &'a [u8], name: &str) -> (Cow<'a, [u8]>, Option<String>) {
    let (path, Some(query)) = split_query(target) else {
        return (Cow::Borrowed(target), None);
    };
    let is_it = |parameter: &&[u8]| {
        let end = parameter.iter().position(|b| *b == b'=').unwrap_or(parameter.len());
        percent_decode(&parameter[..end]) == name.as_bytes()
    };
    let Some(found) = query.split(|b| *b == b'&').find(is_it) else {
        return (Cow::Borrowed(target), None);
    };
    let value = found.splitn(2, |b| *b == b'=').nth(1).unwrap_or_default();
    let value = String::from_utf8_lossy(&percent_decode(value)).into_owned();

    let kept: Vec<&[u8]> = query.split(|b| *b == b'&').filter(|parameter| !is_it(parameter)).collect();
    let mut rest = path.to_vec();
    if !kept.is_empty() {
        rest.push(b'?');
        rest.extend_from_slice(&kept.join(&b'&'));
    }
    (Cow::Owned(rest), Some(value))
}

/// Under which path a client came to a toolbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolboxPath {
    /// `/toolbox/{id}/…`
    Own,
    /// `/api/toolbox/{id}/toolbox/…`: where SDKs up to 0.110 look.
    OfTheApi,
}

impl ToolboxPath {
    /// What a redirect by the sandbox lacks.
    pub fn prefix(self, sandbox_id: &str) -> String {
        match self {
            ToolboxPath::Own => format!("/toolbox/{sandbox_id}"),
            ToolboxPath::OfTheApi => format!("/api/toolbox/{sandbox_id}/toolbox"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct ToolboxTarget<'a> {
    pub path: ToolboxPath,
    /// Says whose.
    pub segment: &'a [u8],
    /// As it will be sent on, always beginning with `/`.
    pub rest: Cow<'a, [u8]>,
}

pub fn split_toolbox(target: &[u8]) -> Option<ToolboxTarget<'_>> {
    let (path, tail) = match target.strip_prefix(b"/toolbox/") {
        Some(tail) => (ToolboxPath::Own, tail),
        None => (ToolboxPath::OfTheApi, target.strip_prefix(b"/api/toolbox/")?),
    };
    let (segment, rest) = tail.split_at(end_of_segment(tail));
    let rest = match path {
        ToolboxPath::Own => rest,
        ToolboxPath::OfTheApi => {
            let rest = rest.strip_prefix(b"/toolbox")?;
            // Not `/toolboxes`.
            (end_of_segment(rest) == 0).then_some(rest)?
        }
    };
    let rest = match rest.first() {
        Some(b'/') => Cow::Borrowed(rest),
        _ => Cow::Owned([b"/", rest].concat()),
    };
    Some(ToolboxTarget { path, segment, rest })
}

fn end_of_segment(tail: &[u8]) -> usize {
    tail.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(tail.len())
}

/// Whether the path, read as generously as any server might read it, leads below `/atoll/`: the daemon's own channel,
/// which only a node may open.
pub fn is_internal_path(target: &[u8]) -> bool {
    let (path, _) = split_query(target);
    let decoded = percent_decode(&percent_decode(path));
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|b| matches!(b, b'/' | b'\\')) {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    segments.first().is_some_and(|first| first.eq_ignore_ascii_case(b"atoll"))
}

/// Malformed escapes stay as they are.
fn percent_decode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let escaped =
            (*first == b'%').then(|| Some(hex_digit(*tail.first()?)? * 16 + hex_digit(*tail.get(1)?)?));
        match escaped.flatten() {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "DAYTONA_SANDBOX_AUTH_KEY";

    #[test]
    fn the_absolute_form_loses_its_authority() {
        for (raw, expected) in [
            ("/a?b", Some("/a?b")),
            ("http://h/a//b?c", Some("/a//b?c")),
            ("HTTPS://h", Some("/")),
            ("http://h?q", Some("/?q")),
            ("*", None),
            ("h:80", None),
            ("", None),
            ("ftp://h/", None),
        ] {
            assert_eq!(origin_form(raw.as_bytes()).as_deref(), expected.map(str::as_bytes), "{raw}");
        }
    }

    #[test]
    fn the_key_is_taken_out_and_all_else_stays_byte_for_byte() {
        for (target, rest, value) in [
            ("/a?DAYTONA_SANDBOX_AUTH_KEY=x", "/a", Some("x")),
            ("/a?b=%2F+&DAYTONA_SANDBOX_AUTH_KEY=x%2Dy&c", "/a?b=%2F+&c", Some("x-y")),
            ("/a?DAYTONA%5FSANDBOX_AUTH_KEY=1&DAYTONA_SANDBOX_AUTH_KEY=2", "/a", Some("1")),
            ("/a?DAYTONA_SANDBOX_AUTH_KEY", "/a", Some("")),
            ("/DAYTONA_SANDBOX_AUTH_KEY=x?", "/DAYTONA_SANDBOX_AUTH_KEY=x?", None),
            ("/a?&&xDAYTONA_SANDBOX_AUTH_KEY=x&", "/a?&&xDAYTONA_SANDBOX_AUTH_KEY=x&", None),
            ("/%zz?a=%", "/%zz?a=%", None),
        ] {
            let (got, found) = take_query_parameter(target.as_bytes(), KEY);
            assert_eq!((&*got, found.as_deref()), (rest.as_bytes(), value), "{target}");
        }
    }

    #[test]
    fn a_toolbox_path_keeps_its_rest_exactly() {
        use ToolboxPath::{OfTheApi, Own};
        for (target, path, id, rest) in [
            ("/toolbox/x/files/a%2Fb//c?p=/t", Own, "x", "/files/a%2Fb//c?p=/t"),
            ("/toolbox/x", Own, "x", "/"),
            ("/toolbox/x?q", Own, "x", "/?q"),
            ("/toolbox/", Own, "", "/"),
            ("/toolbox/x/toolbox/y", Own, "x", "/toolbox/y"),
            ("/api/toolbox/x/toolbox/files/a%2Fb//c?p=/t", OfTheApi, "x", "/files/a%2Fb//c?p=/t"),
            ("/api/toolbox/x/toolbox", OfTheApi, "x", "/"),
            ("/api/toolbox/x/toolbox?q", OfTheApi, "x", "/?q"),
        ] {
            let (segment, rest) = (id.as_bytes(), rest.as_bytes().into());
            let expected = ToolboxTarget { path, segment, rest };
            assert_eq!(split_toolbox(target.as_bytes()), Some(expected), "{target}");
        }
        for target in
            ["/toolboxes/x", "/toolbox", "/api/toolbox/x", "/api/toolbox/x/toolboxes", "/api/toolbox/x/y"]
        {
            assert_eq!(split_toolbox(target.as_bytes()), None, "{target}");
        }
    }

    #[test]
    fn the_daemons_own_channel_is_recognized_however_it_is_written() {
        for path in [
            "/atoll/channel",
            "/atoll",
            "//atoll/channel",
            "/./atoll",
            "/x/../atoll/channel?y",
            "/%61toll/channel",
            "/%2561toll",
            "/x/%2e%2e/ATOLL/",
            "/..%2fatoll",
            "\\atoll",
        ] {
            assert!(is_internal_path(path.as_bytes()), "{path}");
        }
        for path in ["/files?path=/atoll", "/atollx", "/files/atoll", "/", "/%", "/x%2"] {
            assert!(!is_internal_path(path.as_bytes()), "{path}");
        }
    }
}
