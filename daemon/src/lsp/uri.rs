//! Paths as `file://` URIs and back.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::errors::ApiError;

const PATH_BYTES_MAX: usize = 4096;

/// The clients put `file://` before whatever path they are given: nothing in it is encoded, and one that is not absolute means a
/// file of the project. So `#` and `?` are part of it, and so is a `%` that begins no escape.
pub fn parse(uri: &str, project: &Path) -> Result<PathBuf, ApiError> {
    let rest =
        uri.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("file://")).map(|_| &uri[7..]).ok_or_else(
            || ApiError::bad_request(format!("uri begins with file://, unlike {:?}", short(uri))),
        )?;
    let rest = match rest.strip_prefix("localhost") {
        Some(path) if path.starts_with('/') => path,
        _ => rest,
    };
    let bytes = decode(rest);
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() > PATH_BYTES_MAX {
        return Err(ApiError::invalid_path(format!("uri names no file: {:?}", short(uri))));
    }
    Ok(without_dots(&project.join(std::ffi::OsString::from_vec(bytes))))
}

pub fn of(path: &Path) -> String {
    let mut uri = "file://".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                uri.push(*byte as char)
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

/// As a server that compares URIs does it, whatever the folders on the way are.
pub fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push::<&OsStr>(name),
            Component::ParentDir => drop(plain.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

fn decode(text: &str) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| (*byte as char).to_digit(16));
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_a_path_encoded_or_not() {
        for (uri, path) in [
            ("file:///a/b.py", "/a/b.py"),
            ("FILE://localhost/a%20b.py", "/a b.py"),
            ("file:///a b#c?.py", "/a b#c?.py"),
            ("file:///100%.py", "/100%.py"),
            ("file:///%C3%A9/é", "/é/é"),
            ("file://src/b.py", "/project/src/b.py"),
            ("file:///a/./c/../b.py", "/a/b.py"),
            ("file:///../../etc/passwd", "/etc/passwd"),
        ] {
            assert_eq!(parse(uri, Path::new("/project")).unwrap(), Path::new(path), "{uri}");
        }
        for bad in ["", "a.py", "/a.py", "http://a/b.py", "file:/a", "file://", "file:///%00", "é"] {
            assert!(parse(bad, Path::new("/project")).is_err(), "{bad}");
        }
        assert!(parse(&format!("file:///{}", "x".repeat(5000)), Path::new("/")).is_err());
    }

    #[test]
    fn a_path_survives_being_a_uri() {
        for path in ["/a/b.py", "/a b/é#?%41.py", "/x~(1)@[2]"] {
            let uri = of(Path::new(path));
            assert!(uri.is_ascii() && !uri.contains(' '), "{uri}");
            assert_eq!(parse(&uri, Path::new("/")).unwrap(), Path::new(path));
        }
    }
}
