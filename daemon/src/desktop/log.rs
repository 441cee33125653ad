//! The last of what a program wrote.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

const BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
pub struct Log {
    bytes: Mutex<VecDeque<u8>>,
}

impl Log {
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&bytes[bytes.len().saturating_sub(BYTES_MAX)..]);
        let over = kept.len().saturating_sub(BYTES_MAX);
        kept.drain(..over);
    }

    pub fn text(&self) -> String {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }

    /// That the program wrote: our own notes stand in brackets.
    pub fn last_line(&self) -> Option<String> {
        let is_its_own = |line: &&str| {
            !line.starts_with('[') && line.chars().filter(|char| char.is_alphabetic()).count() > 3
        };
        self.text().lines().rev().map(str::trim).find(is_its_own).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_stay() {
        let log = Log::default();

        log.push(b"first\n");
        log.push(&vec![b'x'; BYTES_MAX]);
        log.push(b"\nlast\n\n[ended]\n");

        let text = log.text();
        assert_eq!(text.len(), BYTES_MAX);
        assert!(!text.contains("first") && text.ends_with("x\nlast\n\n[ended]\n"));
        assert_eq!(log.last_line().as_deref(), Some("last"));
    }
}
