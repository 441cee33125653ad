mod peers;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::manifest::{OCI_INDEX, OCI_MANIFEST};
use super::*;
use crate::image::{Digest, Image, ImageConfig, ImageSource, Layer};

fn store_at(dir: &Path) -> Store {
    store_with(dir, Registries::default(), vec![])
}

fn store_with(dir: &Path, registries: Registries, seeds: Vec<PathBuf>) -> Store {
    Store::open(StoreConfig { dir: dir.to_owned(), seeds, registries }).unwrap()
}

/// A tar with one file of `bytes`, which is as good as a layer.
async fn layer(store: &Store, name: &str, bytes: &[u8]) -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes).unwrap();
    let mut writer = store.writer().unwrap();
    writer.write(&tar.into_inner().unwrap()).await.unwrap();
    store.finish_layer(writer).await.unwrap()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut noise);
    noise
}

async fn image(store: &Store, layers: &[(&str, &[u8])], env: &str) -> (Digest, Image) {
    let mut made = Vec::new();
    for (name, bytes) in layers {
        made.push(layer(store, name, bytes).await);
    }
    let config =
        ImageConfig { env: vec![env.to_owned()], cmd: vec!["sh".to_owned()], ..ImageConfig::default() };
    store.commit_image(None, &made, ConfigChange::Replace(config)).await.unwrap()
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Debian's registry on a free port, with one user.
struct ForeignRegistry {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

const USER: &str = "someone";
const PASSWORD: &str = "a secret";

impl ForeignRegistry {
    async fn start() -> ForeignRegistry {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
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
            .expect("docker-registry must be installed");
        let registry = ForeignRegistry { process, port, _dir: dir };
        let answers = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), answers).await.expect("docker-registry starts");
        registry
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn push(&self, archive: &Path, to: &str) {
        let creds = format!("{USER}:{PASSWORD}");
        skopeo(&[
            "copy",
            "--all",
            "--preserve-digests",
            "--dest-creds",
            &creds,
            "--dest-tls-verify=false",
            &from(archive),
            &format!("docker://{to}"),
        ]);
    }
}

impl Drop for ForeignRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn from(archive: &Path) -> String {
    format!("{}:{}", if archive.is_dir() { "oci" } else { "oci-archive" }, archive.display())
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").args(arguments).output().expect("skopeo must be installed");
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn credentials() -> Option<Credentials> {
    Some(Credentials { username: USER.to_owned(), password: PASSWORD.to_owned() })
}

async fn export(store: &Store, digest: Digest, to: &Path) {
    let file = tokio::fs::File::create(to).await.unwrap();
    store.export_archive(digest, None, file).await.unwrap();
}

fn content(mut file: fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_private_image_is_pulled_with_credentials_only_and_never_from_anothers_cache() {
    let dir = tempfile::tempdir().unwrap();
    let registry = ForeignRegistry::start().await;
    let maker = store_at(&dir.path().join("maker"));
    let (digest, made) = image(&maker, &[("a", b"one"), ("b", &noise(300_000))], "A=1").await;
    export(&maker, digest, &dir.path().join("image.tar")).await;
    let reference = format!("{}/team/app:v1", registry.host());
    registry.push(&dir.path().join("image.tar"), &reference);
    let store = store_at(&dir.path().join("store"));

    for wrong in [None, Some(Credentials { username: USER.to_owned(), password: "guess".to_owned() })] {
        let denied = store.pull(&reference, wrong, Progress::default()).await;
        assert!(matches!(denied, Err(StoreError::Denied(_))), "{denied:?}");
    }
    let told = Arc::new(AtomicU64::new(0));
    let tell = told.clone();
    let progress = Progress::new(move |_, written, _| {
        tell.fetch_max(written, Ordering::Relaxed);
    });
    let pulled = store.pull(&reference, credentials(), progress).await.unwrap();

    assert_eq!((pulled.digest, pulled.image.id), (digest, made.id));
    assert_eq!(pulled.pinned, format!("{}/team/app@{digest}", registry.host()));
    assert_eq!(pulled.image.config.env, ["A=1"]);
    assert!(told.load(Ordering::Relaxed) >= 300_000);
    for layer in &pulled.image.layers {
        let bytes = content(ImageSource::open(&store, &layer.blob).await.unwrap());
        assert_eq!(Digest::of(&bytes), layer.blob);
    }
    // It is here now; who may not have it is still refused.
    let denied = store.pull(&pulled.pinned, None, Progress::default()).await;
    assert!(matches!(denied, Err(StoreError::Denied(_))), "{denied:?}");
    let missing =
        store.pull(&format!("{}/team/nothing", registry.host()), credentials(), Progress::default()).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))), "{missing:?}");
}

/// What organizations have given.
struct Given(Vec<Credentials>);

impl KnownCredentials for Given {
    fn of_host(&self, _: &str) -> Vec<Credentials> {
        self.0.clone()
    }
}

#[tokio::test]
async fn what_is_named_by_its_digest_is_fetched_with_whatever_credentials_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let registry = ForeignRegistry::start().await;
    let maker = store_at(&dir.path().join("maker"));
    let (digest, made) = image(&maker, &[("a", b"one")], "A=1").await;
    export(&maker, digest, &dir.path().join("image.tar")).await;
    let reference = format!("{}/team/app:v1", registry.host());
    registry.push(&dir.path().join("image.tar"), &reference);
    let pinned = format!("{}/team/app@{digest}", registry.host());
    let store = store_at(&dir.path().join("another node's"));
    assert!(matches!(store.resolve(&pinned).await, Err(StoreError::Denied(_))));

    let outdated = Credentials { username: USER.to_owned(), password: "old".to_owned() };
    store.set_known_credentials(Arc::new(Given(vec![outdated, credentials().unwrap()])));

    let by_tag = store.resolve(&reference).await;
    assert!(matches!(by_tag, Err(StoreError::Denied(_))), "a tag can be guessed: {by_tag:?}");
    let found = store.resolve(&pinned).await.unwrap();
    assert_eq!(found.id, made.id);
    let bytes = content(ImageSource::open(&store, &found.layers[0].blob).await.unwrap());
    assert_eq!(Digest::of(&bytes), found.layers[0].blob);
}

#[tokio::test]
async fn of_several_platforms_this_machines_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let registry = ForeignRegistry::start().await;
    let maker = store_at(&dir.path().join("maker"));
    let (other, _) = image(&maker, &[("a", b"for another machine")], "A=other").await;
    let (here, _) = image(&maker, &[("a", b"for this machine")], "A=here").await;
    let entry = |digest: Digest, architecture: &str| {
        let (_, bytes) = maker.open_here(&digest).unwrap();
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": bytes,
               "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry(other, "s390x"), entry(here, manifest::architecture())]});
    let (index_digest, _) = maker.put_manifest(index.to_string().as_bytes()).await.unwrap();
    // As a layout, whose index.json speaks of the index.
    let layout = dir.path().join("layout");
    fs::create_dir_all(layout.join("blobs")).unwrap();
    let top = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": OCI_INDEX, "digest": index_digest, "size": index.to_string().len(),
         "annotations": {"org.opencontainers.image.ref.name": "multi"}}]});
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(layout.join("index.json"), top.to_string()).unwrap();
    std::os::unix::fs::symlink(dir.path().join("maker/blobs/sha256"), layout.join("blobs/sha256")).unwrap();
    let reference = format!("{}/multi:1", registry.host());
    registry.push(&layout, &reference);

    let store = store_at(&dir.path().join("store"));
    let pulled = store.pull(&reference, credentials(), Progress::default()).await.unwrap();
    assert_eq!((pulled.digest, pulled.image.config.env), (here, vec!["A=here".to_owned()]));

    let seeded = store_with(&dir.path().join("seeded"), Registries::default(), vec![layout.clone()]);
    assert_eq!(seeded.resolve("multi").await.unwrap().config.env, ["A=here"]);
    let importing = store_at(&dir.path().join("importing"));
    let imported = importing.import_layout(&layout).await.unwrap();
    assert_eq!(imported[0].digest, index_digest);
    importing.name_imported(&imported).unwrap();
    assert_eq!(importing.resolve("multi:latest").await.unwrap().config.env, ["A=here"]);
}

/// Stands between a store and a registry, counts requests, and breaks the first answers off.
async fn breaking_proxy(
    to: u16,
    breaks: usize,
    after: usize,
) -> (u16, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(AtomicUsize::new(0));
    let (counted, breaks) = (requests.clone(), Arc::new(AtomicUsize::new(breaks)));
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let (counted, breaks) = (counted.clone(), breaks.clone());
            connections.spawn(async move {
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = async {
                    let mut chunk = vec![0; 65536];
                    while let Ok(count @ 1..) = from_client.read(&mut chunk).await {
                        let text = String::from_utf8_lossy(&chunk[..count]);
                        let is_blob = text.starts_with("GET")
                            && text.contains("/blobs/")
                            && text.contains("uthorization");
                        counted.fetch_add(usize::from(is_blob), Ordering::SeqCst);
                        to_server.write_all(&chunk[..count]).await.unwrap();
                    }
                };
                let down = async {
                    let (mut chunk, mut passed) = (vec![0; 65536], 0);
                    while let Ok(count @ 1..) = from_server.read(&mut chunk).await {
                        passed += count;
                        let take_one = |left: usize| left.checked_sub(1);
                        if passed > after
                            && breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one).is_ok()
                        {
                            return;
                        }
                        if to_client.write_all(&chunk[..count]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! { () = up => {}, () = down => {} }
            });
        }
    });
    (port, requests, serving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_download_goes_on_and_many_who_ask_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let registry = ForeignRegistry::start().await;
    let maker = store_at(&dir.path().join("maker"));
    let big = noise(3_000_000);
    let (digest, made) = image(&maker, &[("big", &big)], "A=1").await;
    export(&maker, digest, &dir.path().join("image.tar")).await;
    registry.push(&dir.path().join("image.tar"), &format!("{}/big:1", registry.host()));
    let (port, requests, proxy) = breaking_proxy(registry.port, 2, 1_000_000).await;
    let host = format!("127.0.0.1:{port}");
    let registries =
        Registries { credentials: [(host.clone(), credentials().unwrap())].into(), ..Registries::default() };
    let store = store_with(&dir.path().join("store"), registries, vec![]);

    let found = store.resolve(&format!("{host}/big:1")).await.unwrap();
    assert_eq!(found.id, made.id);
    requests.store(0, Ordering::SeqCst);
    let opens = (0..8).map(|_| {
        let (store, blob) = (store.clone(), found.layers[0].blob);
        tokio::spawn(async move { content(ImageSource::open(&store, &blob).await.unwrap()).len() })
    });
    for open in opens.collect::<Vec<_>>() {
        assert!(open.await.unwrap() > 3_000_000);
    }

    // One, and one for each break.
    assert_eq!(requests.load(Ordering::SeqCst), 3);
    // What was there already was not sent again: else the third would have been broken by the proxy's count, too.
    assert_eq!(fs::read_dir(dir.path().join("store/ingest")).unwrap().count(), 0);
    proxy.abort();
}

/// Neither by its address nor by a name, nor where a public registry would send us.
#[tokio::test]
async fn a_registry_at_a_private_address_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let target = format!("http://localhost:{port}/elsewhere");
            let answer = format!(
                "HTTP/1.1 307 Moved\r\nlocation: {target}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let only = |hosts: &[&str]| Registries {
        reach: Reach::PublicBut(hosts.iter().map(|host| (*host).to_owned()).collect()),
        ..Registries::default()
    };
    let refusal = async |name: &str, hosts: &[&str]| {
        let store = store_with(&dir.path().join(name), only(hosts), vec![]);
        store.resolve(&format!("{name}:{port}/app:1")).await.unwrap_err().to_string()
    };

    for name in ["127.0.0.1", "localhost"] {
        let refused = refusal(name, &[]).await;
        assert!(refused.contains("runtime.private_registries"), "{refused}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // Permitted itself, and still no way to somewhere else.
    let refused = refusal("127.0.0.1", &["127.0.0.1"]).await;
    assert!(refused.contains("localhost is not at a public address"), "{refused}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    serving.abort();
}

#[tokio::test]
async fn archives_go_out_and_come_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(&dir.path().join("store"));
    let (digest, made) = image(&store, &[("a", b"one"), ("b", b"two")], "A=1").await;
    let out = dir.path().join("out.tar");
    let file = tokio::fs::File::create(&out).await.unwrap();
    store.export_archive(digest, Some(&name("me/app:1")), file).await.unwrap();
    let saved = dir.path().join("saved.tar");
    skopeo(&["copy", &from(&out), &format!("docker-archive:{}:me/app:2", saved.display())]);

    for (archive, tag) in [(out, "1"), (saved, "2")] {
        let other = store_at(&dir.path().join(format!("other{tag}")));
        let imported = other.import_archive(tokio::fs::File::open(&archive).await.unwrap()).await.unwrap();
        other.name_imported(&imported).unwrap();
        let found = other.resolve(&format!("me/app:{tag}")).await.unwrap();
        assert_eq!(found.config, made.config, "{tag}");
        let ids = |image: &Image| image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>();
        assert_eq!(ids(&found), ids(&made), "{tag}");
        for layer in &found.layers {
            assert!(other.open_here(&layer.blob).is_some(), "{tag}");
        }
    }
    let nonsense = store.import_archive(&b"not a tar"[..]).await;
    assert!(matches!(nonsense, Err(StoreError::Bad(_))), "{nonsense:?}");
}

#[tokio::test]
async fn a_commit_puts_layers_on_top_and_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path());
    let (_, base) = image(&store, &[("a", b"one")], "A=1").await;
    let added = layer(&store, "b", b"two").await;

    let (digest, committed) = store.commit_image(Some(&base), &[added], ConfigChange::Keep).await.unwrap();

    assert_eq!(committed.config, base.config);
    assert_eq!(committed.layers, [base.layers[0], added]);
    assert_eq!(
        store.resolve(&digest.to_string()).await.unwrap(),
        Image { reference: digest.to_string(), ..committed }
    );
}

#[tokio::test]
async fn what_no_name_leads_to_is_collected_and_fetched_images_go_first_when_disk_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path());
    let (given, given_image) = image(&store, &[("a", &noise(50_000)), ("shared", b"shared")], "A=1").await;
    let (fetched, _) = image(&store, &[("b", &noise(50_000)), ("shared", b"shared")], "A=2").await;
    let (needed, _) = image(&store, &[("c", &noise(50_000))], "A=3").await;
    let (nameless, _) = image(&store, &[("d", &noise(50_000))], "A=4").await;
    store.set_name(&name("x.y/given:1"), given, Origin::Given).unwrap();
    store.set_name(&name("x.y/fetched:1"), fetched, Origin::Fetched).unwrap();
    store.set_name(&name("x.y/needed:1"), needed, Origin::Fetched).unwrap();
    let all_needed = BTreeSet::from([needed]);

    assert_eq!(store.collect(&all_needed, 0).unwrap().blobs, 0, "all of it is new");
    let lavish = store.collect_with(&all_needed, u64::MAX, Duration::ZERO).unwrap();
    assert_eq!(lavish.blobs, 3, "manifest, configuration and layer of the nameless one");
    assert!(store.open_here(&nameless).is_none() && store.open_here(&fetched).is_some());
    let short = store.collect_with(&all_needed, 0, Duration::ZERO).unwrap();

    assert_eq!(short.blobs, 3, "what the fetched one shares stays");
    assert!(short.left_bytes >= 100_000);
    for (digest, is_there) in [(given, true), (fetched, false), (needed, true)] {
        assert_eq!(store.open_here(&digest).is_some(), is_there, "{digest}");
    }
    assert!(given_image.layers.iter().all(|layer| store.open_here(&layer.blob).is_some()));
}

#[tokio::test]
async fn a_blob_that_is_not_what_its_digest_says_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_at(dir.path());
    let mut writer = store.writer().unwrap();
    writer.write(b"something").await.unwrap();

    let wrong = writer.finish(Some(&Digest::of(b"something else"))).await;

    assert!(matches!(wrong, Err(StoreError::Bad(_))));
    drop(store.writer().unwrap());
    assert_eq!(fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
    let broken = json!({"schemaVersion": 2, "config": {"digest": Digest::of(b"1"), "size": 1}, "layers": []});
    let missing = store.put_manifest(broken.to_string().as_bytes()).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))), "{missing:?}");
}
