//! Lists, cursors and look-ups.

use atoll_api::ids::{NodeId, SandboxId};
use atoll_api::sandbox::Desired;

use super::world::*;
use crate::state::region::*;

/// Sandboxes 1 to 5 of organization 1, the greater the younger but for 4 and 5, which are equally old.
fn five() -> World {
    let mut world = World::with_nodes(1);
    for n in 1..=5u8 {
        let mut sandbox = new_sandbox(&format!("s{n}"), 1);
        sandbox.spec.resources.cpu = 0;
        sandbox.labels = [("parity".to_owned(), (n % 2).to_string())].into();
        let now_ms = NOW_MS + u64::from(n.min(4));
        world.accept(RegionCommand::CreateSandbox {
            sandbox_id: sandbox_id(n),
            sandbox: Box::new(sandbox),
            now_ms,
        });
    }
    world
}

fn ids(page: &Page<'_>) -> Vec<SandboxId> {
    page.items.iter().map(|(sandbox_id, _)| *sandbox_id).collect()
}

fn any(_: SandboxId, _: &SandboxRecord) -> bool {
    true
}

#[test]
fn a_list_is_sorted_newest_first() {
    let world = five();

    let page = world.state.list(organization(1), any, None, 10);

    assert_eq!(ids(&page), [5, 4, 3, 2, 1].map(sandbox_id));
    assert_eq!(page.next, None);
}

#[test]
fn pages_join_up_without_gap_or_repetition() {
    let world = five();
    for limit in 1..=6 {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = world.state.list(organization(1), any, after, limit);
            assert!(page.items.len() <= limit);
            seen.extend(ids(&page));
            let Some(next) = page.next else { break };
            after = Some(next);
        }
        assert_eq!(seen, [5, 4, 3, 2, 1].map(sandbox_id), "limit {limit}");
    }
}

#[test]
fn a_cursor_outlives_the_sandbox_that_it_names() {
    let mut world = five();
    let first = world.state.list(organization(1), any, None, 2);
    assert_eq!(ids(&first), [5, 4].map(sandbox_id));
    let after = first.next;
    world.accept(world.wish(4, Desired::Deleted));
    world.accept(report_deleted(4, at(1, 1)));
    let mut younger = new_sandbox("s6", 1);
    younger.spec.resources.cpu = 0;
    world.accept(RegionCommand::CreateSandbox {
        sandbox_id: sandbox_id(6),
        sandbox: Box::new(younger),
        now_ms: NOW_MS + 6,
    });

    let second = world.state.list(organization(1), any, after, 2);

    assert_eq!(ids(&second), [3, 2].map(sandbox_id));
}

#[test]
fn a_list_of_nothing_is_empty() {
    let world = five();

    assert_eq!(world.state.list(organization(1), any, None, 0), Page { items: vec![], next: None });
    assert_eq!(world.state.list(organization(2), any, None, 9), Page { items: vec![], next: None });
    assert_eq!(world.state.list(organization(1), |_, _| false, None, 9), Page { items: vec![], next: None });
}

#[test]
fn a_filter_wants_all_that_it_names() {
    let mut world = five();
    world.accept(world.wish(2, Desired::Deleted));
    let check = |filter: SandboxFilter, expected: &[u8]| {
        let page = world.state.list(organization(1), |id, record| filter.matches(id, record), None, 10);
        assert_eq!(ids(&page), expected.iter().map(|n| sandbox_id(*n)).collect::<Vec<_>>(), "{filter:?}");
    };
    let even = || [("parity".to_owned(), "0".to_owned())].into();
    let default = SandboxFilter::default;

    check(default(), &[5, 4, 3, 1]);
    check(SandboxFilter { with_deleted: true, ..default() }, &[5, 4, 3, 2, 1]);
    check(SandboxFilter { labels: even(), ..default() }, &[4]);
    check(SandboxFilter { labels: even(), with_deleted: true, ..default() }, &[4, 2]);
    check(SandboxFilter { name_prefix: Some("s3".into()), ..default() }, &[3]);
    check(SandboxFilter { id_prefix: Some("00000404".into()), ..default() }, &[4]);
    check(SandboxFilter { snapshots: vec!["base".into()], ..default() }, &[5, 4, 3, 1]);
    check(SandboxFilter { snapshots: vec!["other".into()], ..default() }, &[]);
}

#[test]
fn a_cursor_reads_what_it_prints_and_nothing_else() {
    let world = five();
    let cursor = Cursor::of(sandbox_id(1), world.record(1));
    let text = cursor.to_string();

    assert_eq!(text.parse(), Ok(cursor));
    let id = sandbox_id(1).to_string();
    for malformed in [
        String::new(),
        id.clone(),
        format!(".{id}"),
        format!("01.{id}"),
        format!("+1.{id}"),
        format!(" 1.{id}"),
        format!("-1.{id}"),
        format!("1.{}", id.to_uppercase().replace('0', "A")),
        format!("1.{id} "),
        format!("1.{id}.1"),
        "1.".into(),
        "99999999999999999999.".to_owned() + &id,
        "1.7f2c3f0e-8b1e-4c7e-9a51-5a4f3a1f0c11".into(),
    ] {
        assert!(malformed.parse::<Cursor>().is_err(), "{malformed:?}");
    }
}

#[test]
fn a_node_is_assigned_what_is_placed_there() {
    let world = World::with_nodes(2).running(1, 1).running(2, 2).stopped(3, 1).doomed(4, 1);

    let assigned: Vec<_> =
        world.state.assignments(NodeId(1)).map(|(id, record)| (id, record.desired)).collect();

    let expected = [(1, Desired::Running), (3, Desired::Stopped), (4, Desired::Deleted)];
    assert_eq!(assigned, expected.map(|(n, desired)| (sandbox_id(n), desired)));
    assert_eq!(world.state.assignments(NodeId(9)).count(), 0);
}

#[test]
fn facts_are_those_of_the_record() {
    let world = World::with_nodes(1).running(1, 1);

    let facts = world.state.facts(sandbox_id(1)).unwrap();

    let record = world.record(1);
    assert_eq!((facts.sandbox_id, facts.organization_id), (sandbox_id(1), record.organization_id));
    assert_eq!((facts.placement, &facts.phase), (record.placement, &record.phase));
    assert_eq!((facts.public, facts.preview_token_hash), (record.public, record.preview_token_hash));
    assert_eq!(world.state.facts(sandbox_id(2)), None);
}
