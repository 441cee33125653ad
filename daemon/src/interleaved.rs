//! Reads what one process writes to its two standard streams: apart, and in the order in which it wrote.
//!
//! The kernel tells of each write in their order ([`crate::write_signals`]), and the pipes keep writes apart (`O_DIRECT`): so for each
//! write that we hear of, one is read from that pipe. A write of more than a page is several in the pipe, all full but the last. That
//! is exact for a process that is at most 256 writes (what a pipe holds) ahead of us; a process that waits for room is told of once
//! too often, and may then come a write too early.
//!
//! What is kept apart takes a page each. A program that does not wait for room, and drops what finds none (node, when it exits), must
//! not find less of it than in any pipe: the pipes are sixteen times as large, and from where a program is seen to have set its stream
//! to non-blocking, its writes are kept together again. (Only what it writes before we look the first time is bounded by writes: 256 of
//! them, in some tens of microseconds mostly.) Its order then is as exact as we are quick, and so is that of two processes
//! writing at the same time, and of a program that opens `/dev/stdout` anew. No byte is lost or moved within its stream.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::output::{CHUNK_BYTES, Tail};
use crate::reaper::ExitWatch;
use crate::write_signals::{Listener, WriteSignals};

/// What anybody may ask for (`fs.pipe-max-size`).
const PIPE_BYTES: usize = 1024 * 1024;
/// The unit in which pipes hold what they keep apart.
const PAGE_BYTES: usize = 4096;
/// Without a word of the kernel's the pipes are looked into all the same.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Where the kernel sends no words.
const LOOK_EVERY_UNHEARD: Duration = Duration::from_millis(5);
/// Between two waits for anything else, so that a process that never stops writing does not keep the daemon's thread.
const READS_IN_A_ROW: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

const BOTH: [Source; 2] = [Source::Stdout, Source::Stderr];

/// Two pipes before there is a process: the ends that it gets, and ours.
pub struct Pipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub ours: Ours,
}

pub struct Ours {
    listener: Listener,
    ends: [End; 2],
}

struct End {
    pipe: OwnedFd,
    /// The process's own end, to see what it makes of it. Gone when the process is.
    writer: Option<OwnedFd>,
    keeps: Keeps,
}

/// How a pipe holds writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    Apart,
    Together,
}

impl Pipes {
    pub fn new(signals: &WriteSignals) -> io::Result<Pipes> {
        let [(out, stdout), (err, stderr)] = [End::new()?, End::new()?];
        // In the order of their numbers, and before there is anybody to write.
        let listener = signals.listen(&[out.pipe.as_fd(), err.pipe.as_fd()]);
        Ok(Pipes { stdout, stderr, ours: Ours { listener, ends: [out, err] } })
    }
}

impl End {
    /// And the process's.
    fn new() -> io::Result<(End, OwnedFd)> {
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let is_large = fcntl_setpipe_size(&theirs, PIPE_BYTES).is_ok_and(|bytes| bytes >= PIPE_BYTES);
        let keeps_apart = is_large
            && fcntl_getfl(&theirs).and_then(|flags| fcntl_setfl(&theirs, flags | OFlags::DIRECT)).is_ok();
        let keeps = if keeps_apart { Keeps::Apart } else { Keeps::Together };
        Ok((End { pipe, writer: Some(theirs.try_clone()?), keeps }, theirs))
    }

    fn keep_together_if_nonblocking(&mut self) {
        let Some(writer) = self.writer.as_ref().filter(|_| self.keeps == Keeps::Apart) else { return };
        if let Ok(flags) = fcntl_getfl(writer)
            && flags.contains(OFlags::NONBLOCK)
        {
            let _ = fcntl_setfl(writer, flags - OFlags::DIRECT);
            self.keeps = Keeps::Together;
        }
    }
}

/// The reading side of a process.
pub struct Interleaved {
    // First, so that it goes before the pipes.
    listener: Listener,
    ends: [Option<End>; 2],
    /// What we have heard of and not read yet.
    writes: VecDeque<Source>,
    tail: Tail,
    buffer: Box<[u8]>,
    reads: u32,
}

impl Interleaved {
    pub fn new(ours: Ours, exit: ExitWatch) -> Interleaved {
        Interleaved {
            listener: ours.listener,
            ends: ours.ends.map(Some),
            writes: VecDeque::new(),
            tail: Tail::new(exit),
            buffer: vec![0; CHUNK_BYTES].into(),
            reads: 0,
        }
    }

    /// What the process wrote next; `None` is the end, as [`Tail`] has it. Cancel-safe.
    pub async fn next(&mut self) -> Option<(Source, &[u8])> {
        loop {
            if self.tail.has_exited() {
                // Ours would keep the pipes open for ever.
                self.ends.iter_mut().flatten().for_each(|end| end.writer = None);
            }
            if self.ends.iter().all(Option::is_none) || self.tail.is_over(|| waiting_bytes(&self.ends)) {
                return None;
            }
            self.reads = self.reads.wrapping_add(1);
            if self.reads.is_multiple_of(READS_IN_A_ROW) {
                tokio::task::yield_now().await;
            }
            let Some(source) = self.writes.pop_front() else {
                if self.listen() {
                    continue;
                }
                let look_every = if self.listener.hears() { LOOK_EVERY } else { LOOK_EVERY_UNHEARD };
                let has_writers = self.ends.iter().flatten().any(|end| end.writer.is_some());
                tokio::select! {
                    biased;
                    () = self.listener.heard() => {}
                    () = self.tail.exited(), if has_writers => {}
                    () = self.tail.quiet() => {
                        if waiting_bytes(&self.ends) == 0 {
                            return None;
                        }
                        self.writes.extend(BOTH);
                    }
                    () = tokio::time::sleep(look_every) => self.writes.extend(BOTH),
                }
                continue;
            };
            if let Some(bytes) = self.read(source) {
                self.tail.took(bytes);
                return Some((source, &self.buffer[..bytes]));
            }
        }
    }

    /// Whether there was a word.
    fn listen(&mut self) -> bool {
        self.writes.extend(self.listener.writes().into_iter().map(|number| BOTH[usize::from(number) % 2]));
        if self.writes.is_empty() {
            return false;
        }
        self.ends.iter_mut().flatten().for_each(End::keep_together_if_nonblocking);
        true
    }

    fn read(&mut self, source: Source) -> Option<usize> {
        let end = self.ends[source as usize].as_ref()?;
        let keeps = end.keeps;
        // One read gives one of what is kept apart, however much would fit.
        match rustix::io::read(&end.pipe, &mut *self.buffer) {
            Ok(bytes) if bytes > 0 => {
                let goes_on = match keeps {
                    Keeps::Apart => bytes >= PAGE_BYTES,
                    Keeps::Together => true,
                };
                if goes_on {
                    self.writes.push_front(source);
                }
                Some(bytes)
            }
            Err(Errno::INTR) => {
                self.writes.push_front(source);
                None
            }
            Err(Errno::AGAIN) => None,
            Ok(_) | Err(_) => {
                self.ends[source as usize] = None;
                None
            }
        }
    }
}

fn waiting_bytes(ends: &[Option<End>; 2]) -> usize {
    let of = |end: &End| {
        rustix::io::ioctl_fionread(&end.pipe).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    };
    ends.iter().flatten().map(of).sum()
}
