//! Tells SDKs that listen what has happened to sandboxes of this region, by comparing the replica with what was said.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{RegionName, SandboxId};
use atoll_api::sandbox::{Desired, Phase};
use atoll_consensus::group::RegionGroup;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::control::verb::SandboxView;
use crate::rest::{SandboxEvent, public_state};

/// What listeners have been told.
type Said = HashMap<SandboxId, Arc<SandboxView>>;

const LOOK_FOR_LISTENERS_EVERY: Duration = Duration::from_millis(200);

pub async fn publish_changes(
    home: RegionName,
    region: RegionGroup,
    events: broadcast::Sender<SandboxEvent>,
    cancel: CancellationToken,
) {
    let mut changes = region.changes();
    let mut said: Option<Said> = None;
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

fn compare(home: &RegionName, region: &RegionGroup, said: Option<&Said>) -> (Said, Vec<SandboxEvent>) {
    region.read(|state| {
        let mut now = Said::with_capacity(state.sandboxes.len());
        // A member of a warm pool is nobody's: for its organization it is created when it is claimed.
        let sandboxes = state.sandboxes.iter().filter(|(_, record)| record.member_of().is_none());
        for (sandbox_id, record) in sandboxes {
            let known = said.and_then(|said| said.get(sandbox_id)).filter(|view| view.record == *record);
            let view = known.cloned().unwrap_or_else(|| {
                Arc::new(SandboxView {
                    sandbox_id: *sandbox_id,
                    region: home.clone(),
                    record: record.clone(),
                    last_activity_at_ms: record.updated_at_ms,
                })
            });
            now.insert(*sandbox_id, view);
        }
        let happened = said.map_or_else(Vec::new, |said| differences(said, &now));
        (now, happened)
    })
}

fn differences(before: &Said, now: &Said) -> Vec<SandboxEvent> {
    let mut happened = Vec::new();
    for (sandbox_id, sandbox) in now {
        match before.get(sandbox_id).map(|view| public_state(&view.record)) {
            None => happened.push(SandboxEvent::Created(sandbox.clone())),
            Some(old) if old != public_state(&sandbox.record) => {
                happened.push(SandboxEvent::StateChanged { old, sandbox: sandbox.clone() });
            }
            Some(_) => {}
        }
    }
    for (_, view) in before.iter().filter(|(sandbox_id, _)| !now.contains_key(sandbox_id)) {
        let mut gone = SandboxView::clone(view);
        gone.record.desired = Desired::Deleted;
        gone.record.phase = Phase::Stopped;
        happened
            .push(SandboxEvent::StateChanged { old: public_state(&view.record), sandbox: Arc::new(gone) });
    }
    happened
}
