//! Who may join and stay: tokens that run out, expire or pin another CA, and nodes that were removed.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_chaos_tests::dev;
use atoll_runner::{DockerConfig, DockerRuntime, Runtime};
use reqwest::Method;
use serde_json::{Value, json};

use crate::Rule;
use crate::world::World;

pub const RULES: &[Rule] = &[
    ("a_used_up_token_is_refused_with_a_clear_error", used_up),
    ("a_token_for_another_cluster_is_refused_by_its_pin", wrong_pin),
    ("the_ready_file_joins_another_node_and_a_removed_one_is_out", join_and_remove),
];

fn token(world: &World, ttl_s: u64, uses: u32) -> String {
    let body = json!({ "ttlSeconds": ttl_s, "uses": uses });
    let answer = world.api(0, Method::POST, "/cluster/tokens", Some(body));
    assert!(answer.status < 300, "{}", answer.body);
    answer.json()["token"].as_str().expect("a token").to_owned()
}

fn join(world: &World, token: &str, dir: &Path, base_port: u16) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atoll"))
        .args(["node", "join", "--peer", &world.cluster.node(0).mesh, "--token", token, "--region", "eu"])
        .args([
            "--no-start",
            "--base-port",
            &base_port.to_string(),
            "--name",
            &format!("joiner-{base_port}"),
            "--data-dir",
        ])
        .arg(dir)
        .output()
        .expect("atoll runs")
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Nodes that only joined and never ran would be members for ever.
fn remove(world: &World, name: &str) {
    let id = node_id(world, name).expect("the node is a member");
    let answer = world.api(1, Method::DELETE, &format!("/cluster/nodes/{id}"), None);
    assert!(answer.status < 300, "{}", answer.body);
}

fn node_id(world: &World, name: &str) -> Option<String> {
    let cluster = world.get(1, "/cluster").expect(200).json();
    let nodes = cluster["nodes"].as_array().unwrap();
    let found = nodes.iter().find(|node| node["name"] == name)?;
    Some(found["id"].as_str().unwrap().to_owned())
}

fn used_up(world: &World) {
    let token = token(world, 60, 1);
    let dir = tempfile::tempdir().unwrap();

    let first = join(world, &token, &dir.path().join("a"), 40_000);
    let second = join(world, &token, &dir.path().join("b"), 40_010);

    assert!(first.status.success(), "{}", complaint(&first));
    assert!(!second.status.success());
    assert!(complaint(&second).contains("used up"), "{}", complaint(&second));
    remove(world, "joiner-40000");
}

fn wrong_pin(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let foreign = Command::new(env!("CARGO_BIN_EXE_atoll"))
        .args(["cluster", "init", "--region", "eu", "--base-port", "40020", "--data-dir"])
        .arg(dir.path().join("other"))
        .output()
        .expect("atoll runs");
    assert!(foreign.status.success(), "{}", complaint(&foreign));
    let ca = std::fs::read_to_string(dir.path().join("other/ca.pem")).unwrap();
    let ca = atoll_certs::ca::CaCertificate::from_pem(&ca).unwrap();
    let token = atoll_certs::join_token::JoinToken::generate(ca.fingerprint()).reveal();

    let refused = join(world, &token, &dir.path().join("c"), 40_030);

    assert!(!refused.status.success());
    assert!(complaint(&refused).contains("CA"), "{}", complaint(&refused));
    let garbage = join(world, "atl1.nonsense", &dir.path().join("d"), 40_040);
    assert!(!garbage.status.success() && complaint(&garbage).contains("token"), "{}", complaint(&garbage));
}

fn join_and_remove(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let command = &world.cluster.ready.join_command;
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut node = Command::new(&command[0])
        .args(&command[1..])
        .args(["--base-port", "30500", "--name", "late", "--data-dir"])
        .arg(dir.path().join("data"))
        .stderr(log)
        .spawn()
        .expect("atoll runs");
    let logged = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();

    let ready = "http://127.0.0.1:30500/api/health/ready";
    world.eventually(Duration::from_secs(20), || {
        let request = world.http.get(ready);
        let up =
            world.block_on(async { request.send().await.is_ok_and(|answer| answer.status().is_success()) });
        (up, logged())
    });
    let id = node_id(world, "late").expect("the node is a member");
    let list = world.http.get("http://127.0.0.1:30500/api/sandbox").bearer_auth(&world.cluster.ready.api_key);
    world.send(list).expect(200);

    remove(world, "late");
    let out = world.eventually(Duration::from_secs(20), || {
        let cluster: Value = world.get(1, "/cluster").expect(200).json();
        (!cluster.to_string().contains(&id), cluster)
    });
    // Other trials' nodes may come and go meanwhile.
    assert!(world.cluster.ready.nodes.iter().all(|node| out.to_string().contains(&node.id)), "{out}");
    // It is out of the mesh: it can no longer decide or read anything.
    world.eventually(Duration::from_secs(20), || {
        let request =
            world.http.get("http://127.0.0.1:30500/api/sandbox").bearer_auth(&world.cluster.ready.api_key);
        let status =
            world.block_on(async { request.send().await.map_or(0, |answer| answer.status().as_u16()) });
        (status == 503, status)
    });
    dev::signal(node.id(), "TERM").unwrap();
    node.wait().unwrap();
    // A node that stops leaves its network and rules for its next start. This one has none.
    match world.cluster.runtime {
        dev::Runtime::Docker => {
            let config = DockerConfig::for_node(id.parse::<NodeId>().unwrap());
            world.block_on(async { DockerRuntime::new(config).unwrap().teardown().await.unwrap() });
        }
        dev::Runtime::Embedded => {
            // A runner whose parent ends removes what was its.
            let runner = "\"$0\" runner --remove-with-parent --config \"$1\" --parent $$ & sleep 2";
            let mut parent = Command::new("sh");
            parent.args(["-c", runner, env!("CARGO_BIN_EXE_atoll")]).arg(dir.path().join("data/node.toml"));
            // Its output ends when the runner does.
            assert!(parent.output().unwrap().status.success());
            let link = std::path::PathBuf::from(format!("/sys/class/net/atl{}", &id[..8]));
            assert!(!link.exists(), "{} is left", link.display());
        }
    }
}
