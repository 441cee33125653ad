//! Lets nodes in: judges join requests by the token, signs the node's certificate, and says who belongs to the mesh.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use anyhow::{Context, Result};
use async_trait::async_trait;
use atoll_api::ids::NodeId;
use atoll_certs::ca::node_id_of_request;
use atoll_certs::seal::ClusterSecret;
use atoll_consensus::group::ClusterGroup;
use atoll_consensus::state::cluster::{
    ClusterCommand, ClusterIdentity, ClusterOutcome, ClusterRejection, NodeAddresses, NodeCapacity,
    NodeRecord,
};
use atoll_mesh::endpoint::Members;
use atoll_mesh::join::{JoinHandler, JoinPeer, JoinRefusal, JoinRequest, JoinResponse};
use tracing::info;

use crate::clock::now_ms;
use crate::trust::cluster_ca;

/// Who belongs to the mesh and where they are. Before the first replica has arrived: the peers named at the join.
pub struct Membership {
    pub first_peers: BTreeMap<NodeId, String>,
    /// Set once consensus is open, which itself needs the mesh.
    pub cluster: OnceLock<ClusterGroup>,
}

impl Members for Membership {
    fn address(&self, node_id: NodeId) -> Option<String> {
        let known = self.cluster.get().and_then(|cluster| {
            cluster.read(|state| state.nodes.get(&node_id).map(|node| node.addresses.mesh.clone()))
        });
        known.or_else(|| self.first_peers.get(&node_id).cloned())
    }

    /// A certificate alone is not enough: whoever was a member once could sign itself another. Before the first replica
    /// has arrived there is nothing to look into, and the CA's word is taken. A replica that lags behind a join refuses
    /// the newcomer for a moment, and the newcomer tries again.
    fn admits(&self, node_id: NodeId) -> bool {
        let Some(cluster) = self.cluster.get() else { return true };
        cluster.read(|state| state.identity.is_none() || state.nodes.contains_key(&node_id))
    }
}

pub struct Admission {
    pub cluster: ClusterGroup,
    pub secret: Arc<ClusterSecret>,
}

#[async_trait]
impl JoinHandler for Admission {
    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, JoinRefusal> {
        let node_id = node_id_of_request(&request.csr_der)
            .map_err(|error| JoinRefusal::Unacceptable(format!("certificate request: {error}")))?;
        let node = NodeRecord {
            name: request.name.clone(),
            region: request.region.clone(),
            zone: Some(request.zone.clone()).filter(|zone| !zone.is_empty()),
            addresses: NodeAddresses {
                mesh: request.addresses.mesh.clone(),
                http: request.addresses.http.clone(),
                https: request.addresses.https.clone(),
                ssh: request.addresses.ssh.clone(),
            },
            capacity: NodeCapacity {
                total: request.capacity.total,
                sandboxes_max: request.capacity.sandboxes_max,
            },
            command_version: request.command_version,
            joined_at_ms: now_ms(),
        };
        let token_hash = Some(request.token_secret.hash());
        let admit = ClusterCommand::AdmitNode { token_hash, node_id, node, now_ms: now_ms() };
        match self.cluster.propose(admit).await {
            Ok(ClusterOutcome::Applied) => {}
            Ok(ClusterOutcome::Rejected(rejection)) => return Err(refusal(rejection)),
            Err(error) => return Err(JoinRefusal::NotNow(error.to_string())),
        }
        let identity = self.cluster.read(|state| state.identity.clone());
        let identity = identity.ok_or_else(|| JoinRefusal::NotNow("the cluster is being founded".into()))?;
        let node_chain_pem = self
            .sign(&identity, &request.csr_der, node_id)
            .map_err(|error| JoinRefusal::NotNow(format!("this node cannot sign certificates: {error:#}")))?;
        let peers = self.cluster.read(|state| {
            let others = state.nodes.iter().filter(|(id, _)| **id != node_id);
            others.map(|(id, node)| JoinPeer { node_id: *id, mesh: node.addresses.mesh.clone() }).collect()
        });
        info!(%node_id, name = %request.name, region = %request.region, "node admitted");
        Ok(JoinResponse {
            node_chain_pem,
            ca_pem: identity.ca_certificate_pem,
            cluster_secret: ClusterSecret::clone(&self.secret),
            cluster_id: identity.cluster_id,
            peers,
        })
    }
}

impl Admission {
    fn sign(&self, identity: &ClusterIdentity, csr_der: &[u8], node_id: NodeId) -> Result<String> {
        let ca = cluster_ca(identity, &self.secret)?;
        ca.sign_node(csr_der, node_id, SystemTime::now()).context("sign the certificate")
    }
}

fn refusal(rejection: ClusterRejection) -> JoinRefusal {
    match rejection {
        ClusterRejection::JoinTokenUnknown => JoinRefusal::TokenUnknown,
        ClusterRejection::JoinTokenExpired => JoinRefusal::TokenExpired,
        ClusterRejection::JoinTokenUsedUp => JoinRefusal::TokenUsedUp,
        rejection => JoinRefusal::Unacceptable(rejection.to_string()),
    }
}
