//! Finds what ids, keys and tokens mean: from the local replica, from the leader when that has nothing,
//! from a node of the right region when it is another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use atoll_api::access::{Caller, PreviewGrant, SandboxFacts, SshGrant};
use atoll_api::ids::{RegionName, RegionOrdinal, SandboxId};
use atoll_api::sandbox::{Phase, Placement};
use atoll_api::tokens::{ApiKey, SignedPreviewToken, SshToken, TokenHash};
use atoll_consensus::group::{ClusterGroup, RegionGroup};
use atoll_consensus::state::cluster::ClusterState;
use atoll_consensus::state::region::RegionState;
use atoll_mesh::dial::{ByteStream, DialError, Directory, DirectoryError};
use atoll_mesh::stream::{StreamHeader, answer, read_message};
use serde::{Deserialize, Serialize};

use crate::activity::Activity;
use crate::clock::now_ms;
use crate::control::forward::Forwarder;

/// How long facts of another region are believed without asking again. The owner checks the generation anyway.
const REMOTE_FACTS_FOR: Duration = Duration::from_secs(1);
const REMOTE_FACTS_MAX: usize = 10_000;
const LOCATE_DEADLINE: Duration = Duration::from_secs(5);
const LOCATE_BYTES_MAX: usize = 64 * 1024;
/// How often another region is asked whether an SSH token in use still holds.
const REMOTE_TOKEN_RECHECK: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The local replica, or a remembered answer; the leader is asked only when there is nothing.
    Replica,
    Linearizable,
}

/// A question to another region. Tokens travel as hashes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LocateQuestion {
    Sandbox(SandboxId),
    SignedPreview(TokenHash),
    SshToken(TokenHash),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LocateAnswer {
    Sandbox(Box<SandboxFacts>),
    SignedPreview(PreviewGrant),
    SshToken(SshGrant),
    NotFound,
    Unavailable(String),
}

pub struct MeshDirectory {
    pub home: RegionName,
    pub cluster: ClusterGroup,
    pub region: RegionGroup,
    pub forwarder: Arc<Forwarder>,
    pub activity: Arc<Activity>,
    pub remembered: Mutex<HashMap<SandboxId, (Instant, SandboxFacts)>>,
}

#[async_trait]
impl Directory for MeshDirectory {
    async fn sandbox(&self, sandbox_id: SandboxId) -> Result<SandboxFacts, DirectoryError> {
        self.facts(sandbox_id, Freshness::Replica).await
    }

    async fn sandbox_now(&self, sandbox_id: SandboxId) -> Result<SandboxFacts, DirectoryError> {
        self.facts(sandbox_id, Freshness::Linearizable).await
    }

    async fn signed_preview(&self, token: &SignedPreviewToken) -> Result<PreviewGrant, DirectoryError> {
        let region = self.region_of(token.region())?;
        let question = LocateQuestion::SignedPreview(token.hash());
        match self.ask(&region, question, Freshness::Replica).await? {
            LocateAnswer::SignedPreview(grant) => Ok(grant),
            _ => Err(DirectoryError::NotFound),
        }
    }

    async fn ssh_token(&self, token: &SshToken) -> Result<SshGrant, DirectoryError> {
        let region = self.region_of(token.region())?;
        let question = LocateQuestion::SshToken(token.hash());
        match self.ask(&region, question, Freshness::Replica).await? {
            LocateAnswer::SshToken(grant) => Ok(grant),
            _ => Err(DirectoryError::NotFound),
        }
    }

    async fn api_key(&self, key: &ApiKey) -> Result<Caller, DirectoryError> {
        let look = || {
            self.cluster.read(|state| {
                state.api_key(key.hash(), now_ms()).map(|record| Caller {
                    organization_id: record.organization_id,
                    user_id: record.user_id,
                    key_name: record.name.clone(),
                })
            })
        };
        if let Some(caller) = look() {
            return Ok(caller);
        }
        // The key may have been made on another node a moment ago. The rounds of many callers are shared.
        self.cluster.linearize().await.map_err(|error| DirectoryError::Unreachable(error.to_string()))?;
        look().ok_or(DirectoryError::NotFound)
    }

    async fn ssh_token_ended(&self, grant: &SshGrant) {
        let left = Duration::from_millis(grant.expires_at_ms.saturating_sub(now_ms()));
        // Either the time or the token runs out first.
        let _ = tokio::time::timeout(left, self.ssh_token_revoked(grant)).await;
    }

    fn touch(&self, sandbox_id: SandboxId) {
        self.activity.touch(sandbox_id);
    }
}

impl MeshDirectory {
    /// Where a running sandbox is.
    pub async fn running_placement(
        &self,
        sandbox_id: SandboxId,
        freshness: Freshness,
    ) -> Result<Placement, DialError> {
        let mut facts = self.facts(sandbox_id, freshness).await.map_err(dial_error)?;
        if facts.phase != Phase::Running && freshness == Freshness::Replica {
            // A replica may lag behind the answer that a create or start gave elsewhere.
            facts = self.facts(sandbox_id, Freshness::Linearizable).await.map_err(dial_error)?;
        }
        match facts.phase {
            Phase::Running => Ok(facts.placement),
            Phase::Lost => Err(DialError::Unreachable("it is down".into())),
            Phase::Pending => not_running("being created"),
            Phase::Starting => not_running("starting"),
            Phase::Stopping => not_running("stopping"),
            Phase::Pausing | Phase::Paused => not_running("paused"),
            Phase::Resuming => not_running("resuming"),
            Phase::Stopped => not_running("stopped"),
            Phase::Archiving | Phase::Archived => not_running("archived"),
            Phase::Failed { reason } => not_running(&format!("in error ({reason})")),
        }
    }

    async fn facts(
        &self,
        sandbox_id: SandboxId,
        freshness: Freshness,
    ) -> Result<SandboxFacts, DirectoryError> {
        let region = self.region_of(sandbox_id.region())?;
        if region != self.home
            && freshness == Freshness::Replica
            && let Some(facts) = self.recall(sandbox_id)
        {
            return Ok(facts);
        }
        match self.ask(&region, LocateQuestion::Sandbox(sandbox_id), freshness).await? {
            LocateAnswer::Sandbox(facts) => {
                if region != self.home {
                    self.remember(&facts);
                }
                Ok(*facts)
            }
            _ => Err(DirectoryError::NotFound),
        }
    }

    async fn ask(
        &self,
        region: &RegionName,
        question: LocateQuestion,
        freshness: Freshness,
    ) -> Result<LocateAnswer, DirectoryError> {
        if *region == self.home {
            return match self.answer(question, freshness).await {
                LocateAnswer::Unavailable(cause) => Err(DirectoryError::Unreachable(cause)),
                answer => Ok(answer),
            };
        }
        let answer =
            self.forwarder.ask_region(region, StreamHeader::Locate, &question, LOCATE_DEADLINE).await;
        match answer {
            Ok(Some(LocateAnswer::Unavailable(cause))) | Err(cause) => {
                Err(DirectoryError::Unreachable(cause))
            }
            Ok(None) => Err(DirectoryError::Unreachable(format!("no node of region {region} answers"))),
            Ok(Some(answer)) => Ok(answer),
        }
    }

    /// Answers for this node's own region.
    async fn answer(&self, question: LocateQuestion, freshness: Freshness) -> LocateAnswer {
        if freshness == Freshness::Replica {
            match self.region.read(|state| look_up(state, &question)) {
                LocateAnswer::NotFound => {}
                found => return found,
            }
        }
        match self.region.linearize().await {
            Ok(()) => self.region.read(|state| look_up(state, &question)),
            Err(error) => LocateAnswer::Unavailable(error.to_string()),
        }
    }

    /// The receiving side of a `Locate` stream. Another region has no replica to be quick with: it gets the truth.
    pub async fn serve_locate(&self, mut stream: ByteStream) -> anyhow::Result<()> {
        let question: LocateQuestion = read_message(&mut stream, LOCATE_BYTES_MAX).await?;
        Ok(answer(&mut stream, &self.answer(question, Freshness::Linearizable).await).await?)
    }

    async fn ssh_token_revoked(&self, grant: &SshGrant) {
        let Ok(region) = self.region_of(grant.sandbox_id.region()) else { return };
        let question = LocateQuestion::SshToken(grant.token_hash);
        if region == self.home {
            let mut changes = self.region.changes();
            loop {
                changes.borrow_and_update();
                let gone =
                    self.region.read(|state| matches!(look_up(state, &question), LocateAnswer::NotFound));
                if gone || changes.changed().await.is_err() {
                    return;
                }
            }
        }
        loop {
            tokio::time::sleep(REMOTE_TOKEN_RECHECK).await;
            // A region that cannot be asked does not end sessions; one that says "unknown" does.
            if let Ok(LocateAnswer::NotFound) =
                self.ask(&region, question.clone(), Freshness::Linearizable).await
            {
                return;
            }
        }
    }

    fn region_of(&self, ordinal: RegionOrdinal) -> Result<RegionName, DirectoryError> {
        let name = |state: &ClusterState| state.region_by_ordinal(ordinal).map(|(name, _)| name.clone());
        self.cluster.read(name).ok_or(DirectoryError::NotFound)
    }

    fn recall(&self, sandbox_id: SandboxId) -> Option<SandboxFacts> {
        let remembered = self.remembered.lock().expect("no holder panics");
        let (at, facts) = remembered.get(&sandbox_id)?;
        (at.elapsed() < REMOTE_FACTS_FOR).then(|| facts.clone())
    }

    fn remember(&self, facts: &SandboxFacts) {
        let mut remembered = self.remembered.lock().expect("no holder panics");
        if remembered.len() >= REMOTE_FACTS_MAX {
            remembered.retain(|_, (at, _)| at.elapsed() < REMOTE_FACTS_FOR);
        }
        if remembered.len() < REMOTE_FACTS_MAX {
            remembered.insert(facts.sandbox_id, (Instant::now(), facts.clone()));
        }
    }
}

fn look_up(state: &RegionState, question: &LocateQuestion) -> LocateAnswer {
    let found = match question {
        LocateQuestion::Sandbox(id) => state.facts(*id).map(|facts| LocateAnswer::Sandbox(Box::new(facts))),
        LocateQuestion::SignedPreview(hash) => {
            state.preview_grant(*hash, now_ms()).map(LocateAnswer::SignedPreview)
        }
        LocateQuestion::SshToken(hash) => state.ssh_grant(*hash, now_ms()).map(LocateAnswer::SshToken),
    };
    found.unwrap_or(LocateAnswer::NotFound)
}

fn not_running<T>(state: &str) -> Result<T, DialError> {
    Err(DialError::NotRunning { state: state.to_owned() })
}

fn dial_error(error: DirectoryError) -> DialError {
    match error {
        DirectoryError::NotFound => DialError::NotFound,
        DirectoryError::Unreachable(cause) => DialError::Unreachable(cause),
    }
}
