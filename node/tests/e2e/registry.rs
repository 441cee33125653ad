//! Images in and out through any node's registry, with the tools that people have.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use atoll_chaos_tests::dev::{DevCluster, Runtime};
use atoll_runner::image::{Digest, ImageConfig};
use atoll_runner::store::{ConfigChange, Registries, Store, StoreConfig};
use reqwest::Method;
use serde_json::Value;

use crate::Rule;
use crate::world::{Answer, EU, US, World};

pub const RULES: &[Rule] = &[
    ("an_image_pushed_to_one_node_is_pulled_from_all_others", everywhere),
    ("what_docker_saved_is_pushed_and_listed_and_deleted", saved),
    ("the_registry_asks_for_a_key_and_takes_no_other", keys),
    ("a_large_blob_streams_in_and_out_and_in_parts", large),
    ("a_granted_push_access_pushes_and_ends", push_access),
    ("an_image_that_only_a_dead_node_has_is_not_waited_for", dead_node),
];

/// An image with busybox and so many bytes of noise, as an archive that is an OCI layout.
struct Archive {
    path: PathBuf,
    digest: Digest,
    _dir: tempfile::TempDir,
}

impl Archive {
    fn new(world: &World, noise_bytes: usize) -> Archive {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let digest = world.block_on(make_image(dir.path(), noise_bytes, &path));
        Archive { path, digest, _dir: dir }
    }

    fn oci(&self) -> String {
        format!("oci-archive:{}", self.path.display())
    }
}

async fn make_image(dir: &Path, noise_bytes: usize, to: &Path) -> Digest {
    let rootfs = dir.join("rootfs");
    std::fs::create_dir_all(rootfs.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    let mut noise = vec![0; noise_bytes];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut noise);
    std::fs::write(rootfs.join("noise"), noise).unwrap();
    let layer = dir.join("layer.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&rootfs).args(["--owner=0", "--group=0", "-cf"]).arg(&layer).arg(".");
    assert!(tar.status().unwrap().success());
    let (store_dir, seeds, registries) = (dir.join("store"), vec![], Registries::default());
    let store = Store::open(StoreConfig { dir: store_dir, seeds, registries }).unwrap();
    let mut writer = store.writer().unwrap();
    writer.copy_from(tokio::fs::File::open(&layer).await.unwrap()).await.unwrap();
    let layer = store.finish_layer(writer).await.unwrap();
    let config =
        ImageConfig { cmd: vec!["/bin/busybox".to_owned(), "sh".to_owned()], ..ImageConfig::default() };
    let (digest, _) = store.commit_image(None, &[layer], ConfigChange::Replace(config)).await.unwrap();
    store.export_archive(digest, None, tokio::fs::File::create(to).await.unwrap()).await.unwrap();
    digest
}

/// Images of the cluster's organization at one node.
struct Door {
    host: String,
    organization: String,
    credentials: String,
}

impl Door {
    fn of(cluster: &DevCluster, node: usize) -> Door {
        Door {
            host: cluster.node(node).http.strip_prefix("http://").expect("a plain door").to_owned(),
            organization: cluster.ready.organization_id.clone(),
            credentials: format!("anybody:{}", cluster.ready.api_key),
        }
    }

    fn image(&self, name: &str) -> String {
        format!("docker://{}/{}/{name}", self.host, self.organization)
    }

    fn try_push(&self, from: &str, name: &str) -> Output {
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "copy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            "--dest-creds",
            &self.credentials,
        ]);
        skopeo.args([from, &self.image(name)]).output().expect("skopeo is installed")
    }

    #[track_caller]
    fn push(&self, from: &str, name: &str) {
        let output = self.try_push(from, name);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Copies an image back. Every blob is checked against its digest on the way; gives the manifest's.
    #[track_caller]
    fn pull(&self, name: &str) -> Digest {
        let dir = tempfile::tempdir().unwrap();
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "copy",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--src-creds",
            &self.credentials,
        ]);
        let to = format!("oci:{}", dir.path().display());
        let output = skopeo.args([&self.image(name), &to]).output().expect("skopeo is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let index: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("index.json")).unwrap()).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap()
    }

    fn skopeo(&self, verb: &[&str], name: &str) -> Output {
        let mut skopeo = Command::new("skopeo");
        let skopeo = skopeo.args(verb).args(["--tls-verify=false", "--creds", &self.credentials]);
        skopeo.arg(self.image(name)).output().expect("skopeo is installed")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{}/{path}", self.host, self.organization)
    }
}

/// The base snapshot's image under a name of the organization's own; gives that name.
pub fn push_base(world: &World, name: &str) -> String {
    let cache = std::env::var("ATOLL_CACHE_DIR").unwrap_or_else(|_| "/var/cache/atoll".to_owned());
    let door = Door::of(&world.cluster, EU[0]);
    door.push(&format!("oci:{cache}/base/{}.oci", world.cluster.ready.default_snapshot), name);
    door.image(name).strip_prefix("docker://").expect("a name for skopeo").to_owned()
}

fn ask(world: &World, door: &Door, method: Method, path: &str) -> reqwest::RequestBuilder {
    let (user, key) = door.credentials.split_once(':').unwrap();
    world.http.request(method, door.url(path)).basic_auth(user, Some(key))
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["errors"][0]["code"].as_str().expect("a code").to_owned())
}

fn everywhere(world: &World) {
    let archive = Archive::new(world, 3_000_000);
    Door::of(&world.cluster, 0).push(&archive.oci(), "busy:v1");

    for node in EU.into_iter().chain([US]) {
        let door = Door::of(&world.cluster, node);
        assert_eq!(door.pull("busy:v1"), archive.digest, "node {node}");
        assert_eq!(door.pull(&format!("busy@{}", archive.digest)), archive.digest, "node {node}");
    }
    // Once more to another region: it is all there already for whoever asks.
    let there = Door::of(&world.cluster, US);
    there.push(&archive.oci(), "busy:v2");
    assert_eq!(Door::of(&world.cluster, 1).pull("busy:v2"), archive.digest);
}

fn saved(world: &World) {
    let archive = Archive::new(world, 1000);
    let dir = tempfile::tempdir().unwrap();
    let saved = format!("docker-archive:{}:team/saved:v1", dir.path().join("saved.tar").display());
    let converted = Command::new("skopeo").args(["copy", &archive.oci(), &saved]).output().unwrap();
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    let (one, two) = (Door::of(&world.cluster, 1), Door::of(&world.cluster, 2));
    let push = |door: &Door, tag: &str| {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--dest-tls-verify=false", "--dest-creds", &door.credentials, &saved]);
        let output = skopeo.arg(door.image(&format!("team/saved:{tag}"))).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    push(&one, "v1");
    push(&two, "v2");

    let raw = two.skopeo(&["inspect", "--raw"], "team/saved:v1");
    let raw: Value = serde_json::from_slice(&raw.stdout).expect("a manifest");
    assert_eq!(raw["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    for node in EU {
        let listed = Door::of(&world.cluster, node).skopeo(&["list-tags"], "team/saved");
        let listed: Value = serde_json::from_slice(&listed.stdout).expect("a list");
        assert_eq!(listed["Tags"], serde_json::json!(["v1", "v2"]), "node {node}");
    }
    // skopeo deletes by digest, and both tags are one image.
    let deleted = one.skopeo(&["delete"], "team/saved:v2");
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    for node in EU {
        let door = Door::of(&world.cluster, node);
        let missing = world.send(ask(world, &door, Method::GET, "team/saved/manifests/v1"));
        assert_eq!(code(&missing), (404, "MANIFEST_UNKNOWN".to_owned()), "node {node}");
    }
}

fn keys(world: &World) {
    let archive = Archive::new(world, 1000);
    let mut door = Door::of(&world.cluster, 1);
    let anonymous = world.send(world.http.get(format!("http://{}/v2/", door.host))).expect(401);
    assert_eq!(anonymous.headers["www-authenticate"], "Basic realm=\"Atoll\", charset=\"UTF-8\"");
    let bearer =
        world.http.get(format!("http://{}/v2/", door.host)).bearer_auth(&world.cluster.ready.api_key);
    assert_eq!(world.send(bearer).expect(200).headers["docker-distribution-api-version"], "registry/2.0");
    let other =
        door.url("x/manifests/v1").replace(&door.organization, "00000000-0000-4000-8000-000000000000");
    let other = world.http.get(other).bearer_auth(&world.cluster.ready.api_key);
    assert_eq!(code(&world.send(other)), (403, "DENIED".to_owned()));

    door.credentials = format!("anybody:dtn_{}", "0".repeat(64));
    let refused = door.try_push(&archive.oci(), "refused:v1");

    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("unauthorized") || said.contains("authentication required"), "{said}");
    // Its body is read, so that the client gets to read the answer.
    let upload = ask(world, &door, Method::POST, "refused/blobs/uploads/?digest=x").body(vec![0; 8 << 20]);
    assert_eq!(code(&world.send(upload)), (401, "UNAUTHORIZED".to_owned()));
    let no_host = world.preview(1, "v2", Method::GET, "/v2/");
    assert!(world.send(no_host).status >= 400, "no name below the preview domain leads here");
}

fn large(world: &World) {
    const BYTES: usize = 104 << 20;
    let (here, there) = (Door::of(&world.cluster, 2), Door::of(&world.cluster, 1));
    let mut blob = vec![0u8; BYTES];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut blob);
    let digest = Digest::of(&blob);
    let peak = |node: usize| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", world.cluster.pid(node))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a high-water mark");
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    };
    let before = [peak(2), peak(1)];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &blob).unwrap();

    // Waits for the go-ahead before it sends, and has no length: as Docker does it.
    let begun = world.send(ask(world, &here, Method::POST, "big/blobs/uploads/")).expect(202);
    let at = format!("http://{}{}", here.host, begun.headers["location"].to_str().unwrap());
    let curl = Command::new("curl")
        .args([
            "-sS",
            "-X",
            "PATCH",
            "-H",
            "Expect: 100-continue",
            "-H",
            "Transfer-Encoding: chunked",
            "-D",
            "-",
        ])
        .args(["-u", &here.credentials, "-T"])
        .args([file.path().as_os_str(), at.as_ref()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&curl.stdout);
    assert!(said.contains("202 Accepted") && said.contains(&format!("0-{}", BYTES - 1)), "{said}");
    let (user, key) = here.credentials.split_once(':').unwrap();
    let finish = world.http.put(format!("{at}?digest={digest}")).basic_auth(user, Some(key));
    world.send(finish).expect(201);

    let path = format!("big/blobs/{digest}");
    for door in [&here, &there] {
        let head = world.send(ask(world, door, Method::HEAD, &path)).expect(200);
        assert_eq!(head.headers["content-length"], BYTES.to_string());
        let got = world.block_on(async {
            let answer = ask(world, door, Method::GET, &path).send().await.unwrap();
            answer.bytes().await.expect("a whole body")
        });
        assert!(got == blob, "{} bytes", got.len());
        let part = ask(world, door, Method::GET, &path).header("range", "bytes=100000000-100000009");
        let part = world.block_on(async { part.send().await.unwrap() });
        assert_eq!(part.status(), 206);
        assert_eq!(part.headers()["content-range"], format!("bytes 100000000-100000009/{BYTES}"));
        let part = world.block_on(part.bytes()).unwrap();
        assert_eq!(&part[..], &blob[100_000_000..100_000_010]);
    }
    for (before, after) in before.into_iter().zip([peak(2), peak(1)]) {
        assert!(after < before + BYTES / 2, "a node's memory grew from {before} to {after}");
    }
}

fn push_access(world: &World) {
    let archive = Archive::new(world, 1000);
    let before = std::time::SystemTime::now();
    let granted = world.get(2, "/docker-registry/registry-push-access?regionId=eu").expect(200).json();
    let field = |name: &str| granted[name].as_str().expect(name).to_owned();
    let mut door = Door::of(&world.cluster, 2);
    assert_eq!((field("registryUrl"), field("project")), (door.host.clone(), door.organization.clone()));
    let expires: String = field("expiresAt");
    assert!(expires.ends_with('Z') && before.elapsed().unwrap() < Duration::from_secs(30), "{expires}");

    door.credentials = format!("{}:{}", field("username"), field("secret"));
    door.push(&archive.oci(), "granted:20260131120000");

    assert_eq!(Door::of(&world.cluster, 0).pull("granted:20260131120000"), archive.digest);
    assert_ne!(field("secret"), world.cluster.ready.api_key);
    let admin =
        world.http.post(format!("{}/cluster/tokens", world.cluster.api(0))).bearer_auth(field("secret"));
    world.send(admin.json(&serde_json::json!({ "ttlSeconds": 60, "uses": 1 }))).expect(403);
}

fn dead_node(world: &World) {
    let cluster = DevCluster::start(Path::new(env!("CARGO_BIN_EXE_atoll")), Runtime::Embedded, 3, "eu,eu,eu");
    let cluster = cluster.expect("it starts");
    let archive = Archive::new(world, 1000);
    let doors = [0, 1, 2].map(|node| Door::of(&cluster, node));
    doors[1].push(&archive.oci(), "lost:v1");
    let path = "lost/manifests/v1";
    world.send(ask(world, &doors[0], Method::GET, path)).expect(200);
    world.send(ask(world, &doors[2], Method::GET, path)).expect(200);
    // A manifest is kept where it was asked for, so only its name and its blobs are gone with the node.
    cluster.kill(1).unwrap();

    for door in [&doors[0], &doors[2]] {
        let asked = Instant::now();
        let answer = world.send(ask(world, door, Method::GET, path));
        assert_eq!(code(&answer), (503, "UNAVAILABLE".to_owned()));
        let named = &answer.json()["errors"][0]["detail"]["unreachableNodes"][0];
        assert_eq!(*named, cluster.node(1).id.as_str());
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        let head = world.send(ask(world, door, Method::HEAD, path));
        assert_eq!(head.status, 404, "whoever would push it again may");
    }
    doors[2].push(&archive.oci(), "kept:v1");
    assert_eq!(doors[0].pull("kept:v1"), archive.digest, "with a dead node all else goes on");

    cluster.restart(1).unwrap();
    world.eventually(Duration::from_secs(30), || {
        let status = [0, 2].map(|node| world.send(ask(world, &doors[node], Method::GET, path)).status);
        (status == [200, 200], status)
    });
    assert_eq!(doors[2].pull("lost:v1"), archive.digest);
}
