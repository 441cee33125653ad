//! Parked inits, ready to become sandboxes, and the slots that number what a running sandbox holds: ids, control groups, an address.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::cgroup::Cgroups;
use super::maker::{Maker, ParkedInit};
use super::network::{Network, link};
use super::runtime::host;
use crate::handle::blocking;
use crate::runtime::RuntimeError;

/// Between two refills, so that the pool leaves the machine to those who wait for it.
const REFILL_PAUSE: Duration = Duration::from_millis(5);
/// After a refill that failed.
const REFILL_RETRY: Duration = Duration::from_secs(5);
const PAGE_BYTES: u64 = 4096;
/// System V shared memory of one sandbox. It outlives processes, so killing for memory does not free it: there must be a bound.
const SHARED_MEMORY_BYTES: u64 = 256 << 20;

pub(super) struct Pool {
    maker: Maker,
    cgroups: Arc<Cgroups>,
    network: Arc<Network>,
    slots: Mutex<Slots>,
    ready: Mutex<VecDeque<ParkedInit>>,
    /// Inits that are kept ready.
    target: usize,
    /// Starts that are making an init right now, before which a refill stands back.
    urgent: AtomicUsize,
    refill: Notify,
}

/// Slots that somebody holds.
struct Slots {
    used: BTreeSet<u16>,
    max: u16,
}

impl Pool {
    pub(super) fn new(
        maker: Maker,
        cgroups: Arc<Cgroups>,
        network: Arc<Network>,
        slots_max: u16,
        target: usize,
    ) -> Pool {
        let max = slots_max.min(network.layout().slots());
        Pool {
            maker,
            cgroups,
            network,
            slots: Mutex::new(Slots { used: BTreeSet::new(), max }),
            ready: Mutex::default(),
            target,
            urgent: AtomicUsize::new(0),
            refill: Notify::new(),
        }
    }

    /// For a sandbox that was running before this process began. `false` when it is taken already.
    pub(super) fn adopt(&self, slot: u16) -> bool {
        self.slots().used.insert(slot)
    }

    /// One that is ready, or a new one, which takes some milliseconds.
    pub(super) async fn claim(self: &Arc<Self>) -> Result<ParkedInit, RuntimeError> {
        let ready = self.ready().pop_front();
        let init = match ready {
            Some(init) => init,
            None => {
                self.urgent.fetch_add(1, Ordering::Relaxed);
                let made = self.make().await;
                self.urgent.fetch_sub(1, Ordering::Relaxed);
                made?
            }
        };
        self.refill.notify_one();
        Ok(init)
    }

    /// Keeps the pool full until `closing`. Never ends in the middle of making one.
    pub(super) async fn keep_full(self: Arc<Self>, closing: CancellationToken) {
        loop {
            while self.ready().len() < self.target && !closing.is_cancelled() {
                if self.urgent.load(Ordering::Relaxed) == 0 {
                    match self.make().await {
                        Ok(init) => self.ready().push_back(init),
                        Err(error) => {
                            tracing::warn!(%error, "cannot park an init ahead of time");
                            let _ = tokio::time::timeout(REFILL_RETRY, closing.cancelled()).await;
                        }
                    }
                }
                tokio::time::sleep(REFILL_PAUSE).await;
            }
            tokio::select! {
                () = closing.cancelled() => return,
                () = self.refill.notified() => {}
            }
        }
    }

    /// What is left of a slot's last holder goes, and others may have it.
    pub(super) async fn release(&self, slot: u16) {
        let cgroup = self.cgroups.slot(slot);
        let removed =
            blocking(move || cgroup.remove().map_err(host("remove a sandbox's control groups"))).await;
        let detached = self.network.detach(slot).await;
        match removed.and(detached) {
            Ok(()) => drop(self.slots().used.remove(&slot)),
            // It is not given to anybody.
            Err(error) => tracing::error!(slot, %error, "cannot take back what a sandbox held"),
        }
    }

    /// Of what an earlier process has left, what nobody holds. After every [`Pool::adopt`].
    pub(super) async fn release_unused(&self) -> Result<(), RuntimeError> {
        let (cgroups, layout) = (self.cgroups.clone(), self.network.layout());
        let found = blocking(move || {
            let cables = link::attached(&layout).map_err(|error| RuntimeError::Host(error.to_string()))?;
            let groups = cgroups.slots().map_err(host("list control groups"))?;
            Ok(groups.into_iter().chain(cables).collect::<BTreeSet<_>>())
        });
        for slot in found.await? {
            let held = self.slots().used.contains(&slot);
            if !held {
                self.release(slot).await;
            }
        }
        Ok(())
    }

    /// Ends all parked inits.
    pub(super) async fn drain(&self) {
        let ready: Vec<ParkedInit> = self.ready().drain(..).collect();
        for init in ready {
            self.discard(init).await;
        }
    }

    pub(super) async fn discard(&self, init: ParkedInit) {
        let slot = init.slot;
        let ended = blocking(move || {
            let _ = pidfd_send_signal(&init.pidfd, Signal::KILL);
            // Fails when it was not ours to reap.
            let _ = waitid(WaitId::PidFd(init.pidfd.as_fd()), WaitIdOptions::EXITED);
            Ok(())
        });
        let _ = ended.await;
        self.release(slot).await;
    }

    async fn make(self: &Arc<Self>) -> Result<ParkedInit, RuntimeError> {
        let slot = self.slots().take()?;
        let pool = self.clone();
        let parked = blocking(move || {
            let cgroup = pool.cgroups.create(slot).map_err(host("make a sandbox's control groups"))?;
            let pages = SHARED_MEMORY_BYTES / PAGE_BYTES;
            pool.maker.park(slot, cgroup, pages).map_err(host("make a sandbox's namespaces"))
        });
        let mut init = match parked.await {
            Ok(init) => init,
            Err(error) => {
                self.release(slot).await;
                return Err(error);
            }
        };
        let began = Instant::now();
        let attached = match init.network_namespace.try_clone() {
            Ok(namespace) => self.network.attach(slot, namespace).await,
            Err(error) => Err(host("hold a network namespace")(error)),
        };
        match attached {
            Ok(lease) => init.address = Some(lease.address),
            Err(error) => {
                self.discard(init).await;
                return Err(error);
            }
        }
        init.timings.network_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(init)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<ParkedInit>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn take(&mut self) -> Result<u16, RuntimeError> {
        let free = (0..self.max).find(|slot| !self.used.contains(slot));
        let slot = free.ok_or_else(|| {
            RuntimeError::Host(format!("all {} slots for running sandboxes are taken", self.max))
        })?;
        self.used.insert(slot);
        Ok(slot)
    }
}
