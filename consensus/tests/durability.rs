//! What the real disk acknowledged survives the loss of power: on a FUSE file system that keeps what was not synced in
//! memory only, for bytes and for names alike. Needs /dev/fuse and the right to mount; skipped, loudly, without.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use atoll_consensus::disk::sled::SledDisk;
use atoll_consensus::disk::{Change, Disk};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

const SPACE: &str = "cluster";
const NO_CACHE: Duration = Duration::ZERO;

#[test]
fn what_was_synced_survives_and_what_was_not_is_lost() {
    let Some(power) = Powered::on(Files::default()) else { return };
    let disk = SledDisk::open(&power.path().join("data")).unwrap();
    for number in 0..40u8 {
        disk.write(SPACE, vec![put(number)]).unwrap();
        disk.sync().unwrap();
        if number % 8 == 7 {
            let after = Powered::on(power.files().as_after_power_loss()).unwrap();
            let disk = SledDisk::open(&after.path().join("data")).unwrap();
            for written in 0..=number {
                assert_eq!(
                    disk.get(SPACE, &[written]).unwrap(),
                    Some(value(written)),
                    "{written} of {number}"
                );
            }
        }
    }

    disk.write(SPACE, vec![put(40)]).unwrap();

    let after = Powered::on(power.files().as_after_power_loss()).unwrap();
    let disk = SledDisk::open(&after.path().join("data")).unwrap();
    assert_eq!(
        disk.get(SPACE, &[40]).unwrap(),
        None,
        "the file system does not forget, so this test proves nothing"
    );
}

#[test]
fn a_purge_and_the_snapshot_before_it_survive() {
    let Some(power) = Powered::on(Files::default()) else { return };
    let disk = SledDisk::open(&power.path().join("data")).unwrap();
    disk.write(SPACE, (0..20).map(put).collect()).unwrap();
    disk.sync().unwrap();

    disk.save_snapshot(SPACE, "1", b"older").unwrap();
    disk.save_snapshot(SPACE, "2", b"newer").unwrap();
    disk.write(SPACE, vec![Change::RemoveRange(vec![0]..vec![10])]).unwrap();
    disk.sync().unwrap();

    let after = Powered::on(power.files().as_after_power_loss()).unwrap();
    let disk = SledDisk::open(&after.path().join("data")).unwrap();
    assert_eq!(disk.snapshot(SPACE).unwrap().unwrap().read_all().unwrap(), b"newer");
    assert_eq!(disk.get(SPACE, &[9]).unwrap(), None);
    assert_eq!(disk.get(SPACE, &[10]).unwrap(), Some(value(10)));
}

#[test]
fn sleds_own_flush_is_not_enough() {
    let Some(power) = Powered::on(Files::default()) else { return };
    let dir = power.path().join("plain");
    let db = sled::Config::new().path(&dir).flush_every_ms(None).open().unwrap();
    for dir in [dir.as_path(), power.path()] {
        File::open(dir).unwrap().sync_all().unwrap();
    }
    File::open(dir.join("db")).unwrap().sync_all().unwrap();

    db.insert("key", "value").unwrap();
    db.flush().unwrap();

    let after = Powered::on(power.files().as_after_power_loss()).unwrap();
    let db = sled::Config::new().path(after.path().join("plain")).flush_every_ms(None).open().unwrap();
    assert_eq!(db.get("key").unwrap(), None);
}

fn put(number: u8) -> Change {
    Change::Put { key: vec![number], value: value(number) }
}

/// Some of them are cut into pieces.
fn value(number: u8) -> Vec<u8> {
    vec![number; 1 + usize::from(number) * 3_000]
}

/// A mounted file system, until it is dropped.
struct Powered {
    files: Shared,
    // In this order: unmount, then remove the mount point.
    _session: BackgroundSession,
    mount_point: tempfile::TempDir,
}

impl Powered {
    fn on(files: Files) -> Option<Powered> {
        let files = Shared(Arc::new(Mutex::new(files)));
        let mount_point = tempfile::tempdir().unwrap();
        match fuser::spawn_mount(files.clone(), mount_point.path(), &Config::default()) {
            Ok(session) => Some(Powered { files, _session: session, mount_point }),
            Err(error) => {
                eprintln!(
                    "SKIPPED, DURABILITY IS NOT TESTED HERE: no FUSE file system can be mounted: {error}"
                );
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.mount_point.path()
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.files()
    }
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Files>>);

struct Files {
    nodes: BTreeMap<u64, Node>,
}

#[derive(Clone)]
enum Node {
    File(Versions<Vec<u8>>),
    Dir(Versions<BTreeMap<OsString, u64>>),
}

/// As programs see it, and as it is on the platter.
#[derive(Clone, Default)]
struct Versions<T> {
    seen: T,
    durable: T,
}

impl Default for Files {
    fn default() -> Files {
        Files { nodes: BTreeMap::from([(INodeNo::ROOT.0, Node::Dir(Versions::default()))]) }
    }
}

impl Files {
    fn as_after_power_loss(&self) -> Files {
        let mut nodes = self.nodes.clone();
        for node in nodes.values_mut() {
            match node {
                Node::File(file) => file.seen = file.durable.clone(),
                Node::Dir(dir) => dir.seen = dir.durable.clone(),
            }
        }
        Files { nodes }
    }

    fn names(&mut self, dir: INodeNo) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.nodes.get_mut(&dir.0) {
            Some(Node::Dir(dir)) => Ok(&mut dir.seen),
            Some(Node::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn bytes(&mut self, file: INodeNo) -> Result<&mut Vec<u8>, Errno> {
        match self.nodes.get_mut(&file.0) {
            Some(Node::File(file)) => Ok(&mut file.seen),
            Some(Node::Dir(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn make(&mut self, dir: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let number = self.nodes.keys().next_back().map_or(1, |last| last + 1);
        self.names(dir)?.insert(name.to_owned(), number);
        self.nodes.insert(number, node);
        self.attributes(number)
    }

    fn find(&mut self, dir: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let number = *self.names(dir)?.get(name).ok_or(Errno::ENOENT)?;
        self.attributes(number)
    }

    /// Nodes without a name stay: somebody may have them open.
    fn unlink(&mut self, dir: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.names(dir)?.remove(name).map(|_| ()).ok_or(Errno::ENOENT)
    }

    fn rename(&mut self, from: INodeNo, name: &OsStr, to: INodeNo, new_name: &OsStr) -> Result<(), Errno> {
        let number = self.names(from)?.remove(name).ok_or(Errno::ENOENT)?;
        self.names(to)?.insert(new_name.to_owned(), number);
        Ok(())
    }

    fn sync(&mut self, node: INodeNo) -> Result<(), Errno> {
        match self.nodes.get_mut(&node.0).ok_or(Errno::ENOENT)? {
            Node::File(file) => file.durable = file.seen.clone(),
            Node::Dir(dir) => dir.durable = dir.seen.clone(),
        }
        Ok(())
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let (kind, size) = match self.nodes.get(&number).ok_or(Errno::ENOENT)? {
            Node::File(file) => (FileType::RegularFile, file.seen.len() as u64),
            Node::Dir(_) => (FileType::Directory, 0),
        };
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap()
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&NO_CACHE, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn attributes(result: Result<FileAttr, Errno>, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&NO_CACHE, &attributes),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Shared {
    fn lookup(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.files().find(dir, name), reply);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attributes(self.files().attributes(node.0), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut files = self.files();
        if let (Some(size), Ok(bytes)) = (size, files.bytes(node)) {
            bytes.resize(size as usize, 0);
        }
        attributes(files.attributes(node.0), reply);
    }

    fn mkdir(&self, _: &Request, dir: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        entry(self.files().make(dir, name, Node::Dir(Versions::default())), reply);
    }

    fn create(&self, _: &Request, dir: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        match self.files().make(dir, name, Node::File(Versions::default())) {
            Ok(made) => {
                reply.created(&NO_CACHE, &made, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.files().unlink(dir, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        from: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        done(self.files().rename(from, name, to, new_name), reply);
    }

    fn read(
        &self,
        _: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files().bytes(file) {
            Ok(bytes) => {
                let from = bytes.len().min(offset as usize);
                let to = bytes.len().min(from + size as usize);
                reply.data(&bytes[from..to]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.files().bytes(file) {
            Ok(bytes) => {
                let to = offset as usize + data.len();
                if bytes.len() < to {
                    bytes.resize(to, 0);
                }
                bytes[offset as usize..to].copy_from_slice(data);
                reply.written(data.len() as u32);
            }
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, file: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.files().sync(file), reply);
    }

    fn fsyncdir(&self, _: &Request, dir: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.files().sync(dir), reply);
    }

    fn readdir(&self, _: &Request, dir: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut files = self.files();
        let names: Vec<(u64, OsString)> = match files.names(dir) {
            Ok(names) => names.iter().map(|(name, number)| (*number, name.clone())).collect(),
            Err(error) => return reply.error(error),
        };
        for (at, (number, name)) in names.into_iter().enumerate().skip(offset as usize) {
            let Ok(attributes) = files.attributes(number) else { continue };
            if reply.add(INodeNo(number), at as u64 + 1, attributes.kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
