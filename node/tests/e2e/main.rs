//! The whole path on a real cluster: four nodes in two regions, real sandboxes, every door. One cluster serves all trials.

mod api;
mod doors;
mod isolation;
mod membership;
mod processes;
mod sdk;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use atoll_chaos_tests::dev::DevCluster;
use libtest_mimic::{Arguments, Failed, Trial};

use world::World;

/// A trial: its name is the rule, its body gets the cluster.
type Rule = (&'static str, fn(&World));

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let rules = [api::RULES, doors::RULES, isolation::RULES, membership::RULES, processes::RULES, sdk::RULES]
        .concat();
    if arguments.list {
        let named = rules.iter().map(|(name, _)| Trial::test(*name, || Ok(()))).collect();
        return libtest_mimic::run(&arguments, named).exit_code();
    }
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else has installed a provider");
    let cluster = DevCluster::start(Path::new(env!("CARGO_BIN_EXE_atoll")), 4, "eu,eu,eu,us");
    let world = Arc::new(World::new(cluster.expect("the cluster starts")));
    let trials = rules.iter().map(|(name, rule)| trial(name, *rule, world.clone())).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        eprintln!("{}", world.cluster.logs());
    }
    // The last reference stops the cluster and removes what it made.
    drop(Arc::into_inner(world));
    conclusion.exit_code()
}

fn trial(name: &'static str, rule: fn(&World), world: Arc<World>) -> Trial {
    Trial::test(name, move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rule(&world)));
        drop(world);
        ended.map_err(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            Failed::from(said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned())
        })
    })
}
