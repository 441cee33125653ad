use std::collections::BTreeMap;
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::process::Command;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use ring::digest::{SHA256, digest as sha256};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tar::{EntryType, Header};

use super::*;
use crate::image::{Compression, ImageConfig};

/// A mounted overlay, gone with this value.
struct Overlay {
    merged: PathBuf,
}

impl Overlay {
    /// `lowers` lowest first.
    fn mount(merged: &Path, lowers: &[PathBuf], upper: Option<(&Path, &Path)>) -> Overlay {
        let lowers: Vec<_> = lowers.iter().rev().map(|lower| lower.display().to_string()).collect();
        let mut options = format!("lowerdir={},redirect_dir=off,metacopy=off,index=off", lowers.join(":"));
        if let Some((upper, work)) = upper {
            options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        }
        let options = std::ffi::CString::new(options).unwrap();
        mount("overlay", merged, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        Overlay { merged: merged.to_owned() }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        unmount(&self.merged, UnmountFlags::DETACH).unwrap();
    }
}

fn layer_of(tar: &[u8]) -> Layer {
    let mut hash = [0; 32];
    hash.copy_from_slice(sha256(&SHA256, tar).as_ref());
    let diff_id = Digest::new(hash);
    Layer { diff_id, blob: diff_id, blob_bytes: tar.len() as u64, compression: Compression::None }
}

fn file_of(bytes: &[u8]) -> File {
    use std::io::Seek;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

struct World {
    dir: tempfile::TempDir,
    store: LayerStore,
}

impl World {
    fn new() -> World {
        // In memory where there is such a folder: every layer is synced to disk, which other programs keep busy.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let store = LayerStore::open(&dir.path().join("layers")).unwrap();
        World { dir, store }
    }

    fn sub(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn add(&self, tar: &[u8]) -> Result<PathBuf, LayerError> {
        let layer = layer_of(tar);
        self.store.add(&layer, file_of(tar))?;
        Ok(self.store.path(&layer.diff_id).unwrap())
    }
}

/// Everything that a program could see of a tree, by path.
fn tree(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut seen = BTreeMap::new();
    let mut links = BTreeMap::new();
    walk(root, root, &mut seen, &mut links);
    seen
}

fn walk(root: &Path, path: &Path, seen: &mut BTreeMap<Vec<u8>, String>, links: &mut BTreeMap<u64, PathBuf>) {
    let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    let content = if kind.is_file() {
        format!("{} {:?}", metadata.len(), sha256(&SHA256, &fs::read(path).unwrap()))
    } else if kind.is_symlink() {
        format!("{:?}", fs::read_link(path).unwrap())
    } else {
        String::new()
    };
    let first = match kind.is_dir() {
        true => path,
        false => links.entry(metadata.ino()).or_insert_with(|| path.to_owned()).as_path(),
    };
    let first = first.strip_prefix(root).unwrap().to_owned();
    let mut list = vec![0; 65536];
    let length = llistxattr(path, list.as_mut_slice()).unwrap();
    let mut xattrs = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let length = lgetxattr(path, name, value.as_mut_slice()).unwrap();
        value.truncate(length);
        xattrs.insert(name.escape_ascii().to_string(), value);
    }
    let line = format!(
        "{:o} {}:{} {}.{:09} {kind:?} {content} first={first:?} {xattrs:?}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    seen.insert(name, line);
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        for path in names {
            walk(root, &path, seen, links);
        }
    }
}

/// Does things to a tree that programs do. What the file system refuses is left.
struct Hand {
    rng: StdRng,
    root: PathBuf,
}

impl Hand {
    fn any_path(&mut self) -> PathBuf {
        let depth = self.rng.random_range(1..=3);
        let long = "l".repeat(120);
        let mut path = self.root.clone();
        for _ in 0..depth {
            path.push(["a", "b", "c", "d d", "ü", &long].choose(&mut self.rng).unwrap());
        }
        path
    }

    fn existing(&mut self) -> Option<PathBuf> {
        let mut all = Vec::new();
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                }
                all.push(entry.path());
            }
        }
        all.sort();
        all.choose(&mut self.rng).cloned()
    }

    fn act(&mut self) {
        let path = self.any_path();
        // Opening one would wait for somebody at its other end.
        if fs::metadata(&path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            return;
        }
        match self.rng.random_range(0..14) {
            0..3 => drop(fs::create_dir_all(&path)),
            3..6 => {
                let length = self.rng.random_range(0..200_000);
                let bytes: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8).collect();
                let _ = fs::write(&path, bytes);
            }
            6 => {
                if let Ok(mut file) = File::create(&path) {
                    use std::io::Seek;
                    file.seek(io::SeekFrom::Start(1 << 20)).unwrap();
                    file.write_all(b"after a hole").unwrap();
                    file.set_len(2 << 20).unwrap();
                }
            }
            7 => drop(std::os::unix::fs::symlink("../somewhere/else", &path)),
            8 => {
                if let Some(from) = self.existing() {
                    let _ = fs::hard_link(from, &path);
                }
            }
            9 => {
                if let Some(from) = self.existing() {
                    let _ = fs::rename(from, &path);
                }
            }
            10 => drop(rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RWXU,
                0,
            )),
            11 => self.dress(),
            // A folder that was there and is there again shows nothing of the old one.
            12 => {
                if let Some(path) = self.existing()
                    && path.is_dir()
                    && !path.is_symlink()
                {
                    fs::remove_dir_all(&path).unwrap();
                    fs::create_dir(&path).unwrap();
                    let _ = fs::write(path.join("new"), "new");
                }
            }
            _ => {
                if let Some(path) = self.existing() {
                    let _ = fs::remove_dir_all(&path);
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }

    fn dress(&mut self) {
        let Some(path) = self.existing() else { return };
        let (uid, gid) = (self.rng.random_range(0..65536), self.rng.random_range(0..65536));
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if !kind.is_symlink() {
            let mode = self.rng.random_range(0..0o10000);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        if kind.is_file() || kind.is_dir() {
            lsetxattr(&path, "user.note", b"two\nlines\0and a zero", XattrFlags::empty()).unwrap();
        }
        if kind.is_file() {
            // cap_net_bind_service=ep
            let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            lsetxattr(&path, "security.capability", &capability, XattrFlags::empty()).unwrap();
        }
        if self.rng.random_bool(0.3) && kind.is_file() {
            let before_1970 = SystemTime::UNIX_EPOCH - Duration::new(5, 250_000_000);
            let times = fs::FileTimes::new().set_modified(before_1970);
            File::open(&path).unwrap().set_times(times).unwrap();
        }
    }
}

fn diff_of(upper: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    diff::write_layer(upper, &mut tar).unwrap();
    tar
}

#[test]
fn any_tree_is_the_same_after_commit_and_unpack() {
    let mut tars = Vec::new();
    for seed in 0..12 {
        let world = World::new();
        let (below, upper, work, merged) =
            (world.sub("below"), world.sub("upper"), world.sub("work"), world.sub("merged"));
        let mut hand = Hand { rng: StdRng::seed_from_u64(seed), root: below.clone() };
        (0..60).for_each(|_| hand.act());
        let first = world.add(&diff_of(&below)).unwrap();
        assert_eq!(tree(&first), tree(&below), "seed {seed}: the lower layer");

        let wanted = {
            let _overlay = Overlay::mount(&merged, std::slice::from_ref(&first), Some((&upper, &work)));
            hand.root = merged.clone();
            (0..60).for_each(|_| hand.act());
            tree(&merged)
        };
        let tar = diff_of(&upper);
        let second = world.add(&tar).unwrap();

        let _overlay = Overlay::mount(&merged, &[first, second], None);
        assert_eq!(tree(&merged), wanted, "seed {seed}");
        assert_eq!(diff_of(&upper), tar, "seed {seed}: the same tree gives the same bytes");
        tars.extend(tar);
    }
    for mark in [".wh.", ".wh..wh..opq", "GNU.sparse.major", "SCHILY.xattr.security.capability"] {
        assert!(tars.windows(mark.len()).any(|part| part == mark.as_bytes()), "{mark} was never written");
    }
}

#[test]
fn what_the_runtime_has_made_for_itself_is_not_in_the_layer() {
    let world = World::new();
    let upper = world.sub("upper");
    for dir in [".atoll/x", "etc/hosts.d", "run/atoll-daemon/0", "home/.atoll"] {
        fs::create_dir_all(upper.join(dir)).unwrap();
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/passwd", "run/atoll-daemon/0/log"] {
        fs::write(upper.join(file), "").unwrap();
    }

    let layer = world.add(&diff_of(&upper)).unwrap();

    let paths: Vec<String> = tree(&layer).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
    assert_eq!(paths, ["", "etc", "etc/hosts.d", "etc/passwd", "home", "home/.atoll", "run"]);
}

#[test]
fn holes_stay_holes_and_gnu_tar_reads_them() {
    let world = World::new();
    let upper = world.sub("upper");
    let file = File::create(upper.join("sparse")).unwrap();
    file.set_len(200 << 20).unwrap();
    rustix::io::pwrite(&file, b"middle", 90 << 20).unwrap();

    let tar = diff_of(&upper);
    let unpacked = fs::metadata(world.add(&tar).unwrap().join("sparse")).unwrap();

    assert!(tar.len() < 64 * 1024, "{} bytes", tar.len());
    assert_eq!(unpacked.len(), 200 << 20);
    assert!(unpacked.blocks() * 512 < 1 << 20, "{} blocks", unpacked.blocks());
    let by_gnu = world.sub("gnu");
    fs::write(world.dir.path().join("layer.tar"), &tar).unwrap();
    run("tar", &["-xpSf", "layer.tar", "-C", "gnu"], world.dir.path());
    assert_eq!(tree(&by_gnu), tree(&upper));
}

#[test]
fn what_gnu_tar_writes_is_read_in_each_of_its_formats() {
    let world = World::new();
    let from = world.sub("from");
    let mut hand = Hand { rng: StdRng::seed_from_u64(7), root: from.clone() };
    (0..80).for_each(|_| hand.act());
    let whole_seconds = |tree: BTreeMap<Vec<u8>, String>| -> Vec<String> {
        tree.into_values().map(|line| line.split('.').next().unwrap().to_owned()).collect()
    };

    for options in [["--format=pax", "--xattrs"], ["--format=gnu", "--no-xattrs"]] {
        run(
            "tar",
            &[options[0], options[1], "--xattrs-include=*", "-cSf", "x.tar", "-C", "from", "."],
            world.dir.path(),
        );
        let tar = fs::read(world.dir.path().join("x.tar")).unwrap();
        let unpacked = world.add(&tar).unwrap();

        if options[1] == "--xattrs" {
            assert_eq!(tree(&unpacked), tree(&from), "{options:?}");
        } else {
            assert_eq!(whole_seconds(tree(&unpacked)), whole_seconds(tree(&from)), "{options:?}");
        }
    }
}

#[test]
fn a_compressed_layer_is_checked_against_its_uncompressed_digest() {
    let world = World::new();
    let tar = Tar::new().file("hello", b"hello").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(Cursor::new(&tar), 3).unwrap();
    let layer = layer_of(&tar);

    for (compression, blob) in [(Compression::Gzip, gzip), (Compression::Zstd, zstd)] {
        let layer = Layer { compression, ..layer };
        world.store.add(&layer, file_of(&blob)).unwrap();
        fs::remove_dir_all(world.store.path(&layer.diff_id).unwrap().parent().unwrap()).unwrap();

        let broken = world.store.add(&layer, file_of(&blob[..blob.len() / 2]));
        assert!(matches!(broken, Err(LayerError::Bad(_))), "{broken:?}");
        let other = Layer { diff_id: Digest::new([1; 32]), ..layer };
        assert!(matches!(world.store.add(&other, file_of(&blob)), Err(LayerError::Bad(_))));
    }
    let left: Vec<_> =
        fs::read_dir(world.dir.path().join("layers")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing half-done stays: {left:?}");
}

/// Writes tars that no honest tool would.
struct Tar(Vec<u8>);

impl Tar {
    fn new() -> Tar {
        Tar(Vec::new())
    }

    fn entry(mut self, kind: EntryType, path: &[u8], link: &[u8], content: &[u8], id: u64) -> Tar {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(id);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Tar {
        self.entry(EntryType::Regular, path.as_bytes(), b"", content, 0)
    }

    fn link(self, kind: EntryType, path: &str, to: &str) -> Tar {
        self.entry(kind, path.as_bytes(), to.as_bytes(), b"", 0)
    }

    fn pax(self, records: &[u8]) -> Tar {
        self.entry(EntryType::XHeader, b"pax", b"", records, 0)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

#[test]
fn a_hostile_tar_is_refused_and_touches_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let mut bomb = Header::new_ustar();
    bomb.set_entry_type(EntryType::XHeader);
    bomb.set_size(5 << 30);
    bomb.set_cksum();
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("dots", Tar::new().file("../evil", b"x").end()),
        ("dots inside", Tar::new().file("a/../../evil", b"x").end()),
        ("through a link", Tar::new().link(EntryType::Symlink, "a", target).file("a/evil", b"x").end()),
        ("through a link up", Tar::new().link(EntryType::Symlink, "a", "../..").file("a/b/evil", b"x").end()),
        ("whiteout through a link", {
            Tar::new().link(EntryType::Symlink, "a", target).file("a/.wh.secret", b"").end()
        }),
        ("opaque through a link", {
            Tar::new().link(EntryType::Symlink, "a", target).file("a/.wh..wh..opq", b"").end()
        }),
        ("hard link outside", Tar::new().link(EntryType::Link, "a", "../../../../etc/passwd").end()),
        ("hard link through a link", {
            Tar::new().link(EntryType::Symlink, "d", target).link(EntryType::Link, "a", "d/secret").end()
        }),
        ("hard link to nothing", Tar::new().link(EntryType::Link, "a", "nothing").end()),
        ("hard link to a whiteout", Tar::new().file(".wh.a", b"").link(EntryType::Link, "b", "a").end()),
        ("whiteout of the parent", Tar::new().file("a/.wh...", b"").end()),
        ("a strange owner", Tar::new().entry(EntryType::Regular, b"a", b"", b"", 65536).end()),
        (
            "a forged mark",
            Tar::new().pax(b"44 SCHILY.xattr.trusted.overlay.redirect=/x\n").file("a", b"").end(),
        ),
        (
            "a long name",
            Tar::new().pax(format!("266 path={}\n", "x".repeat(256)).as_bytes()).file("a", b"").end(),
        ),
        ("an endless header", [bomb.as_bytes().as_slice(), &[0; 4096]].concat()),
        ("cut short", Tar::new().file("a", &[1; 4096]).0[..1024].to_vec()),
        ("no tar at all", vec![b'x'; 2048]),
    ];

    for (name, tar) in hostile {
        let world = World::new();
        let done = world.add(&tar);
        assert!(matches!(done, Err(LayerError::Bad(_))), "{name}: {done:?}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{name}");
        assert!(!world.dir.path().join("evil").exists() && !Path::new("/evil").exists(), "{name}");
    }
}

#[test]
fn an_absolute_path_stays_inside_and_a_device_is_left_out() {
    let world = World::new();

    let tar = Tar::new()
        .file("/etc/inside", b"x")
        .entry(EntryType::Block, b"dev/sda", b"", b"", 0)
        .entry(EntryType::Char, b"dev/null", b"", b"", 0)
        .link(EntryType::Symlink, "b", "/etc/passwd")
        .file("b", b"in place of the link")
        .end();
    let root = world.add(&tar).unwrap();

    assert_eq!(fs::read(root.join("etc/inside")).unwrap(), b"x");
    assert!(!root.join("dev").exists());
    assert_eq!(fs::read(root.join("b")).unwrap(), b"in place of the link");
    assert_ne!(fs::read("/etc/passwd").unwrap(), b"in place of the link");
}

#[test]
fn what_a_layer_has_itself_survives_its_own_whiteouts() {
    let world = World::new();

    let tar = Tar::new()
        .file("file", b"new")
        .file(".wh.file", b"")
        .file(".wh.dir", b"")
        .file("dir/x", b"new")
        .file("gone/.wh.it", b"")
        .file("empty/.wh..wh..opq", b"")
        .end();
    let root = world.add(&tar).unwrap();

    assert_eq!(fs::read(root.join("file")).unwrap(), b"new");
    assert_eq!(fs::read(root.join("dir/x")).unwrap(), b"new");
    let whiteout = fs::symlink_metadata(root.join("gone/it")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    for dir in ["dir", "empty"] {
        let mut value = [0; 4];
        assert_eq!(lgetxattr(root.join(dir), unpack::OPAQUE_XATTR, &mut value), Ok(1), "{dir}");
    }
}

#[test]
fn a_layer_beyond_the_limits_is_refused() {
    let bomb = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let noise: Vec<u8> = (0..3_000_000u32).map(|at| at as u8 | 1).collect();
        gzip.write_all(&Tar::new().file("a", &noise).end()).unwrap();
        gzip.finish().unwrap()
    };
    let world = World::new();
    let limits = Limits { entries: 3, bytes: 1_000_000, file_bytes: 4_000_000 };
    let store = world.store.clone().with_limits(limits);

    let layer = Layer { compression: Compression::Gzip, ..layer_of(b"") };
    assert!(matches!(store.add(&layer, file_of(&bomb)), Err(LayerError::Bad(_))));
    let many = Tar::new().file("a/b/c/d", b"").end();
    assert!(matches!(store.add(&layer_of(&many), file_of(&many)), Err(LayerError::Bad(_))));
}

#[test]
fn many_who_want_one_layer_get_it_once() {
    let world = World::new();
    let tar = Tar::new().file("hello", &[7; 300_000]).end();
    let layer = layer_of(&tar);

    let inodes: BTreeSet<u64> = std::thread::scope(|scope| {
        let adders: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let store = LayerStore::open(&world.dir.path().join("layers")).unwrap();
                    store.add(&layer, file_of(&tar)).unwrap();
                    fs::metadata(store.path(&layer.diff_id).unwrap().join("hello")).unwrap().ino()
                })
            })
            .collect();
        adders.into_iter().map(|adder| adder.join().unwrap()).collect()
    });

    assert_eq!(inodes.len(), 1);
    assert_eq!(fs::metadata(world.dir.path().join("layers")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn only_what_nobody_needs_and_nobody_used_lately_is_collected() {
    let world = World::new();
    let tars: Vec<_> = (0..4u8).map(|at| Tar::new().file("x", &[at + 1; 100_000]).end()).collect();
    let ids: Vec<_> = tars.iter().map(|tar| layer_of(tar).diff_id).collect();
    for tar in &tars {
        world.add(tar).unwrap();
    }
    let age = |id: &Digest, minutes: u64| {
        let about = world.dir.path().join("layers").join(id.hex()).join("about.json");
        let then = SystemTime::now() - Duration::from_secs(60 * minutes);
        File::open(about).unwrap().set_times(fs::FileTimes::new().set_modified(then)).unwrap();
    };
    for (id, minutes) in ids[..3].iter().zip([30, 40, 50]) {
        age(id, minutes);
    }

    let mine = BTreeSet::from([ids[0]]);
    world.store.collect("other", &BTreeSet::from([ids[1]]), u64::MAX).unwrap();
    let freed = world.store.collect("me", &mine, 0).unwrap();

    // 0 is mine, 1 is the other's, 3 was used a moment ago.
    let left: Vec<_> = ids.iter().map(|id| world.dir.path().join("layers").join(id.hex()).exists()).collect();
    assert_eq!(left, [true, true, false, true]);
    assert!(freed >= 100_000);
    assert_eq!(world.store.collect("me", &mine, u64::MAX).unwrap(), 0);
}

#[test]
fn sudo_is_found_as_the_stack_shows_it() {
    let world = World::new();
    let with_mode = |path: &str, mode: u32| {
        let dir = world.sub("sudo-from");
        fs::remove_dir_all(&dir).unwrap();
        let file = dir.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "sudo").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        diff_of(&dir)
    };
    let real = with_mode("usr/bin/sudo", 0o4755);
    let plain = with_mode("usr/bin/sudo", 0o755);
    let elsewhere = with_mode("usr/lib/cargo/bin/sudo", 0o4755);
    let linked = Tar::new()
        .link(EntryType::Symlink, "usr/bin/sudo", "/etc/alternatives/sudo")
        .link(EntryType::Symlink, "etc/alternatives/sudo", "../../usr/lib/cargo/bin/sudo")
        .end();
    let deleted = Tar::new().file("usr/bin/.wh.sudo", b"").end();
    let emptied = Tar::new().file("usr/bin/.wh..wh..opq", b"").end();
    let image = |tars: &[&Vec<u8>]| {
        tars.iter().for_each(|tar| drop(world.add(tar).unwrap()));
        Image {
            reference: String::new(),
            id: None,
            layers: tars.iter().map(|tar| layer_of(tar)).collect(),
            config: ImageConfig::default(),
        }
    };

    for (expected, layers) in [
        (true, vec![&real]),
        (false, vec![&plain]),
        (false, vec![&real, &plain]),
        (false, vec![&real, &deleted]),
        (false, vec![&real, &emptied]),
        (true, vec![&emptied, &real]),
        (true, vec![&elsewhere, &linked]),
        (false, vec![&linked]),
    ] {
        assert_eq!(world.store.has_sudo(&image(&layers)).unwrap(), expected, "{}", layers.len());
    }
}

fn run(program: &str, arguments: &[&str], dir: &Path) {
    let output = Command::new(program).args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
