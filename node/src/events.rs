//! Tells SDKs that listen what has happened to sandboxes of this region, by comparing the replica with what was said.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{RegionName, SandboxId};
use atoll_api::rest::SandboxState;
use atoll_consensus::group::RegionGroup;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::control::verb::SandboxView;
use crate::rest::{SandboxEvent, public_state};

const LOOK_FOR_LISTENERS_EVERY: Duration = Duration::from_millis(200);

pub async fn publish_changes(
    home: RegionName,
    region: RegionGroup,
    events: broadcast::Sender<SandboxEvent>,
    cancel: CancellationToken,
) {
    let mut changes = region.changes();
    let mut said: Option<HashMap<SandboxId, SandboxState>> = None;
    loop {
        changes.borrow_and_update();
        // Nobody listens: nothing is compared, and the next listener begins with what is there then.
        if events.receiver_count() == 0 {
            said = None;
        } else {
            let (now, happened) = compare(&home, &region, said.as_ref());
            said = Some(now);
            for event in happened {
                let _ = events.send(event);
            }
        }
        tokio::select! {
            _ = cancel.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            // A listener that has just come: what it is told begins with what is there by then.
            _ = tokio::time::sleep(LOOK_FOR_LISTENERS_EVERY), if said.is_none() => {}
        }
    }
}

fn compare(
    home: &RegionName,
    region: &RegionGroup,
    said: Option<&HashMap<SandboxId, SandboxState>>,
) -> (HashMap<SandboxId, SandboxState>, Vec<SandboxEvent>) {
    region.read(|state| {
        let mut happened = Vec::new();
        let mut now = HashMap::with_capacity(state.sandboxes.len());
        for (sandbox_id, record) in &state.sandboxes {
            let public = public_state(record);
            now.insert(*sandbox_id, public);
            let Some(said) = said else { continue };
            let view = || {
                Arc::new(SandboxView {
                    sandbox_id: *sandbox_id,
                    region: home.clone(),
                    record: record.clone(),
                    last_activity_at_ms: record.updated_at_ms,
                })
            };
            match said.get(sandbox_id) {
                None => happened.push(SandboxEvent::Created(view())),
                Some(old) if *old != public => {
                    happened.push(SandboxEvent::StateChanged { old: *old, sandbox: view() });
                }
                Some(_) => {}
            }
        }
        (now, happened)
    })
}
