//! How many bytes of unread input a connection, and the whole node, may hold. Windows bound each channel; this bounds
//! a client that opens many and reads none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct Memory {
    used_bytes: AtomicUsize,
    bytes_max: usize,
    /// Counts the same bytes together with those of others.
    whole: Option<Arc<Memory>>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much unread input")]
pub(crate) struct Exhausted;

impl Memory {
    pub(crate) fn new(bytes_max: usize) -> Arc<Memory> {
        Arc::new(Memory { used_bytes: AtomicUsize::new(0), bytes_max, whole: None })
    }

    pub(crate) fn part(self: &Arc<Self>, bytes_max: usize) -> Arc<Memory> {
        Arc::new(Memory { used_bytes: AtomicUsize::new(0), bytes_max, whole: Some(self.clone()) })
    }

    /// Either all of it is taken, here and from the whole, or none.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), Exhausted> {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.bytes_max);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| Exhausted)?;
        let whole = self.whole.as_ref().map_or(Ok(()), |whole| whole.take(bytes));
        whole.inspect_err(|_| {
            self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    /// Gives back what was taken before.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.give_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_the_whole() {
        let whole = Memory::new(10);
        let (one, other) = (whole.part(8), whole.part(8));

        assert_eq!(one.take(9), Err(Exhausted));
        assert_eq!(one.take(8), Ok(()));
        assert_eq!(other.take(3), Err(Exhausted));
        assert_eq!(other.take(2), Ok(()));
        one.give_back(8);

        assert_eq!(other.take(6), Ok(()), "a refused take leaves nothing behind");
        assert_eq!(whole.used_bytes.load(Ordering::Relaxed), 8);
    }
}
