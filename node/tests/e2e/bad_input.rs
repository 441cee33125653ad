//! Requests that nobody means, made up by a program (schemathesis) from what the toolbox documents, through a node that doesn't own
//! the sandbox. Whatever they are, the daemon answers, says what is wrong, and goes on.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::Rule;
use crate::toolbox::{self, facts, openapi};
use crate::world::{EU, World};

pub const RULES: &[Rule] = &[("no_request_makes_the_daemon_fail_or_hang", made_up_requests)];

/// Of each operation and phase.
const EXAMPLES_MAX: &str = "15";
const REQUEST_DEADLINE_S: &str = "30";
const RUN_DEADLINE: Duration = Duration::from_secs(300);
const RESIDENT_KB_MAX: u64 = 64 * 1024;

fn made_up_requests(world: &World) {
    let Some(schemathesis) = crate::sdk::provided("ATOLL_SCHEMATHESIS") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let facts = std::fs::read_to_string(facts::FILE).expect("the facts are in the tree");
    let document = openapi::document(&serde_json::from_str(&facts).expect("JSON"));
    std::fs::write(dir.path().join("openapi.json"), document.to_string()).expect("it is written");
    let sandbox = world.create_with(EU[0], json!({ "labels": toolbox::language() }));
    let node = world.other_than(&sandbox);
    let log = std::fs::File::create(dir.path().join("log")).expect("a file");
    let mut run = Command::new(schemathesis)
        .arg("--config-file")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/toolbox/schemathesis.toml"))
        .args([
            "run",
            "openapi.json",
            "--url",
            &format!("{}/toolbox/{}", world.cluster.node(node).http, sandbox.id),
        ])
        .args(["--header", &format!("Authorization: Bearer {}", world.cluster.ready.api_key)])
        .args(["--checks", "not_a_server_error,response_schema_conformance"])
        // With more than one worker CPython 3.11 fails now and then: its parser's depth is the interpreter's, not the thread's.
        .args(["--phases", "coverage,fuzzing", "--max-examples", EXAMPLES_MAX, "--workers", "1"])
        .args(["--generation-deterministic", "--no-shrink"])
        .args([
            "--request-timeout",
            REQUEST_DEADLINE_S,
            "--continue-on-failure",
            "--no-color",
            "--warnings",
            "off",
        ])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file"))
        .stderr(log)
        .spawn()
        .expect("schemathesis runs");
    let deadline = Instant::now() + RUN_DEADLINE;
    let ended = loop {
        match run.try_wait().expect("it can be waited for") {
            Some(status) => break Some(status),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            None => {
                run.kill().expect("it is ours");
                run.wait().expect("it is ours");
                break None;
            }
        }
    };
    let said = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}\n{said}");

    // What was asked may have changed what commands find; it has not changed the daemon.
    let request = world.toolbox(node, &sandbox, Method::GET, "/version");
    assert!(world.send(request).expect(200).json()["version"].is_string());
    // Where it works otherwise may be gone. `cat` reads it all at once; a shell goes back and forth in a text that changes meanwhile.
    let status = json!({ "cwd": "/", "command": "cat /proc/1/status" });
    let request = world.toolbox(node, &sandbox, Method::POST, "/process/execute").json(&status);
    let answer: Value = world.send(request).expect(200).json();
    let resident: u64 = answer["result"]
        .as_str()
        .and_then(|status| status.lines().find_map(|line| line.strip_prefix("VmRSS:")))
        .and_then(|size| size.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or_else(|| panic!("{answer}"));
    assert!(resident < RESIDENT_KB_MAX, "the daemon takes {resident} KiB");
}
