//! The unmodified public SDKs, one story each, against three different nodes.

use std::process::Command;

use serde_json::json;

use crate::Rule;
use crate::toolbox;
use crate::world::{EU, Made, World};

pub const RULES: &[Rule] = &[
    ("the_python_sdk_runs_its_story_over_three_nodes", python),
    ("the_npm_sdk_runs_its_story_over_three_nodes", npm),
    ("the_python_sdk_uploads_build_contexts", python_contexts),
    ("the_npm_sdk_uploads_build_contexts", npm_contexts),
];

/// In a sandbox whose image is built for it.
pub const METHODS: &[Rule] = &[
    ("every_method_of_the_python_sdk_works_in_a_sandbox", python_methods),
    ("every_method_of_older_python_sdks_works_in_a_sandbox", older_python_methods),
    ("every_method_of_the_npm_sdk_works_in_a_sandbox", npm_methods),
];

pub const BROWSER: &[Rule] = &[("a_browser_shows_the_web_terminal_and_a_desktop", browser)];

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

fn python_methods(world: &World) {
    if let Some(python) = provided("ATOLL_PYTHON") {
        methods_of(world, python_in_both_modes(&python));
    }
}

fn older_python_methods(world: &World) {
    let pythons = provided("ATOLL_OLDER_PYTHONS").unwrap_or_default();
    methods_of(world, pythons.split_whitespace().flat_map(python_in_both_modes));
}

fn npm_methods(world: &World) {
    if provided("ATOLL_NODE_MODULES").is_some() {
        let mut node = in_time("node");
        node.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/methods.mjs"));
        methods_of(world, [node]);
    }
}

fn browser(world: &World) {
    if provided("ATOLL_NODE_MODULES").is_none() {
        return;
    }
    let sandbox = world.create_with(EU[0], json!({ "labels": toolbox::language() }));
    let desktop = desktop_on(world, sandbox.owner);
    let mut command = in_time("node");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/browser.mjs"));
    let node = &world.cluster.node(world.other_than(&sandbox)).http;
    command.args([&world.cluster.ready.api_key, node, &sandbox.id]);
    played(command.args(desktop.iter().map(|desktop| &desktop.id))).unwrap_or_else(|why| panic!("{why}"));
}

fn desktop_on(world: &World, node: usize) -> Option<Made<'_>> {
    let name = toolbox::desktop_snapshot(world)?;
    Some(world.create_of_large(node, json!({ "snapshot": name, "labels": toolbox::language() })))
}

fn python_in_both_modes(python: &str) -> [Command; 2] {
    ["sync", "async"].map(|mode| {
        let mut command = in_time(python);
        command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/methods.py"), mode]);
        command
    })
}

/// An SDK that waits for what never comes ends in a failure.
fn in_time(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["300", program]);
    command
}

/// Each through a node that doesn't own its sandboxes. One that fails does not hide the next.
fn methods_of(world: &World, commands: impl IntoIterator<Item = Command>) {
    let failures = commands.into_iter().filter_map(|command| methods(world, command).err());
    let failures: Vec<_> = failures.collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What is true of a version is told to users in a table.
fn methods(world: &World, mut command: Command) -> Result<(), String> {
    const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/COMPATIBILITY.md");
    let sandbox = toolbox::with_entrypoint(world);
    let desktop = desktop_on(world, sandbox.owner);
    let node = &world.cluster.node(world.other_than(&sandbox)).http;
    command.args([&world.cluster.ready.api_key, node, &sandbox.id]);
    let said = played(command.args(desktop.iter().map(|desktop| &desktop.id)))?;
    let counted = said.lines().rev().find_map(|line| line.strip_suffix(" methods called")?.split_once(": "));
    let (version, count) = counted.ok_or("it does not count its methods")?;
    let row = format!("| {version} | {count} |");
    let table = std::fs::read_to_string(TABLE).expect("the table is in the tree");
    if table.contains(&row) { Ok(()) } else { Err(format!("{TABLE} lacks the row {row}")) }
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
    let played = played(command.arg(&world.cluster.ready.api_key).args([node(0), node(1), node(2)]));
    played.unwrap_or_else(|failure| panic!("{failure}"));
}

/// To its end: what it said on the way.
fn played(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("the interpreter runs");
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() && said.contains("STORY COMPLETE") {
        Ok(said.into_owned())
    } else {
        Err(format!("{}\n{said}\n{complained}", output.status))
    }
}

/// What `deploy/test.sh` installs. Missing elsewhere is said loudly, and is a failure where everything is required.
pub fn provided(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    if value.is_none() {
        assert!(std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_none(), "{name} is not set");
        eprintln!("SKIPPED: {name} is not set; run deploy/test.sh");
    }
    value
}
