//! Messages of the Language Server Protocol on a pipe: a few header lines, an empty one, and as many bytes as they said.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// A server that sends more in one message has lost its way, and is ended.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
const HEADER_BYTES_MAX: u64 = 4 * 1024;

/// `None` is the end between two messages.
pub async fn read(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = None;
    let mut header = reader.take(HEADER_BYTES_MAX);
    let mut line = Vec::new();
    loop {
        line.clear();
        if header.read_until(b'\n', &mut line).await? == 0 {
            return match header.limit() {
                HEADER_BYTES_MAX => Ok(None),
                _ => Err(wrong("the header has no end")),
            };
        }
        let text = String::from_utf8_lossy(&line);
        match text.trim_end() {
            "" => break,
            text => {
                // Another header, or a line that some library printed: neither matters.
                if let Some((name, value)) = text.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse::<usize>().ok();
                }
            }
        }
    }
    let length = length.ok_or_else(|| wrong("the header has no Content-Length"))?;
    if length > MESSAGE_BYTES_MAX {
        return Err(wrong("the message is too long"));
    }
    let mut message = vec![0; length];
    header.into_inner().read_exact(&mut message).await?;
    Ok(Some(message))
}

pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = format!("Content-Length: {}\r\n\r\n", message.len()).into_bytes();
    framed.extend_from_slice(message);
    framed
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut bytes: &[u8]) -> Result<Vec<String>, String> {
        let mut messages = Vec::new();
        while let Some(message) = read(&mut bytes).await.map_err(|error| error.to_string())? {
            messages.push(String::from_utf8(message).unwrap());
        }
        Ok(messages)
    }

    #[tokio::test]
    async fn messages_are_read_one_after_the_other() {
        let mut bytes = framed("{\"é\":1}".as_bytes());
        bytes.extend_from_slice(b"content-length: 2\r\nContent-Type: x\r\n\r\n{}");

        assert_eq!(all(&bytes).await.unwrap(), ["{\"é\":1}", "{}"]);
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error_and_takes_no_memory() {
        for wrong in [
            "\r\n{}".to_owned(),
            "Content-Length: many\r\n\r\n{}".into(),
            format!("Content-Length: {}\r\n\r\n", MESSAGE_BYTES_MAX + 1),
            "Content-Length: 9\r\n\r\n{}".into(),
            "x".repeat(100_000),
        ] {
            assert!(all(wrong.as_bytes()).await.is_err(), "{wrong:.40}");
        }
    }
}
