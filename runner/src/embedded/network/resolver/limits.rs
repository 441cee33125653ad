//! How much of the resolver one sandbox may have, and all together. Pure: told the time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

/// Questions and open connections at a time.
const AT_ONCE_MAX: usize = 1024;
const AT_ONCE_PER_SANDBOX_MAX: u32 = 64;
const PER_SECOND: f64 = 200.0;
const BURST: f64 = 400.0;

#[derive(Default)]
pub(super) struct Limits {
    at_once: usize,
    /// At most one for each address of the range; those that have rested go.
    sandboxes: BTreeMap<Ipv4Addr, Account>,
}

struct Account {
    at_once: u32,
    left: f64,
    counted: Instant,
}

impl Account {
    fn rested(&self, now: Instant) -> bool {
        self.at_once == 0 && self.left_at(now) >= BURST
    }

    fn left_at(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.counted);
        (self.left + elapsed.as_secs_f64() * PER_SECOND).min(BURST)
    }
}

impl Limits {
    /// Whether it may ask now. If so, [`Limits::leave`] must follow.
    pub(super) fn admit(&mut self, sandbox: Ipv4Addr, now: Instant) -> bool {
        if self.at_once >= AT_ONCE_MAX {
            return false;
        }
        if !self.sandboxes.contains_key(&sandbox) {
            self.sandboxes.retain(|_, account| !account.rested(now));
        }
        let account =
            self.sandboxes.entry(sandbox).or_insert(Account { at_once: 0, left: BURST, counted: now });
        account.left = account.left_at(now);
        account.counted = now;
        if account.at_once >= AT_ONCE_PER_SANDBOX_MAX || account.left < 1.0 {
            return false;
        }
        account.left -= 1.0;
        account.at_once += 1;
        self.at_once += 1;
        true
    }

    pub(super) fn leave(&mut self, sandbox: Ipv4Addr) {
        self.at_once = self.at_once.saturating_sub(1);
        if let Some(account) = self.sandboxes.get_mut(&sandbox) {
            account.at_once = account.at_once.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GREEDY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);

    #[test]
    fn one_that_asks_without_pause_is_slowed_and_others_are_not() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let mut ask = |sandbox, now| {
            let admitted = limits.admit(sandbox, now);
            if admitted {
                limits.leave(sandbox);
            }
            admitted
        };

        assert_eq!((0..1000).filter(|_| ask(GREEDY, now)).count(), 400);
        assert!(ask(OTHER, now));
        assert_eq!((0..1000).filter(|_| ask(GREEDY, now + Duration::from_secs(1))).count(), 200);
    }

    #[test]
    fn one_that_waits_for_many_answers_waits_for_no_more() {
        let (mut limits, now) = (Limits::default(), Instant::now());

        assert_eq!((0..100).filter(|_| limits.admit(GREEDY, now)).count(), 64);
        assert!(limits.admit(OTHER, now));
        limits.leave(GREEDY);
        assert!(limits.admit(GREEDY, now));
    }

    #[test]
    fn all_together_are_bounded_and_forgotten_when_they_have_rested() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let sandboxes: Vec<Ipv4Addr> = (0..2000).map(|n| Ipv4Addr::from_bits(GREEDY.to_bits() + n)).collect();

        assert_eq!(sandboxes.iter().filter(|sandbox| limits.admit(**sandbox, now)).count(), AT_ONCE_MAX);
        sandboxes.iter().take(AT_ONCE_MAX).for_each(|sandbox| limits.leave(*sandbox));
        assert!(limits.admit(Ipv4Addr::LOCALHOST, now + Duration::from_secs(60)));
        assert_eq!(limits.sandboxes.len(), 1);
    }
}
