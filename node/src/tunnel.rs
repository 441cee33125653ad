//! The owner's end of a tunnel: dial here, answer, carry bytes. One hop: it never dials on.

use atoll_api::access::Target;
use atoll_api::ids::{Generation, NodeId, RequestId, SandboxId};
use atoll_mesh::dial::ByteStream;
use atoll_mesh::stream::{answer, write_message};
use atoll_mesh::tunnel::TunnelAnswer;
use atoll_runner::RunnerDialError;
use tracing::debug;

use crate::dialer::dial_error;
use crate::local::LocalSandboxes;

pub async fn serve_tunnel(
    sandboxes: &LocalSandboxes,
    peer: NodeId,
    sandbox_id: SandboxId,
    generation: Generation,
    target: Target,
    request_id: RequestId,
    mut tunnel: ByteStream,
) -> anyhow::Result<()> {
    let refusal = match sandboxes.dial(sandbox_id, generation, target).await {
        Ok(mut sandbox) => {
            write_message(&mut tunnel, &TunnelAnswer::Connected).await?;
            // An end that breaks off is the ordinary end of a proxied connection.
            let carried = tokio::io::copy_bidirectional(&mut tunnel, &mut sandbox).await;
            debug!(%peer, %sandbox_id, %generation, %request_id, ?carried, "tunnel ended");
            return Ok(());
        }
        Err(RunnerDialError::Stale { .. } | RunnerDialError::NotHere) => {
            TunnelAnswer::Moved { current: None }
        }
        Err(error) => TunnelAnswer::Refused(dial_error(error, target).into()),
    };
    debug!(%peer, %sandbox_id, %generation, %request_id, ?refusal, "tunnel refused");
    Ok(answer(&mut tunnel, &refusal).await?)
}
