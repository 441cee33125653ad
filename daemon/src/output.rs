//! Reads what a process writes: until its pipe ends, or until it has ended itself although a child of it holds the pipe.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::reaper::ExitWatch;

/// What one answer may carry of a program's output. Of more, the first and the last half stay.
pub const OUTPUT_BYTES_MAX: usize = 8 * 1024 * 1024;
pub const CHUNK_BYTES: usize = 16 * 1024;
/// A program has ended and its pipe is still open: a background child has it. This long without a byte is the end,
const QUIET: Duration = Duration::from_millis(100);
/// and so is this long whatever the child writes.
const AFTER_EXIT_DEADLINE: Duration = Duration::from_secs(1);

pub struct Stream {
    pipe: pipe::Receiver,
    tail: Tail,
    buffer: Box<[u8]>,
}

/// When to stop reading from a process that has exited although its pipes are still open.
pub struct Tail {
    exit: ExitWatch,
    after_exit: Option<AfterExit>,
}

/// What stood in the pipes when the program was seen to have ended is read however slowly we are asked for it.
struct AfterExit {
    owed_bytes: usize,
    until: Instant,
}

impl Tail {
    pub fn new(exit: ExitWatch) -> Tail {
        Tail { exit, after_exit: None }
    }

    /// `waiting_bytes` tells what stands in the pipes now.
    pub fn is_over(&mut self, waiting_bytes: impl FnOnce() -> usize) -> bool {
        if self.exit.now().is_none() {
            return false;
        }
        let after = self.after_exit.get_or_insert_with(|| AfterExit {
            owed_bytes: waiting_bytes(),
            until: Instant::now() + AFTER_EXIT_DEADLINE,
        });
        after.owed_bytes == 0 && Instant::now() > after.until
    }

    pub fn took(&mut self, bytes: usize) {
        if let Some(after) = &mut self.after_exit {
            after.owed_bytes = after.owed_bytes.saturating_sub(bytes);
        }
    }

    pub fn has_exited(&self) -> bool {
        self.exit.now().is_some()
    }

    pub async fn exited(&self) {
        self.exit.clone().exited().await;
    }

    /// Resolves when the process has exited, and as long after that as a child of it may be silent.
    pub async fn quiet(&self) {
        self.exited().await;
        tokio::time::sleep(QUIET).await;
    }
}

impl Stream {
    pub fn new(pipe: pipe::Receiver, exit: ExitWatch) -> Stream {
        Stream { pipe, tail: Tail::new(exit), buffer: vec![0; CHUNK_BYTES].into() }
    }

    /// `None` is the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<&[u8]> {
        if self.tail.is_over(|| rustix::io::ioctl_fionread(&self.pipe).map_or(0, |bytes| bytes as usize)) {
            return None;
        }
        let read = tokio::select! {
            biased;
            read = self.pipe.read(&mut self.buffer) => read.unwrap_or(0),
            () = self.tail.quiet() => 0,
        };
        self.tail.took(read);
        (read > 0).then(|| &self.buffer[..read])
    }
}

/// Keeps the beginning and the end of any amount of bytes.
pub struct Bounded {
    half_max: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    omitted: u64,
}

impl Bounded {
    pub fn new(bytes_max: usize) -> Bounded {
        Bounded { half_max: bytes_max / 2, head: Vec::new(), tail: VecDeque::new(), omitted: 0 }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(self.half_max - self.head.len()));
        self.head.extend_from_slice(head);
        let over = (self.tail.len() + rest.len()).saturating_sub(self.half_max);
        let from_tail = over.min(self.tail.len());
        self.tail.drain(..from_tail);
        self.tail.extend(&rest[over - from_tail..]);
        self.omitted += over as u64;
    }

    /// Invalid UTF-8 becomes U+FFFD; an omission is a line that says how much is missing.
    pub fn into_text(self) -> String {
        let mut bytes = self.head;
        if self.omitted > 0 {
            bytes.extend_from_slice(format!("\n[… {} bytes omitted …]\n", self.omitted).as_bytes());
        }
        bytes.extend(self.tail);
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(bytes_max: usize, pushes: &[&str]) -> String {
        let mut output = Bounded::new(bytes_max);
        for push in pushes {
            output.push(push.as_bytes());
        }
        output.into_text()
    }

    #[test]
    fn output_within_the_bound_is_whole() {
        assert_eq!(bounded(8, &["abc", "", "defgh"]), "abcdefgh");
    }

    #[test]
    fn of_more_the_first_and_the_last_half_stay() {
        assert_eq!(bounded(8, &["abcdefghi"]), "abcd\n[… 1 bytes omitted …]\nfghi");
        assert_eq!(bounded(8, &["abc", "de", "fg", "hijkl", "m"]), "abcd\n[… 5 bytes omitted …]\njklm");
        assert_eq!(bounded(4, &["ab", &"x".repeat(1000), "yz"]), "ab\n[… 1000 bytes omitted …]\nyz");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let mut output = Bounded::new(8);
        output.push(b"a\xffb");

        assert_eq!(output.into_text(), "a\u{fffd}b");
    }
}
