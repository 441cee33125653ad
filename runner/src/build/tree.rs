//! What a stack of tars shows when they are laid over each other, without unpacking any: the files of an image, of an
//! uploaded context, of an archive. Says where each file's content lies; blocks on the disk.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ring::digest::{Context, SHA256};

use super::BuildError;
use crate::embedded::layers::blob_reader::BlobReader;
use crate::embedded::layers::entry_path::{EntryPath, Meaning};
use crate::embedded::layers::extended::SparseMap;
use crate::embedded::layers::tar_reader::{Entry, Kind as EntryKind, TarReader};
use crate::image::Compression;

/// Of one tree: what its index takes stays below a gigabyte.
pub const ENTRIES_MAX: usize = 2_000_000;
/// Of one tar, decompressed.
pub const TAR_BYTES_MAX: u64 = 256 << 30;
/// Of the small files whose content is kept with the index.
const KEPT_BYTES_MAX: u64 = 1 << 20;
/// Read to find out who `--chown` means.
const KEPT: [&[u8]; 2] = [b"etc/passwd", b"etc/group"];
const LINKS_MAX: usize = 40;

#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_s: i64,
    pub mtime_ns: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The tar that it comes from.
    origin: usize,
}

#[derive(Debug, Clone)]
pub enum Kind {
    File(Content),
    Dir,
    Symlink(Vec<u8>),
    Fifo,
    Device,
}

#[derive(Debug, Clone)]
pub struct Content {
    origin: usize,
    offset: u64,
    /// Bytes in the tar: of a sparse file its regions, one after the other.
    pub stored: u64,
    pub size: u64,
    pub sparse: Option<SparseMap>,
    /// Of what is stored; only in a tree that was read with [`Hashing::Contents`].
    pub sha256: Option<[u8; 32]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashing {
    Contents,
    Nothing,
}

/// What a tar's entries mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Whiteouts delete; a path that leaves the root is an error.
    Layer,
    /// Names are only names; paths are cleaned as Docker cleans a source's.
    Archive,
    /// As an archive, and everything is root's: who uploaded it is nobody inside.
    Context,
}

/// A path is relative to the root, clean, without a slash at either end; the root is the empty one.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
    origins: Vec<Arc<Origin>>,
    kept: HashMap<Vec<u8>, Vec<u8>>,
    scratch: PathBuf,
}

#[derive(Debug)]
struct Origin {
    blob: File,
    compression: Compression,
    /// The decompressed copy, made when the first content is read.
    plain: OnceLock<File>,
}

impl Tree {
    /// Empty but for its root. Decompressed copies lie, without a name, in `scratch`.
    pub fn new(scratch: PathBuf) -> Tree {
        let root = Node::dir(0o755, 0, 0, 0);
        Tree {
            nodes: BTreeMap::from([(Vec::new(), root)]),
            origins: Vec::new(),
            kept: HashMap::new(),
            scratch,
        }
    }

    /// Lays a tar over what is there.
    pub fn lay(
        &mut self,
        blob: File,
        compression: Compression,
        dialect: Dialect,
        hashing: Hashing,
    ) -> Result<(), BuildError> {
        let origin = self.origins.len();
        let read = (|| {
            let mut file = blob.try_clone()?;
            file.rewind()?;
            let counter = Arc::new(AtomicU64::new(0));
            let counted = Counted {
                input: BlobReader::new(file, compression, TAR_BYTES_MAX)?,
                counter: counter.clone(),
            };
            let mut laying = Laying { tree: self, origin, dialect, hashing, counter };
            laying.run(TarReader::new(counted))
        })();
        read.map_err(|error: io::Error| BuildError::Context(error.to_string()))?;
        self.origins.push(Arc::new(Origin { blob, compression, plain: OnceLock::new() }));
        Ok(())
    }

    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Everything below a folder at any depth, parents first. The paths are whole.
    pub fn below<'a>(&'a self, dir: &[u8]) -> impl Iterator<Item = (&'a [u8], &'a Node)> + use<'a> {
        let (from, to) = range_below(dir);
        self.nodes.range::<[u8], _>((as_ref(&from), as_ref(&to))).map(|(path, node)| (path.as_slice(), node))
    }

    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.nodes.keys().map(Vec::as_slice)
    }

    /// Where `path` leads when symbolic links are followed, as far as it exists; links lead within the tree. The rest
    /// is taken as it is written.
    pub fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, BuildError> {
        let mut todo: Vec<Vec<u8>> = names(path).rev().map(<[u8]>::to_vec).collect();
        let mut at: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                at.truncate(at.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let next = join(&at, &name);
            let Some(Node { kind: Kind::Symlink(target), .. }) = self.get(&next) else {
                at = next;
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(BuildError::Context(format!("/{} has too many symbolic links", show(path))));
            }
            if target.starts_with(b"/") {
                at.clear();
            }
            todo.extend(names(target).rev().map(<[u8]>::to_vec));
        }
        Ok(at)
    }

    /// The content of `/etc/passwd` or `/etc/group`.
    pub fn kept(&self, path: &str) -> &[u8] {
        self.kept.get(path.as_bytes()).map(Vec::as_slice).unwrap_or_default()
    }

    /// What is stored of a file, from its beginning.
    pub fn read(&self, content: &Content) -> io::Result<impl Read> {
        let origin = self.origins[content.origin].clone();
        origin.plain(&self.scratch)?;
        Ok(Region { origin, at: content.offset, left: content.stored })
    }

    /// Puts a file in, whose content is `blob` as a whole.
    pub fn insert_file(&mut self, path: &[u8], mode: u32, blob: File) -> io::Result<()> {
        let size = blob.metadata()?.len();
        let origin = self.origins.len();
        self.origins.push(Arc::new(Origin { blob, compression: Compression::None, plain: OnceLock::new() }));
        let content = Content { origin, offset: 0, stored: size, size, sparse: None, sha256: None };
        self.nodes
            .insert(path.to_vec(), Node { kind: Kind::File(content), origin, ..Node::dir(mode, 0, 0, 0) });
        Ok(())
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &Node) -> bool) {
        self.nodes.retain(|path, node| path.is_empty() || keep(path, node));
    }

    /// Takes away `path` and what is below it, as far as it is older than `origin`.
    fn hide(&mut self, path: &[u8], origin: usize) {
        if self.nodes.get(path).is_some_and(|node| node.origin < origin) {
            self.nodes.remove(path);
        }
        self.hide_below(path, origin);
    }

    fn hide_below(&mut self, dir: &[u8], origin: usize) {
        let older = self.below(dir).filter(|(_, node)| node.origin < origin).map(|(path, _)| path.to_vec());
        for path in older.collect::<Vec<_>>() {
            self.nodes.remove(&path);
        }
    }
}

impl Node {
    pub fn dir(mode: u32, uid: u32, gid: u32, mtime_s: i64) -> Node {
        Node { kind: Kind::Dir, mode, uid, gid, mtime_s, mtime_ns: 0, xattrs: Vec::new(), origin: 0 }
    }

    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }
}

/// One tar on its way into the tree.
struct Laying<'a> {
    tree: &'a mut Tree,
    origin: usize,
    dialect: Dialect,
    hashing: Hashing,
    counter: Arc<AtomicU64>,
}

impl Laying<'_> {
    fn run<R: Read>(&mut self, mut tar: TarReader<R>) -> io::Result<()> {
        let bad = |error: crate::embedded::layers::LayerError| io::Error::other(error.to_string());
        while let Some(entry) = tar.next_entry().map_err(bad)? {
            if self.tree.nodes.len() >= ENTRIES_MAX {
                return Err(io::Error::other(format!("more than {ENTRIES_MAX} files")));
            }
            let path = match self.dialect {
                Dialect::Archive | Dialect::Context => clean(&entry.path),
                Dialect::Layer => {
                    let path = EntryPath::parse(&entry.path).map_err(bad)?;
                    let joined = match path.joined() {
                        root if root == b"." => Vec::new(),
                        joined => joined,
                    };
                    let parent = if path.parent() == b"." { Vec::new() } else { path.parent() };
                    match path.meaning().map_err(bad)? {
                        Meaning::Root | Meaning::Entry(_) => joined,
                        Meaning::Whiteout(name) => {
                            self.tree.hide(&join(&parent, name), self.origin);
                            continue;
                        }
                        Meaning::Opaque => {
                            self.tree.hide_below(&parent, self.origin);
                            continue;
                        }
                        Meaning::Ignored => continue,
                    }
                }
            };
            self.put(&mut tar, path, entry)?;
        }
        tar.drain()
    }

    fn put<R: Read>(&mut self, tar: &mut TarReader<R>, path: Vec<u8>, entry: Entry) -> io::Result<()> {
        let kind = match entry.kind {
            EntryKind::File => Kind::File(self.content(tar, &path, &entry)?),
            EntryKind::Dir => Kind::Dir,
            EntryKind::Symlink => Kind::Symlink(entry.link.clone()),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Device => Kind::Device,
            EntryKind::HardLink => {
                let target = clean(&entry.link);
                let Some(first) = self.tree.nodes.get(&target).cloned() else {
                    let (path, target) = (show(&path), show(&target));
                    return Err(io::Error::other(format!(
                        "/{path} is a hard link to /{target}, which is missing"
                    )));
                };
                if let Some(kept) = self.tree.kept.get(&target).cloned() {
                    self.keep(&path, kept);
                }
                self.place(path, Node { origin: self.origin, ..first });
                return Ok(());
            }
        };
        let id = |id: u64| match self.dialect {
            Dialect::Context => 0,
            _ => u32::try_from(id).unwrap_or(u32::MAX),
        };
        let node = Node {
            kind,
            mode: entry.mode & 0o7777,
            uid: id(entry.uid),
            gid: id(entry.gid),
            mtime_s: entry.mtime_s,
            mtime_ns: entry.mtime_ns,
            xattrs: entry.xattrs,
            origin: self.origin,
        };
        self.place(path, node);
        Ok(())
    }

    fn content<R: Read>(
        &mut self,
        tar: &mut TarReader<R>,
        path: &[u8],
        entry: &Entry,
    ) -> io::Result<Content> {
        let offset = self.counter.load(Ordering::Relaxed);
        let mut stored = entry.size;
        if let Some(map) = &entry.sparse {
            stored = map.0.iter().map(|(_, length)| length).sum();
        }
        let mut sha256 = None;
        if KEPT.contains(&path) && stored <= KEPT_BYTES_MAX {
            let mut kept = Vec::new();
            tar.read_to_end(&mut kept)?;
            sha256 = Some(sha256_of(&mut kept.as_slice())?);
            self.keep(path, kept);
        } else if self.hashing == Hashing::Contents {
            sha256 = Some(sha256_of(tar)?);
        }
        Ok(Content {
            origin: self.origin,
            offset,
            stored,
            size: entry.size,
            sparse: entry.sparse.clone(),
            sha256,
        })
    }

    fn keep(&mut self, path: &[u8], content: Vec<u8>) {
        if KEPT.contains(&path) {
            self.tree.kept.insert(path.to_vec(), content);
        }
    }

    fn place(&mut self, path: Vec<u8>, node: Node) {
        for end in (0..path.len()).filter(|at| path[*at] == b'/') {
            if self.tree.nodes.get(&path[..end]).is_none_or(|parent| !parent.is_dir()) {
                let parent = Node { origin: self.origin, ..Node::dir(0o755, 0, 0, 0) };
                self.tree.nodes.insert(path[..end].to_vec(), parent);
            }
        }
        if !node.is_dir() {
            self.tree.hide_below(&path, usize::MAX);
        }
        self.tree.nodes.insert(path, node);
    }
}

impl Origin {
    fn plain(&self, scratch: &Path) -> io::Result<&File> {
        if self.compression == Compression::None {
            return Ok(&self.blob);
        }
        if let Some(plain) = self.plain.get() {
            return Ok(plain);
        }
        let mut blob = self.blob.try_clone()?;
        blob.rewind()?;
        let mut copy = tempfile::tempfile_in(scratch)?;
        io::copy(&mut BlobReader::new(blob, self.compression, TAR_BYTES_MAX)?, &mut copy)?;
        Ok(self.plain.get_or_init(|| copy))
    }
}

/// Part of a plain tar, read without moving the file's own place.
struct Region {
    origin: Arc<Origin>,
    at: u64,
    left: u64,
}

impl Read for Region {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let file = self.origin.plain.get().unwrap_or(&self.origin.blob);
        let count = file.read_at(&mut buffer[..wanted], self.at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Knows how far its reader has come.
struct Counted<R> {
    input: R,
    counter: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.counter.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

pub fn sha256_of(input: &mut impl Read) -> io::Result<[u8; 32]> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let count = input.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        context.update(&chunk[..count]);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Ok(bytes)
}

pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => dir.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}

pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

/// As [`super::plan::clean`], for names that need not be text.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for name in names(path) {
        match name {
            b".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join(&b'/')
}

/// From `dir/` to just before `dir0`, as `0` follows `/`.
fn range_below(dir: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    match dir {
        b"" => (Bound::Excluded(Vec::new()), Bound::Unbounded),
        dir => (Bound::Included([dir, b"/"].concat()), Bound::Excluded([dir, b"0"].concat())),
    }
}

fn as_ref(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}
