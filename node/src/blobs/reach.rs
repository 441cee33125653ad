//! Which blobs are whose. The store has each blob once, whoever it is of; an organization reads one only if an image of
//! its own leads there, or if it has just pushed it and the manifest is still to come.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atoll_api::ids::OrganizationId;
use atoll_runner::image::Digest;
use atoll_runner::store::{Store, StoreError};

use super::{PeerStores, Silent, names_of};

/// For so long a blob waits for its manifest, as it does in the store.
const PUSHED_FOR: Duration = Duration::from_secs(3600);
const PUSHED_MAX: usize = 100_000;
/// A removed image stays readable for at most so long.
const BELIEVED_FOR: Duration = Duration::from_secs(10);
/// Looking for what is not there costs one look at the disk in so long.
const LOOKS_APART: Duration = Duration::from_millis(500);
const ORGANIZATIONS_MAX: usize = 1_000;

pub struct Reach {
    store: Store,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pushed: HashMap<(OrganizationId, Digest), Instant>,
    led_to: HashMap<OrganizationId, (Instant, Arc<BTreeSet<Digest>>)>,
}

impl Reach {
    pub fn new(store: Store) -> Reach {
        Reach { store, state: Mutex::default() }
    }

    /// The organization has shown that it has the blob.
    pub fn pushed(&self, organization_id: OrganizationId, digest: Digest) {
        let now = Instant::now();
        let mut state = self.state();
        if state.pushed.len() >= PUSHED_MAX {
            state.pushed.retain(|_, since| now.duration_since(*since) < PUSHED_FOR);
        }
        if state.pushed.len() < PUSHED_MAX {
            state.pushed.insert((organization_id, digest), now);
        }
    }

    /// Names of the organization have changed here.
    pub fn named(&self, organization_id: OrganizationId) {
        self.state().led_to.remove(&organization_id);
    }

    /// As far as this node knows.
    pub async fn here(&self, organization_id: OrganizationId, digest: Digest) -> Result<bool, StoreError> {
        let known = {
            let state = self.state();
            let pushed = state.pushed.get(&(organization_id, digest));
            if pushed.is_some_and(|since| since.elapsed() < PUSHED_FOR) {
                return Ok(true);
            }
            state.led_to.get(&organization_id).cloned()
        };
        if let Some((at, led_to)) = known {
            let found = led_to.contains(&digest);
            if at.elapsed() < if found { BELIEVED_FOR } else { LOOKS_APART } {
                return Ok(found);
            }
        }
        Ok(self.look(organization_id).await?.contains(&digest))
    }

    /// As far as any node that answers knows.
    pub async fn anywhere(
        &self,
        peers: &PeerStores,
        organization_id: OrganizationId,
        digest: Digest,
    ) -> Result<Result<(), Silent>, StoreError> {
        if self.here(organization_id, digest).await? {
            return Ok(Ok(()));
        }
        Ok(peers.reach(organization_id, digest).await)
    }

    async fn look(&self, organization_id: OrganizationId) -> Result<Arc<BTreeSet<Digest>>, StoreError> {
        let at = Instant::now();
        let store = self.store.clone();
        let look = move || store.digests_below(&names_of(organization_id));
        let led_to = tokio::task::spawn_blocking(look).await.map_err(std::io::Error::other)??;
        let led_to = Arc::new(led_to);
        let mut state = self.state();
        if state.led_to.len() >= ORGANIZATIONS_MAX {
            state.led_to.clear();
        }
        state.led_to.insert(organization_id, (at, led_to.clone()));
        Ok(led_to)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
