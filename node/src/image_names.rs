//! What an image's name means to an organization: its own images, pushed to whichever node, or those of a foreign registry.
//! Another organization's are nothing to it.

use atoll_api::ids::OrganizationId;
use atoll_consensus::state::cluster::ClusterState;
use atoll_runner::store::Reference;

/// # Errors
/// The reason, for whoever wrote the name. Whether another organization has such an image is nobody's business.
pub fn of(state: &ClusterState, organization_id: OrganizationId, name: &str) -> Result<Reference, String> {
    let reference: Reference = name.parse().map_err(|error| format!("{error}"))?;
    let is_ours = is_a_door_of_ours(state, &reference.host);
    if !(is_ours || reference.is_local()) {
        return Ok(reference);
    }
    let own = format!("{organization_id}/");
    let image = match reference.repository.strip_prefix(&own) {
        Some(image) => image,
        None if is_ours && !begins_with_an_id(&reference.repository) => reference.repository.as_str(),
        None => {
            return Err(format!(
                "{} holds no image of your organization named {}",
                reference.host, reference.repository
            ));
        }
    };
    Reference::local(&organization_id.to_string(), image, reference.version.clone())
        .map_err(|error| error.to_string())
}

fn is_a_door_of_ours(state: &ClusterState, host: &str) -> bool {
    let mut doors = state.nodes.values().flat_map(|node| {
        let addresses = &node.addresses;
        std::iter::once(&addresses.http).chain(&addresses.https)
    });
    doors.any(|door| door.split_once("://").is_some_and(|(_, at)| at == host))
}

fn begins_with_an_id(repository: &str) -> bool {
    repository.split('/').next().is_some_and(|first| first.parse::<uuid::Uuid>().is_ok())
}
