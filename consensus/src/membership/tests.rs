//! Who votes, and the way there.

use proptest::prelude::*;

use super::*;

fn id(n: u64) -> NodeId {
    NodeId(n)
}

fn set(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

/// `"eu/a eu/b us"`: node 1 in region eu, zone a, and so on, each younger than the one before.
fn nodes(places: &str) -> BTreeMap<NodeId, Member> {
    let member = |(position, place): (usize, &str)| {
        let (region, zone) =
            place.split_once('/').map_or((place, None), |(region, zone)| (region, Some(zone)));
        let joined_at_ms = position as u64;
        let member = Member { region: region.parse().unwrap(), zone: zone.map(Into::into), joined_at_ms };
        (id(position as u64 + 1), member)
    };
    places.split_whitespace().enumerate().map(member).collect()
}

fn check(places: &str, voters: &[u64], expected: &[u64]) {
    assert_eq!(wanted_voters(&nodes(places), &set(voters)), set(expected), "{places}, now {voters:?}");
}

#[test]
fn one_three_or_five_nodes_vote() {
    for (count, voters) in [(0, 0), (1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (100, 5)] {
        let places = "eu ".repeat(count);
        assert_eq!(wanted_voters(&nodes(&places), &set(&[])).len(), voters, "{count} nodes");
    }
}

#[test]
fn the_oldest_vote_when_all_else_is_equal() {
    check("eu eu eu eu", &[], &[1, 2, 3]);
    check("eu eu", &[], &[1]);
}

#[test]
fn voters_stay_while_they_are_members_and_spread_as_well() {
    check("eu eu", &[2], &[2]);
    check("eu eu eu eu", &[2, 3, 4], &[2, 3, 4]);
    check("eu eu eu eu eu", &[2, 3, 4], &[1, 2, 3, 4, 5]);
    check("eu eu eu eu", &[3, 4, 99], &[1, 3, 4]);
    check("eu eu eu", &[1], &[1, 2, 3]);
}

#[test]
fn voters_are_spread_over_regions_first() {
    check("eu eu eu us ap", &[], &[1, 2, 3, 4, 5]);
    check("eu eu eu us", &[1, 2, 3], &[1, 2, 4]);
    check("eu eu eu eu us us ap", &[], &[1, 2, 5, 6, 7]);
    check("a b c d e f", &[2, 3, 4, 5, 6], &[2, 3, 4, 5, 6]);
}

#[test]
fn voters_are_spread_over_zones_within_a_region() {
    check("eu/a eu/a eu/b eu/c", &[], &[1, 3, 4]);
    check("eu/a eu/a eu/b eu/c", &[2, 3, 4], &[2, 3, 4]);
    check("eu/a eu/a eu/a eu/b", &[1, 2, 3], &[1, 2, 4]);
}

fn group(voters: &[u64], learners: &[u64], caught_up: &[u64]) -> GroupMembers {
    GroupMembers { voters: set(voters), learners: set(learners), caught_up: set(caught_up) }
}

#[test]
fn everyone_is_a_learner_first_the_oldest_before_the_newer() {
    let three = nodes("eu eu eu");

    assert_eq!(next_change(&group(&[1], &[], &[]), &three), Some(MembershipChange::AddLearner(id(2))));
    assert_eq!(next_change(&group(&[1], &[2], &[2]), &three), Some(MembershipChange::AddLearner(id(3))));
}

#[test]
fn a_learner_votes_when_it_has_caught_up() {
    let three = nodes("eu eu eu");

    assert_eq!(next_change(&group(&[1], &[2, 3], &[2]), &three), None);
    assert_eq!(
        next_change(&group(&[1], &[2, 3], &[2, 3]), &three),
        Some(MembershipChange::ChangeVoters(set(&[1, 2, 3])))
    );
    assert_eq!(next_change(&group(&[1, 2, 3], &[], &[]), &three), None);
}

#[test]
fn a_learner_that_lags_does_not_keep_others_from_voting() {
    let four = nodes("eu eu eu eu");

    assert_eq!(
        next_change(&group(&[1], &[2, 3, 4], &[3, 4]), &four),
        Some(MembershipChange::ChangeVoters(set(&[1, 3, 4])))
    );
}

#[test]
fn a_voter_that_left_first_loses_its_vote_and_then_its_place() {
    let mut left = nodes("eu eu eu eu");
    left.remove(&id(2));

    assert_eq!(
        next_change(&group(&[1, 2, 3], &[4], &[4]), &left),
        Some(MembershipChange::ChangeVoters(set(&[1, 3, 4])))
    );
    assert_eq!(next_change(&group(&[1, 3, 4], &[2], &[]), &left), Some(MembershipChange::Remove(id(2))));
    assert_eq!(next_change(&group(&[1, 3, 4], &[], &[]), &left), None);
}

#[test]
fn a_group_never_loses_its_last_voter() {
    assert_eq!(next_change(&group(&[1], &[], &[]), &BTreeMap::new()), None);
    assert_eq!(next_change(&group(&[1], &[2], &[]), &BTreeMap::new()), Some(MembershipChange::Remove(id(2))));
}

fn some_nodes() -> impl Strategy<Value = BTreeMap<NodeId, Member>> {
    let member = (0..3u8, 0..3u8, 0..5u64).prop_map(|(region, zone, joined_at_ms)| Member {
        region: format!("r{region}").parse().unwrap(),
        zone: (zone > 0).then(|| format!("z{zone}")),
        joined_at_ms,
    });
    prop::collection::btree_map((1..12u64).prop_map(NodeId), member, 1..10)
}

fn some_ids() -> impl Strategy<Value = BTreeSet<NodeId>> {
    prop::collection::btree_set((1..12u64).prop_map(NodeId), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_wanted_voters_are_odd_in_number_members_and_final(nodes in some_nodes(), voters in some_ids()) {
        let wanted = wanted_voters(&nodes, &voters);

        prop_assert_eq!(wanted.len(), voter_count(nodes.len()));
        prop_assert!(wanted.iter().all(|node_id| nodes.contains_key(node_id)));
        prop_assert_eq!(wanted_voters(&nodes, &wanted), wanted);
    }

    #[test]
    fn no_region_has_two_voters_more_than_one_that_could_have_another(nodes in some_nodes(), voters in some_ids()) {
        let wanted = wanted_voters(&nodes, &voters);

        let count = |region: &RegionName, of: &dyn Fn(&NodeId) -> bool| {
            nodes.iter().filter(|(node_id, member)| member.region == *region && of(node_id)).count()
        };
        let regions: BTreeSet<_> = nodes.values().map(|member| &member.region).collect();
        for crowded in &regions {
            for sparse in &regions {
                let here = count(crowded, &|node_id| wanted.contains(node_id));
                let there = count(sparse, &|node_id| wanted.contains(node_id));
                let has_spare = there < count(sparse, &|_| true);
                prop_assert!(!has_spare || here <= there + 1, "{} and {} in {:?}", crowded, sparse, wanted);
            }
        }
    }

    #[test]
    fn step_by_step_a_group_comes_to_rest_with_all_members_and_odd_voters(
        nodes in some_nodes(), learners in some_ids(), founder in 1..12u64,
    ) {
        let mut group = GroupMembers { voters: [NodeId(founder)].into(), learners, ..GroupMembers::default() };
        group.learners.remove(&NodeId(founder));
        let mut steps = 0;
        loop {
            group.caught_up = group.learners.clone();
            let Some(change) = next_change(&group, &nodes) else { break };
            steps += 1;
            prop_assert!(steps < 60, "does not come to rest");
            match change {
                MembershipChange::AddLearner(node_id) => {
                    prop_assert!(nodes.contains_key(&node_id));
                    prop_assert!(!group.voters.contains(&node_id) && group.learners.insert(node_id));
                }
                MembershipChange::ChangeVoters(voters) => {
                    prop_assert!(voters.len() % 2 == 1);
                    let known = |node_id: &NodeId| group.voters.contains(node_id) || group.learners.contains(node_id);
                    prop_assert!(voters.iter().all(known), "everyone is a learner first");
                    group.learners.extend(&group.voters);
                    group.learners.retain(|node_id| !voters.contains(node_id));
                    group.voters = voters;
                }
                MembershipChange::Remove(node_id) => {
                    prop_assert!(!nodes.contains_key(&node_id) && group.learners.remove(&node_id));
                }
            }
        }
        let everyone: BTreeSet<NodeId> = group.voters.union(&group.learners).copied().collect();
        prop_assert_eq!(everyone, nodes.keys().copied().collect());
        prop_assert_eq!(&group.voters, &wanted_voters(&nodes, &group.voters));
    }
}
