//! The cluster's rules: each test is named after one.

use atoll_api::ids::{NodeId, OrganizationId, RegionName, RegionOrdinal, UserId, WarmPoolId};
use atoll_api::sandbox::Resources;
use atoll_api::tokens::TokenHash;
use atoll_api::wire;
use proptest::collection::vec;
use proptest::prelude::*;

use super::ClusterRejection::*;
use super::*;

mod catalogue;

const NOW_MS: u64 = 1_000_000;
const APPLIED: ClusterOutcome = ClusterOutcome::Applied;
const RESOURCES: Resources = Resources { cpu: 1, memory_gib: 1, disk_gib: 3 };

fn identity(n: u128) -> ClusterIdentity {
    ClusterIdentity {
        cluster_id: uuid::Uuid::from_u128(n),
        ca_certificate_pem: "pem".into(),
        sealed_ca_key: vec![1],
        sealed_ssh_host_key: vec![2],
        created_at_ms: NOW_MS,
    }
}

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn record(name: &str, in_region: &str) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        region: region(in_region),
        zone: None,
        addresses: addresses(1),
        capacity: NodeCapacity { total: Resources { cpu: 1, memory_gib: 1, disk_gib: 1 }, sandboxes_max: 1 },
        command_version: 1,
        joined_at_ms: NOW_MS,
    }
}

fn addresses(n: u16) -> NodeAddresses {
    NodeAddresses {
        mesh: format!("127.0.0.1:{n}"),
        http: format!("http://127.0.0.1:{n}"),
        https: None,
        ssh: format!("127.0.0.1:{n}"),
    }
}

fn organization(n: u128) -> OrganizationId {
    OrganizationId(uuid::Uuid::from_u128(n))
}

fn hash(text: &str) -> TokenHash {
    TokenHash::of(text)
}

fn join_token(text: &str, uses: u32, expires_at_ms: u64) -> ClusterCommand {
    ClusterCommand::CreateJoinToken { token_hash: hash(text), uses, expires_at_ms, now_ms: NOW_MS }
}

fn admit(token: Option<&str>, node: u64, node_record: NodeRecord, now_ms: u64) -> ClusterCommand {
    ClusterCommand::AdmitNode {
        token_hash: token.map(hash),
        node_id: NodeId(node),
        node: node_record,
        now_ms,
    }
}

fn api_key(organization_number: u128, expires_at_ms: Option<u64>) -> ApiKeyRecord {
    ApiKeyRecord {
        name: "k".into(),
        organization_id: organization(organization_number),
        user_id: UserId(uuid::Uuid::nil()),
        hint: "dtn…abc".into(),
        may_administer: true,
        created_at_ms: NOW_MS,
        expires_at_ms,
    }
}

fn put_organization(n: u128) -> ClusterCommand {
    let organization =
        OrganizationRecord { name: "o".into(), created_by: UserId(uuid::Uuid::nil()), created_at_ms: NOW_MS };
    ClusterCommand::PutOrganization { organization_id: self::organization(n), organization }
}

#[derive(Default)]
struct World {
    state: ClusterState,
}

impl World {
    /// A founded cluster with the node 1, `n1` in `eu`, and the join token `t` with that many uses.
    fn founded(uses: u32) -> World {
        let mut world = World::default();
        world.accept(ClusterCommand::Found { identity: identity(1) });
        world.accept(admit(None, 1, record("n1", "eu"), NOW_MS));
        world.accept(join_token("t", uses, NOW_MS + 100));
        world
    }

    fn apply(&mut self, command: ClusterCommand) -> ClusterOutcome {
        let outcome = self.state.apply(command);
        self.state.check_invariants();
        let stored = wire::encode(&self.state).unwrap();
        assert_eq!(wire::decode::<ClusterState>(&stored).unwrap(), self.state, "the state survives storage");
        outcome
    }

    fn accept(&mut self, command: ClusterCommand) {
        let said = format!("{command:?}");
        assert_eq!(self.apply(command), APPLIED, "{said}");
    }

    /// The command is rejected so, and changes nothing.
    fn refuse(&mut self, command: ClusterCommand, rejection: ClusterRejection) {
        let before = self.state.clone();
        let said = format!("{command:?}");
        assert_eq!(self.apply(command), ClusterOutcome::Rejected(rejection), "{said}");
        assert_eq!(self.state, before, "a rejected command changes nothing: {said}");
    }

    fn uses_left(&self) -> u32 {
        self.state.join_tokens[&hash("t")].uses_left
    }
}

#[test]
fn a_cluster_is_founded_once() {
    let mut world = World::founded(1);

    world.accept(ClusterCommand::Found { identity: identity(1) });
    world.refuse(ClusterCommand::Found { identity: identity(2) }, AlreadyFounded);
}

#[test]
fn only_the_founding_node_needs_no_token() {
    let mut world = World::founded(1);

    world.refuse(admit(None, 2, record("n2", "eu"), NOW_MS), JoinTokenUnknown);
    world.accept(ClusterCommand::RemoveNode { node_id: NodeId(1), now_ms: NOW_MS });
    world.refuse(admit(None, 2, record("n2", "eu"), NOW_MS), JoinTokenUnknown);
}

#[test]
fn a_token_admits_as_many_nodes_as_it_says() {
    let mut world = World::founded(2);

    world.accept(admit(Some("t"), 2, record("n2", "eu"), NOW_MS));
    world.accept(admit(Some("t"), 3, record("n3", "eu"), NOW_MS));

    world.refuse(admit(Some("t"), 4, record("n4", "eu"), NOW_MS), JoinTokenUsedUp);
}

#[test]
fn a_node_admitted_again_takes_no_second_use_and_keeps_its_record() {
    let mut world = World::founded(2);
    world.accept(admit(Some("t"), 2, record("n2", "eu"), NOW_MS));

    world.accept(admit(Some("t"), 2, record("renamed", "eu"), NOW_MS));
    world.accept(admit(Some("unknown"), 2, record("n2", "eu"), NOW_MS + 999));

    assert_eq!(world.uses_left(), 1);
    assert_eq!(world.state.nodes[&NodeId(2)].name, "n2");
}

#[test]
fn a_bad_token_admits_nobody() {
    let mut world = World::founded(1);

    world.refuse(admit(Some("unknown"), 2, record("n2", "eu"), NOW_MS), JoinTokenUnknown);
    world.refuse(admit(Some("t"), 2, record("n2", "eu"), NOW_MS + 100), JoinTokenExpired);
    world.refuse(admit(Some("unknown"), 2, record("n1", "eu"), NOW_MS), JoinTokenUnknown);
}

#[test]
fn a_refused_node_takes_no_use() {
    let mut world = World::founded(1);

    world.refuse(admit(Some("t"), 2, record("n1", "eu"), NOW_MS), NodeNameTaken("n1".into()));

    assert_eq!(world.uses_left(), 1);
    world.accept(admit(Some("t"), 2, record("n2", "eu"), NOW_MS));
}

#[test]
fn a_join_token_created_again_does_not_give_uses_back() {
    let mut world = World::founded(1);
    world.accept(admit(Some("t"), 2, record("n2", "eu"), NOW_MS));

    world.accept(join_token("t", 1, NOW_MS + 100));

    assert_eq!(world.uses_left(), 0);
}

#[test]
fn long_expired_join_tokens_are_forgotten() {
    let mut world = World::founded(1);
    let later = |now_ms| ClusterCommand::CreateJoinToken {
        token_hash: hash("later"),
        uses: 1,
        expires_at_ms: now_ms + 1,
        now_ms,
    };

    world.accept(later(NOW_MS + 99 + JOIN_TOKEN_REMEMBERED_MS));
    assert!(world.state.join_tokens.contains_key(&hash("t")));
    world.accept(later(NOW_MS + 100 + JOIN_TOKEN_REMEMBERED_MS));
    assert!(!world.state.join_tokens.contains_key(&hash("t")));
}

#[test]
fn the_first_node_of_a_region_founds_it() {
    let mut world = World::founded(3);

    world.accept(admit(Some("t"), 2, record("n2", "us"), NOW_MS + 1));
    world.accept(admit(Some("t"), 3, record("n3", "us"), NOW_MS + 2));

    let us = &world.state.regions[&region("us")];
    assert_eq!((us.founder, us.ordinal.value(), us.created_at_ms), (NodeId(2), 1, NOW_MS + 1));
    assert_eq!(world.state.region_by_ordinal(us.ordinal).unwrap().0, &region("us"));
    assert_eq!(world.state.region_by_ordinal(RegionOrdinal::new(9).unwrap()), None);
    assert_eq!(world.state.node_ids_of_region(&region("us")).collect::<Vec<_>>(), [NodeId(2), NodeId(3)]);
}

#[test]
fn there_are_as_many_regions_as_ids_can_name() {
    let mut world = World::founded(u32::MAX);
    for n in 1..u64::from(RegionOrdinal::COUNT) {
        let node = record(&format!("m{n}"), &format!("r{n}"));
        assert_eq!(world.state.apply(admit(Some("t"), n + 1, node, NOW_MS)), APPLIED);
    }

    world.refuse(
        admit(Some("t"), 9_999, record("last", "last"), NOW_MS),
        TooManyRegions(RegionOrdinal::COUNT),
    );
    world.accept(admit(Some("t"), 9_999, record("last", "r7"), NOW_MS));
}

#[test]
fn a_node_moves_to_another_region_only_by_leaving() {
    let mut world = World::founded(1);

    world.refuse(admit(Some("t"), 1, record("n1", "us"), NOW_MS), NodeInRegion(region("eu")));
}

#[test]
fn a_removed_node_never_comes_back() {
    let mut world = World::founded(9);
    world.accept(admit(Some("t"), 2, record("n2", "eu"), NOW_MS));
    let update = |node| ClusterCommand::UpdateNode {
        node_id: NodeId(node),
        addresses: addresses(7),
        capacity: record("x", "eu").capacity,
        command_version: 2,
    };

    world.accept(ClusterCommand::RemoveNode { node_id: NodeId(2), now_ms: NOW_MS + 5 });
    world.accept(ClusterCommand::RemoveNode { node_id: NodeId(2), now_ms: NOW_MS + 6 });

    assert_eq!(world.state.removed_nodes[&NodeId(2)], NOW_MS + 5);
    world.refuse(admit(Some("t"), 2, record("n2", "eu"), NOW_MS), NodeRemoved);
    world.refuse(update(2), NodeRemoved);
    world.refuse(update(3), NodeUnknown);
    world.refuse(ClusterCommand::RemoveNode { node_id: NodeId(3), now_ms: NOW_MS }, NodeUnknown);
    world.accept(admit(Some("t"), 3, record("n2", "eu"), NOW_MS));
}

#[test]
fn an_update_changes_where_a_node_is_and_not_who_it_is() {
    let mut world = World::founded(1);
    let capacity = NodeCapacity { total: Resources { cpu: 9, memory_gib: 9, disk_gib: 9 }, sandboxes_max: 9 };

    world.accept(ClusterCommand::UpdateNode {
        node_id: NodeId(1),
        addresses: addresses(7),
        capacity,
        command_version: 2,
    });

    let expected = NodeRecord { addresses: addresses(7), capacity, command_version: 2, ..record("n1", "eu") };
    assert_eq!(world.state.nodes[&NodeId(1)], expected);
}

#[test]
fn a_command_kind_is_usable_when_every_node_knows_it() {
    let mut world = World::founded(1);
    assert_eq!(world.state.command_version(), 1);
    world.accept(admit(Some("t"), 2, NodeRecord { command_version: 3, ..record("n2", "eu") }, NOW_MS));
    assert_eq!(world.state.command_version(), 1);

    world.accept(ClusterCommand::RemoveNode { node_id: NodeId(1), now_ms: NOW_MS });

    assert_eq!(world.state.command_version(), 3);
}

#[test]
fn a_key_is_good_until_it_expires_or_is_deleted() {
    let mut world = World::founded(1);
    world.accept(put_organization(1));
    world.accept(ClusterCommand::PutApiKey { key_hash: hash("k"), key: api_key(1, Some(NOW_MS + 10)) });
    world.accept(ClusterCommand::PutApiKey { key_hash: hash("for ever"), key: api_key(1, None) });
    // Made long after.
    let later = ApiKeyRecord { created_at_ms: NOW_MS + 5, ..api_key(1, Some(NOW_MS + 20)) };
    world.accept(ClusterCommand::PutApiKey { key_hash: hash("later"), key: later.clone() });
    assert_eq!(world.state.api_keys.len(), 3, "none has expired yet");

    assert!(world.state.api_key(hash("k"), NOW_MS + 9).is_some());
    assert!(world.state.api_key(hash("k"), NOW_MS + 10).is_none());
    assert!(world.state.api_key(hash("other"), NOW_MS).is_none());
    assert!(world.state.api_key(hash("for ever"), u64::MAX).is_some());

    let last = ApiKeyRecord { created_at_ms: NOW_MS + 15, ..later };
    world.accept(ClusterCommand::PutApiKey { key_hash: hash("last"), key: last });
    let known: Vec<bool> =
        ["k", "for ever", "later", "last"].map(|key| world.state.api_keys.contains_key(&hash(key))).into();
    assert_eq!(known, [false, true, true, true], "what has expired is forgotten");

    world.accept(ClusterCommand::DeleteApiKey { key_hash: hash("later") });
    world.accept(ClusterCommand::DeleteApiKey { key_hash: hash("later") });
    assert!(world.state.api_key(hash("later"), NOW_MS).is_none());
}

#[test]
fn a_key_is_of_an_organization_that_exists() {
    let mut world = World::founded(1);

    world.refuse(ClusterCommand::PutApiKey { key_hash: hash("k"), key: api_key(1, None) }, NotFound);
}

#[test]
fn a_snapshot_is_replaced_and_deleted_by_name() {
    let mut world = World::founded(1);
    let put = |image: &str| ClusterCommand::PutSnapshot {
        name: "base".into(),
        snapshot: SnapshotRecord::given(uuid::Uuid::nil(), image.into(), RESOURCES, NOW_MS),
    };

    world.accept(put("a"));
    world.accept(put("b"));
    assert_eq!(world.state.snapshots["base"].image, "b");

    world.accept(ClusterCommand::DeleteSnapshot { name: "base".into() });
    world.accept(ClusterCommand::DeleteSnapshot { name: "base".into() });
    assert!(world.state.snapshots.is_empty());
}

fn snapshot() -> SnapshotRecord {
    SnapshotRecord::given(uuid::Uuid::nil(), "a".into(), RESOURCES, NOW_MS)
}

fn pool_id(n: u128) -> WarmPoolId {
    WarmPoolId(uuid::Uuid::from_u128(n))
}

fn pool(organization_number: u128, snapshot: &str, size: u32) -> WarmPoolRecord {
    WarmPoolRecord {
        organization_id: organization(organization_number),
        snapshot: snapshot.into(),
        region: region("eu"),
        size,
        error_reason: None,
        created_at_ms: NOW_MS,
        updated_at_ms: NOW_MS,
    }
}

fn create_pool(n: u128, pool: WarmPoolRecord) -> ClusterCommand {
    ClusterCommand::CreateWarmPool { pool_id: pool_id(n), pool }
}

fn resize(n: u128, size: u32) -> ClusterCommand {
    ClusterCommand::ResizeWarmPool { pool_id: pool_id(n), size, now_ms: NOW_MS + 1 }
}

/// One node in `eu`, two organizations, the snapshots `s0` to `s11`.
fn world_for_pools() -> World {
    let mut world = World::founded(1);
    world.accept(put_organization(1));
    world.accept(put_organization(2));
    for n in 0..12 {
        world.accept(ClusterCommand::PutSnapshot { name: format!("s{n}"), snapshot: snapshot() });
    }
    world
}

#[test]
fn an_organization_has_one_warm_pool_for_a_snapshot_in_a_region() {
    let mut world = world_for_pools();
    world.accept(create_pool(1, pool(1, "s1", 3)));
    world.accept(create_pool(1, pool(1, "s1", 3)));

    world.refuse(create_pool(2, pool(1, "s1", 3)), WarmPoolExists(pool_id(1)));
    world.accept(create_pool(3, pool(2, "s1", 3)));
    world.accept(create_pool(4, pool(1, "s2", 3)));

    let found = |n, snapshot| world.state.warm_pool_for(organization(n), snapshot, &region("eu"));
    assert_eq!((found(1, "s1"), found(2, "s1"), found(2, "s2")), (Some(pool_id(1)), Some(pool_id(3)), None));
    world.accept(ClusterCommand::DeleteWarmPool { pool_id: pool_id(1) });
    world.accept(ClusterCommand::DeleteWarmPool { pool_id: pool_id(1) });
    world.accept(create_pool(2, pool(1, "s1", 3)));
}

#[test]
fn a_warm_pool_is_of_what_exists() {
    let mut world = world_for_pools();
    let elsewhere = WarmPoolRecord { region: region("mars"), ..pool(1, "s1", 1) };

    world.refuse(create_pool(1, pool(3, "s1", 1)), NotFound);
    world.refuse(create_pool(1, pool(1, "unknown", 1)), NotFound);
    world.refuse(create_pool(1, elsewhere), RegionUnknown(region("mars")));
    world.refuse(resize(1, 5), NotFound);
}

#[test]
fn warm_pools_have_a_budget_that_lets_them_shrink() {
    let mut world = world_for_pools();
    let too_many = |outcome| matches!(outcome, ClusterOutcome::Rejected(TooManyWarm(_)));

    assert!(too_many(world.apply(create_pool(1, pool(1, "s1", WARM_PER_POOL_MAX + 1)))));
    world.accept(create_pool(1, pool(1, "s1", WARM_PER_POOL_MAX)));
    world.accept(create_pool(2, pool(1, "s2", WARM_PER_ORGANIZATION_MAX - WARM_PER_POOL_MAX)));
    assert!(too_many(world.apply(create_pool(3, pool(1, "s3", 1)))));
    // Another organization's are its own.
    world.accept(create_pool(4, pool(2, "s1", WARM_PER_POOL_MAX)));
    world.accept(resize(1, 0));
    world.accept(create_pool(3, pool(1, "s3", 1)));
    assert!(too_many(world.apply(resize(1, WARM_PER_POOL_MAX))));
    world.accept(resize(1, WARM_PER_POOL_MAX - 1));
    assert_eq!(world.state.warm_pools[&pool_id(1)].updated_at_ms, NOW_MS + 1);
}

#[test]
fn what_keeps_a_warm_pool_from_being_full_is_noted() {
    let mut world = world_for_pools();
    world.accept(create_pool(1, pool(1, "s1", 1)));
    let note = |n, reason: Option<&str>| ClusterCommand::NoteWarmPool {
        pool_id: pool_id(n),
        error_reason: reason.map(str::to_owned),
    };

    world.accept(note(1, Some("no room")));
    world.accept(note(2, Some("gone")));

    assert_eq!(world.state.warm_pools[&pool_id(1)].error_reason.as_deref(), Some("no room"));
    world.accept(note(1, None));
    assert_eq!(world.state.warm_pools[&pool_id(1)].error_reason, None);
}

fn any_command() -> impl Strategy<Value = ClusterCommand> {
    let a_token = || (0..3u8).prop_map(|n| hash(&n.to_string()));
    let a_node = || (1..=5u64).prop_map(NodeId);
    let a_time = || (0..5u64).prop_map(|step| NOW_MS + step * JOIN_TOKEN_REMEMBERED_MS / 2);
    let a_record = || {
        (1..=5u8, 1..=3u8, 1..3u32).prop_map(|(name, in_region, command_version)| NodeRecord {
            command_version,
            ..record(&format!("n{name}"), &format!("r{in_region}"))
        })
    };
    prop_oneof![
        1 => (1..3u128).prop_map(|n| ClusterCommand::Found { identity: identity(n) }),
        4 => (a_token(), 0..3u32, a_time(), a_time()).prop_map(|(token_hash, uses, expires_at_ms, now_ms)| {
            ClusterCommand::CreateJoinToken { token_hash, uses, expires_at_ms, now_ms }
        }),
        8 => (prop::option::weighted(0.9, a_token()), a_node(), a_record(), a_time())
            .prop_map(|(token_hash, node_id, node, now_ms)| ClusterCommand::AdmitNode { token_hash, node_id, node, now_ms }),
        2 => (a_node(), a_record()).prop_map(|(node_id, node)| ClusterCommand::UpdateNode {
            node_id,
            addresses: node.addresses,
            capacity: node.capacity,
            command_version: node.command_version,
        }),
        1 => (a_node(), a_time()).prop_map(|(node_id, now_ms)| ClusterCommand::RemoveNode { node_id, now_ms }),
        1 => (1..3u128).prop_map(put_organization),
        2 => (a_token(), 1..3u128).prop_map(|(key_hash, n)| ClusterCommand::PutApiKey { key_hash, key: api_key(n, None) }),
        1 => a_token().prop_map(|key_hash| ClusterCommand::DeleteApiKey { key_hash }),
        1 => Just(ClusterCommand::DeleteSnapshot { name: "base".into() }),
        2 => Just(ClusterCommand::PutSnapshot { name: "base".into(), snapshot: snapshot() }),
        4 => (1..4u128, 1..3u128, 0..120u32).prop_map(|(n, organization_number, size)| {
            create_pool(n, WarmPoolRecord { region: region("r1"), ..pool(organization_number, "base", size) })
        }),
        2 => (1..4u128, 0..120u32).prop_map(|(n, size)| resize(n, size)),
        1 => (1..4u128).prop_map(|n| ClusterCommand::DeleteWarmPool { pool_id: pool_id(n) }),
        1 => (1..4u128, any::<bool>()).prop_map(|(n, is_well)| ClusterCommand::NoteWarmPool {
            pool_id: pool_id(n),
            error_reason: (!is_well).then(|| "no room".to_owned()),
        }),
        8 => catalogue::any_command(),
    ]
}

/// Fewer than elsewhere, as each case is a long history. `PROPTEST_CASES` raises it.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases / 4, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_is_said_invariants_hold_twice_counts_once_and_a_rejection_not_at_all(
        commands in vec(any_command(), 1..40)
    ) {
        let mut world = World::default();
        for command in commands {
            let before = world.state.clone();
            let outcome = world.apply(command.clone());
            if outcome != APPLIED {
                prop_assert_eq!(&world.state, &before, "{:?}", command);
            }
            let once = world.state.clone();
            prop_assert_eq!(world.apply(command.clone()), outcome, "{:?}", command);
            prop_assert_eq!(&world.state, &once, "{:?}", command);
        }
    }

    #[test]
    fn a_token_is_never_used_more_often_than_it_says(commands in vec(any_command(), 1..40)) {
        let mut world = World::default();
        for command in commands {
            let before = world.state.clone();
            let admitted = world.apply(command.clone()) == APPLIED && world.state.nodes.len() > before.nodes.len();
            for (token_hash, token) in &before.join_tokens {
                let Some(after) = world.state.join_tokens.get(token_hash) else { continue };
                let used = token.uses_left - after.uses_left;
                let by_this = matches!(&command, ClusterCommand::AdmitNode { token_hash: Some(used), .. } if used == token_hash);
                prop_assert_eq!(used, u32::from(admitted && by_this), "{:?}", command);
            }
        }
    }
}
