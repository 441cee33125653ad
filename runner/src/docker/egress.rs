//! What a sandbox under Docker may reach: everything or nothing, by its place in the node's network. Allow lists need
//! rules of each sandbox's own, which the embedded runtime has.

use atoll_api::sandbox::Egress;
use bollard::models::{NetworkConnectRequest, NetworkDisconnectRequest};
use bollard::query_parameters as query;

use super::engine::{Engine, RequestError};
use crate::runtime::RuntimeError;

/// Docker's name of no network at all.
const NO_NETWORK: &str = "none";

/// Refuses what this runtime cannot hold: a sandbox that reaches more than it was allowed to is worse than none.
pub(super) fn refuse_lists(egress: &Egress) -> Result<(), RuntimeError> {
    if egress.block_all || (egress.cidrs.is_empty() && egress.domains.is_empty()) {
        return Ok(());
    }
    Err(RuntimeError::Spec(
        "the docker runtime cannot hold allow lists: use networkBlockAll, or nodes with the embedded runtime"
            .into(),
    ))
}

pub(super) async fn set(
    engine: &Engine,
    network: &str,
    container: &str,
    egress: &Egress,
) -> Result<(), RuntimeError> {
    refuse_lists(egress)?;
    let inspected = engine
        .request(|docker| async move {
            docker.inspect_container(container, None::<query::InspectContainerOptions>).await
        })
        .await
        .map_err(|error| error.on_sandbox("look at"))?;
    let joined = inspected.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let (in_ours, in_none) = (joined.contains_key(network), joined.contains_key(NO_NETWORK));
    match (egress.block_all, in_ours) {
        (true, true) => leave(engine, network, container).await,
        (false, false) => {
            // A container in this one may be in no other.
            if in_none {
                leave(engine, NO_NETWORK, container).await?;
            }
            join(engine, network, container).await
        }
        (true, false) | (false, true) => Ok(()),
    }
}

async fn leave(engine: &Engine, network: &str, container: &str) -> Result<(), RuntimeError> {
    let request = &NetworkDisconnectRequest { container: container.to_owned(), force: Some(false) };
    engine
        .request(|docker| async move { docker.disconnect_network(network, request.clone()).await })
        .await
        .map_err(|error| error.on_sandbox("disconnect"))
}

async fn join(engine: &Engine, network: &str, container: &str) -> Result<(), RuntimeError> {
    let request = &NetworkConnectRequest { container: container.to_owned(), endpoint_config: None };
    match engine.request(|docker| async move { docker.connect_network(network, request.clone()).await }).await
    {
        Ok(()) => Ok(()),
        // Somebody was faster.
        Err(RequestError::Refused(message)) if message.contains("already exists") => Ok(()),
        Err(error) => Err(error.on_sandbox("connect")),
    }
}
