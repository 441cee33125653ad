//! Sandboxes that run before anybody has asked for them, on a cluster of their own: elsewhere every create would take them.

use std::path::Path;
use std::time::{Duration, Instant};

use atoll_chaos_tests::dev::DevCluster;
use reqwest::Method;
use serde_json::{Value, json};

use crate::Rule;
use crate::world::{EU, Made, US, World};

pub const RULES: &[Rule] = &[("warm_pools_fill_serve_refill_make_room_and_drain", life_of_a_pool)];

/// For a pool to become as full as it is to be.
const FILLED_WITHIN: Duration = Duration::from_secs(60);

fn life_of_a_pool(outer: &World) {
    let runtime = outer.cluster.runtime;
    let cluster = DevCluster::start(Path::new(env!("CARGO_BIN_EXE_atoll")), runtime, 4, "eu,eu,eu,us");
    let world = World::new(cluster.expect("the cluster starts"));
    // One failure must not leave the others' logs unseen.
    let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let pool = fills(&world);
        serves_whom_it_fits(&world, &pool);
        concurrent_claims_differ(&world, &pool);
        nobody_is_handed_what_is_half_made(&world, &pool);
        survives_its_node(&world, &pool);
        leaves_and_makes_room(&world);
        drains(&world, &pool);
    }));
    if let Err(panic) = story {
        eprintln!("{}", world.cluster.logs());
        std::panic::resume_unwind(panic);
    }
}

fn pools(world: &World, node: usize) -> Vec<Value> {
    world.get(node, "/warm-pools").expect(200).json().as_array().expect("a list").clone()
}

fn until_size(world: &World, pool: &str, size: u32) -> Value {
    world.eventually(FILLED_WITHIN, || {
        let found = pools(world, 0).into_iter().find(|found| found["id"] == pool).expect("the pool is there");
        (found["currentSize"] == size, found)
    })
}

fn make(world: &World, size: u32, target: &str) -> String {
    let snapshot = &world.cluster.ready.default_snapshot;
    let body = json!({ "snapshot": snapshot, "pool": size, "target": target });
    let pool = world.api(1, Method::POST, "/warm-pools", Some(body)).expect(201).json();
    assert_eq!((&pool["pool"], &pool["target"]), (&json!(size), &json!(target)));
    pool["id"].as_str().expect("an id").to_owned()
}

fn fills(world: &World) -> String {
    let pool = make(world, 3, "eu");

    let full = until_size(world, &pool, 3);

    assert_eq!(full["errorReason"], Value::Null, "{full}");
    for node in EU {
        assert_eq!(pools(world, node).len(), 1);
        let listed = world.get(node, "/sandbox").expect(200).json();
        assert_eq!(listed["items"], json!([]), "a member is nobody's");
    }
    // In the other region too it is seen, and counted by asking.
    assert_eq!(pools(world, US)[0]["currentSize"], 3);
    let again = json!({ "snapshot": world.cluster.ready.default_snapshot, "pool": 1, "target": "eu" });
    let refused = world.api(0, Method::POST, "/warm-pools", Some(again)).expect(409);
    assert!(refused.body.contains(&pool), "{}", refused.body);
    let elsewhere = json!({ "snapshot": world.cluster.ready.default_snapshot, "pool": 1, "target": "mars" });
    world.api(0, Method::POST, "/warm-pools", Some(elsewhere)).expect(400);
    let unknown = json!({ "snapshot": "no-such-snapshot", "pool": 1 });
    world.api(0, Method::POST, "/warm-pools", Some(unknown)).expect(404);
    pool
}

/// As it is made: with what a create may say beside the snapshot.
fn claim<'w>(world: &'w World, node: usize, pool: &str, name: &str) -> Made<'w> {
    let body = json!({
        "name": name, "env": { "COLOR": "blue" }, "user": "root", "labels": { "a": "b" }, "public": true,
        "autoStopInterval": 7, "networkBlockAll": true,
    });
    let made = world.api(node, Method::POST, "/sandbox", Some(body)).expect(200).json();
    assert_eq!(made["warmPoolId"], pool, "{made}");
    let expected = (&json!("started"), &json!(name), &json!("b"), &json!(true), &json!(true), &json!(7));
    let got = (
        &made["state"],
        &made["name"],
        &made["labels"]["a"],
        &made["public"],
        &made["networkBlockAll"],
        &made["autoStopInterval"],
    );
    assert_eq!(got, expected, "{made}");
    world.made(&made)
}

fn is_whose_it_is(world: &World, sandbox: &Made<'_>) {
    let who = "echo $COLOR $(whoami) $HOME $DAYTONA_SANDBOX_USER $DAYTONA_SANDBOX_ID $(hostname) $(pwd)";
    let expected = format!("blue root /root root {id} {id} /root\n", id = sandbox.id);
    for node in EU {
        assert_eq!(world.exec(node, sandbox, who), (0, expected.clone()));
    }
}

fn serves_whom_it_fits(world: &World, pool: &str) {
    let mut claimed = Vec::new();
    for node in EU {
        until_size(world, pool, 3);
        let sandbox = claim(world, node, pool, &format!("mine-{node}"));
        is_whose_it_is(world, &sandbox);
        // A name that is taken is refused as ever, and costs no member.
        until_size(world, pool, 3);
        let taken = json!({ "name": format!("mine-{node}") });
        world.api(node, Method::POST, "/sandbox", Some(taken)).expect(409);
        assert_eq!(until_size(world, pool, 3)["currentSize"], 3);
        claimed.push(sandbox);
    }
    // What is asked for with other resources is made as ever.
    let other = world.create_with(0, json!({ "memory": 2 }));
    assert_eq!(world.get(1, &format!("/sandbox/{}", other.id)).expect(200).json()["warmPoolId"], Value::Null);
    // A stop and a start keep what the claim said.
    let first = &claimed[0];
    for verb in ["stop", "start"] {
        world.api(2, Method::POST, &format!("/sandbox/{}/{verb}", first.id), None).expect(200);
    }
    is_whose_it_is(world, first);
}

fn concurrent_claims_differ(world: &World, pool: &str) {
    until_size(world, pool, 3);

    let made: Vec<Value> = std::thread::scope(|scope| {
        let create =
            |node| move || world.api(node, Method::POST, "/sandbox", Some(json!({}))).expect(200).json();
        let creates: Vec<_> = EU.into_iter().map(|node| scope.spawn(create(node))).collect();
        creates.into_iter().map(|create| create.join().expect("it is answered")).collect()
    });

    let made: Vec<Made<'_>> = made.iter().map(|made| world.made(made)).collect();
    let ids: std::collections::BTreeSet<&str> = made.iter().map(|sandbox| sandbox.id.as_str()).collect();
    assert_eq!(ids.len(), 3);
    for sandbox in &made {
        assert_eq!(world.exec(0, sandbox, "whoami"), (0, "daytona\n".into()));
    }
}

fn nobody_is_handed_what_is_half_made(world: &World, pool: &str) {
    until_size(world, pool, 3);
    let ask = |extra: Value| {
        let mut body = json!({ "user": "ghost", "env": { "COLOR": "blue" } });
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let made = world.api(0, Method::POST, "/sandbox", Some(body)).expect(200).json();
        let _removed_at_the_end = world.made(&made);
        (made["state"].clone(), made["errorReason"].clone(), made["warmPoolId"].clone())
    };

    let warm = ask(json!({}));
    let cold = ask(json!({ "memory": 2 }));

    assert_eq!(warm, cold, "the same refusal, warm or cold");
    assert_eq!(warm.0, "error");
    until_size(world, pool, 3);
}

fn survives_its_node(world: &World, pool: &str) {
    until_size(world, pool, 3);
    let sandbox = claim(world, 0, pool, "survivor");
    until_size(world, pool, 3);
    // Not the one that was asked: whoever owns the claimed one.
    world.cluster.kill(sandbox.owner).unwrap();
    world.cluster.restart(sandbox.owner).unwrap();

    let other = world.other_than(&sandbox);
    world.eventually(Duration::from_secs(30), || {
        let request = world.http.get(format!("{}/health/ready", world.cluster.api(sandbox.owner)));
        let ready =
            world.block_on(async { request.send().await.is_ok_and(|answer| answer.status().is_success()) });
        (ready, ready)
    });
    // Each node notices by itself that its connection to the killed one is none any more.
    world.eventually(Duration::from_secs(30), || {
        let statuses =
            EU.map(|node| world.send(world.toolbox(node, &sandbox, Method::GET, "/version")).status);
        (statuses == [200; 3], statuses)
    });
    is_whose_it_is(world, &sandbox);
    until_size(world, pool, 3);
    let next = claim(world, other, pool, "after-the-restart");
    is_whose_it_is(world, &next);
}

/// The one node of `us` gets room for four sandboxes.
fn leaves_and_makes_room(world: &World) {
    let config = world.cluster.node(US).restart_command.last().expect("a config").clone();
    let text = std::fs::read_to_string(&config).unwrap();
    let small = text.lines().filter(|line| !line.starts_with("sandboxes_max")).collect::<Vec<_>>().join("\n");
    let small = small.replace("[capacity]", "[capacity]\nsandboxes_max = 4");
    assert!(small.contains("sandboxes_max = 4"), "{text}");
    std::fs::write(&config, small).unwrap();
    world.cluster.kill(US).unwrap();
    world.cluster.restart(US).unwrap();
    world.eventually(Duration::from_secs(30), || {
        let request = world.http.get(format!("{}/health/ready", world.cluster.api(US)));
        let ready =
            world.block_on(async { request.send().await.is_ok_and(|answer| answer.status().is_success()) });
        (ready, ready)
    });
    let pool = make(world, 4, "us");

    let stuck = world.eventually(FILLED_WITHIN, || {
        let found =
            pools(world, US).into_iter().find(|found| found["id"] == pool).expect("the pool is there");
        (found["currentSize"] == 3 && found["errorReason"].is_string(), found)
    });
    let reason = stuck["errorReason"].as_str().expect("a reason");
    assert!(reason.contains("kept free") && reason.contains("sandboxes that it may"), "{reason}");
    // None of these fits a member, so each needs room: the first finds some, the others take that of members.
    let made: Vec<Made<'_>> =
        (0..4).map(|n| world.create_with(n % 3, json!({ "target": "us", "memory": 2 }))).collect();
    assert!(made.iter().all(|sandbox| sandbox.owner == US));
    world.api(0, Method::POST, "/sandbox", Some(json!({ "target": "us", "memory": 2 }))).expect(503);
    drop(made);
    world.api(0, Method::DELETE, &format!("/warm-pools/{pool}"), None).expect(204);
}

fn drains(world: &World, pool: &str) {
    until_size(world, pool, 3);
    let kept = claim(world, 1, pool, "kept");
    let path = format!("/warm-pools/{pool}");
    let smaller = world.api(2, Method::PATCH, &path, Some(json!({ "pool": 0 }))).expect(200).json();
    assert_eq!(smaller["pool"], 0);
    until_size(world, pool, 0);
    world.api(0, Method::PATCH, &path, Some(json!({ "pool": 2 }))).expect(200);
    until_size(world, pool, 2);

    world.api(0, Method::DELETE, &path, None).expect(204);

    for node in EU {
        assert_eq!(pools(world, node), Vec::<Value>::new());
    }
    world.api(1, Method::DELETE, &path, None).expect(404);
    world.api(1, Method::PATCH, &path, Some(json!({ "pool": 2 }))).expect(404);
    is_whose_it_is(world, &kept);
    // Nothing is left but what somebody has.
    world.eventually(Duration::from_secs(30), || {
        let cluster = world.get(0, "/cluster").expect(200).json();
        let held: u64 = EU.iter().map(|node| sandboxes_on(&cluster, &world.cluster.node(*node).id)).sum();
        (held == 1, held)
    });
    let asked = Instant::now();
    let cold = world.create_with(0, json!({}));
    assert!(asked.elapsed() < Duration::from_secs(30));
    assert_eq!(world.exec(1, &cold, "whoami"), (0, "daytona\n".into()));
}

fn sandboxes_on(cluster: &Value, node_id: &str) -> u64 {
    let nodes = cluster["nodes"].as_array().expect("nodes");
    let node = nodes.iter().find(|node| node["id"] == node_id).expect("the node is a member");
    node["sandboxes"].as_u64().expect("a number")
}
