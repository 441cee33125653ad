//! The unmodified public SDKs, one story each, against three different nodes.

use std::process::Command;

use crate::Rule;
use crate::world::World;

pub const RULES: &[Rule] = &[
    ("the_python_sdk_runs_its_story_over_three_nodes", python),
    ("the_npm_sdk_runs_its_story_over_three_nodes", npm),
    ("the_python_sdk_uploads_build_contexts", python_contexts),
    ("the_npm_sdk_uploads_build_contexts", npm_contexts),
];

fn python(world: &World) {
    let Some(python) = provided("ATOLL_PYTHON") else { return };
    story(world, Command::new(python).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/story.py")));
}

fn npm(world: &World) {
    if provided("ATOLL_NODE_MODULES").is_none() {
        return;
    }
    story(world, Command::new("node").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/story.mjs")));
}

fn python_contexts(world: &World) {
    python_that_uploads(world, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/contexts.py"));
}

fn npm_contexts(world: &World) {
    npm_that_uploads(world, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/contexts.mjs"));
}

/// With the cluster's authority among the system's, as an operator installs it, in a mount namespace of its own: the SDK
/// looks nowhere else.
pub fn python_that_uploads(world: &World, script: &str) {
    const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
    let Some(python) = provided("ATOLL_PYTHON") else { return };
    let mut authorities = std::fs::read(SYSTEM_AUTHORITIES).unwrap_or_default();
    authorities.extend(std::fs::read(&world.cluster.ready.ca_cert).expect("the CA's certificate"));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), authorities).expect("the authorities are written");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"", "sh"]);
    command.arg(file.path()).args([SYSTEM_AUTHORITIES, &python]);
    story(world, command.arg(script));
}

pub fn npm_that_uploads(world: &World, script: &str) {
    if provided("ATOLL_NODE_MODULES").is_none() {
        return;
    }
    let mut command = Command::new("node");
    command.env("NODE_EXTRA_CA_CERTS", &world.cluster.ready.ca_cert);
    story(world, command.arg(script));
}

fn story(world: &World, command: &mut Command) {
    let node = |index: usize| &world.cluster.node(index).http;
    command.arg(&world.cluster.ready.api_key).args([node(0), node(1), node(2)]);
    let output = command.output().expect("the interpreter runs");
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && said.contains("STORY COMPLETE"),
        "{}\n{said}\n{complained}",
        output.status
    );
}

/// What `deploy/test.sh` installs. Missing elsewhere is said loudly, and is a failure where everything is required.
fn provided(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    if value.is_none() {
        assert!(std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_none(), "{name} is not set");
        eprintln!("SKIPPED: {name} is not set; run deploy/test.sh");
    }
    value
}
