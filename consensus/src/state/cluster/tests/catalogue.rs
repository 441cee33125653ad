//! The rules of snapshots and registries.

use super::*;

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

fn catalogue() -> World {
    let mut world = World::founded(1);
    world.accept(admit(Some("t"), OTHER.0, record("n2", "eu"), NOW_MS));
    world.accept(put_organization(1));
    world.accept(put_organization(2));
    world
}

fn key(name: &str, id: u128) -> SnapshotKey {
    SnapshotKey { organization_id: Some(organization(1)), name: name.into(), id: uuid::Uuid::from_u128(id) }
}

fn image() -> SnapshotSource {
    SnapshotSource::Image { name: "r.example/a:1".into() }
}

fn build() -> SnapshotSource {
    SnapshotSource::Build { dockerfile: "FROM scratch".into(), context_hashes: vec![] }
}

fn create(key: &SnapshotKey, source: SnapshotSource) -> ClusterCommand {
    let organization_id = key.organization_id.unwrap();
    let snapshot = SnapshotRecord::pending(key.id, organization_id, source, RESOURCES, NOW_MS);
    ClusterCommand::CreateSnapshot { name: key.name.clone(), snapshot: Box::new(snapshot) }
}

fn claim(key: &SnapshotKey, attempt: u64, node_id: NodeId) -> ClusterCommand {
    ClusterCommand::ClaimSnapshot { key: key.clone(), attempt, node_id, now_ms: NOW_MS + attempt }
}

fn report(key: &SnapshotKey, attempt: u64, report: SnapshotReport) -> ClusterCommand {
    ClusterCommand::ReportSnapshot { key: key.clone(), attempt, report, now_ms: NOW_MS + 10 }
}

fn ready(image: &str) -> SnapshotReport {
    SnapshotReport::Ready {
        image: image.into(),
        size_bytes: 7,
        user: "root".into(),
        entrypoint: vec!["/run".into()],
    }
}

fn failed() -> SnapshotReport {
    SnapshotReport::Failed { reason: "no such host".into() }
}

fn set(key: &SnapshotKey, activation: Activation) -> ClusterCommand {
    ClusterCommand::ActivateSnapshot { key: key.clone(), activation, now_ms: NOW_MS + 20 }
}

fn retry(key: &SnapshotKey, attempt: u64) -> ClusterCommand {
    ClusterCommand::RetrySnapshot { key: key.clone(), attempt, now_ms: NOW_MS + 30 }
}

fn is(state: SnapshotState) -> ClusterRejection {
    SnapshotIs(state.name().into())
}

fn registry(n: u128) -> RegistryRecord {
    RegistryRecord {
        organization_id: organization(n),
        name: "mine".into(),
        url: "https://r.example".into(),
        host: "r.example".into(),
        username: "u".into(),
        sealed_password: vec![1, 2, 3],
        project: String::new(),
        created_at_ms: NOW_MS,
        updated_at_ms: NOW_MS,
    }
}

impl World {
    fn snapshot(&self, key: &SnapshotKey) -> &SnapshotRecord {
        self.state.snapshot_by_key(key).expect("it is there")
    }
}

#[test]
fn an_image_is_pulled_by_whoever_claims_it_first() {
    let mut world = catalogue();
    let key = key("a", 1);
    world.accept(create(&key, image()));
    assert_eq!(world.snapshot(&key).state, SnapshotState::Pending);

    world.accept(claim(&key, 1, ME));
    world.refuse(claim(&key, 1, OTHER), StaleAttempt { current: 1 });
    assert_eq!(world.snapshot(&key).state, SnapshotState::Pulling);
    world.accept(report(&key, 1, ready("r.example/a@sha256:1")));

    let snapshot = world.snapshot(&key);
    assert_eq!((&snapshot.state, snapshot.image.as_str()), (&SnapshotState::Active, "r.example/a@sha256:1"));
    assert_eq!((snapshot.size_bytes, snapshot.default_user.as_str()), (Some(7), "root"));
    assert_eq!((snapshot.worker, snapshot.updated_at_ms), (Some(ME), NOW_MS + 10));
}

#[test]
fn who_was_overtaken_is_not_listened_to() {
    let mut world = catalogue();
    let key = key("a", 1);
    world.accept(create(&key, build()));
    world.accept(claim(&key, 1, ME));

    world.accept(claim(&key, 2, OTHER));

    world.refuse(report(&key, 1, ready("old")), StaleAttempt { current: 2 });
    world.refuse(report(&key, 1, failed()), StaleAttempt { current: 2 });
    world.refuse(claim(&key, 4, ME), StaleAttempt { current: 2 });
    assert_eq!(world.snapshot(&key).state, SnapshotState::Building);
    world.accept(report(&key, 2, ready("new")));
    assert_eq!(world.snapshot(&key).image, "new");
    world.refuse(claim(&key, 3, ME), is(SnapshotState::Active));
}

#[test]
fn a_node_that_is_no_member_claims_nothing() {
    let mut world = catalogue();
    let key = key("a", 1);
    world.accept(create(&key, image()));

    world.refuse(claim(&key, 1, NodeId(99)), NodeUnknown);
    world.refuse(report(&key, 0, ready("x")), is(SnapshotState::Pending));
}

#[test]
fn what_the_user_gave_stays() {
    let mut world = catalogue();
    let key = key("a", 1);
    let ClusterCommand::CreateSnapshot { name, mut snapshot } = create(&key, image()) else { unreachable!() };
    snapshot.entrypoint = vec!["sleep".into()];
    snapshot.default_user = "daytona".into();
    world.accept(ClusterCommand::CreateSnapshot { name, snapshot });
    world.accept(claim(&key, 1, ME));

    world.accept(report(&key, 1, ready("x")));

    assert_eq!(world.snapshot(&key).entrypoint, ["sleep"]);
    assert_eq!(world.snapshot(&key).default_user, "daytona");
}

#[test]
fn a_failure_has_its_reason_and_may_be_tried_again() {
    for (source, state) in [
        (image(), SnapshotState::Error { reason: "no such host".into() }),
        (build(), SnapshotState::BuildFailed { reason: "no such host".into() }),
    ] {
        let mut world = catalogue();
        let key = key("a", 1);
        world.accept(create(&key, source));
        world.accept(claim(&key, 1, ME));
        world.refuse(retry(&key, 1), is(world.snapshot(&key).state.clone()));

        world.accept(report(&key, 1, failed()));
        assert_eq!(world.snapshot(&key).state, state);
        world.refuse(set(&key, Activation::Active), is(state.clone()));
        world.refuse(claim(&key, 2, ME), is(state));

        world.refuse(retry(&key, 0), StaleAttempt { current: 1 });
        world.accept(retry(&key, 1));
        world.refuse(report(&key, 1, ready("late")), is(SnapshotState::Pending));
        world.accept(claim(&key, 2, OTHER));
        world.accept(report(&key, 2, ready("x")));
    }
}

#[test]
fn a_name_is_one_snapshots_within_an_organization() {
    let mut world = catalogue();
    world.accept(ClusterCommand::PutSnapshot {
        name: "base".into(),
        snapshot: SnapshotRecord::given(uuid::Uuid::nil(), "b".into(), RESOURCES, NOW_MS),
    });
    world.accept(create(&key("a", 1), image()));

    world.refuse(create(&key("a", 2), image()), SnapshotNameTaken("a".into()));
    world.refuse(create(&key("base", 2), image()), SnapshotNameTaken("base".into()));
    world.accept(create(&SnapshotKey { organization_id: Some(organization(2)), ..key("a", 2) }, image()));
    let stranger = SnapshotKey { organization_id: Some(organization(9)), ..key("a", 3) };
    world.refuse(create(&stranger, image()), NotFound);

    let seen = |organization_id, name: &str| {
        world.state.snapshot(organization_id, name).map(|(_, snapshot)| snapshot.id.as_u128())
    };
    assert_eq!(seen(organization(1), "a"), Some(1));
    assert_eq!(seen(organization(2), "a"), Some(2));
    assert_eq!(seen(organization(1), "base"), Some(0));
    assert_eq!(seen(organization(1), &uuid::Uuid::from_u128(1).to_string()), Some(1));
    assert_eq!(seen(organization(1), &uuid::Uuid::from_u128(2).to_string()), None, "another organization's");
    assert_eq!(world.state.snapshots_of(organization(2)).count(), 2);
}

#[test]
fn a_name_that_is_given_again_is_another_snapshot() {
    let mut world = catalogue();
    let (old, new) = (key("a", 1), key("a", 2));
    world.accept(create(&old, image()));
    world.accept(claim(&old, 1, ME));
    world.accept(ClusterCommand::RemoveSnapshot { key: old.clone() });
    world.accept(create(&new, image()));
    world.accept(claim(&new, 1, OTHER));

    world.refuse(report(&old, 1, ready("old")), NotFound);
    world.accept(ClusterCommand::RemoveSnapshot { key: old });
    assert_eq!(world.snapshot(&new).state, SnapshotState::Pulling);
}

#[test]
fn what_is_ready_is_switched_off_and_on() {
    let mut world = catalogue();
    let key = key("a", 1);
    world.accept(create(&key, image()));
    world.refuse(set(&key, Activation::Inactive), is(SnapshotState::Pending));
    world.accept(claim(&key, 1, ME));
    world.accept(report(&key, 1, ready("x")));
    let eu = region("eu");
    assert_eq!(world.snapshot(&key).why_unusable("a", &eu), None);

    world.accept(set(&key, Activation::Inactive));
    let why = world.snapshot(&key).why_unusable("a", &eu).unwrap();
    assert!(why.contains("inactive"), "{why}");
    world.accept(set(&key, Activation::Active));
    assert_eq!(world.snapshot(&key).why_unusable("a", &eu), None);
    world.state.own_snapshots.get_mut(&organization(1)).unwrap().get_mut("a").unwrap().regions =
        vec![region("us")];
    assert!(world.snapshot(&key).why_unusable("a", &eu).unwrap().contains("us only"));
}

#[test]
fn a_use_is_noted_once_an_hour() {
    let mut world = catalogue();
    let key = key("a", 1);
    world.accept(create(&key, image()));
    let used = |now_ms| ClusterCommand::TouchSnapshot { key: self::key("a", 1), now_ms };

    world.accept(used(NOW_MS));
    world.accept(used(NOW_MS + USE_RESOLUTION_MS - 1));
    assert_eq!(world.snapshot(&key).last_used_at_ms, Some(NOW_MS));
    world.accept(used(NOW_MS + USE_RESOLUTION_MS));
    assert_eq!(world.snapshot(&key).last_used_at_ms, Some(NOW_MS + USE_RESOLUTION_MS));
}

#[test]
fn there_is_a_bound_and_of_the_unlisted_the_oldest_goes() {
    let mut world = catalogue();
    let unlisted = |n: usize| {
        let key = key(&format!("u{n}"), n as u128);
        let ClusterCommand::CreateSnapshot { name, mut snapshot } = create(&key, build()) else {
            unreachable!()
        };
        (snapshot.listing, snapshot.created_at_ms) = (Listing::Unlisted, NOW_MS + n as u64);
        (key, ClusterCommand::CreateSnapshot { name, snapshot })
    };
    for n in 0..UNLISTED_PER_ORGANIZATION_MAX {
        let (key, create) = unlisted(n);
        assert_eq!(world.state.apply(create), APPLIED);
        // The first one is still being built.
        assert_eq!(world.state.apply(claim(&key, 1, ME)), APPLIED);
        if n > 0 {
            assert_eq!(world.state.apply(report(&key, 1, ready("x"))), APPLIED);
        }
    }
    let (one_more, create_one_more) = unlisted(UNLISTED_PER_ORGANIZATION_MAX);
    world.accept(ClusterCommand::TouchSnapshot { key: unlisted(1).0, now_ms: NOW_MS + 5_000 });

    world.accept(create_one_more);

    let there = |n| world.state.snapshot_by_key(&unlisted(n).0).is_some();
    assert!(there(0) && there(1) && !there(2) && there(3));
    assert!(world.state.snapshot_by_key(&one_more).is_some());
    let full = UNLISTED_PER_ORGANIZATION_MAX;
    assert_eq!(world.state.own_snapshots[&organization(1)].len(), full);
    for n in 0..SNAPSHOTS_PER_ORGANIZATION_MAX {
        assert_eq!(
            world.state.apply(create(&key(&format!("l{n}"), 1_000_000 + n as u128), image())),
            APPLIED
        );
    }
    let too_many = TooManySnapshots(SNAPSHOTS_PER_ORGANIZATION_MAX as u64);
    world.refuse(create(&key("last", 7_000_000), image()), too_many);
}

#[test]
fn a_registry_is_its_organizations_for_ever() {
    let mut world = catalogue();
    let registry_id = uuid::Uuid::from_u128(5);
    let put = |n| ClusterCommand::PutRegistry { registry_id, registry: registry(n) };
    let delete = |n| ClusterCommand::DeleteRegistry { registry_id, organization_id: organization(n) };

    world.accept(put(1));
    world.refuse(put(2), NotFound);
    world.refuse(put(9), NotFound);
    world.accept(delete(2));
    assert_eq!(world.state.registries_of(organization(1)).count(), 1);
    assert_eq!(world.state.registries_of(organization(2)).count(), 0);
    assert!(!format!("{:?}", registry(1)).contains('3'), "nothing of the password is printed");
    world.accept(delete(1));
    assert!(world.state.registries.is_empty());
    for n in 0..REGISTRIES_PER_ORGANIZATION_MAX {
        let registry_id = uuid::Uuid::from_u128(100 + n as u128);
        world.state.apply(ClusterCommand::PutRegistry { registry_id, registry: registry(1) });
    }
    world.refuse(put(1), TooManyRegistries(REGISTRIES_PER_ORGANIZATION_MAX as u64));
}

#[test]
fn a_record_of_the_first_version_is_one_that_everybody_may_use() {
    #[derive(serde::Serialize)]
    struct First {
        id: uuid::Uuid,
        image: &'static str,
        entrypoint: Vec<String>,
        default_user: &'static str,
        default_resources: Resources,
        allow_sudo: bool,
        created_at_ms: u64,
    }
    let first = First {
        id: uuid::Uuid::nil(),
        image: "atoll-base:latest",
        entrypoint: vec![],
        default_user: "daytona",
        default_resources: RESOURCES,
        allow_sudo: true,
        created_at_ms: NOW_MS,
    };

    let read: SnapshotRecord = wire::decode(&wire::encode(&first).unwrap()).unwrap();

    assert_eq!((read.state, read.organization_id), (SnapshotState::Active, None));
    assert_eq!((read.source, read.listing), (SnapshotSource::Given, Listing::Listed));
}

pub fn any_command() -> impl Strategy<Value = ClusterCommand> {
    let a_key = || {
        (1..3u128, 0..2u8, 0..3u128).prop_map(|(of, name, id)| SnapshotKey {
            organization_id: Some(organization(of)),
            ..key(&format!("s{name}"), id)
        })
    };
    let a_source = || prop_oneof![Just(image()), Just(build())];
    let a_report = || prop_oneof![Just(ready("x")), Just(ready("y")), Just(failed())];
    prop_oneof![
        3 => (a_key(), a_source()).prop_map(|(key, source)| create(&key, source)),
        4 => (a_key(), 0..4u64, (1..4u64).prop_map(NodeId)).prop_map(|(key, n, node)| claim(&key, n, node)),
        4 => (a_key(), 0..4u64, a_report()).prop_map(|(key, n, how)| report(&key, n, how)),
        1 => (a_key(), 0..4u64).prop_map(|(key, n)| retry(&key, n)),
        1 => a_key().prop_map(|key| set(&key, Activation::Active)),
        1 => a_key().prop_map(|key| set(&key, Activation::Inactive)),
        1 => a_key().prop_map(|key| ClusterCommand::TouchSnapshot { key, now_ms: NOW_MS }),
        1 => a_key().prop_map(|key| ClusterCommand::RemoveSnapshot { key }),
        1 => (1..3u128, 1..3u128).prop_map(|(id, of)| ClusterCommand::PutRegistry {
            registry_id: uuid::Uuid::from_u128(id),
            registry: registry(of),
        }),
        1 => (1..3u128, 1..3u128).prop_map(|(id, of)| ClusterCommand::DeleteRegistry {
            registry_id: uuid::Uuid::from_u128(id),
            organization_id: organization(of),
        }),
    ]
}
