//! What is made of a sandbox's disk: snapshots, forks, archives. Every file is as it was, on whichever node.

use std::time::Duration;

use atoll_chaos_tests::dev::Runtime;
use reqwest::Method;
use serde_json::{Value, json};

use crate::Rule;
use crate::world::{Made, World};

pub const RULES: &[Rule] = &[
    ("a_snapshot_of_a_running_sandbox_is_its_tree_on_another_node", snapshot),
    ("a_fork_begins_with_the_same_tree_and_goes_its_own_way", fork),
    ("an_archived_sandbox_comes_back_with_its_files_id_and_links", archive),
    ("what_cannot_be_archived_or_copied_is_refused_with_the_reason", refusals),
];

/// Everything that a copy can get wrong: deleted files of the image, hard links, holes, attributes, odd names.
const MAKE_TREE: &str = r#"set -e
mkdir -p /srv/data/sub /srv/data/empty && cd /srv/data
echo first > a && ln a b && ln -s a 'link to a'
truncate -s 64M hole && printf end | dd of=hole bs=1 seek=67108861 conv=notrunc status=none
cp /bin/true suid && chmod 4755 suid && chmod 0000 sub
printf x > "$(printf 'odd \n \377 name')"
mkfifo pipe
touch -d '2001-02-03 04:05:06' old && chown 1234:5678 old
head -c 3000000 /dev/urandom > random
rm /etc/debian_version"#;
/// Without what a look at the tree changes: times of access, and tar's own process id.
const HASH_TREE: &str = "test ! -e /etc/debian_version && cd /srv/data && \
    tar --sort=name --numeric-owner --xattrs --pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime -cf - . | \
    sha256sum && stat -c '%h %b' a suid hole";

/// Docker's own commit knows no parts of a second, and fills holes.
const HASH_TREE_ON_DOCKER: &str = "test ! -e /etc/debian_version && cd /srv/data && \
    tar --sort=name --numeric-owner --format=gnu -cf - . | sha256sum && stat -c '%h %b' a suid";

fn hash_tree(world: &World) -> &'static str {
    match world.cluster.runtime {
        Runtime::Embedded => HASH_TREE,
        Runtime::Docker => HASH_TREE_ON_DOCKER,
    }
}

fn of_root(world: &World, node: usize) -> Made<'_> {
    let sandbox = world.create_with(node, json!({ "user": "root" }));
    let (code, said) = world.exec(node, &sandbox, &format!("bash -c '{}'", MAKE_TREE.replace('\'', r"'\''")));
    assert_eq!(code, 0, "{said}");
    sandbox
}

#[track_caller]
fn hash(world: &World, node: usize, sandbox: &Made<'_>) -> String {
    let (code, said) =
        world.exec(node, sandbox, &format!("bash -c '{}'", hash_tree(world).replace('\'', r"'\''")));
    assert_eq!(code, 0, "{said}");
    said
}

fn post(world: &World, node: usize, sandbox: &Made<'_>, verb: &str, body: Value) -> crate::world::Answer {
    world.api(node, Method::POST, &format!("/sandbox/{}/{verb}", sandbox.id), Some(body))
}

fn snapshot(world: &World) {
    let source = of_root(world, 0);
    let (other, name) = (world.other_than(&source), "of-a-sandbox");
    let before = hash(world, 0, &source);

    let seen = post(world, other, &source, "snapshot", json!({ "name": name })).expect(200).json();

    assert_eq!(seen["state"], "started", "{seen}");
    assert_eq!(hash(world, 0, &source), before, "the source goes on as it was");
    post(world, 0, &source, "snapshot", json!({ "name": name })).expect(409);
    let listed = world.get(other, &format!("/snapshots/{name}")).expect(200).json();
    assert_eq!(listed["state"], "active", "{listed}");
    for node in crate::world::EU {
        let copy = world.create_with(node, json!({ "snapshot": name, "user": "root" }));
        assert_eq!(hash(world, other, &copy), before, "made through node {node}, on node {}", copy.owner);
    }
}

fn fork(world: &World) {
    let parent = of_root(world, 0);
    let before = hash(world, 0, &parent);

    let body = post(world, 1, &parent, "fork", json!({ "name": "forked" })).expect(200).json();
    let child = world.made(&body);

    assert_ne!(child.id, parent.id);
    assert_eq!(body["parentId"], parent.id.as_str());
    assert_eq!(hash(world, 2, &child), before);
    world.exec(0, &child, "echo child > /srv/data/a");
    world.exec(0, &parent, "echo parent > /srv/data/new");
    assert_eq!(world.exec(1, &parent, "cat /srv/data/a"), (0, "first\n".into()));
    assert_ne!(world.exec(1, &child, "cat /srv/data/new").0, 0);
    let forks = world.get(2, &format!("/sandbox/{}/forks", parent.id)).expect(200).json();
    assert_eq!((forks[0]["id"].as_str(), forks.as_array().unwrap().len()), (Some(child.id.as_str()), 1));
    for path in ["parent", "ancestors"] {
        let seen = world.get(1, &format!("/sandbox/forked/{path}")).expect(200).json();
        let seen = if path == "parent" { &seen } else { &seen[0] };
        assert_eq!(seen["id"], parent.id.as_str());
    }
    let refused = world.api(2, Method::DELETE, &format!("/sandbox/{}", parent.id), None).expect(400);
    assert!(refused.body.contains("forked"), "{}", refused.body);
    drop(child);
    world.api(2, Method::DELETE, &format!("/sandbox/{}", parent.id), None).expect(200);
}

fn archive(world: &World) {
    let sandbox = of_root(world, 0);
    let (before, token) = (hash(world, 0, &sandbox), world.preview_token(&sandbox, 3000));
    post(world, 1, &sandbox, "stop", json!({})).expect(200);

    let archived = post(world, 2, &sandbox, "archive", json!({})).expect(200).json();

    assert_eq!((&archived["state"], &archived["backupState"]), (&json!("archived"), &json!("Completed")));
    // One engine has Docker's, and all nodes of a test share it.
    let copies = if world.cluster.runtime == Runtime::Docker { 1 } else { 2 };
    assert_eq!(archived["backupCopies"], copies, "{archived}");
    post(world, 0, &sandbox, "archive", json!({})).expect(400);
    post(world, 0, &sandbox, "stop", json!({})).expect(400);
    let started = post(world, 1, &sandbox, "start", json!({})).expect(200).json();
    assert_eq!((&started["state"], &started["id"]), (&json!("started"), &json!(sandbox.id)));
    assert_eq!(hash(world, 2, &sandbox), before);
    assert_eq!(world.preview_token(&sandbox, 3000), token);
    // What is written after the return is in the next archive, too. (By this name only: overlayfs takes the hard links of a
    // lower layer apart when one of them is written.)
    world.exec(0, &sandbox, "echo again > /srv/data/a");
    post(world, 0, &sandbox, "stop", json!({})).expect(200);
    post(world, 0, &sandbox, "archive", json!({})).expect(200);
    post(world, 2, &sandbox, "start", json!({})).expect(200);
    assert_eq!(world.exec(1, &sandbox, "cat /srv/data/a"), (0, "again\n".into()));
}

fn refusals(world: &World) {
    let running = world.create(0);
    let refused = post(world, 1, &running, "archive", json!({})).expect(400);
    assert!(refused.body.contains("stopped"), "{}", refused.body);
    post(world, 1, &running, "snapshot", json!({ "name": "m", "includeMemory": true })).expect(400);
    post(world, 1, &running, "snapshot", json!({ "name": "a b" })).expect(400);
    world.get(1, &format!("/sandbox/{}/parent", running.id)).expect(404);
    let archived = world.create(1);
    post(world, 0, &archived, "stop", json!({})).expect(200);
    post(world, 0, &archived, "archive", json!({})).expect(200);
    world.api(2, Method::DELETE, &format!("/sandbox/{}", archived.id), None).expect(200);
    let gone = || {
        let seen = world.get(1, &format!("/sandbox/{}", archived.id)).status;
        (seen == 404, seen)
    };
    world.eventually(Duration::from_secs(5), gone);
}
