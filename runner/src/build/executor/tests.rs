//! Builds over a host in memory, whose commands are few: `write PATH TEXT`, `say TEXT`, `fail CODE`.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::build::host::{AnonymousAccess, Ran};
use crate::build::oci::read_config;
use crate::build::tree::sha256_of;
use crate::embedded::layers::tar_writer::{Head, TarWriter, Type};

#[derive(Default)]
struct World {
    bases: HashMap<String, (Vec<Layer>, StageConfig)>,
    blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    cache: Mutex<HashMap<Digest, Made>>,
    configs: Mutex<HashMap<Digest, Vec<u8>>>,
    runs: AtomicUsize,
    opened: AtomicUsize,
}

#[async_trait]
impl BuildHost for World {
    async fn base(&self, reference: &str, _: &dyn BaseAccess, _: &BuildLog) -> Result<BaseImage, BuildError> {
        let (layers, config) =
            self.bases.get(reference).ok_or_else(|| BuildError::Host("no such image".into()))?;
        let image = Image { layers: layers.clone(), config: config.image.clone(), ..Image::named(reference) };
        Ok(BaseImage { image, config: config.clone() })
    }

    async fn open(&self, layer: &Layer) -> Result<File, BuildError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(file(&self.blobs.lock().unwrap()[&layer.blob]))
    }

    async fn add_layer(&self, mut tar: File) -> Result<Layer, BuildError> {
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes).unwrap();
        Ok(self.layer(bytes))
    }

    async fn run(&self, _: &Image, run: &RunStep, log: &BuildLog) -> Result<Ran, BuildError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let words: Vec<&str> = run.argv.last().unwrap().splitn(3, ' ').collect();
        let layer = match words.as_slice() {
            ["write", path, text] => self.layer(tar(&[(path, text)])),
            ["say", ..] => {
                log.line(words[1]);
                return Ok(Ran { exit_code: 0, layer: None });
            }
            ["fail", code] => {
                log.line("about to fail");
                return Ok(Ran { exit_code: code.parse().unwrap(), layer: None });
            }
            other => panic!("unknown command {other:?}"),
        };
        Ok(Ran { exit_code: 0, layer: Some(layer) })
    }

    async fn cached(&self, key: &Digest) -> Option<Made> {
        self.cache.lock().unwrap().get(key).copied()
    }

    async fn remember(&self, key: &Digest, made: &Made) {
        self.cache.lock().unwrap().insert(*key, *made);
    }

    async fn add_image(&self, config: Vec<u8>, layers: &[Layer]) -> Result<Image, BuildError> {
        let id = Digest::new(sha256_of(&mut config.as_slice()).unwrap());
        let read = read_config(&config).unwrap();
        self.configs.lock().unwrap().insert(id, config);
        Ok(Image { reference: "built".into(), id: Some(id), layers: layers.to_vec(), config: read.image })
    }
}

impl World {
    fn new(base: &[(&str, &str)]) -> World {
        let mut world = World::default();
        let layer = world.layer(tar(base));
        world.bases.insert("base".into(), (vec![layer], StageConfig::default()));
        world
    }

    fn layer(&self, bytes: Vec<u8>) -> Layer {
        let digest = Digest::new(sha256_of(&mut bytes.as_slice()).unwrap());
        let blob_bytes = bytes.len() as u64;
        self.blobs.lock().unwrap().insert(digest, bytes);
        Layer { diff_id: digest, blob: digest, blob_bytes, compression: Compression::None }
    }

    async fn build(&self, dockerfile: &str, context: &[(&str, &str)]) -> (Result<Image, BuildError>, String) {
        let scratch = tempfile::tempdir().unwrap();
        let log = Arc::new(BuildLog::create(&scratch.path().join("log")).unwrap());
        let request = BuildRequest {
            dockerfile: dockerfile.to_owned(),
            build_args: BTreeMap::new(),
            contexts: vec![file(&tar(context))],
            access: Arc::new(AnonymousAccess),
        };
        let built = build(self, request, scratch.path(), &log).await;
        (built, std::fs::read_to_string(scratch.path().join("log")).unwrap())
    }

    /// Of what a build adds to its base: one line for each path, but unchanged folders.
    async fn made(&self, dockerfile: &str, context: &[(&str, &str)]) -> Vec<String> {
        let image = self.build(dockerfile, context).await.0.expect(dockerfile);
        let before = self.listing(&self.bases["base"].0);
        let after = self.listing(&image.layers);
        after.into_iter().filter(|line| !before.contains(line)).collect()
    }

    fn listing(&self, layers: &[Layer]) -> Vec<String> {
        let mut tree = Tree::new(std::env::temp_dir());
        for layer in layers {
            let blob = file(&self.blobs.lock().unwrap()[&layer.blob]);
            tree.lay(blob, layer.compression, Dialect::Layer, Hashing::Nothing).unwrap();
        }
        let line = |(path, node): (&[u8], &crate::build::tree::Node)| {
            let what = match &node.kind {
                Kind::File(content) => {
                    let mut text = String::new();
                    tree.read(content).unwrap().read_to_string(&mut text).unwrap();
                    format!("={text}")
                }
                Kind::Dir => "/".into(),
                Kind::Symlink(target) => format!("->{}", String::from_utf8_lossy(target)),
                other => format!("{other:?}"),
            };
            format!("{}{what} {:o} {}:{}", String::from_utf8_lossy(path), node.mode, node.uid, node.gid)
        };
        tree.below(b"").map(line).collect()
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// `path` → text; `path/` is a folder; `->target` makes a link; `mode:text` begins with four octal digits and a colon.
fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut tar = TarWriter::new(&mut bytes);
    for (path, text) in entries {
        let mut head = Head::mark(path.trim_end_matches('/').as_bytes());
        (head.uid, head.gid) = (501, 20);
        let (mode, text) = match text.split_once(':') {
            Some((mode, text)) if mode.len() == 4 => (u32::from_str_radix(mode, 8).ok(), text),
            _ => (None, *text),
        };
        if path.starts_with("etc") || path.starts_with("usr") || path.starts_with("srv") {
            (head.uid, head.gid) = (0, 0);
        }
        if path.ends_with('/') {
            head.kind = Type::Dir;
            head.mode = mode.unwrap_or(0o755);
            tar.append(&head, None).unwrap();
        } else if let Some(target) = text.strip_prefix("->") {
            head.kind = Type::Symlink;
            head.mode = 0o777;
            head.link = target.as_bytes().to_vec();
            tar.append(&head, None).unwrap();
        } else {
            head.mode = mode.unwrap_or(0o644);
            head.size = text.len() as u64;
            tar.append_stored(&head, text.as_bytes()).unwrap();
        }
    }
    tar.finish().unwrap();
    bytes
}

const BASE: [(&str, &str); 6] = [
    ("etc/", ""),
    ("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"),
    ("etc/group", "root:x:0:\nstaff:x:50:\n"),
    ("usr/lib/", "0750:"),
    ("lib", "->usr/lib"),
    ("srv/x", "0600:old"),
];

const CONTEXT: [(&str, &str); 6] = [
    ("a.txt", "A"),
    ("dir/", "0700:"),
    ("dir/b.txt", "0755:B"),
    ("dir/sub/c", "C"),
    ("dir/link", "->b.txt"),
    ("toplink", "->dir/b.txt"),
];

#[tokio::test]
async fn copies_land_where_dockers_do() {
    for (copy, made) in [
        ("COPY a.txt /new/x", vec!["new/ 755 0:0", "new/x=A 644 0:0"]),
        ("COPY a.txt /new/", vec!["new/ 755 0:0", "new/a.txt=A 644 0:0"]),
        ("COPY a.txt /srv", vec!["srv/a.txt=A 644 0:0"]),
        ("COPY a.txt /srv/x", vec!["srv/x=A 644 0:0"]),
        (
            "COPY dir /d",
            vec![
                "d/ 700 0:0",
                "d/b.txt=B 755 0:0",
                "d/link->b.txt 777 0:0",
                "d/sub/ 755 0:0",
                "d/sub/c=C 644 0:0",
            ],
        ),
        ("COPY dir/sub /srv/", vec!["srv/c=C 644 0:0"]),
        ("COPY dir/*.txt a.txt /d/", vec!["d/ 755 0:0", "d/a.txt=A 644 0:0", "d/b.txt=B 755 0:0"]),
        ("COPY dir/s* /d", vec!["d/ 755 0:0", "d/c=C 644 0:0"]),
        ("COPY toplink /d", vec!["d=B 755 0:0"]),
        // The link on the way is followed, and the folder it leads to keeps its mode.
        ("COPY a.txt /lib/y", vec!["usr/lib/y=A 644 0:0"]),
        ("COPY dir/sub /lib", vec!["usr/lib/c=C 644 0:0"]),
        ("COPY --chown=app --chmod=0640 a.txt /n/y", vec!["n/ 755 1000:1001", "n/y=A 640 1000:1001"]),
        ("COPY --chown=7:staff a.txt /y", vec!["y=A 644 7:50"]),
        ("COPY ../../a.txt /../y", vec!["y=A 644 0:0"]),
        ("WORKDIR /w/v\nCOPY a.txt ./", vec!["w/ 755 0:0", "w/v/ 755 0:0", "w/v/a.txt=A 644 0:0"]),
        (
            "COPY <<one <<two /h/\n1\none\n2\ntwo",
            vec!["h/ 755 0:0", "h/one=1\n 644 0:0", "h/two=2\n 644 0:0"],
        ),
        ("WORKDIR /srv", vec![]),
        ("RUN write made yes", vec!["made=yes 644 501:20"]),
    ] {
        let world = World::new(&BASE);
        assert_eq!(world.made(&format!("FROM base\n{copy}"), &CONTEXT).await, made, "{copy}");
    }
}

#[tokio::test]
async fn the_whole_context_is_copied_but_what_is_ignored() {
    let world = World::new(&BASE);
    let context = [&CONTEXT[..], &[(".dockerignore", "dir\n!dir/sub\ntoplink\n.dockerignore\n")]].concat();

    let made = world.made("FROM base\nCOPY . /c", &context).await;

    assert_eq!(
        made,
        ["c/ 755 0:0", "c/a.txt=A 644 0:0", "c/dir/ 700 0:0", "c/dir/sub/ 755 0:0", "c/dir/sub/c=C 644 0:0"]
    );
}

#[tokio::test]
async fn stages_are_copied_from_by_name_number_and_image() {
    let mut world = World::new(&BASE);
    let other = world.layer(tar(&[("o", "other")]));
    world.bases.insert("other:1".into(), (vec![other], StageConfig::default()));
    let text = "FROM base AS one\nRUN write f/a 1\nFROM other:1 AS unused\nRUN fail 1\nFROM base AS two\nCOPY --from=one /f/a /b\n\
                FROM base\nCOPY --from=two /b /c\nCOPY --from=0 f /d\nCOPY --from=other:1 /o /o";

    let made = world.made(text, &[]).await;

    assert_eq!(made, ["c=1 644 501:20", "d/ 755 0:0", "d/a=1 644 501:20", "o=other 644 501:20"]);
    assert_eq!(world.runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_added_archive_is_unpacked_and_a_copied_one_is_not() {
    let world = World::new(&BASE);
    let inner = String::from_utf8(tar(&[("in/x", "X")])).unwrap();
    let context = [("a.tar", inner.as_str()), ("plain.tar", "not a tar")];

    assert_eq!(
        world.made("FROM base\nADD a.tar plain.tar /u/", &context).await,
        ["u/ 755 0:0", "u/in/ 755 0:0", "u/in/x=X 644 501:20", "u/plain.tar=not a tar 644 0:0"]
    );
    assert_eq!(world.made("FROM base\nCOPY plain.tar /u/", &context).await.len(), 2);
}

#[tokio::test]
async fn the_same_build_again_does_nothing_and_another_only_what_differs() {
    let world = World::new(&BASE);
    let text = "FROM base\nARG v=1\nENV e=1\nRUN write a 1\nCOPY a.txt /x/\nCOPY --from=base srv/x /y\nRUN write b 2\nWORKDIR /n";
    let runs = || world.runs.load(Ordering::Relaxed);
    let first = world.build(text, &CONTEXT).await.0.unwrap();
    let opened = world.opened.load(Ordering::Relaxed);

    let again = world.build(text, &CONTEXT).await;
    assert_eq!(again.0.unwrap(), first);
    assert_eq!((runs(), world.opened.load(Ordering::Relaxed)), (2, opened));
    assert_eq!(again.1.matches("Using cache").count(), 5);

    // Another file in the context, and a file of the context that is not copied, change what they touch.
    world.build(text, &[("a.txt", "other")]).await.0.unwrap();
    assert_eq!(runs(), 3);
    world.build(text, &[("a.txt", "A"), ("z", "z")]).await.0.unwrap();
    assert_eq!(runs(), 3);
    world.build(&text.replace("v=1", "v=2"), &CONTEXT).await.0.unwrap();
    assert_eq!(runs(), 5);
    world.build(&text.replace("e=1", "e=2"), &CONTEXT).await.0.unwrap();
    assert_eq!(runs(), 7);
}

#[tokio::test]
async fn a_failure_names_its_line_and_what_came_before_stays_cached() {
    let world = World::new(&BASE);
    let (failed, log) = world.build("FROM base\nRUN write a 1\n\nRUN fail 3\nRUN write b 2", &[]).await;

    let command = BuildError::Command { line: 4, step: "RUN fail 3".into(), exit_code: 3 };
    assert_eq!(failed, Err(command));
    assert_eq!(log, "Step 1/4 : FROM base\nStep 2/4 : RUN write a 1\nStep 3/4 : RUN fail 3\nabout to fail\n");
    let (_, log) = world.build("FROM base\nRUN write a 1", &[]).await;
    assert!(log.contains("Using cache"));
    for (text, reason) in [
        ("FROM nowhere", "Dockerfile line 1: nowhere: no such image"),
        ("FROM base\nCOPY missing /", "Dockerfile line 2: /missing is not in the build context"),
        ("FROM base\nCOPY *.none /", "Dockerfile line 2: /*.none is not in the build context"),
        ("FROM base\nCOPY --from=base missing /", "Dockerfile line 2: /missing is not there"),
        ("FROM base\nCOPY --chown=who a.txt /", "Dockerfile line 2: the image has no user who"),
        ("FROM base\nCOPY a.txt /srv/x/y", "Dockerfile line 2: /srv/x is there and is no folder"),
        ("FROM base\nWORKDIR /srv/x", "Dockerfile line 2: /srv/x is there and is no folder"),
    ] {
        assert_eq!(world.build(text, &CONTEXT).await.0.unwrap_err().to_string(), reason);
    }
}

#[tokio::test]
async fn the_image_says_what_the_last_stage_says() {
    let world = World::new(&BASE);
    let image =
        world.build("FROM base AS x\nENV a=1\nFROM x\nENV b=$a\nCMD [\"c\"]\nUSER app", &[]).await.0.unwrap();

    assert_eq!(image.config.env, ["a=1", "b=1"]);
    assert_eq!((image.config.cmd, image.config.user), (vec!["c".to_owned()], Some("app".to_owned())));
    assert_eq!(image.layers, world.bases["base"].0);
}
