//! Images that are not here yet: fetched in their own time, which counts for no launch.

use super::*;

#[test]
fn an_image_that_is_not_here_is_fetched_and_the_launch_begins_then() {
    let mut world = World::new();
    world.placed(1).fails(1, OperationError::ImageMissing);
    assert_eq!(world.operations(), ["Create g1", "Provide g1"]);

    world.later(LAUNCH_DEADLINE * 2);
    assert_eq!(world.operations(), Vec::<String>::new());
    world.ok(1).ok(1).ok(1);

    assert_eq!(world.operations(), ["Create g1", "Start g1"]);
    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(Phase::Running)));
}

#[test]
fn fetching_keeps_nobody_elses_turn() {
    let mut world = World::new();
    for number in 1..=6 {
        world.placed(number);
    }
    for number in 1..=4 {
        world.fails(number, OperationError::ImageMissing);
    }
    world.operations();
    world.fails(5, OperationError::ImageMissing).fails(6, OperationError::ImageMissing);
    assert_eq!(world.operations(), ["Provide g1", "Provide g1"]);

    world.placed(7);
    assert_eq!(world.operations(), ["Create g1"]);
}

#[test]
fn an_image_that_nobody_has_fails_after_some_tries() {
    let mut world = World::new();
    world.placed(1).fails(1, OperationError::ImageMissing);
    for _ in 0..ATTEMPTS_MAX {
        world.fails(1, OperationError::Passing("no registry answers".into())).later(BACKOFF_MAX);
    }

    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(failed("no registry answers"))));
}

#[test]
fn an_image_that_vanishes_again_and_again_is_given_up() {
    let mut world = World::new();
    world.placed(1);
    for _ in 0..ATTEMPTS_MAX {
        world.fails(1, OperationError::ImageMissing).ok(1);
        world.fails(1, OperationError::ImageMissing).later(BACKOFF_MAX);
    }

    assert_eq!(world.reports().last(), Some(&ReportKind::Phase(failed(IMAGE_GONE))));
}

#[test]
fn fetching_for_a_sandbox_that_is_to_go_is_broken_off() {
    let mut world = World::new();
    world.placed(1).fails(1, OperationError::ImageMissing);
    world.operations();

    world.wish(1, Desired::Deleted);

    assert_eq!(world.operations(), ["Cancel"]);
    world.fails(1, OperationError::Cancelled);
    assert_eq!(world.reports().last(), Some(&ReportKind::Deleted));
}
