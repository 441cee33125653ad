//! The embedded runtime on this host: real namespaces, layers, control groups and the daemon as it ships. Needs root, busybox-static and
//! the daemon's binary (`ATOLL_DAEMON_BINARY`, or where node's build puts it); skipped loudly without.
//!
//! The binary is also the runtime's zygote, so it has a `main` of its own.

#[path = "../all/world.rs"]
#[allow(dead_code)]
mod world;

#[path = "../all/seam.rs"]
#[allow(dead_code)]
mod seam;

mod bombs;
mod builds;
mod host;
mod images;
mod isolation;
mod life;
mod neighbours;
mod node;
mod refused;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use host::Host;

/// A trial: its name is the rule, its body gets a node of its own.
type Rule = (&'static str, fn(&Host));

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, mode, state_dir] = &words[..]
        && mode == host::ZYGOTE_MODE
    {
        return match atoll_runner::embedded::zygote::run(Path::new(state_dir)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("zygote: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::from_args();
    let rules = [
        life::RULES,
        builds::RULES,
        isolation::RULES,
        refused::RULES,
        images::RULES,
        neighbours::RULES,
        node::RULES,
        bombs::RULES,
    ]
    .concat();
    let trials = rules.into_iter().map(|(name, rule)| {
        Trial::test(name, move || {
            let Some(host) = Host::new() else { return Ok(()) };
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rule(&host)));
            host.clean_up();
            ended.map_err(|panic| {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                Failed::from(said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned())
            })
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
