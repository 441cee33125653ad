//! Snapshots of images from a foreign registry: Debian's own, on this machine, open to one user only.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Rule;
use crate::world::{EU, US, World};

pub const RULES: &[Rule] = &[
    ("an_image_of_a_private_registry_becomes_a_snapshot_of_sandboxes_on_every_node", private_image),
    ("a_snapshot_that_cannot_be_made_says_why", failures),
    ("a_snapshots_name_is_checked_and_taken_once", names),
    ("registries_are_kept_without_showing_their_passwords", registries),
];

const USER: &str = "someone";
const PASSWORD: &str = "a secret";
const PULL_DEADLINE: Duration = Duration::from_secs(60);

struct ForeignRegistry {
    process: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl ForeignRegistry {
    fn start() -> ForeignRegistry {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let htpasswd = Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output().unwrap();
        fs::write(dir.path().join("htpasswd"), htpasswd.stdout).unwrap();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n\
             auth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            dir.path().display()
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", "config.yml"])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        ForeignRegistry { process, port, dir }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// An image with busybox, an account, and `/etc/made-of` with that text.
    fn push(&self, name: &str, text: &str, architecture: &str) -> String {
        let layout = self.dir.path().join("layout");
        let _ = fs::remove_dir_all(&layout);
        write_layout(&layout, text, architecture);
        let to = format!("{}/{name}", self.host());
        let output = Command::new("skopeo")
            .args(["copy", "--preserve-digests", "--dest-tls-verify=false", "--dest-creds"])
            .arg(format!("{USER}:{PASSWORD}"))
            .args([format!("oci:{}:image", layout.display()), format!("docker://{to}")])
            .output()
            .expect("skopeo is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        to
    }
}

impl Drop for ForeignRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn write_layout(layout: &Path, text: &str, architecture: &str) {
    let root = layout.join("root");
    for dir in ["bin", "etc", "tmp", "home/user"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in ["sh", "cat", "echo", "id", "env", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    fs::write(root.join("etc/made-of"), text).unwrap();
    let tar = Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "-C"])
        .arg(&root)
        .args(["-cf", "-", "."])
        .output()
        .unwrap();
    assert!(tar.status.success());
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let hex = hex::encode(Sha256::digest(bytes));
        fs::write(blobs.join(&hex), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let layer = put(&tar.stdout, "application/vnd.oci.image.layer.v1.tar");
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"User": "user", "Env": ["MADE_OF=env", "PATH=/bin"], "Cmd": ["sleep", "infinity"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let mut manifest = put(manifest.to_string().as_bytes(), kind);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "image"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

fn post(world: &World, node: usize, path: &str, body: Value, status: u16) -> Value {
    let answer = world.api(node, Method::POST, path, Some(body)).expect(status);
    if answer.body.is_empty() { Value::Null } else { answer.json() }
}

/// As it is once nobody works on it any more, by another node than was asked to make it.
fn settled(world: &World, node: usize, name: &str) -> Value {
    world.eventually(PULL_DEADLINE, || {
        let snapshot = world.get(node, &format!("/snapshots/{name}")).expect(200).json();
        let state = snapshot["state"].as_str().expect("a state").to_owned();
        (!["pending", "pulling", "building"].contains(&state.as_str()), snapshot)
    })
}

fn credentials(world: &World, registry: &ForeignRegistry, password: &str) -> String {
    let body = json!({"name": "test", "url": format!("http://{}", registry.host()), "username": USER, "password": password});
    post(world, 0, "/docker-registry", body, 201)["id"].as_str().expect("an id").to_owned()
}

fn remove(world: &World, path: &str, status: u16) {
    world.api(2, Method::DELETE, path, None).expect(status);
}

fn private_image(world: &World) {
    let registry = ForeignRegistry::start();
    let image = registry.push("team/app:1", "a foreign image\n", "amd64");
    let credentials = credentials(world, &registry, PASSWORD);
    let wish = json!({"name": "e2e/private:1", "imageName": image, "cpu": 2});
    let made = post(world, 0, "/snapshots", wish.clone(), 200);
    assert_eq!((&made["general"], &made["imageName"]), (&json!(false), &json!(image)), "{made}");
    let path = "/snapshots/e2e%2Fprivate:1";

    let active = settled(world, US, "e2e%2Fprivate:1");
    assert_eq!(active["state"], "active", "{active}");
    assert!(active["ref"].as_str().unwrap().contains("/team/app@sha256:"), "{active}");
    assert!(active["size"].as_f64().unwrap() > 0.0, "{active}");
    assert_eq!(active["entrypoint"], json!(["sleep", "infinity"]));
    assert_eq!(
        world.get(1, &format!("/snapshots/{}", made["id"].as_str().unwrap())).expect(200).json(),
        active
    );
    let listed = world.get(2, "/snapshots?name=E2E/Private").expect(200).json();
    assert_eq!(listed["items"][0]["name"], "e2e/private:1", "{listed}");

    // In each region, so that somebody has to fetch it who did not pull it.
    for node in [EU[0], US] {
        let sandbox = world.create_with(node, json!({"snapshot": "e2e/private:1"}));
        let said = world.exec(EU[1], &sandbox, "cat /etc/made-of; id -un; echo $MADE_OF");
        assert_eq!(said, (0, "a foreign image\nuser\nenv\n".into()));
        let shown = world.get(0, &format!("/sandbox/{}", sandbox.id)).expect(200).json();
        assert_eq!((&shown["snapshot"], &shown["cpu"]), (&json!("e2e/private:1"), &json!(2)), "{shown}");
    }
    assert!(world.get(0, path).expect(200).json()["lastUsedAt"].is_string());

    post(world, 1, &format!("{path}/deactivate"), json!({}), 204);
    let refused = post(world, 0, "/sandbox", json!({"snapshot": "e2e/private:1"}), 400);
    assert!(refused["message"].as_str().unwrap().contains("inactive"), "{refused}");
    assert_eq!(post(world, 2, &format!("{path}/activate"), json!({}), 200)["state"], "active");
    post(world, 2, &format!("{path}/activate"), json!({}), 400);
    let sandbox = world.create_with(1, json!({"snapshot": "e2e/private:1"}));

    post(world, 0, "/snapshots", wish, 409);
    remove(world, path, 200);
    remove(world, path, 404);
    world.get(0, path).expect(404);
    post(world, 1, "/sandbox", json!({"snapshot": "e2e/private:1"}), 404);
    assert_eq!(world.exec(0, &sandbox, "cat /etc/made-of").0, 0, "what was made of it stays");
    remove(world, &format!("/docker-registry/{credentials}"), 204);
}

fn failures(world: &World) {
    let registry = ForeignRegistry::start();
    let image = registry.push("team/app:1", "a foreign image\n", "amd64");
    let failed = |name: &str, image: &str, word: &str| {
        post(world, 0, "/snapshots", json!({"name": name, "imageName": image}), 200);
        let snapshot = settled(world, 1, name);
        assert_eq!(snapshot["state"], "error", "{snapshot}");
        assert!(snapshot["errorReason"].as_str().unwrap().contains(word), "{word}: {snapshot}");
        let refused = post(world, 0, "/sandbox", json!({"snapshot": name}), 400);
        assert!(refused["message"].as_str().unwrap().contains(word), "{refused}");
        remove(world, &format!("/snapshots/{name}"), 200);
    };

    failed("e2e-no-credentials", &image, "credentials");
    let wrong = credentials(world, &registry, "guess");
    failed("e2e-wrong-password", &image, "refuses the credentials of someone");
    remove(world, &format!("/docker-registry/{wrong}"), 204);
    let right = credentials(world, &registry, PASSWORD);
    failed("e2e-no-such-tag", &format!("{}/team/app:2", registry.host()), "has no 2");
    let foreign = registry.push("team/foreign:1", "for another machine\n", "s390x");
    failed("e2e-another-machine", &foreign, "is for s390x");
    failed("e2e-no-such-host", "registry.invalid/app:1", "cannot fetch from the registry registry.invalid");
    remove(world, &format!("/docker-registry/{right}"), 204);
}

fn names(world: &World) {
    for (body, word) in [
        (json!({"name": "a", "imageName": "alpine"}), "latest"),
        (json!({"name": "a", "imageName": "alpine:latest"}), "latest"),
        (json!({"name": "a b", "imageName": "alpine:3"}), "name"),
        (json!({"name": "a", "imageName": "a b:3"}), "imageName"),
        (json!({"name": "a", "imageName": "alpine:3", "memory": 0}), "memory"),
        (json!({"name": "a", "imageName": "alpine:3", "regionId": "moon"}), "moon"),
        (
            json!({"name": "a", "imageName": format!("atoll.internal/{}/x:1", uuid::Uuid::nil())}),
            "your organization",
        ),
    ] {
        let refused = post(world, 1, "/snapshots", body, 400);
        assert!(refused["message"].as_str().unwrap().contains(word), "{word}: {refused}");
    }
    let base = &world.cluster.ready.default_snapshot;
    post(world, 1, "/snapshots", json!({"name": base, "imageName": "alpine:3"}), 409);
    let shown = world.get(2, &format!("/snapshots/{base}")).expect(200).json();
    assert_eq!((&shown["general"], &shown["state"]), (&json!(true), &json!("active")));
    world.get(2, "/snapshots/no-such-snapshot").expect(404);
}

fn registries(world: &World) {
    let wish = json!({"name": "mine", "url": "https://r.example:5000/v2/", "username": "u", "password": "hush-hush"});
    let made = post(world, 0, "/docker-registry", wish, 201);
    let path = format!("/docker-registry/{}", made["id"].as_str().unwrap());
    assert_eq!(world.get(US, &path).expect(200).json(), made);
    let listed = world.get(1, "/docker-registry").expect(200);
    assert!(listed.body.contains("r.example") && !listed.body.contains("hush"), "{}", listed.body);

    let patch = |body: Value| world.api(2, Method::PATCH, &path, Some(body));
    let elsewhere = json!({"name": "mine", "url": "https://evil.example", "username": "u"});
    assert!(patch(elsewhere).expect(400).body.contains("password"));
    let renamed = json!({"name": "renamed", "url": "https://r.example:5000", "username": "v"});
    assert_eq!(patch(renamed).expect(200).json()["name"], "renamed");
    assert_eq!(world.get(0, &path).expect(200).json()["username"], "v");

    remove(world, &path, 204);
    world.get(0, &path).expect(404);
    assert!(!world.cluster.logs().contains("hush"), "no log has it");
}
