//! Two processes per node: what each may do, and that either can die without a sandbox noticing.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use atoll_chaos_tests::dev::{DevCluster, gone};
use atoll_chaos_tests::host_sandboxes;
use reqwest::Method;
use serde_json::{Value, json};

use crate::Rule;
use crate::world::World;

pub const RULES: &[Rule] = &[
    ("a_node_runs_without_any_right_of_root", node_has_no_rights),
    ("nobody_but_the_nodes_user_reaches_its_runner", strangers),
    ("a_killed_runner_costs_no_sandbox_and_is_found_again", killed_runner),
    ("a_killed_dev_leaves_nothing_behind", killed_dev),
    ("a_command_outlives_its_client_and_its_node", outliving_command),
];

/// `/proc/<pid>/status`, by name.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn node_has_no_rights(world: &World) {
    for index in 0..world.cluster.ready.nodes.len() {
        let node = status(world.cluster.pid(index));
        let uids: Vec<&str> = node["Uid"].split_whitespace().collect();
        assert!(uids.iter().all(|uid| *uid == uids[0] && *uid != "0"), "{uids:?}");
        assert_eq!(node["Groups"], "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&node[set], 16), Ok(0), "{set}");
        }
        assert_eq!(node["NoNewPrivs"], "1");
        // Only the small one is root.
        let runner = status(world.cluster.runner_pid(index).unwrap());
        assert_eq!(runner["Uid"].split_whitespace().next(), Some("0"));
        assert!(runner["Name"].contains("atoll") && node["Name"].contains("atoll"));
    }
}

fn strangers(world: &World) {
    let socket = world.cluster.runner_socket(0);
    // Of another thread, which ends after it: only its own user changes.
    let connected = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        UnixStream::connect(socket).map(drop)
    });

    let refused = connected.join().unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
}

fn killed_runner(world: &World) {
    let sandbox = world.create(0);
    let other = world.other_than(&sandbox);
    let first =
        |process: &str| world.exec(other, &sandbox, &format!("cut -d' ' -f22 /proc/{process}/stat")).1;
    let before = first("1");
    world.serve(&sandbox, 7000, "python3 -m http.server 7000");

    world.cluster.kill_runner(sandbox.owner).unwrap();
    let asked = Instant::now();
    let state = world.get(other, &format!("/sandbox/{}", sandbox.id)).expect(200).json();
    assert_eq!(state["state"], "started");
    assert!(asked.elapsed() < Duration::from_secs(1), "the node waits for nobody");
    world.cluster.restart_runner(sandbox.owner).unwrap();
    world.eventually(Duration::from_secs(10), || {
        let connected = UnixStream::connect(world.cluster.runner_socket(sandbox.owner));
        (connected.is_ok(), connected.err())
    });

    let back = Instant::now();
    assert_eq!(world.exec(other, &sandbox, "echo still"), (0, "still\n".into()));
    assert!(back.elapsed() < Duration::from_secs(1), "{:?} after its return", back.elapsed());
    assert_eq!(first("1"), before, "it is the same first process");
    let served = world.exec(other, &sandbox, "curl -sf http://127.0.0.1:7000/ >/dev/null && echo served");
    assert_eq!(served, (0, "served\n".into()), "what it started goes on");
    // And it is watched again: its end is noticed.
    world.api(other, Method::POST, &format!("/sandbox/{}/stop", sandbox.id), None).expect(200);
    world.eventually(Duration::from_secs(20), || {
        let state = world.get(other, &format!("/sandbox/{}", sandbox.id)).json()["state"].clone();
        (state == "stopped", state)
    });
}

fn killed_dev(world: &World) {
    let mut cluster =
        DevCluster::start(Path::new(env!("CARGO_BIN_EXE_atoll")), world.cluster.runtime, 1, "local")
            .expect("it starts");
    let create = world
        .http
        .post(format!("{}/sandbox", cluster.api(0)))
        .bearer_auth(&cluster.ready.api_key)
        .json(&json!({}));
    let id = world.send(create).expect(200).json()["id"].as_str().expect("an id").to_owned();
    let run = host_sandboxes::run_of(&cluster, &id).expect("it runs");

    let pids = cluster.kill_dev().unwrap();

    world.eventually(Duration::from_secs(60), || {
        let left: Vec<u32> = pids.iter().copied().filter(|pid| !gone(*pid)).collect();
        (left.is_empty(), left)
    });
    assert!(gone(run.pid as u32), "the sandbox's first process is there still");
    assert!(!host_sandboxes::has(&cluster, &id).unwrap());
}

/// A cluster of its own: the others go on while its node is away.
fn outliving_command(world: &World) {
    let cluster =
        DevCluster::start(Path::new(env!("CARGO_BIN_EXE_atoll")), world.cluster.runtime, 3, "local")
            .expect("it starts");
    let key = &cluster.ready.api_key;
    let post = |url: String, body: Value| world.send(world.http.post(url).bearer_auth(key).json(&body));
    let made = post(format!("{}/sandbox", cluster.api(0)), json!({})).expect(200).json();
    let (owner, _) = cluster.node_by_id(made["runnerId"].as_str().expect("an owner")).expect("one of ours");
    let other = (owner + 1) % 3;
    let session = |node: usize| {
        let sandbox = made["id"].as_str().expect("an id");
        format!("{}/toolbox/{sandbox}/process/session", cluster.node(node).http)
    };
    post(session(owner), json!({ "sessionId": "s" })).expect(201);
    let command = "for i in $(seq 60); do echo $i; sleep 0.05; done; exit 7";
    let started = post(format!("{}/s/exec", session(owner)), json!({ "command": command, "runAsync": true }));
    let id = started.expect(202).json()["cmdId"].as_str().expect("an id").to_owned();

    cluster.kill(owner).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    cluster.restart(owner).unwrap();

    let at = format!("{}/s/command/{id}", session(other));
    let get = |url: &str| world.send(world.http.get(url).bearer_auth(key));
    world.eventually(Duration::from_secs(30), || {
        let shown = get(&at);
        (shown.status == 200 && shown.json()["exitCode"] == 7, shown.body)
    });
    let logs = get(&format!("{at}/logs")).expect(200);
    let expected: String = (1..=60).map(|number| format!("{number}\n")).collect();
    assert_eq!(logs.body, expected, "also what it wrote while its node was away");
}
