//! The simulated tier: several nodes' consensus in one process, on a simulated network and simulated disks, with virtual
//! time and one seed. Clients write and read while nodes crash and paths break; then their history is judged.
//!
//! `ATOLL_SIM_SEED=n` runs that seed only, `ATOLL_SIM_SEEDS=n` runs seeds 0 to n − 1 of every scenario.

mod clients;
mod history;
mod linear;
mod scenarios;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use atoll_consensus::simulation::Simulation;

use history::History;
use scenarios::Scenario;

/// Few, for every build; the nightly run asks for more.
const SEEDS: u64 = 1;

/// Runs one scenario with one seed, and returns what its clients saw, if it was right.
fn run(scenario: Scenario, seed: u64) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime of this thread");
    let history = runtime.block_on(scenarios::play(scenario, seed));
    linear::judge(&history, Simulation::ordinal());
    history
}

fn check(scenario: Scenario, test: &str) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("ATOLL_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ATOLL_SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let run = catch_unwind(AssertUnwindSafe(|| run(scenario, seed)));
        match run {
            Ok(history) => assert!(history.answered() > 100, "seed {seed}: too little was done to tell"),
            Err(cause) => {
                eprintln!(
                    "seed {seed} fails; repeat it with\n  ATOLL_SIM_SEED={seed} cargo test -p atoll-chaos-tests --test sim -- --exact {test} --nocapture"
                );
                resume_unwind(cause);
            }
        }
    }
}

#[test]
fn a_leader_that_crashes_loses_nothing_it_answered() {
    check(Scenario::LeaderCrash, "a_leader_that_crashes_loses_nothing_it_answered");
}

#[test]
fn a_follower_that_crashes_disturbs_nobody() {
    check(Scenario::FollowerCrash, "a_follower_that_crashes_disturbs_nobody");
}

#[test]
fn a_minority_that_is_cut_off_decides_nothing() {
    check(Scenario::MinorityPartition, "a_minority_that_is_cut_off_decides_nothing");
}

#[test]
fn a_leader_that_reaches_only_a_bridge_makes_way() {
    check(Scenario::BridgePartition, "a_leader_that_reaches_only_a_bridge_makes_way");
}

#[test]
fn paths_that_work_one_way_only_lose_nothing() {
    check(Scenario::OneWayPaths, "paths_that_work_one_way_only_lose_nothing");
}

#[test]
fn lossy_links_lose_nothing() {
    check(Scenario::LossyLinks, "lossy_links_lose_nothing");
}

#[test]
fn a_power_failure_of_all_nodes_loses_nothing_they_answered() {
    check(Scenario::PowerFailureOfAll, "a_power_failure_of_all_nodes_loses_nothing_they_answered");
}

#[test]
fn a_seed_gives_one_history_and_another_seed_another() {
    for scenario in [Scenario::LeaderCrash, Scenario::LossyLinks] {
        let (first, again, other) = (run(scenario, 11), run(scenario, 11), run(scenario, 12));

        let differing = first.lines.lines().zip(again.lines.lines()).find(|(one, other)| one != other);
        assert_eq!(differing, None, "{scenario:?}");
        assert_eq!(first.lines.as_bytes(), again.lines.as_bytes(), "{scenario:?}");
        assert_ne!(first.lines.as_bytes(), other.lines.as_bytes(), "{scenario:?}");
    }
}
