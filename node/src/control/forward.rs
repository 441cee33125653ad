//! Asks a node of another region to carry a verb out. Every node there is as good as any other: the first that answers.

use std::sync::Arc;
use std::time::Duration;

use atoll_api::access::Caller;
use atoll_api::ids::{NodeId, RegionName, RequestId};
use atoll_consensus::group::ClusterGroup;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{StreamError, StreamHeader, answer, read_message, write_message};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tracing::warn;

use super::plane::ControlPlane;
use super::verb::{VERB_DEADLINE_MS, Verb, VerbAnswer, VerbError};

/// The most one verb or its answer may take; a page of 200 sandboxes with all their labels fits.
pub const FORWARD_BYTES_MAX: usize = 16 * 1024 * 1024;
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
pub struct ForwardRequest {
    pub caller: Caller,
    pub verb: Verb,
}

pub type ForwardAnswer = Result<VerbAnswer, VerbError>;

pub struct Forwarder {
    pub cluster: ClusterGroup,
    pub link: Arc<dyn Link>,
}

impl Forwarder {
    pub async fn forward(
        &self,
        region: &RegionName,
        caller: &Caller,
        request_id: &RequestId,
        verb: Verb,
    ) -> ForwardAnswer {
        let request = ForwardRequest { caller: caller.clone(), verb };
        let header = StreamHeader::Forward { request_id: request_id.clone() };
        let answered: Option<ForwardAnswer> = self
            .ask_region(region, header, &request, Duration::from_millis(VERB_DEADLINE_MS))
            .await
            .map_err(|error| VerbError::Unavailable { message: error, retry_after_s: 1 })?;
        answered.unwrap_or_else(|| {
            Err(VerbError::Unavailable {
                message: format!("no node of region {region} can be reached"),
                retry_after_s: 1,
            })
        })
    }

    /// Asks nodes of a region in turn until one takes the stream. `None`: nobody did. `Err`: one took it and broke,
    /// so nobody knows whether the request was carried out.
    pub async fn ask_region<Q: Serialize + Sync, A: serde::de::DeserializeOwned>(
        &self,
        region: &RegionName,
        header: StreamHeader,
        request: &Q,
        deadline: Duration,
    ) -> Result<Option<A>, String> {
        for node_id in self.nodes_of(region) {
            let mut stream = match self.link.open(node_id, header.clone(), CONNECT_DEADLINE).await {
                Ok(stream) => stream,
                Err(error) => {
                    warn!(%node_id, %region, %error, "node of another region not reached, trying the next");
                    continue;
                }
            };
            return match tokio::time::timeout(deadline, ask(&mut stream, request)).await {
                Ok(Ok(answer)) => Ok(Some(answer)),
                Ok(Err(error)) => Err(format!("node {node_id} of region {region} broke off: {error}")),
                Err(_) => Err(format!("node {node_id} of region {region} did not answer in time")),
            };
        }
        Ok(None)
    }

    fn nodes_of(&self, region: &RegionName) -> Vec<NodeId> {
        self.cluster.read(|state| {
            state
                .nodes
                .iter()
                .filter(|(_, node)| node.region == *region)
                .map(|(node_id, _)| *node_id)
                .collect()
        })
    }
}

async fn ask<Q: Serialize, A: serde::de::DeserializeOwned>(
    stream: &mut ByteStream,
    request: &Q,
) -> Result<A, StreamError> {
    write_message(stream, request).await?;
    stream.shutdown().await?;
    read_message(stream, FORWARD_BYTES_MAX).await
}

/// The receiving side: one request, one answer.
pub async fn serve_forward(control: &ControlPlane, mut stream: ByteStream) -> anyhow::Result<()> {
    let request: ForwardRequest = read_message(&mut stream, FORWARD_BYTES_MAX).await?;
    let outcome: ForwardAnswer = control.perform_forwarded(&request.caller, request.verb).await;
    Ok(answer(&mut stream, &outcome).await?)
}

/// Says how this node's region is.
pub async fn serve_status(control: &ControlPlane, mut stream: ByteStream) -> anyhow::Result<()> {
    let () = read_message(&mut stream, FORWARD_BYTES_MAX).await?;
    Ok(answer(&mut stream, &control.cluster_verbs.own_status()).await?)
}
