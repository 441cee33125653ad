//! SSH and preview tokens.

use atoll_api::ids::SandboxId;
use atoll_api::tokens::TokenHash;

use super::world::*;
use crate::state::region::RegionRejection::*;
use crate::state::region::*;

fn revoke(token_number: Option<u8>) -> RegionCommand {
    RegionCommand::RevokeSshTokens { sandbox_id: sandbox_id(1), token_hash: token_number.map(token) }
}

fn ssh_opens(world: &World, token_number: u8, now_ms: u64) -> Option<SandboxId> {
    world.state.ssh_grant(token(token_number), now_ms).map(|grant| grant.sandbox_id)
}

#[test]
fn a_token_opens_its_sandbox_until_it_expires() {
    let mut world = World::with_nodes(1).running(1, 1);
    world.accept(ssh_token(1, 1, NOW_MS + 10));
    world.accept(preview_token(1, 2, 3000, NOW_MS + 10));

    let preview =
        |now_ms| world.state.preview_grant(token(2), now_ms).map(|grant| (grant.sandbox_id, grant.port));

    assert_eq!(ssh_opens(&world, 1, NOW_MS + 9), Some(sandbox_id(1)));
    assert_eq!(ssh_opens(&world, 1, NOW_MS + 10), None);
    assert_eq!(preview(NOW_MS + 9), Some((sandbox_id(1), 3000)));
    assert_eq!(preview(NOW_MS + 10), None);
    assert_eq!(ssh_opens(&world, 2, NOW_MS), None, "one kind is not the other");
}

#[test]
fn a_new_ssh_token_replaces_the_sandboxs_earlier_one_only() {
    let mut world = World::with_nodes(1).running(1, 1).running(2, 1);
    world.accept(ssh_token(1, 1, NOW_MS + 10));
    world.accept(ssh_token(2, 2, NOW_MS + 10));

    world.accept(ssh_token(1, 3, NOW_MS + 10));

    assert_eq!(ssh_opens(&world, 1, NOW_MS), None);
    assert_eq!(ssh_opens(&world, 2, NOW_MS), Some(sandbox_id(2)));
    assert_eq!(ssh_opens(&world, 3, NOW_MS), Some(sandbox_id(1)));
}

#[test]
fn a_token_issued_again_is_the_same_token() {
    let mut world = World::with_nodes(1).running(1, 1);
    world.accept(ssh_token(1, 1, NOW_MS + 10));
    world.accept(preview_token(1, 2, 3000, NOW_MS + 10));
    let before = world.state.clone();

    world.accept(ssh_token(1, 1, NOW_MS + 10));
    world.accept(preview_token(1, 2, 3000, NOW_MS + 10));

    assert_eq!(world.state, before);
}

#[test]
fn a_token_of_another_sandbox_or_port_is_not_taken_over() {
    let mut world = World::with_nodes(1).running(1, 1).running(2, 1);
    world.accept(ssh_token(1, 1, NOW_MS + 10));
    world.accept(preview_token(1, 2, 3000, NOW_MS + 10));

    world.refuse(ssh_token(2, 1, NOW_MS + 10), TokenTaken);
    world.refuse(preview_token(2, 2, 3000, NOW_MS + 10), TokenTaken);
    world.refuse(preview_token(1, 2, 3001, NOW_MS + 10), TokenTaken);
}

#[test]
fn ssh_tokens_are_revoked_by_name_or_all_together() {
    let mut world = World::with_nodes(1).running(1, 1).running(2, 1);
    world.accept(ssh_token(1, 1, NOW_MS + 10));
    world.accept(ssh_token(2, 2, NOW_MS + 10));

    world.accept(revoke(Some(2)));
    assert_eq!(ssh_opens(&world, 2, NOW_MS), Some(sandbox_id(2)), "it is another sandbox's");
    world.accept(revoke(Some(1)));
    assert_eq!(ssh_opens(&world, 1, NOW_MS), None);

    world.accept(ssh_token(1, 3, NOW_MS + 10));
    world.accept(revoke(None));
    world.accept(revoke(None));
    assert_eq!(ssh_opens(&world, 3, NOW_MS), None);
}

#[test]
fn a_preview_link_is_revoked_by_sandbox_port_and_token() {
    let mut world = World::with_nodes(1).running(1, 1).running(2, 1);
    world.accept(preview_token(1, 1, 3000, NOW_MS + 10));
    let revoke = |n: u8, port: u16| RegionCommand::RevokePreviewToken {
        sandbox_id: sandbox_id(n),
        port,
        token_hash: token(1),
    };

    world.accept(revoke(2, 3000));
    world.accept(revoke(1, 3001));
    assert!(world.state.preview_grant(token(1), NOW_MS).is_some());

    world.accept(revoke(1, 3000));
    world.accept(revoke(1, 3000));
    assert!(world.state.preview_grant(token(1), NOW_MS).is_none());
}

#[test]
fn a_sandbox_has_a_bounded_number_of_preview_links() {
    let mut state = World::with_nodes(1).running(1, 1).state;
    let mut issue = |n: usize| {
        state.apply(RegionCommand::IssuePreviewToken {
            token_hash: TokenHash::of(&n.to_string()),
            sandbox_id: sandbox_id(1),
            port: 3000,
            expires_at_ms: NOW_MS + 10,
        })
    };

    let issued = (0..PREVIEW_TOKENS_PER_SANDBOX_MAX).filter(|n| issue(*n) == APPLIED).count();

    assert_eq!(issued, PREVIEW_TOKENS_PER_SANDBOX_MAX);
    let full = rejected(TooManyTokens(PREVIEW_TOKENS_PER_SANDBOX_MAX as u64));
    assert_eq!(issue(PREVIEW_TOKENS_PER_SANDBOX_MAX), full);
    assert_eq!(issue(0), APPLIED, "one that is there already is no new one");
}

#[test]
fn tokens_of_an_unknown_sandbox_are_not_found() {
    let mut world = World::with_nodes(1);

    world.refuse(ssh_token(1, 1, NOW_MS + 10), NotFound);
    world.refuse(preview_token(1, 1, 3000, NOW_MS + 10), NotFound);
    world.refuse(revoke(None), NotFound);
}

#[test]
fn expired_tokens_are_dropped_and_valid_ones_kept() {
    let mut world = World::with_nodes(1).running(1, 1).running(2, 1);
    world.accept(ssh_token(1, 1, NOW_MS + 10));
    world.accept(ssh_token(2, 2, NOW_MS + 20));
    world.accept(preview_token(1, 3, 3000, NOW_MS + 10));
    world.accept(preview_token(1, 4, 3000, NOW_MS + 20));
    assert_eq!(world.state.next_expiry_ms(), Some(NOW_MS + 10));

    world.accept(RegionCommand::ExpireTokens { now_ms: NOW_MS + 10 });

    assert_eq!(world.state.ssh_tokens.keys().collect::<Vec<_>>(), [&token(2)]);
    assert_eq!(world.state.preview_tokens.keys().collect::<Vec<_>>(), [&token(4)]);
}

#[test]
fn the_signing_key_is_replaced_one_version_at_a_time() {
    let rotate =
        |version| RegionCommand::RotateSigningKey { sandbox_id: sandbox_id(1), version, now_ms: NOW_MS };
    let mut world = World::with_nodes(1).running(1, 1);
    let version = |world: &World| world.state.facts(sandbox_id(1)).map(|facts| facts.signing_key_version);
    assert_eq!(version(&world), Some(0));

    world.accept(rotate(1));
    assert_eq!(version(&world), Some(1));

    world.accept(rotate(1));
    assert_eq!(version(&world), Some(1), "said again");

    for (wrong, why) in [(0, "an earlier one"), (3, "one that would leave one out")] {
        world.refuse(rotate(wrong), StaleSigningKey { current: 1 });
        assert_eq!(version(&world), Some(1), "{why}");
    }
}
