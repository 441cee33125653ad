//! Tells SDKs that listen what has happened to sandboxes of this region and to snapshots, by comparing the replicas
//! with what was said.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{RegionName, SandboxId};
use atoll_api::sandbox::{Desired, Phase};
use atoll_consensus::group::{ClusterGroup, RegionGroup};
use atoll_consensus::state::cluster::{Listing, SnapshotRecord};
use futures_util::future::select_all;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::control::build::{build_of, progress};
use crate::control::verb::SandboxView;
use crate::rest::{Event, SandboxEvent, SnapshotEvent, public_state, snapshot_state, state_of};

/// What listeners have been told.
type Said = HashMap<SandboxId, Arc<SandboxView>>;
/// By id, with their names.
type SaidOfSnapshots = HashMap<uuid::Uuid, Arc<(String, SnapshotRecord)>>;

const LOOK_FOR_LISTENERS_EVERY: Duration = Duration::from_millis(200);

pub async fn publish_sandboxes(
    home: RegionName,
    region: RegionGroup,
    cluster: ClusterGroup,
    events: broadcast::Sender<Event>,
    cancel: CancellationToken,
) {
    // What a sandbox waits for is in the catalogue.
    let changes = [region.changes(), cluster.changes()];
    publish(changes, events, cancel, |said: Option<&Said>| compare(&home, &region, &cluster, said)).await;
}

/// Every node of every region does so for its own listeners: the catalogue is the cluster's.
pub async fn publish_snapshots(
    cluster: ClusterGroup,
    events: broadcast::Sender<Event>,
    cancel: CancellationToken,
) {
    publish([cluster.changes()], events, cancel, |said: Option<&SaidOfSnapshots>| {
        compare_snapshots(&cluster, said)
    })
    .await;
}

async fn publish<S, const N: usize>(
    mut changes: [watch::Receiver<u64>; N],
    events: broadcast::Sender<Event>,
    cancel: CancellationToken,
    compare: impl Fn(Option<&S>) -> (S, Vec<Event>),
) {
    let mut said: Option<S> = None;
    loop {
        for replica in &mut changes {
            replica.borrow_and_update();
        }
        // Nobody listens: nothing is compared, and the next listener begins with what is there then.
        if events.receiver_count() == 0 {
            said = None;
        } else {
            let (now, happened) = compare(said.as_ref());
            said = Some(now);
            for event in happened {
                let _ = events.send(event);
            }
        }
        tokio::select! {
            _ = cancel.cancelled() => return,
            (changed, _, _) = select_all(changes.iter_mut().map(|replica| Box::pin(replica.changed()))) => {
                if changed.is_err() { return }
            }
            // A listener that has just come: what it is told begins with what is there by then.
            _ = tokio::time::sleep(LOOK_FOR_LISTENERS_EVERY), if said.is_none() => {}
        }
    }
}

fn compare(
    home: &RegionName,
    region: &RegionGroup,
    cluster: &ClusterGroup,
    said: Option<&Said>,
) -> (Said, Vec<Event>) {
    cluster.read(|catalogue| {
        region.read(|state| {
            let mut now = Said::with_capacity(state.sandboxes.len());
            // A member of a warm pool is nobody's: for its organization it is created when it is claimed.
            let sandboxes = state.sandboxes.iter().filter(|(_, record)| record.member_of().is_none());
            for (sandbox_id, record) in sandboxes {
                // Of a build only how far it is can change while the record stays; its text may be long.
                let state = public_state(record, progress(catalogue, record));
                let same = |view: &&Arc<SandboxView>| view.record == *record && state_of(view) == state;
                let known = said.and_then(|said| said.get(sandbox_id)).filter(same);
                let view = known.cloned().unwrap_or_else(|| {
                    Arc::new(SandboxView {
                        sandbox_id: *sandbox_id,
                        region: home.clone(),
                        record: record.clone(),
                        last_activity_at_ms: record.updated_at_ms,
                        build: build_of(catalogue, record),
                    })
                });
                now.insert(*sandbox_id, view);
            }
            let happened = said.map_or_else(Vec::new, |said| differences(said, &now));
            (now, happened.into_iter().map(Event::Sandbox).collect())
        })
    })
}

fn differences(before: &Said, now: &Said) -> Vec<SandboxEvent> {
    let mut happened = Vec::new();
    for (sandbox_id, sandbox) in now {
        match before.get(sandbox_id).map(|view| state_of(view)) {
            None => happened.push(SandboxEvent::Created(sandbox.clone())),
            Some(old) if old != state_of(sandbox) => {
                happened.push(SandboxEvent::StateChanged { old, sandbox: sandbox.clone() });
            }
            Some(_) => {}
        }
    }
    for (_, view) in before.iter().filter(|(sandbox_id, _)| !now.contains_key(sandbox_id)) {
        let mut gone = SandboxView::clone(view);
        gone.record.desired = Desired::Deleted;
        gone.record.phase = Phase::Stopped;
        happened.push(SandboxEvent::StateChanged { old: state_of(view), sandbox: Arc::new(gone) });
    }
    happened
}

/// What is not in lists is not spoken of.
fn compare_snapshots(
    cluster: &ClusterGroup,
    said: Option<&SaidOfSnapshots>,
) -> (SaidOfSnapshots, Vec<Event>) {
    let now: SaidOfSnapshots = cluster.read(|state| {
        let listed = state.all_snapshots().filter(|(_, snapshot)| snapshot.listing == Listing::Listed);
        let known = |name: &str, snapshot: &SnapshotRecord| {
            let said = said.and_then(|said| said.get(&snapshot.id));
            said.filter(|said| said.0 == name && said.1 == *snapshot).cloned()
        };
        let noted = |(name, snapshot): (&String, &SnapshotRecord)| {
            let arc = known(name, snapshot).unwrap_or_else(|| Arc::new((name.clone(), snapshot.clone())));
            (snapshot.id, arc)
        };
        listed.map(noted).collect()
    });
    let happened = said.map_or_else(Vec::new, |said| differences_of_snapshots(said, &now));
    (now, happened.into_iter().map(Event::Snapshot).collect())
}

fn differences_of_snapshots(before: &SaidOfSnapshots, now: &SaidOfSnapshots) -> Vec<SnapshotEvent> {
    let mut happened = Vec::new();
    for (id, snapshot) in now {
        match before.get(id).map(|said| snapshot_state(&said.1.state)) {
            None => happened.push(SnapshotEvent::Created(snapshot.clone())),
            Some(old) if old != snapshot_state(&snapshot.1.state) => {
                happened.push(SnapshotEvent::StateChanged { old, snapshot: snapshot.clone() });
            }
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|(id, _)| !now.contains_key(id));
    happened.extend(gone.map(|(_, snapshot)| SnapshotEvent::Removed(snapshot.clone())));
    happened
}

#[cfg(test)]
mod tests {
    use atoll_api::rest::SnapshotState;
    use atoll_api::sandbox::Resources;
    use atoll_consensus::state::cluster::SnapshotState as State;

    use super::*;

    #[test]
    fn a_snapshot_is_spoken_of_when_it_comes_changes_its_state_and_goes() {
        let resources = Resources { cpu: 1, memory_gib: 1, disk_gib: 1 };
        let snapshot = |state: State| {
            let given = SnapshotRecord::given(uuid::Uuid::nil(), "a".into(), resources, 1);
            Arc::new(("s".to_owned(), SnapshotRecord { state, ..given }))
        };
        let none = SaidOfSnapshots::new();
        let pulling = SaidOfSnapshots::from([(uuid::Uuid::nil(), snapshot(State::Pulling))]);
        let active = SaidOfSnapshots::from([(uuid::Uuid::nil(), snapshot(State::Active))]);

        let of = |before, now| differences_of_snapshots(before, now);
        assert!(matches!(of(&none, &pulling)[..], [SnapshotEvent::Created(_)]));
        assert!(matches!(
            of(&pulling, &active)[..],
            [SnapshotEvent::StateChanged { old: SnapshotState::Pulling, .. }]
        ));
        assert!(matches!(of(&active, &none)[..], [SnapshotEvent::Removed(_)]));
        assert!(of(&active, &active).is_empty());
    }
}
