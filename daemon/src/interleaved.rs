//! Reads what one process writes to its two standard streams: apart, and in the order in which it wrote.
//!
//! Two pipes alone don't say which of two writes was first. So that no more than one write of a stream waits to be read, each pipe
//! holds a single page and keeps writes apart (`O_DIRECT`); a process that writes again to the same stream waits until we have read.
//! Of the two that can then wait, epoll says which came first: edge-triggered, it lists descriptors in the order of their events,
//! and an event is listed before the write that caused it returns. So every event stands for one write, and each is answered by one
//! read: reading on without an event would leave one in the list that stands for nothing, and takes another write's place.
//!
//! Two processes that write at the same time have no order to keep. Where the kernel has no such pipes (gVisor), or a program opens
//! `/dev/stdout` anew, nothing is lost, and writes to different streams within microseconds may change places.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::io::unix::AsyncFd;

use crate::output::Tail;
use crate::polled;
use crate::reaper::ExitWatch;

/// After this long without an event the pipes are looked into all the same.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two waits for anything else, so that a process that never stops writing does not keep a thread of ours.
const READS_IN_A_ROW: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

/// Two pipes before there is a process: the ends that it gets, and ours.
pub struct Pipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub ours: Ours,
}

pub struct Ours {
    pipes: [OwnedFd; 2],
    one_write_each: bool,
    events: AsyncFd<OwnedFd>,
}

impl Pipes {
    pub fn new() -> io::Result<Pipes> {
        let [(out, stdout, out_takes_one), (err, stderr, err_takes_one)] = [pipe()?, pipe()?];
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (source, pipe) in [(Source::Stdout, &out), (Source::Stderr, &err)] {
            let data = epoll::EventData::new_u64(source as u64);
            epoll::add(&events, pipe, data, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        }
        Ok(Pipes {
            stdout,
            stderr,
            ours: Ours {
                pipes: [out, err],
                one_write_each: out_takes_one && err_takes_one,
                events: polled::descriptor(events)?,
            },
        })
    }
}

/// Ours, theirs, and whether it holds one write at a time.
fn pipe() -> io::Result<(OwnedFd, OwnedFd, bool)> {
    let page = rustix::param::page_size();
    let direct = pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT);
    let has_packets = direct.is_ok();
    let (ours, theirs) = direct.or_else(|_| pipe_with(PipeFlags::CLOEXEC))?;
    let has_one_page = fcntl_setpipe_size(&theirs, page).is_ok_and(|size| size == page);
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs, has_packets && has_one_page))
}

/// The reading side of a process.
pub struct Interleaved {
    pipes: [Option<OwnedFd>; 2],
    one_write_each: bool,
    events: AsyncFd<OwnedFd>,
    listed: Listed,
    tail: Tail,
    buffer: Box<[u8]>,
    reads: u32,
}

/// What epoll has said and we have not followed yet.
#[derive(Default)]
struct Listed {
    /// In the order in which they got something to read.
    ready: VecDeque<Source>,
    /// Nobody can write any more: what follows the last byte is the end.
    hung_up: [bool; 2],
}

impl Interleaved {
    pub fn new(ours: Ours, exit: ExitWatch) -> Interleaved {
        Interleaved {
            pipes: ours.pipes.map(Some),
            one_write_each: ours.one_write_each,
            events: ours.events,
            listed: Listed::default(),
            tail: Tail::new(exit),
            buffer: vec![0; rustix::param::page_size()].into(),
            reads: 0,
        }
    }

    /// What the process wrote next; `None` is the end, as [`Tail`] has it. Cancel-safe.
    pub async fn next(&mut self) -> Option<(Source, &[u8])> {
        loop {
            if self.tail.is_over(|| waiting_bytes(&self.pipes)) {
                return None;
            }
            self.reads = self.reads.wrapping_add(1);
            if self.reads.is_multiple_of(READS_IN_A_ROW) {
                tokio::task::yield_now().await;
            }
            let Some(source) = self.listed.ready.pop_front() else {
                if self.pipes.iter().all(Option::is_none) {
                    return None;
                }
                tokio::select! {
                    biased;
                    () = self.listed.wait(&self.events) => continue,
                    () = self.tail.quiet() => return None,
                    () = tokio::time::sleep(LOOK_EVERY) => {
                        self.listed.ready.extend([Source::Stdout, Source::Stderr]);
                        continue;
                    }
                }
            };
            if let Some(bytes) = self.read(source) {
                self.tail.took(bytes);
                return Some((source, &self.buffer[..bytes]));
            }
        }
    }

    /// One write, if the pipe has one.
    fn read(&mut self, source: Source) -> Option<usize> {
        let pipe = self.pipes[source as usize].as_ref()?;
        match rustix::io::read(pipe, &mut *self.buffer) {
            Ok(bytes) if bytes > 0 => {
                // Several writes may have made one event, the last of them being that nobody is left to write.
                let more =
                    !self.one_write_each && rustix::io::ioctl_fionread(pipe).is_ok_and(|bytes| bytes > 0);
                self.listed.look(self.events.get_ref());
                if (more || self.listed.hung_up[source as usize]) && !self.listed.ready.contains(&source) {
                    self.listed.ready.push_back(source);
                }
                Some(bytes)
            }
            Err(Errno::AGAIN) => None,
            Err(Errno::INTR) => {
                self.listed.ready.push_front(source);
                None
            }
            Ok(_) | Err(_) => {
                self.pipes[source as usize] = None;
                None
            }
        }
    }
}

impl Listed {
    async fn wait(&mut self, events: &AsyncFd<OwnedFd>) {
        while self.ready.is_empty() {
            match events.readable().await {
                Ok(mut guard) => {
                    if !self.look(guard.get_inner()) {
                        guard.clear_ready();
                    }
                }
                // The runtime is ending.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Takes what epoll lists now. Whether that was anything.
    fn look(&mut self, events: &OwnedFd) -> bool {
        let mut list = Vec::with_capacity(2);
        // Never waits, and so is never interrupted.
        let _ = epoll::wait(events, rustix::buffer::spare_capacity(&mut list), Some(&Timespec::default()));
        for event in &list {
            let source =
                if event.data.u64() == Source::Stdout as u64 { Source::Stdout } else { Source::Stderr };
            let flags = event.flags;
            self.hung_up[source as usize] |=
                flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            if !self.ready.contains(&source) {
                self.ready.push_back(source);
            }
        }
        !list.is_empty()
    }
}

fn waiting_bytes(pipes: &[Option<OwnedFd>]) -> usize {
    let of = |pipe| {
        rustix::io::ioctl_fionread(pipe).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    };
    pipes.iter().flatten().map(of).sum()
}
