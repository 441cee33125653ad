//! Which warm pools there are to be: for one organization, one snapshot, one region. Their members are the region's to know.

use std::collections::BTreeSet;

use atoll_api::ids::{OrganizationId, RegionName, WarmPoolId};
use serde::{Deserialize, Serialize};

use super::apply::Judged;
use super::{ClusterRejection, ClusterState};

/// Sandboxes that one pool may keep, all pools of an organization, and all pools of a region: each is paid for while nobody
/// uses it.
pub const WARM_PER_POOL_MAX: u32 = 100;
pub const WARM_PER_ORGANIZATION_MAX: u32 = 200;
pub const WARM_PER_REGION_MAX: u32 = 1_000;
/// Longer reasons are cut: they are for reading.
const REASON_CHARS_MAX: usize = 500;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmPoolRecord {
    pub organization_id: OrganizationId,
    /// Its name. What members are like is read from the snapshot as it is now.
    pub snapshot: String,
    pub region: RegionName,
    /// How many members are to be ready.
    pub size: u32,
    /// Why there are fewer, if the region's leader knows.
    #[serde(default)]
    pub error_reason: Option<String>,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
}

impl WarmPoolRecord {
    /// There is one pool for each.
    fn place(&self) -> (OrganizationId, &str, &RegionName) {
        (self.organization_id, &self.snapshot, &self.region)
    }
}

impl ClusterState {
    /// The pool that serves creates of this organization from this snapshot in this region.
    pub fn warm_pool_for(
        &self,
        organization_id: OrganizationId,
        snapshot: &str,
        region: &RegionName,
    ) -> Option<WarmPoolId> {
        let found =
            self.warm_pools.iter().find(|(_, pool)| pool.place() == (organization_id, snapshot, region));
        found.map(|(pool_id, _)| *pool_id)
    }

    pub(super) fn create_warm_pool(&mut self, pool_id: WarmPoolId, pool: WarmPoolRecord) -> Judged {
        let there = self.warm_pool_for(pool.organization_id, &pool.snapshot, &pool.region);
        match there {
            Some(same) if same == pool_id => return Ok(()),
            Some(other) => return Err(ClusterRejection::WarmPoolExists(other)),
            None => {}
        }
        if !self.organizations.contains_key(&pool.organization_id)
            || self.snapshot_named(pool.organization_id, &pool.snapshot).is_none()
            // Another pool has this id.
            || self.warm_pools.contains_key(&pool_id)
        {
            return Err(ClusterRejection::NotFound);
        }
        if !self.regions.contains_key(&pool.region) {
            return Err(ClusterRejection::RegionUnknown(pool.region));
        }
        self.judge_warm_size(pool_id, &pool, pool.size)?;
        self.warm_pools.insert(pool_id, pool);
        Ok(())
    }

    pub(super) fn resize_warm_pool(&mut self, pool_id: WarmPoolId, size: u32, now_ms: u64) -> Judged {
        let pool = self.warm_pools.get(&pool_id).ok_or(ClusterRejection::NotFound)?;
        if pool.size == size {
            return Ok(());
        }
        self.judge_warm_size(pool_id, pool, size)?;
        if let Some(pool) = self.warm_pools.get_mut(&pool_id) {
            pool.size = size;
            pool.updated_at_ms = pool.updated_at_ms.max(now_ms);
        }
        Ok(())
    }

    pub(super) fn note_warm_pool(&mut self, pool_id: WarmPoolId, error_reason: Option<String>) {
        if let Some(pool) = self.warm_pools.get_mut(&pool_id) {
            pool.error_reason = error_reason.map(|reason| reason.chars().take(REASON_CHARS_MAX).collect());
        }
    }

    /// A pool that shrinks is let shrink, however many there are.
    fn judge_warm_size(&self, pool_id: WarmPoolId, pool: &WarmPoolRecord, size: u32) -> Judged {
        let before = self.warm_pools.get(&pool_id).map_or(0, |pool| pool.size);
        let others = |matches: &dyn Fn(&WarmPoolRecord) -> bool| {
            let others = self.warm_pools.iter().filter(|(other, pool)| **other != pool_id && matches(pool));
            others.fold(0u32, |sum, (_, pool)| sum.saturating_add(pool.size))
        };
        let of_organization = others(&|other| other.organization_id == pool.organization_id);
        let of_region = others(&|other| other.region == pool.region);
        for (what, others, max) in [
            ("a warm pool", 0, WARM_PER_POOL_MAX),
            ("all warm pools of an organization", of_organization, WARM_PER_ORGANIZATION_MAX),
            ("all warm pools of a region", of_region, WARM_PER_REGION_MAX),
        ] {
            if size > before && others.saturating_add(size) > max {
                let left = max.saturating_sub(others);
                let message = format!("{what} may keep {max} sandboxes: {left} are left for this pool");
                return Err(ClusterRejection::TooManyWarm(message));
            }
        }
        Ok(())
    }

    pub(super) fn check_warm_pools(&self) {
        let mut places = BTreeSet::new();
        for (pool_id, pool) in &self.warm_pools {
            assert!(places.insert(pool.place()), "{pool_id} is the only one for its place");
            assert!(self.regions.contains_key(&pool.region), "{pool_id} is in a region that exists");
            assert!(self.organizations.contains_key(&pool.organization_id), "{pool_id} is an organization's");
            assert!(pool.size <= WARM_PER_POOL_MAX, "{pool_id} has a bound");
        }
    }
}
