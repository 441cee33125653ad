//! The framing of `POST /files/bulk-download`: one part per path, `file` or `error`, and the boundary that closes.

use std::fmt::Write;

pub struct Framing {
    boundary: String,
}

impl Framing {
    /// The suffix keeps a file's own bytes from being taken for a boundary.
    pub fn new() -> Framing {
        Framing { boundary: format!("DAYTONA-FILE-BOUNDARY-{}", uuid::Uuid::new_v4().simple()) }
    }

    pub fn content_type(&self) -> String {
        format!("multipart/form-data; boundary={}", self.boundary)
    }

    /// Stands before a part's bytes. The requested path is the name by which the client finds its part.
    pub fn part(&self, name: &str, requested: &str, content_type: &str, length: u64) -> String {
        format!(
            "--{}\r\nContent-Disposition: form-data; name=\"{name}\"; {}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n",
            self.boundary,
            filename(requested),
        )
    }

    pub fn part_end(&self) -> &'static str {
        "\r\n"
    }

    pub fn end(&self) -> String {
        format!("--{}--\r\n", self.boundary)
    }
}

/// `filename="…"; filename*=utf-8''…`, of which no byte can end the header.
pub fn filename(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len());
    for char in name.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control() => quoted.push('_'),
            char => quoted.push(char),
        }
    }
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!#$&+^`|".contains(&byte) {
            encoded.push(byte as char);
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    format!("filename=\"{quoted}\"; filename*=utf-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_can_break_a_header() {
        assert_eq!(
            filename("/a b/\"ä\\\r\n.txt"),
            "filename=\"/a b/\\\"ä\\\\__.txt\"; filename*=utf-8''%2Fa%20b%2F%22%C3%A4%5C%0D%0A.txt"
        );
    }

    #[test]
    fn a_part_announces_its_name_type_and_length() {
        let framing = Framing { boundary: "B".into() };

        assert_eq!(
            framing.part("file", "/x", "application/octet-stream", 3),
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/x\"; filename*=utf-8''%2Fx\r\nContent-Type: application/octet-stream\r\nContent-Length: 3\r\n\r\n"
        );
        assert_eq!(framing.end(), "--B--\r\n");
    }
}
