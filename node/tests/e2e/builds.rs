//! Images from Dockerfiles, without Docker: for a sandbox, and for a snapshot.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use atoll_chaos_tests::dev::DevCluster;
use reqwest::Method;
use serde_json::{Value, json};

use crate::Rule;
use crate::sdk;
use crate::world::{EU, Made, US, World};

pub const RULES: &[Rule] = &[
    ("a_sandbox_is_made_from_a_dockerfile_and_the_next_one_at_once", for_a_sandbox),
    ("a_build_is_followed_live_through_any_node_and_goes_on_without_viewers", live_log),
    ("a_build_that_fails_says_why_and_is_tried_again_when_asked_again", failure),
    ("a_snapshot_is_built_under_its_name_and_used_in_every_region", for_a_snapshot),
    ("a_build_survives_the_node_that_does_it", another_node_goes_on),
    ("a_sandbox_that_waits_for_its_build_can_be_deleted", deleted_meanwhile),
    ("the_python_sdks_images_are_built", python),
    ("the_npm_sdks_images_are_built", npm),
];

const PATIENCE: Duration = Duration::from_secs(120);

fn build_info(dockerfile: &str) -> Value {
    json!({ "buildInfo": { "dockerfileContent": dockerfile } })
}

/// Nobody else's: what is built once is not built again.
fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn base(world: &World) -> &str {
    &world.cluster.ready.default_snapshot
}

fn created(world: &World, node: usize, body: Value) -> Value {
    world.api(node, Method::POST, "/sandbox", Some(body)).expect(200).json()
}

fn settled(world: &World, node: usize, id: &str) -> Value {
    world.eventually(PATIENCE, || {
        let shown = world.get(node, &format!("/sandbox/{id}")).expect(200).json();
        let state = shown["state"].as_str().expect("a state").to_owned();
        (!["pending_build", "building_snapshot", "creating"].contains(&state.as_str()), shown)
    })
}

/// Followed by curl, as the command-line client does it.
fn follow(world: &World, node: usize, path: &str) -> std::process::Child {
    let url = format!("{}/api{path}/build-logs?follow=true", world.cluster.node(node).http);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-N", "--fail", "-H"])
        .arg(format!("Authorization: Bearer {}", world.cluster.ready.api_key));
    curl.arg(url).stdout(Stdio::piped()).spawn().expect("curl is installed")
}

fn whole_log(world: &World, node: usize, path: &str) -> String {
    let output = follow(world, node, path).wait_with_output().expect("curl ends");
    assert!(output.status.success(), "curl: {}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn for_a_sandbox(world: &World) {
    let mark = unique();
    let dockerfile = format!(
        "FROM {}\nENV MARK={mark}\nRUN mkdir -p /srv/app && echo built by $(id -un) > /srv/app/proof\n\
         WORKDIR /srv/app\nUSER daytona\n",
        base(world)
    );
    let made = created(world, EU[0], build_info(&dockerfile));
    let id = made["id"].as_str().unwrap();
    assert_eq!(made["state"], "pending_build", "{made}");
    assert_eq!(made["buildInfo"]["dockerfileContent"], dockerfile);
    assert_eq!(made.get("snapshot"), None);

    let shown = settled(world, EU[2], id);
    assert_eq!(shown["state"], "started", "{shown}");
    assert_eq!((&shown["user"], shown["errorReason"].is_null()), (&json!("daytona"), true), "{shown}");
    let sandbox = world.made(&shown);
    let proof = (0, format!("built by root\n{mark}\n/srv/app\n"));
    assert_eq!(world.exec(EU[1], &sandbox, "cat proof; echo $MARK; pwd"), proof);
    let log = whole_log(world, US, &format!("/sandbox/{id}"));
    assert!(log.contains("Step 3/5 : RUN mkdir") && log.ends_with("Built\n"), "{log}");
    let url = world.get(1, &format!("/sandbox/{id}/build-logs-url")).expect(200).json();
    assert_eq!(url["url"], format!("{}/api/sandbox/{id}/build-logs", world.cluster.node(1).http));

    // What is built already is as good as a snapshot, in any region.
    for node in [EU[1], US] {
        let again = created(world, node, build_info(&dockerfile));
        assert_eq!((&again["state"], &again["user"]), (&json!("started"), &json!("daytona")), "{again}");
        assert_eq!(again["buildInfo"]["dockerfileContent"], dockerfile);
        assert_eq!(world.exec(EU[0], &world.made(&again), "cat proof; echo $MARK; pwd"), proof);
    }
    let listed = world.get(0, "/snapshots?limit=200").expect(200);
    assert!(!listed.body.contains(&mark), "a sandbox's own build is in no list");
}

fn live_log(world: &World) {
    let mark = unique();
    let dockerfile = format!(
        "FROM {}\nRUN echo first-{mark}\nRUN for i in $(seq 20); do echo tick $i; sleep 0.2; done; echo last-{mark}\n",
        base(world)
    );
    let made = created(world, EU[0], build_info(&dockerfile));
    let path = format!("/sandbox/{}", made["id"].as_str().unwrap());
    let mut leaving = follow(world, US, &path);
    let mut lines = BufReader::new(leaving.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "tick 3"));
    // Long before the end.
    let state = world.get(EU[1], &path).expect(200).json();
    assert_eq!(state["state"], "building_snapshot", "{state}");
    leaving.kill().unwrap();
    leaving.wait().unwrap();

    let log = whole_log(world, EU[1], &path);

    assert!(log.contains(&format!("first-{mark}\n")) && log.contains(&format!("\nlast-{mark}\n")), "{log}");
    assert_eq!(log.matches("tick 3\n").count(), 1, "{log}");
    assert_eq!(settled(world, US, made["id"].as_str().unwrap())["state"], "started");
    let _keep: Made<'_> = world.made(&made);
}

fn failure(world: &World) {
    let mark = unique();
    let dockerfile = format!("FROM {}\nRUN echo it broke: {mark}; exit 7\n", base(world));
    let made = created(world, EU[0], build_info(&dockerfile));
    let sandbox = world.made(&made);
    let shown = settled(world, EU[1], &sandbox.id);
    assert_eq!(shown["state"], "build_failed", "{shown}");
    let reason = shown["errorReason"].as_str().unwrap();
    assert!(
        reason.contains("line 2") && reason.contains("exit code 7") && reason.contains(&mark),
        "{reason}"
    );
    let refused = world.api(0, Method::POST, &format!("/sandbox/{}/start", sandbox.id), None).expect(400);
    assert!(refused.body.contains("not built"), "{}", refused.body);
    let log = whole_log(world, US, &format!("/sandbox/{}", sandbox.id));
    assert!(log.contains(&format!("it broke: {mark}\n")), "{log}");

    let again = world.made(&created(world, EU[2], build_info(&dockerfile)));
    assert_eq!(settled(world, EU[1], &again.id)["state"], "build_failed");

    let missing = format!("FROM registry.invalid/{mark}:1\n");
    let missing = world.made(&created(world, EU[0], build_info(&missing)));
    let shown = settled(world, EU[0], &missing.id);
    assert!(shown["errorReason"].as_str().unwrap().contains("registry.invalid"), "{shown}");
    for (dockerfile, word) in [("RUN true\n", "line 1"), ("FROM a\nNONSENSE\n", "line 2")] {
        let refused = world.api(0, Method::POST, "/sandbox", Some(build_info(dockerfile))).expect(400);
        assert!(refused.body.contains(word), "{}", refused.body);
    }
    let foreign = format!("FROM atoll.internal/{}/x:1\n", uuid::Uuid::nil());
    let foreign = world.made(&created(world, EU[0], build_info(&foreign)));
    let shown = settled(world, EU[0], &foreign.id);
    assert!(shown["errorReason"].as_str().unwrap().contains("your organization"), "{shown}");
}

fn for_a_snapshot(world: &World) {
    let mark = unique();
    let name = format!("e2e-built-{mark}");
    let dockerfile = format!(
        "FROM {} AS tools\nRUN echo {mark} > /tool\nFROM {}\nCOPY --from=tools /tool /usr/local/share/tool\n\
         ENTRYPOINT [\"sleep\", \"infinity\"]\n",
        base(world),
        base(world)
    );
    let wish = json!({
        "name": name, "cpu": 2, "buildInfo": { "dockerfileContent": dockerfile, "contextHashes": [] },
    });
    let made = world.api(EU[0], Method::POST, "/snapshots", Some(wish)).expect(200).json();
    assert!(["pending", "building"].contains(&made["state"].as_str().unwrap()), "{made}");
    let path = format!("/snapshots/{}", made["id"].as_str().unwrap());
    let log = whole_log(world, EU[1], &path);
    assert!(log.ends_with("Built\n"), "{log}");
    let active = world.eventually(PATIENCE, || {
        let shown = world.get(US, &path).expect(200).json();
        (shown["state"] == "active", shown)
    });
    assert_eq!(active["entrypoint"], json!(["sleep", "infinity"]));
    assert_eq!(active["buildInfo"]["dockerfileContent"], dockerfile);
    for node in [EU[2], US] {
        let sandbox = world.create_with(node, json!({ "snapshot": name }));
        assert_eq!(world.exec(EU[0], &sandbox, "cat /usr/local/share/tool"), (0, format!("{mark}\n")));
    }
    world.api(1, Method::DELETE, &path, None).expect(200);
}

/// On a cluster of its own: the others' sandboxes must not lose their node.
fn another_node_goes_on(outer: &World) {
    let runtime = outer.cluster.runtime;
    let cluster = DevCluster::start(Path::new(env!("CARGO_BIN_EXE_atoll")), runtime, 3, "eu,eu,eu");
    let world = &World::new(cluster.expect("the cluster starts"));
    let mark = unique();
    let name = format!("e2e-orphan-{mark}");
    let dockerfile = format!("FROM {}\nRUN echo {mark}; sleep 8\n", base(world));
    let wish = json!({ "name": name, "regionId": "eu", "buildInfo": { "dockerfileContent": dockerfile } });
    let made = world.api(0, Method::POST, "/snapshots", Some(wish)).expect(200).json();
    let path = format!("/snapshots/{}", made["id"].as_str().unwrap());
    let builds = world.eventually(PATIENCE, || {
        let shown = world.get(0, &path).expect(200).json();
        (shown["state"] == "building", shown)
    });
    let worker = builds["initialRunnerId"].as_str().unwrap().to_owned();
    let index =
        EU.into_iter().find(|index| world.cluster.node(*index).id == worker).expect("a node of the region");
    let other = (index + 1) % EU.len();
    let viewer = follow(world, other, &path);

    world.cluster.kill(index).expect("the node is killed");

    let active = world.eventually(PATIENCE, || {
        let shown = world.get(other, &path).expect(200).json();
        (shown["state"] == "active", shown)
    });
    assert_ne!(active["initialRunnerId"], worker, "{active}");
    let log = viewer.wait_with_output().expect("curl ends");
    let log = String::from_utf8(log.stdout).expect("text");
    assert!(log.ends_with("Built\n"), "the viewer saw the other node's attempt: {log}");
}

fn python(world: &World) {
    sdk::python_that_uploads(world, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/builds.py"));
}

fn npm(world: &World) {
    sdk::npm_that_uploads(world, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/builds.mjs"));
}

fn deleted_meanwhile(world: &World) {
    let dockerfile = format!("FROM {}\nRUN echo {}; sleep 5\n", base(world), unique());
    let made = created(world, EU[0], build_info(&dockerfile));
    let path = format!("/sandbox/{}", made["id"].as_str().unwrap());

    world.api(EU[1], Method::DELETE, &path, None).expect(200);

    world.eventually(PATIENCE, || {
        let answer = world.get(EU[2], &path);
        (answer.status == 404, answer.body)
    });
    let again = world.made(&created(world, EU[2], build_info(&dockerfile)));
    assert_eq!(settled(world, EU[0], &again.id)["state"], "started", "its build went on");
}
