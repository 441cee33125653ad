//! What a client has sent on one channel and nobody has taken yet. The session fills it without ever waiting; the
//! channel's task empties it. The client may send a window's worth beyond what was consumed, so it never holds more.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_api::channel::PtySize;
use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::memory::{Exhausted, Memory};

/// The receive window of a channel: how much a client may send before it is consumed.
pub(crate) const WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Consumed bytes are granted again in steps, so that a keystroke does not cost a packet.
const GRANT_STEP_BYTES: u32 = WINDOW_BYTES / 4;
/// Signals that wait for a program which doesn't take them. More are dropped, as a pending signal is by a kernel.
const SIGNALS_WAITING_MAX: usize = 16;

pub(crate) struct Input {
    waiting: Mutex<Waiting>,
    changed: Notify,
    memory: Arc<Memory>,
}

#[derive(Default)]
struct Waiting {
    bytes: BytesMut,
    window: Window,
    eof: Eof,
    resize: Option<PtySize>,
    signals: VecDeque<String>,
}

#[derive(Default, PartialEq, Eq)]
enum Eof {
    #[default]
    NotSeen,
    Seen,
    Delivered,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum InputEvent {
    /// Newest size only.
    Resize(PtySize),
    /// A name without `SIG`.
    Signal(String),
    Bytes(Bytes),
    /// Comes once, after the last bytes.
    Eof,
}

/// The client sent more than can be held for it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Overflow {
    #[error("the client exceeded the channel's window")]
    Window,
    #[error(transparent)]
    Memory(#[from] Exhausted),
}

impl Input {
    pub(crate) fn new(memory: Arc<Memory>) -> Input {
        Input { waiting: Mutex::default(), changed: Notify::new(), memory }
    }

    pub(crate) fn push_bytes(&self, bytes: &[u8]) -> Result<(), Overflow> {
        let mut waiting = self.lock();
        waiting.window.receive(bytes.len())?;
        if waiting.eof == Eof::NotSeen {
            self.memory.take(bytes.len())?;
            waiting.bytes.extend_from_slice(bytes);
        }
        drop(waiting);
        self.changed.notify_one();
        Ok(())
    }

    pub(crate) fn push_eof(&self) {
        let mut waiting = self.lock();
        if waiting.eof == Eof::NotSeen {
            waiting.eof = Eof::Seen;
        }
        drop(waiting);
        self.changed.notify_one();
    }

    pub(crate) fn push_resize(&self, size: PtySize) {
        self.lock().resize = Some(size);
        self.changed.notify_one();
    }

    pub(crate) fn push_signal(&self, name: String) {
        let mut waiting = self.lock();
        if waiting.signals.len() < SIGNALS_WAITING_MAX {
            waiting.signals.push_back(name);
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// The next event: resizes and signals overtake bytes. Only one task may wait. Dropping the future loses nothing.
    pub(crate) async fn next(&self, bytes_max: usize) -> InputEvent {
        loop {
            if let Some(event) = self.lock().take(bytes_max) {
                if let InputEvent::Bytes(bytes) = &event {
                    self.memory.give_back(bytes.len());
                }
                return event;
            }
            self.changed.notified().await;
        }
    }

    /// Says that bytes have reached the far side. Returns what to grant to the client now, if it is worth a message.
    #[must_use]
    pub(crate) fn consumed(&self, bytes: usize) -> Option<u32> {
        self.lock().window.consume(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let unread = self.lock().bytes.len();
        self.memory.give_back(unread);
    }
}

impl Waiting {
    fn take(&mut self, bytes_max: usize) -> Option<InputEvent> {
        if let Some(size) = self.resize.take() {
            return Some(InputEvent::Resize(size));
        }
        if let Some(name) = self.signals.pop_front() {
            return Some(InputEvent::Signal(name));
        }
        if !self.bytes.is_empty() {
            let at = self.bytes.len().min(bytes_max);
            return Some(InputEvent::Bytes(self.bytes.split_to(at).freeze()));
        }
        if self.eof == Eof::Seen {
            self.eof = Eof::Delivered;
            return Some(InputEvent::Eof);
        }
        None
    }
}

/// The ledger of one receive window. `0 ≤ consumed ≤ ungranted ≤ WINDOW_BYTES` holds always.
#[derive(Default)]
struct Window {
    /// Received and not granted again.
    ungranted: u32,
    /// The part of it that was consumed.
    consumed: u32,
}

impl Window {
    fn receive(&mut self, bytes: usize) -> Result<(), Overflow> {
        let total = u32::try_from(bytes).ok().and_then(|bytes| self.ungranted.checked_add(bytes));
        match total {
            Some(total) if total <= WINDOW_BYTES => {
                self.ungranted = total;
                Ok(())
            }
            _ => Err(Overflow::Window),
        }
    }

    fn consume(&mut self, bytes: usize) -> Option<u32> {
        let bytes = u32::try_from(bytes).expect("no more is consumed than one window holds");
        self.consumed += bytes;
        assert!(self.consumed <= self.ungranted, "only received bytes are consumed");
        if self.consumed < GRANT_STEP_BYTES {
            return None;
        }
        let grant = std::mem::take(&mut self.consumed);
        self.ungranted -= grant;
        Some(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn input() -> Input {
        Input::new(Memory::new(usize::MAX))
    }

    #[tokio::test]
    async fn memory_is_given_back_when_bytes_are_taken_and_when_nobody_ever_will() {
        let memory = Memory::new(4);
        let input = Input::new(memory.clone());
        input.push_bytes(b"abcd").unwrap();
        assert_eq!(input.push_bytes(b"e"), Err(Overflow::Memory(Exhausted)));

        let _ = input.next(3).await;
        assert_eq!(memory.take(3), Ok(()));
        drop(input);

        assert_eq!(memory.take(1), Ok(()));
    }

    #[tokio::test]
    async fn control_overtakes_bytes_and_eof_comes_last() {
        let input = input();
        input.push_bytes(b"abc").unwrap();
        input.push_eof();
        input.push_signal("INT".into());
        input.push_resize(PtySize { cols: 1, rows: 2 });
        input.push_resize(PtySize { cols: 3, rows: 4 });

        assert_eq!(input.next(2).await, InputEvent::Resize(PtySize { cols: 3, rows: 4 }));
        assert_eq!(input.next(2).await, InputEvent::Signal("INT".into()));
        assert_eq!(input.next(2).await, InputEvent::Bytes(Bytes::from_static(b"ab")));
        assert_eq!(input.next(2).await, InputEvent::Bytes(Bytes::from_static(b"c")));
        assert_eq!(input.next(2).await, InputEvent::Eof);
    }

    #[test]
    fn a_client_cannot_fill_more_than_its_window() {
        let input = input();
        input.push_bytes(&vec![0; WINDOW_BYTES as usize]).unwrap();

        assert_eq!(input.push_bytes(b"x"), Err(Overflow::Window));
    }

    #[test]
    fn signals_that_nobody_takes_are_bounded() {
        let input = input();

        for _ in 0..1_000 {
            input.push_signal("USR1".into());
        }

        assert_eq!(input.lock().signals.len(), SIGNALS_WAITING_MAX);
    }

    proptest! {
        /// A client that obeys its window is never refused, never waits for ever, and never has more than a window unread.
        #[test]
        fn an_obedient_client_moves_any_amount(steps in prop::collection::vec((1usize..200_000, 1usize..200_000), 1..200)) {
            let (mut window, mut allowed, mut unread) = (Window::default(), WINDOW_BYTES as usize, 0usize);
            for (send, consume) in steps {
                let send = send.min(allowed);
                prop_assert_eq!(window.receive(send), Ok(()));
                allowed -= send;
                unread += send;
                prop_assert!(unread <= WINDOW_BYTES as usize);
                let consume = consume.min(unread);
                unread -= consume;
                allowed += window.consume(consume).unwrap_or(0) as usize;
                prop_assert!(unread > 0 || allowed > 0);
            }
        }
    }
}
