//! The verbs on warm pools. What their members are and where is each region's own business: see `crate::refill`.

use std::collections::{BTreeMap, BTreeSet};

use atoll_api::access::Caller;
use atoll_api::ids::{RegionName, WarmPoolId};
use atoll_api::sandbox::Resources;
use atoll_consensus::state::cluster::{
    ClusterCommand, ClusterOutcome, ClusterRejection, ClusterState, WarmPoolRecord,
};
use futures_util::future::join_all;
use uuid::Uuid;

use super::cluster::ClusterVerbs;
use super::region::unavailable;
use super::verb::*;
use crate::clock::now_ms;
use crate::duties::WARM_POOLS_SINCE;

impl ClusterVerbs {
    pub(super) async fn list_warm_pools(&self, caller: &Caller) -> Result<VerbAnswer, VerbError> {
        self.cluster.linearize().await.map_err(unavailable)?;
        let own = |state: &ClusterState| -> Vec<(WarmPoolId, WarmPoolRecord)> {
            let pools = state.warm_pools.iter();
            let own = pools.filter(|(_, pool)| pool.organization_id == caller.organization_id);
            own.map(|(pool_id, pool)| (*pool_id, pool.clone())).collect()
        };
        let mut pools = self.cluster.read(own);
        pools.sort_by_key(|(pool_id, pool)| (pool.created_at_ms, *pool_id));
        let (pools, unreachable_regions) = self.views(pools).await;
        Ok(VerbAnswer::WarmPools { pools, unreachable_regions })
    }

    pub(super) async fn create_warm_pool(
        &self,
        caller: &Caller,
        snapshot: &str,
        size: u32,
        target: Option<RegionName>,
    ) -> Result<VerbAnswer, VerbError> {
        self.cluster.linearize().await.map_err(unavailable)?;
        if self.cluster.read(|state| state.command_version()) < WARM_POOLS_SINCE {
            return Err(VerbError::Unavailable {
                message: "a node of the cluster does not know warm pools yet; upgrade it first".into(),
                retry_after_s: 60,
            });
        }
        let found = self
            .cluster
            .read(|state| state.snapshot(caller.organization_id, snapshot).map(|(name, _)| name.clone()));
        let snapshot = found.ok_or_else(|| VerbError::NotFound(format!("Snapshot {snapshot} not found")))?;
        let pool_id = WarmPoolId(Uuid::new_v4());
        let now_ms = now_ms();
        let pool = WarmPoolRecord {
            organization_id: caller.organization_id,
            snapshot,
            region: target.unwrap_or_else(|| self.home.clone()),
            size,
            error_reason: None,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
        };
        self.decide(ClusterCommand::CreateWarmPool { pool_id, pool }).await?;
        self.own(caller, pool_id).await
    }

    pub(super) async fn resize_warm_pool(
        &self,
        caller: &Caller,
        pool_id: WarmPoolId,
        size: u32,
    ) -> Result<VerbAnswer, VerbError> {
        self.own_record(caller, pool_id).await?;
        self.decide(ClusterCommand::ResizeWarmPool { pool_id, size, now_ms: now_ms() }).await?;
        self.own(caller, pool_id).await
    }

    pub(super) async fn delete_warm_pool(
        &self,
        caller: &Caller,
        pool_id: WarmPoolId,
    ) -> Result<VerbAnswer, VerbError> {
        self.own_record(caller, pool_id).await?;
        self.decide(ClusterCommand::DeleteWarmPool { pool_id }).await?;
        Ok(VerbAnswer::Done)
    }

    /// Another organization's is none.
    async fn own_record(&self, caller: &Caller, pool_id: WarmPoolId) -> Result<WarmPoolRecord, VerbError> {
        self.cluster.linearize().await.map_err(unavailable)?;
        let pool = self.cluster.read(|state| state.warm_pools.get(&pool_id).cloned());
        pool.filter(|pool| pool.organization_id == caller.organization_id).ok_or_else(|| not_found(pool_id))
    }

    async fn own(&self, caller: &Caller, pool_id: WarmPoolId) -> Result<VerbAnswer, VerbError> {
        let record = self.own_record(caller, pool_id).await?;
        let (mut pools, _) = self.views(vec![(pool_id, record)]).await;
        let view = pools.pop().ok_or_else(|| not_found(pool_id))?;
        Ok(VerbAnswer::WarmPool(Box::new(view)))
    }

    /// How many are ready only the regions know. One that cannot be asked is named, and counts as having none.
    async fn views(&self, pools: Vec<(WarmPoolId, WarmPoolRecord)>) -> (Vec<WarmPoolView>, Vec<RegionName>) {
        let regions: BTreeSet<RegionName> = pools.iter().map(|(_, pool)| pool.region.clone()).collect();
        let asked = regions.into_iter().map(|region| async {
            let status = match region == self.home {
                true => Some(self.own_status()),
                false => self.status_of(&region).await,
            };
            (region, status)
        });
        let (mut ready, mut unreachable) = (BTreeMap::new(), Vec::new());
        for (region, status) in join_all(asked).await {
            match status {
                Some(status) => ready.extend(status.warm),
                None => unreachable.push(region),
            }
        }
        let views = self.cluster.read(|state| {
            let view = |(pool_id, record): (WarmPoolId, WarmPoolRecord)| {
                let nothing = (Resources { cpu: 0, memory_gib: 0, disk_gib: 0 }, String::new());
                let snapshot = state.snapshot_named(record.organization_id, &record.snapshot);
                let (resources, user) = snapshot
                    .map_or(nothing, |snapshot| (snapshot.default_resources, snapshot.default_user.clone()));
                let current_size = ready.get(&pool_id).copied().unwrap_or(0);
                WarmPoolView { pool_id, record, resources, user, current_size }
            };
            pools.into_iter().map(view).collect()
        });
        (views, unreachable)
    }

    async fn decide(&self, command: ClusterCommand) -> Result<(), VerbError> {
        let rejection = match self.cluster.propose(command).await.map_err(unavailable)? {
            ClusterOutcome::Applied => return Ok(()),
            ClusterOutcome::Rejected(rejection) => rejection,
        };
        let message = rejection.to_string();
        Err(match rejection {
            ClusterRejection::NotFound => VerbError::NotFound("Warm pool or snapshot not found".into()),
            ClusterRejection::RegionUnknown(_) | ClusterRejection::TooManyWarm(_) => {
                VerbError::BadRequest(message)
            }
            ClusterRejection::WarmPoolExists(_) => {
                VerbError::Conflict(format!("{message}; change its size instead (PATCH)"))
            }
            other => VerbError::Internal(other.to_string()),
        })
    }
}

fn not_found(pool_id: WarmPoolId) -> VerbError {
    VerbError::NotFound(format!("Warm pool {pool_id} not found"))
}
