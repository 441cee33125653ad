//! Every operation of the toolbox, called for real on a running sandbox through a node that doesn't own it, and the table of them:
//! `daemon/COVERAGE.md`. With ATOLL_WRITE_COVERAGE=1 the table is written anew; otherwise it must be as it is.

pub mod facts;
pub mod openapi;
mod steps;
mod walk;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{EU, Made, World};
use crate::{Rule, registry};
use facts::Facts;
use walk::{Outcome, Walk};

pub const RULES: &[Rule] = &[
    ("every_operation_of_the_toolbox_is_served_as_documented", coverage),
    ("every_operation_of_the_toolbox_is_served_below_the_old_path_too", old_path),
];

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../daemon/COVERAGE.md");
const WRITE: &str = "ATOLL_WRITE_COVERAGE";

type Outcomes = BTreeMap<String, Outcome>;

fn coverage(world: &World) {
    let facts = Facts::read();
    let sandbox = with_entrypoint(world);
    let prefix = format!("/toolbox/{}", sandbox.id);
    let mut outcomes = walked(world, &facts, &sandbox, prefix);
    with_desktop(world, &facts, &mut outcomes);

    let table = table(&facts, &outcomes);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(TABLE, &table).expect("the table is written");
    }
    expect_served(&facts, &outcomes);
    let committed = std::fs::read_to_string(TABLE).unwrap_or_default();
    assert!(committed == table, "{TABLE} is not what it should be; run this again with {WRITE}=1:\n{table}");
}

fn old_path(world: &World) {
    let facts = Facts::read();
    let sandbox = with_entrypoint(world);
    let prefix = format!("/api/toolbox/{}/toolbox", sandbox.id);
    expect_served(&facts, &walked(world, &facts, &sandbox, prefix));
}

/// The SDKs refuse a sandbox that isn't for theirs.
pub fn language() -> Value {
    json!({ "code-toolbox-language": "python" })
}

/// The default snapshot has no entrypoint to look at.
pub fn with_entrypoint(world: &World) -> Made<'_> {
    let name = format!("with-entrypoint-{}", uuid::Uuid::new_v4().simple());
    let image = registry::push_base(world, &format!("{name}:1"));
    let program = "echo the entrypoint runs; exec sleep infinity";
    let wish = json!({ "name": name, "imageName": image, "entrypoint": ["sh", "-c", program] });
    world.api(EU[0], Method::POST, "/snapshots", Some(wish)).expect(200);
    world.eventually(Duration::from_secs(60), || {
        let shown = world.get(EU[0], &format!("/snapshots/{name}")).expect(200).json();
        assert_ne!(shown["state"], "error", "{shown}");
        (shown["state"] == "active", shown)
    });
    world.create_with(EU[0], json!({ "snapshot": name, "user": "daytona", "labels": language() }))
}

fn walked(world: &World, facts: &Facts, sandbox: &Made<'_>, prefix: String) -> Outcomes {
    let mut walk = Walk::new(world, facts, sandbox, prefix);
    steps::info(&mut walk);
    steps::files(&mut walk);
    steps::commands(&mut walk);
    steps::sessions(&mut walk);
    steps::terminals(&mut walk);
    steps::interpreters(&mut walk);
    steps::ports(&mut walk);
    steps::git(&mut walk);
    steps::language_servers(&mut walk);
    steps::computer_use(&mut walk);
    steps::extras(&mut walk);
    steps::web_terminal(&mut walk);
    // Nothing that was asked has harmed it.
    assert_eq!(walk.run("echo well"), "well\n");
    walk.outcomes
}

/// Where it is built. Missing, it is said loudly, and is a failure where everything is required.
pub fn desktop_snapshot(world: &World) -> Option<String> {
    let snapshots = world.get(EU[0], "/snapshots?limit=200").expect(200).json();
    let mut names =
        snapshots["items"].as_array().expect("a list").iter().filter_map(|item| item["name"].as_str());
    let found = names.find(|name| name.contains("desktop")).map(str::to_owned);
    if found.is_none() {
        assert!(std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_none(), "there is no desktop snapshot");
        eprintln!("SKIPPED: computer use for real; build the desktop snapshot");
    }
    found
}

/// What needs a desktop is called for real where there is one. What fails there counts; what it says otherwise is the default
/// snapshot's.
fn with_desktop(world: &World, facts: &Facts, outcomes: &mut Outcomes) {
    let Some(name) = desktop_snapshot(world) else { return };
    let sandbox = world.create_of_large(EU[0], json!({ "snapshot": name }));
    let prefix = format!("/toolbox/{}", sandbox.id);
    let mut walk = Walk::new(world, facts, &sandbox, prefix);
    steps::computer_use(&mut walk);
    for (operation, outcome) in walk.outcomes {
        match outcome {
            Outcome::Served => {}
            Outcome::NeedsDesktop => {
                outcomes.insert(operation, Outcome::Failed("503 in the desktop snapshot".into()));
            }
            failed => {
                outcomes.insert(operation, failed);
            }
        }
    }
}

fn expect_served(facts: &Facts, outcomes: &Outcomes) {
    let untried = facts.operations.iter().filter(|operation| !outcomes.contains_key(&operation.name));
    let untried = untried.map(|operation| format!("{}: nobody called it", operation.name));
    let failed = outcomes.iter().filter_map(|(name, outcome)| match outcome {
        Outcome::Failed(why) => Some(format!("{name}: {why}")),
        Outcome::NeedsDesktop if !is_computer_use(facts, name) => Some(format!("{name}: 503")),
        Outcome::NeedsDesktop | Outcome::Served => None,
    });
    let complaints: Vec<_> = untried.chain(failed).collect();
    assert!(
        complaints.is_empty(),
        "{} are not served as documented:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

fn is_computer_use(facts: &Facts, name: &str) -> bool {
    facts.operations.iter().any(|operation| operation.name == name && operation.group == "computer_use")
}

fn table(facts: &Facts, outcomes: &Outcomes) -> String {
    let served = |name: &str| matches!(outcomes.get(name), Some(Outcome::Served | Outcome::NeedsDesktop));
    let count = facts.operations.iter().filter(|operation| served(&operation.name)).count();
    let mut text = format!(
        "# What the toolbox serves\n\n\
         Written by a test (`node/tests/e2e/toolbox.rs`), which calls each of these on a running sandbox through a node that doesn't own\n\
         it, and compares status and answer with what `node/tests/e2e/toolbox_operations.json` has from the public client 0.226.1.\n\n\
         **{count} of {} operations are served.** What needs the `atoll-desktop` snapshot answers 503 in another one, and is called for real\n\
         where that snapshot is built. All of them also work below `/api/toolbox/{{sandboxId}}/toolbox`, where SDKs up to 0.110 look.\n",
        facts.operations.len()
    );
    let word = |name: &str| match outcomes.get(name) {
        Some(Outcome::Served) => "served",
        Some(Outcome::NeedsDesktop) => "served, needs the `atoll-desktop` snapshot",
        Some(Outcome::Failed(_)) | None => "**not served as documented**",
    };
    let mut group = "";
    for operation in &facts.operations {
        if operation.group != group {
            group = &operation.group;
            write!(
                text,
                "\n## {}\n\n| operation | request | success | answer | |\n|---|---|---|---|---|\n",
                group.replace('_', " ")
            )
            .unwrap();
        }
        let success = operation.success.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let row = [
            &operation.name,
            &format!("`{} {}`", operation.method, operation.path),
            &success,
            &operation.answer,
            word(&operation.name),
        ];
        writeln!(text, "| {} |", row.join(" | ")).unwrap();
    }
    text += "\n## outside the client's list\n\n| request | |\n|---|---|\n";
    for name in outcomes.keys().filter(|name| name.contains(' ')) {
        writeln!(text, "| `{name}` | {} |", word(name)).unwrap();
    }
    text
}
