//! Keeps this node's store within its budget and its words about names true. Bounded work, now and then; whatever is
//! missed is seen the next time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_consensus::group::{ClusterGroup, RegionGroup};
use atoll_runner::build::SandboxBuildHost;
use atoll_runner::image::Digest;
use atoll_runner::store::{LOCAL_HOST, Reference, Store, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::blobs::PeerStores;
use crate::registry::Registry;

const COLLECT_EVERY: Duration = Duration::from_secs(600);
/// Every so many collections the other nodes are asked what they know of names that are here.
const RECONCILE_EVERY: u32 = 6;

pub struct Upkeep {
    pub store: Store,
    pub peers: PeerStores,
    pub registry: Arc<Registry>,
    pub cluster: ClusterGroup,
    pub region: RegionGroup,
    /// What builds would like to find again.
    pub builds: Option<SandboxBuildHost>,
    pub budget_bytes: u64,
}

impl Upkeep {
    pub async fn run(self, cancel: CancellationToken) {
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + COLLECT_EVERY, COLLECT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for round in 0u32.. {
            tokio::select! {
                _ = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            self.registry.uploads.expire(Instant::now());
            if round % RECONCILE_EVERY == 0 {
                tokio::select! {
                    _ = cancel.cancelled() => return,
                    () = self.reconcile() => {}
                }
            }
            self.collect().await;
        }
    }

    /// A node that was away hears now what was said about its names meanwhile.
    async fn reconcile(&self) {
        let (words, _) = self.peers.words_below(&format!("{LOCAL_HOST}/")).await;
        let store = self.store.clone();
        let adopt = move || -> Result<usize, StoreError> {
            let mut adopted = 0;
            for word in &words {
                adopted += usize::from(store.adopt_name(word)?);
            }
            Ok(adopted)
        };
        match tokio::task::spawn_blocking(adopt).await {
            Ok(Ok(0)) => {}
            Ok(Ok(names)) => info!(names, "other nodes knew better what images' names stand for"),
            Ok(Err(error)) => warn!(%error, "cannot keep what other nodes say about images' names"),
            Err(error) => warn!(%error, "keeping images' names ended early"),
        }
    }

    async fn collect(&self) {
        let mut images = self.cluster.read(|state| {
            let images = state.all_snapshots().map(|(_, snapshot)| snapshot.image.clone());
            images.filter(|image| !image.is_empty()).collect::<BTreeSet<_>>()
        });
        self.region.read(|state| {
            images.extend(state.sandboxes.values().map(|sandbox| sandbox.spec.image.clone()));
            // Also of those that no node owns now: it is all that is left of them.
            images.extend(state.sandboxes.values().filter_map(|sandbox| sandbox.image().map(str::to_owned)));
        });
        let (store, budget_bytes) = (self.store.clone(), self.budget_bytes);
        let builds = self.builds.clone();
        let collect = move || {
            let mut needed = needed(&store, &images);
            needed.extend(builds.iter().flat_map(SandboxBuildHost::cached_blobs));
            store.collect(&needed, budget_bytes)
        };
        match tokio::task::spawn_blocking(collect).await {
            Ok(Ok(collected)) if collected.blobs > 0 => {
                let atoll_runner::store::Collected { blobs, bytes, left_bytes } = collected;
                info!(blobs, bytes, left_bytes, "removed image blobs that nothing needs");
            }
            Ok(Ok(collected)) if collected.left_bytes > budget_bytes => {
                warn!(
                    left_bytes = collected.left_bytes,
                    budget_bytes, "the images in use take more than runtime.store_budget_gib"
                );
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "cannot collect image blobs"),
            Err(error) => warn!(%error, "the collection of image blobs ended early"),
        }
    }
}

/// The manifests that these images stand for, as far as this node knows. What it does not know it does not have.
fn needed(store: &Store, images: &BTreeSet<String>) -> BTreeSet<Digest> {
    let digest = |image: &String| {
        if let Ok(digest) = image.parse::<Digest>() {
            return Some(digest);
        }
        let name: Reference = image.parse().ok()?;
        name.digest().or_else(|| store.name_here(&name).map(|named| named.digest))
    };
    images.iter().filter_map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_runner::store::{Origin, Registries, StoreConfig, Version};

    #[test]
    fn an_image_is_needed_by_whatever_way_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, seeds, registries) = (dir.path().to_owned(), vec![], Registries::default());
        let store = Store::open(StoreConfig { dir: path, seeds, registries }).unwrap();
        let [plain, pinned, tagged] = [b"1", b"2", b"3"].map(|bytes| Digest::of(bytes));
        let name = Reference::local("org", "app", Version::Tag("v1".to_owned())).unwrap();
        store.set_name(&name, tagged, Origin::Given).unwrap();
        let images = [
            plain.to_string(),
            format!("x.y/app@{pinned}"),
            name.to_string(),
            "x.y/unknown:1".to_owned(),
            "no name at all".to_owned(),
        ];

        assert_eq!(needed(&store, &images.into()), [plain, pinned, tagged].into());
    }
}
