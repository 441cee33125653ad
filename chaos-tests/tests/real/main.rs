//! The real tier: three processes of `atoll dev` with real sandboxes, that are killed and frozen while clients write and
//! read. Each scenario has a cluster of its own; at its end the history is judged, and so are the containers.
//!
//! `ATOLL_BINARY` is the program under test; without it, the one beside this test. `ATOLL_CHAOS_SEED=n` makes the same
//! choices again: which nodes, which sandboxes, which moments. What the machine does meanwhile is its own affair.

mod load;
mod scenarios;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use atoll_chaos_tests::dev::{DevCluster, Runtime};
use libtest_mimic::{Arguments, Failed, Trial};

use scenarios::Scenario;
use world::World;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each scenario has three nodes and its sandboxes; two at once would measure the machine.
    arguments.test_threads = Some(1);
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else has installed a provider");
    let trials = scenarios::ALL
        .iter()
        .map(|(name, scenario)| Trial::test(*name, move || run(name, *scenario).map_err(Failed::from)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The error says all that is known, as text: a stack adds nothing to it.
fn run(name: &str, scenario: Scenario) -> Result<(), String> {
    attempt(name, scenario).map_err(|error| format!("{error:#}"))
}

fn attempt(name: &str, scenario: Scenario) -> Result<()> {
    let atoll = binary()?;
    let seed = match std::env::var("ATOLL_CHAOS_SEED") {
        Ok(seed) => seed.parse().context("ATOLL_CHAOS_SEED is a whole number")?,
        Err(_) => rand::random::<u32>().into(),
    };
    let began = Instant::now();
    let cluster = DevCluster::start(&atoll, Runtime::Embedded, 3, "eu").context("start the cluster")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let world = World::new(cluster, name, seed)?;
    world.say(&format!("the cluster serves after {:.1} s; seed {seed}", began.elapsed().as_secs_f64()));
    let outcome = runtime.block_on(async {
        scenario(world.clone()).await?;
        world.say("played; now it is judged");
        world.is_whole().await
    });
    world.say(&format!("{} calls in {:.1} s", world.history.calls().len(), began.elapsed().as_secs_f64()));
    outcome.map_err(|error| {
        let repeat = format!(
            "ATOLL_BINARY={} ATOLL_CHAOS_SEED={seed} cargo test -p atoll-chaos-tests --test real -- --exact {name}",
            atoll.display()
        );
        anyhow!("{error:#}\n\n{}\nseed {seed}; repeat with\n  {repeat}", world.cluster.logs())
    })
}

fn binary() -> Result<PathBuf> {
    let given = std::env::var_os("ATOLL_BINARY").map(PathBuf::from);
    let beside = || {
        let this = std::env::current_exe().context("find this test")?;
        let target = this.parent().and_then(Path::parent).context("this test is in target/<profile>/deps")?;
        Ok::<_, anyhow::Error>(target.join("atoll"))
    };
    let atoll = given.map_or_else(beside, Ok)?;
    ensure!(
        atoll.is_file(),
        "there is no {}: run `cargo build -p atoll-node` first, or name the program by ATOLL_BINARY",
        atoll.display()
    );
    Ok(atoll)
}
