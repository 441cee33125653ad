//! The whole path on a real cluster: four nodes in two regions, real sandboxes, every door. All trials of one runtime share a cluster,
//! and each runtime gets the same trials but for those that name what only one can do.

mod api;
mod bad_input;
mod builds;
mod catalogue;
mod disks;
mod doors;
mod isolation;
mod membership;
mod processes;
mod registry;
mod sdk;
mod toolbox;
mod warm_pools;
mod world;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use atoll_chaos_tests::dev::{DevCluster, Runtime};
use libtest_mimic::{Arguments, Failed, Trial};

use world::World;

/// A trial: its name is the rule, its body gets the cluster.
type Rule = (&'static str, fn(&World));

fn rules(runtime: Runtime) -> Vec<Rule> {
    let both = [
        api::RULES,
        catalogue::RULES,
        disks::RULES,
        doors::RULES,
        isolation::RULES,
        membership::RULES,
        processes::RULES,
        registry::RULES,
        sdk::RULES,
        sdk::METHODS,
        toolbox::RULES,
        warm_pools::RULES,
    ]
    .concat();
    match runtime {
        // Docker's engine does not tell what a step of a build has changed. And what a browser shows, it shows of any runtime.
        Runtime::Embedded => [&both[..], bad_input::RULES, builds::RULES, sdk::BROWSER].concat(),
        Runtime::Docker => both,
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else has installed a provider");
    // One after the other: two clusters at once would make each other slow.
    let ended = [Runtime::Embedded, Runtime::Docker].map(|runtime| {
        if runtime == Runtime::Docker && !docker_answers() {
            return true;
        }
        play(&arguments, runtime)
    });
    if ended.iter().all(|well| *well) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether all went well.
fn play(arguments: &Arguments, runtime: Runtime) -> bool {
    let cluster = Arc::new(Cluster { runtime, world: Mutex::default() });
    let trials = rules(runtime).into_iter().map(|rule| trial(rule, cluster.clone())).collect();
    let conclusion = libtest_mimic::run(arguments, trials);
    let started = cluster.world.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(Ok(world)), true) = (&started, conclusion.has_failed()) {
        eprintln!("{}", world.cluster.logs());
    }
    // The last reference stops the cluster and removes what it made.
    drop(started);
    !conclusion.has_failed()
}

/// Started by the first trial that needs it.
struct Cluster {
    runtime: Runtime,
    world: Mutex<Option<Result<Arc<World>, String>>>,
}

impl Cluster {
    fn world(&self) -> Result<Arc<World>, String> {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let atoll = Path::new(env!("CARGO_BIN_EXE_atoll"));
            let started = DevCluster::start(atoll, self.runtime, 4, "eu,eu,eu,us");
            started.map(|cluster| Arc::new(World::new(cluster))).map_err(|error| format!("{error:#}"))
        };
        world.get_or_insert_with(start).clone()
    }
}

fn trial((name, rule): Rule, cluster: Arc<Cluster>) -> Trial {
    Trial::test(format!("{}::{name}", cluster.runtime.name()), move || {
        let world = cluster.world()?;
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rule(&world)));
        ended.map_err(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            Failed::from(said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned())
        })
    })
}

/// Missing, it is said loudly, and is a failure where everything is required.
fn docker_answers() -> bool {
    let answers = Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success());
    if !answers {
        assert!(std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_none(), "Docker does not answer");
        eprintln!("SKIPPED: the trials on Docker, which does not answer");
    }
    answers
}
