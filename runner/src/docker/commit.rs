//! A container's disk as an image of the engine's own. It stays in this engine: nodes with another one do not have it.

use bollard::models::ContainerConfig;
use bollard::query_parameters::CommitContainerOptionsBuilder;

use crate::docker::engine::Engine;
use crate::image::Kept;
use crate::runtime::RuntimeError;

/// `repository` only tells operators what the image is. It is used by its id, which is for ever the same image.
pub(crate) async fn commit(engine: &Engine, container: &str, repository: &str) -> Result<Kept, RuntimeError> {
    // Whether it may run on meanwhile, the caller has decided.
    let options =
        &CommitContainerOptionsBuilder::default().container(container).repo(repository).pause(false).build();
    let committed = engine
        .request(|docker| async move {
            docker.commit_container(options.clone(), ContainerConfig::default()).await
        })
        .await
        .map_err(|error| error.on_sandbox("commit"))?;
    let id = &committed.id;
    let inspected = engine
        .request(|docker| async move { docker.image_history(id).await })
        .await
        .map_err(|error| error.on_host("look at the image of a sandbox"))?;
    let bytes = inspected.first().and_then(|layer| u64::try_from(layer.size).ok()).unwrap_or_default();
    Ok(Kept { reference: committed.id, bytes })
}
