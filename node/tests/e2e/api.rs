//! The REST API through any node: what was decided by one is seen by all, at once.

use atoll_chaos_tests::host_sandboxes;
use reqwest::Method;
use serde_json::json;

use crate::Rule;
use crate::world::{EU, US, World};

pub const RULES: &[Rule] = &[
    ("a_create_answered_by_one_node_is_found_on_the_others_at_once", found_at_once),
    ("a_name_is_taken_once_and_free_after_delete", names),
    ("lists_page_and_filter_by_label", lists),
    ("stop_and_start_keep_the_disk", stop_and_start),
    ("environment_labels_user_and_resources_reach_the_sandbox", spec_reaches_the_sandbox),
    ("a_sandbox_of_one_region_is_made_and_used_through_the_other", across_regions),
    ("configuration_and_health_need_no_key", open_routes),
    ("the_cluster_shows_its_nodes_and_groups", cluster),
    ("the_openapi_document_is_served", openapi),
    ("bad_requests_are_answered_with_the_documented_body", bad_requests),
    ("bad_credentials_open_nothing", bad_credentials),
    ("a_deleted_sandbox_is_gone_on_every_node", deleted),
    ("a_request_id_goes_through_to_the_daemon_and_back", request_id),
];

fn found_at_once(world: &World) {
    for asked in EU {
        let sandbox = world.create(asked);
        for node in EU {
            let seen = world.get(node, &format!("/sandbox/{}", sandbox.id)).expect(200).json();
            assert_eq!(seen["state"], "started");
        }
    }
}

fn names(world: &World) {
    let first = world.create_with(0, json!({ "name": "only-once" }));
    assert_eq!(world.get(1, "/sandbox/only-once").expect(200).json()["id"], first.id.as_str());

    world.api(1, Method::POST, "/sandbox", Some(json!({ "name": "only-once" }))).expect(409);

    world.api(2, Method::DELETE, "/sandbox/only-once", None).expect(200);
    let second = world.create_with(1, json!({ "name": "only-once" }));
    assert_ne!(first.id, second.id);
}

fn lists(world: &World) {
    let sandboxes: Vec<_> =
        (0..3).map(|n| world.create_with(n, json!({ "labels": { "list": "yes" } }))).collect();

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let labels = "%7B%22list%22%3A%22yes%22%7D";
        let page = world.get(1, &format!("/sandbox?limit=2&labels={labels}{cursor}")).expect(200).json();
        let items = page["items"].as_array().unwrap().clone();
        assert!(items.len() <= 2);
        seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }

    let mut made: Vec<_> = sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
    made.sort();
    seen.sort();
    assert_eq!(seen, made);
}

fn stop_and_start(world: &World) {
    let sandbox = world.create(0);
    world.exec(1, &sandbox, "echo kept > ~/file");

    let stopped =
        world.api(1, Method::POST, &format!("/sandbox/{}/stop", sandbox.id), None).expect(200).json();
    assert_eq!(stopped["state"], "stopped");
    let refused =
        world.toolbox(2, &sandbox, Method::POST, "/process/execute").json(&json!({ "command": "true" }));
    let refused = world.send(refused);
    assert!((400..500).contains(&refused.status), "{}", refused.status);
    assert!(refused.body.contains("Is the Sandbox started?"), "{}", refused.body);

    let started =
        world.api(2, Method::POST, &format!("/sandbox/{}/start", sandbox.id), None).expect(200).json();
    assert_eq!(started["state"], "started");
    assert_eq!(world.exec(0, &sandbox, "cat ~/file"), (0, "kept\n".into()));
}

fn spec_reaches_the_sandbox(world: &World) {
    let body =
        json!({ "env": { "COLOR": "blue" }, "labels": { "a": "b" }, "user": "root", "cpu": 2, "memory": 2 });
    let sandbox = world.create_with(0, body);

    assert_eq!(world.exec(1, &sandbox, "echo $COLOR $(whoami)"), (0, "blue root\n".into()));
    let seen = world.get(2, &format!("/sandbox/{}", sandbox.id)).expect(200).json();
    assert_eq!((&seen["cpu"], &seen["memory"], &seen["labels"]["a"]), (&json!(2), &json!(2), &json!("b")));

    let labels = json!({ "labels": { "c": "d" } });
    world.api(1, Method::PUT, &format!("/sandbox/{}/labels", sandbox.id), Some(labels.clone())).expect(200);
    let seen = world.get(2, &format!("/sandbox/{}", sandbox.id)).expect(200).json();
    assert_eq!(seen["labels"], labels["labels"]);
}

fn across_regions(world: &World) {
    let sandbox = world.create_with(0, json!({ "target": "us" }));
    assert_eq!(sandbox.owner, US);

    for node in [0, 1, 2, US] {
        assert_eq!(world.get(node, &format!("/sandbox/{}", sandbox.id)).expect(200).json()["target"], "us");
        assert_eq!(world.exec(node, &sandbox, "echo here"), (0, "here\n".into()));
    }
    world.api(0, Method::POST, "/sandbox", Some(json!({ "target": "mars" }))).expect(400);
}

fn open_routes(world: &World) {
    let base = world.cluster.api(2);
    for path in ["/config", "/health", "/health/ready", "/openapi.json"] {
        world.send(world.http.get(format!("{base}{path}"))).expect(200);
    }
}

fn cluster(world: &World) {
    let cluster = world.get(1, "/cluster").expect(200).json();
    assert_eq!(cluster["nodes"].as_array().unwrap().len(), 4);

    let groups = cluster["groups"].as_array().unwrap();
    let voters = |name: &str| {
        let group = groups
            .iter()
            .find(|group| group["name"] == name)
            .unwrap_or_else(|| panic!("{name} in {cluster}"));
        assert!(
            group["leader"].is_string() && group["term"].is_u64() && group["lastApplied"].is_u64(),
            "{group}"
        );
        (group["voters"].as_array().unwrap().len(), group["learners"].as_array().unwrap().len())
    };
    assert_eq!((voters("cluster"), voters("region/eu"), voters("region/us")), ((3, 1), (3, 0), (1, 0)));
}

fn openapi(world: &World) {
    let document = world.get(0, "/openapi.json").expect(200).json();
    assert!(
        document["paths"]["/sandbox/{sandboxIdOrName}"].is_object()
            || document["paths"]["/api/sandbox/{sandboxIdOrName}"].is_object()
    );
}

fn bad_requests(world: &World) {
    let sandbox = "00000000-0000-8000-8000-000000000000";
    let json_type = ("content-type", "application/json");
    let post = |path: &str, body: String| {
        let request = world
            .http
            .post(format!("{}{path}", world.cluster.api(1)))
            .bearer_auth(&world.cluster.ready.api_key);
        world.send(request.header(json_type.0, json_type.1).body(body))
    };
    for (path, body, status) in [
        ("/sandbox".to_owned(), "{".to_owned(), 400),
        ("/sandbox".into(), "[]".into(), 400),
        ("/sandbox".into(), r#"{"cpu": "many"}"#.into(), 400),
        ("/sandbox".into(), r#"{"cpu": -1}"#.into(), 400),
        ("/sandbox".into(), r#"{"name": "a/b"}"#.into(), 400),
        ("/sandbox".into(), r#"{"env": {"A": 1}}"#.into(), 400),
        ("/sandbox".into(), r#"{"snapshot": "no-such-snapshot"}"#.into(), 404),
        ("/sandbox".into(), format!(r#"{{"name": "{}"}}"#, "x".repeat(2 * 1024 * 1024)), 413),
        (format!("/sandbox/{sandbox}/start"), String::new(), 404),
        ("/sandbox/no-such-name/stop".into(), String::new(), 404),
        (format!("/sandbox/{sandbox}/ssh-access?expiresInMinutes=0"), String::new(), 400),
        (format!("/sandbox/{sandbox}/autostop/-1"), String::new(), 400),
        ("/no/such/route".into(), String::new(), 404),
    ] {
        let answer = post(&path, body);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        let said = answer.json();
        assert_eq!(said["statusCode"], status, "{path}: {said}");
        assert!(said["message"].as_str().is_some_and(|message| !message.is_empty()), "{path}: {said}");
    }
    for path in [
        "/sandbox?limit=0",
        "/sandbox?limit=x",
        "/sandbox?cursor=zz",
        "/sandbox/x/ports/0/preview-url",
        "/sandbox/x/ports/99999/preview-url",
    ] {
        let answer = world.get(2, path);
        assert!((400..500).contains(&answer.status), "{path}: {} {}", answer.status, answer.body);
    }
}

fn bad_credentials(world: &World) {
    let sandbox = world.create(0);
    let url = |path: &str| format!("{}{path}", world.cluster.node(1).http);
    for path in ["/api/sandbox".to_owned(), format!("/toolbox/{}/version", sandbox.id), "/api/cluster".into()]
    {
        for token in ["", "dtn_", "nonsense", &format!("dtn_{}", "0".repeat(64)), "a.b.c"] {
            let request = world.http.get(url(&path)).header("authorization", format!("Bearer {token}"));
            assert_eq!(world.send(request).status, 401, "{path} {token}");
        }
        assert_eq!(world.send(world.http.get(url(&path))).status, 401, "{path}");
    }
}

fn deleted(world: &World) {
    let sandbox = world.create(0);
    world.api(1, Method::DELETE, &format!("/sandbox/{}", sandbox.id), None).expect(200);
    for node in [0, 1, 2, US] {
        world.get(node, &format!("/sandbox/{}", sandbox.id)).expect(404);
    }
    let left = || {
        let found = host_sandboxes::has(&world.cluster, &sandbox.id);
        (matches!(found, Ok(false)), format!("{found:?}"))
    };
    world.eventually(std::time::Duration::from_secs(20), left);
}

fn request_id(world: &World) {
    let sandbox = world.create(0);
    let other = world.other_than(&sandbox);
    let request =
        world.toolbox(other, &sandbox, Method::GET, "/version").header("x-request-id", "trace-me-42");
    assert_eq!(world.send(request).expect(200).headers["x-request-id"], "trace-me-42");

    let made = world.toolbox(other, &sandbox, Method::GET, "/version");
    assert!(!world.send(made).expect(200).headers["x-request-id"].is_empty());
}
