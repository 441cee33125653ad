//! Writes the entries of a layer below a folder, in the form that overlayfs wants its lower layers in. Trusts nothing in
//! the tar: every path is resolved beneath the folder without following any link, and every amount has a bound.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat,
    openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::LayerError;
use super::entry_path::{EntryPath, Meaning};
use super::tar_reader::{Entry, Kind, TarReader};

pub const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Ids of an image live in one range of 65536; a sandbox has no others.
pub const ID_MAX: u32 = 65535;
const LINK_BYTES_MAX: usize = 4095;
/// The paths of folders are remembered, to set their times at the end.
const DIR_PATH_BYTES_MAX: usize = 64 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// What one layer may ask of the disk.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub entries: u64,
    /// Of content, holes not counted.
    pub bytes: u64,
    /// Of one file, holes counted.
    pub file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { entries: 2_000_000, bytes: 64 << 30, file_bytes: 1 << 40 }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    /// What the files take on disk, about.
    pub disk_bytes: u64,
}

/// Unpacks everything below `root`, which is empty and which nobody else writes to.
pub fn unpack<R: Read>(
    tar: &mut TarReader<R>,
    root: BorrowedFd<'_>,
    limits: Limits,
) -> Result<Unpacked, LayerError> {
    let mut tree = Tree {
        root,
        limits,
        parent: None,
        dirs: Vec::new(),
        dir_path_bytes: 0,
        content: 0,
        done: Unpacked::default(),
        chunk: vec![0; CHUNK_BYTES],
    };
    while let Some(entry) = tar.next_entry()? {
        tree.done.entries += 1;
        if tree.done.entries > limits.entries {
            return Err(LayerError::Bad(format!("it has more than {} entries", limits.entries)));
        }
        tree.add(&entry, tar)?;
    }
    tree.set_dir_times()?;
    Ok(tree.done)
}

struct Tree<'a> {
    root: BorrowedFd<'a>,
    limits: Limits,
    /// The folder of the last entry, which most often is that of the next one too.
    parent: Option<(Vec<u8>, OwnedFd)>,
    dirs: Vec<(Vec<u8>, Timestamps)>,
    dir_path_bytes: usize,
    content: u64,
    done: Unpacked,
    chunk: Vec<u8>,
}

impl Tree<'_> {
    fn add<R: Read>(&mut self, entry: &Entry, tar: &mut TarReader<R>) -> Result<(), LayerError> {
        let path = EntryPath::parse(&entry.path)?;
        let owner = owner(entry, &path)?;
        match path.meaning()? {
            Meaning::Root if entry.kind == Kind::Dir => {
                let root = openat(
                    self.root,
                    c".",
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                self.dress(root.as_fd(), entry, owner, &path)?;
                self.remember_dir(&path, entry)
            }
            Meaning::Root => Err(path.bad("is the root and not a folder")),
            Meaning::Ignored => Ok(()),
            Meaning::Opaque => self.set_opaque(&path),
            Meaning::Whiteout(name) => self.whiteout(&path, name),
            Meaning::Entry(name) => match entry.kind {
                Kind::Dir => self.dir(entry, &path, name, owner),
                Kind::File => self.file(entry, &path, name, owner, tar),
                Kind::Symlink => self.symlink(entry, &path, name, owner),
                Kind::HardLink => self.hard_link(entry, &path, name),
                Kind::Fifo => self.fifo(entry, &path, name, owner),
                // A sandbox has a /dev of its own and may use no other device.
                Kind::Device => Ok(()),
            },
        }
    }

    fn dir(
        &mut self,
        entry: &Entry,
        path: &EntryPath<'_>,
        name: &[u8],
        owner: Owner,
    ) -> Result<(), LayerError> {
        let parent = self.parent_of(path)?;
        match mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => self.done.disk_bytes += 4096,
            Err(Errno::EXIST) => match kind_at(&parent, name)? {
                FileType::Directory => {}
                FileType::CharacterDevice => replace_whiteout(&parent, name)?,
                _ => {
                    unlinkat(&parent, name, AtFlags::empty())?;
                    mkdirat(&parent, name, Mode::RWXU)?;
                }
            },
            Err(error) => return Err(error.into()),
        }
        let dir = openat(
            &parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        self.keep_parent(path, parent);
        self.dress(dir.as_fd(), entry, owner, path)?;
        self.remember_dir(path, entry)
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        path: &EntryPath<'_>,
        name: &[u8],
        owner: Owner,
        tar: &mut TarReader<R>,
    ) -> Result<(), LayerError> {
        if entry.size > self.limits.file_bytes {
            return Err(path.bad(&format!("is larger than {} bytes", self.limits.file_bytes)));
        }
        let parent = self.parent_of(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            self.replacing(&parent, name, path, |parent, name| openat(parent, name, flags, Mode::RUSR))?;
        self.keep_parent(path, parent);
        let mut file = File::from(file);
        match &entry.sparse {
            None => self.copy(&mut file, entry.size, tar, path)?,
            Some(map) => {
                for (offset, length) in &map.0 {
                    file.seek(SeekFrom::Start(*offset))?;
                    self.copy(&mut file, *length, tar, path)?;
                }
            }
        }
        // Also the hole at the end.
        file.set_len(entry.size)?;
        self.dress(file.as_fd(), entry, owner, path)?;
        futimens(&file, &times(entry))?;
        Ok(())
    }

    /// Zeros become holes, as sparse files often come as plain ones.
    fn copy<R: Read>(
        &mut self,
        file: &mut File,
        mut left: u64,
        tar: &mut TarReader<R>,
        path: &EntryPath<'_>,
    ) -> Result<(), LayerError> {
        while left > 0 {
            let count = left.min(CHUNK_BYTES as u64) as usize;
            let chunk = &mut self.chunk[..count];
            tar.read_exact(chunk).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => path.bad("is cut short"),
                _ => LayerError::Io(error),
            })?;
            left -= count as u64;
            if count == CHUNK_BYTES && chunk.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(count as i64))?;
                continue;
            }
            self.content += count as u64;
            if self.content > self.limits.bytes {
                return Err(LayerError::Bad(format!("it holds more than {} bytes", self.limits.bytes)));
            }
            self.done.disk_bytes += (count as u64).next_multiple_of(4096);
            file.write_all(chunk)?;
        }
        Ok(())
    }

    fn symlink(
        &mut self,
        entry: &Entry,
        path: &EntryPath<'_>,
        name: &[u8],
        owner: Owner,
    ) -> Result<(), LayerError> {
        if entry.link.is_empty() || entry.link.len() > LINK_BYTES_MAX || entry.link.contains(&0) {
            return Err(path.bad("is a link to an impossible path"));
        }
        let parent = self.parent_of(path)?;
        let link = entry.link.as_slice();
        self.replacing(&parent, name, path, |parent, name| symlinkat(link, parent, name))?;
        chownat(&parent, name, Some(owner.uid), Some(owner.gid), AtFlags::SYMLINK_NOFOLLOW)?;
        self.set_xattrs_at(&parent, name, entry, path)?;
        utimensat(&parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
        self.keep_parent(path, parent);
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, path: &EntryPath<'_>, name: &[u8]) -> Result<(), LayerError> {
        let target = EntryPath::parse(&entry.link)?;
        let Meaning::Entry(target_name) = target.meaning()? else {
            return Err(path.bad("is a hard link to something that is no file"));
        };
        let missing = || path.bad("is a hard link to something that is not in the same layer");
        let target_parent = open_beneath(self.root, &target.parent(), &target)?.ok_or_else(missing)?;
        match kind_at(&target_parent, target_name) {
            Ok(FileType::RegularFile | FileType::Symlink | FileType::Fifo) => {}
            Ok(_) => return Err(path.bad("is a hard link to something that is no file")),
            Err(Errno::NOENT) => return Err(missing()),
            Err(error) => return Err(error.into()),
        }
        if target.same_as(path) {
            return Ok(());
        }
        let parent = self.parent_of(path)?;
        self.replacing(&parent, name, path, |parent, name| {
            linkat(&target_parent, target_name, parent, name, AtFlags::empty())
        })?;
        self.keep_parent(path, parent);
        Ok(())
    }

    fn fifo(
        &mut self,
        entry: &Entry,
        path: &EntryPath<'_>,
        name: &[u8],
        owner: Owner,
    ) -> Result<(), LayerError> {
        let parent = self.parent_of(path)?;
        self.replacing(&parent, name, path, |parent, name| {
            mknodat(parent, name, FileType::Fifo, Mode::RUSR, makedev(0, 0))
        })?;
        chownat(&parent, name, Some(owner.uid), Some(owner.gid), AtFlags::SYMLINK_NOFOLLOW)?;
        chmodat(&parent, name, mode(entry), AtFlags::empty())?;
        self.set_xattrs_at(&parent, name, entry, path)?;
        utimensat(&parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
        self.keep_parent(path, parent);
        Ok(())
    }

    /// Hides what lower layers have by that name; what this layer has itself stays, whichever of both came first.
    fn whiteout(&mut self, path: &EntryPath<'_>, name: &[u8]) -> Result<(), LayerError> {
        let parent = self.parent_of(path)?;
        match mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Err(Errno::EXIST) if kind_at(&parent, name)? == FileType::Directory => set_opaque(&parent, name)?,
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.keep_parent(path, parent);
        Ok(())
    }

    fn set_opaque(&mut self, path: &EntryPath<'_>) -> Result<(), LayerError> {
        let dir = self.parent_of(path)?;
        set_opaque(&dir, b".")?;
        self.keep_parent(path, dir);
        Ok(())
    }

    /// Makes something by `name`. Twice in one layer means that the later one counts.
    fn replacing<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &EntryPath<'_>,
        mut make: impl FnMut(&OwnedFd, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T, LayerError> {
        match make(parent, name) {
            Err(Errno::EXIST) => {}
            done => return done.map_err(LayerError::from),
        }
        let flags = match kind_at(parent, name)? {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        match unlinkat(parent, name, flags) {
            Err(Errno::NOTEMPTY) => return Err(path.bad("is a folder with content and then something else")),
            done => done?,
        }
        Ok(make(parent, name)?)
    }

    /// The folder that `path` lies in. Makes those on the way that the layer does not mention.
    fn parent_of(&mut self, path: &EntryPath<'_>) -> Result<OwnedFd, LayerError> {
        let wanted = path.parent();
        if let Some((known, parent)) = self.parent.take()
            && known == wanted
        {
            return Ok(parent);
        }
        if let Some(parent) = open_beneath(self.root, &wanted, path)? {
            return Ok(parent);
        }
        for end in path.parent_ends() {
            let dir = &wanted[..end];
            let split = dir.iter().rposition(|byte| *byte == b'/');
            let (above, name) = split.map_or((&b"."[..], dir), |at| (&dir[..at], &dir[at + 1..]));
            let above = open_beneath(self.root, above, path)?
                .ok_or_else(|| path.bad("lies in a folder that vanished"))?;
            match mkdirat(&above, name, Mode::RWXU) {
                Ok(()) => {
                    // Nobody can know what it should be like: root's, and open to all, as other unpackers do.
                    chmodat(&above, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                    self.done.entries += 1;
                    self.done.disk_bytes += 4096;
                    if self.done.entries > self.limits.entries {
                        return Err(LayerError::Bad(format!(
                            "it has more than {} entries",
                            self.limits.entries
                        )));
                    }
                }
                Err(Errno::EXIST) => match kind_at(&above, name)? {
                    FileType::Directory => {}
                    FileType::CharacterDevice => replace_whiteout(&above, name)?,
                    _ => return Err(path.bad("leads through something that is no folder")),
                },
                Err(error) => return Err(error.into()),
            }
        }
        open_beneath(self.root, &wanted, path)?.ok_or_else(|| path.bad("lies in something that was deleted"))
    }

    fn keep_parent(&mut self, path: &EntryPath<'_>, parent: OwnedFd) {
        self.parent = Some((path.parent(), parent));
    }

    /// Owner first: changing it clears set-id bits and capabilities.
    fn dress(
        &self,
        file: BorrowedFd<'_>,
        entry: &Entry,
        owner: Owner,
        path: &EntryPath<'_>,
    ) -> Result<(), LayerError> {
        fchown(file, Some(owner.uid), Some(owner.gid))?;
        fchmod(file, mode(entry))?;
        for (name, value) in wanted_xattrs(entry, path)? {
            fsetxattr(file, name, value, XattrFlags::empty())
                .map_err(|error| path.bad(&format!("has an attribute that cannot be set: {error}")))?;
        }
        Ok(())
    }

    fn set_xattrs_at(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        path: &EntryPath<'_>,
    ) -> Result<(), LayerError> {
        for (key, value) in wanted_xattrs(entry, path)? {
            lsetxattr(path_of(parent, name), key, value, XattrFlags::empty())
                .map_err(|error| path.bad(&format!("has an attribute that cannot be set: {error}")))?;
        }
        Ok(())
    }

    fn remember_dir(&mut self, path: &EntryPath<'_>, entry: &Entry) -> Result<(), LayerError> {
        let path = path.joined();
        self.dir_path_bytes += path.len();
        if self.dir_path_bytes > DIR_PATH_BYTES_MAX {
            return Err(LayerError::Bad("the paths of its folders are too long together".to_owned()));
        }
        self.dirs.push((path, times(entry)));
        Ok(())
    }

    fn set_dir_times(&mut self) -> Result<(), LayerError> {
        for (path, times) in &self.dirs {
            // One that a later entry replaced by something else is not there any more.
            match openat2(
                self.root,
                path.as_slice(),
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                BENEATH,
            ) {
                Ok(dir) => futimens(&dir, times)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// `None` when it is not there or not a folder.
fn open_beneath(root: BorrowedFd<'_>, dir: &[u8], of: &EntryPath<'_>) -> Result<Option<OwnedFd>, LayerError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(root, dir, flags, Mode::empty(), BENEATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(Errno::LOOP) => Err(of.bad("leads through a symbolic link of the same layer")),
        Err(error) => Err(error.into()),
    }
}

#[derive(Clone, Copy)]
struct Owner {
    uid: Uid,
    gid: Gid,
}

fn owner(entry: &Entry, path: &EntryPath<'_>) -> Result<Owner, LayerError> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id <= ID_MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok(Owner { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }),
        _ => {
            Err(path
                .bad(&format!("belongs to {}:{}; a sandbox has the ids 0 to {ID_MAX}", entry.uid, entry.gid)))
        }
    }
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o7777)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime_s, tv_nsec: entry.mtime_ns.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// What a program in a sandbox may have set itself. The host's own (`trusted.`, labels of its security modules) are not
/// a stranger's to set: the first could forge overlayfs's marks, the others mean nothing elsewhere.
fn wanted_xattrs<'a>(
    entry: &'a Entry,
    path: &EntryPath<'_>,
) -> Result<impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a>, LayerError> {
    if entry.xattrs.iter().any(|(name, _)| name.starts_with(b"trusted.")) {
        return Err(path.bad("has a trusted. attribute, which no image may set"));
    }
    let wanted = |name: &[u8]| {
        name.starts_with(b"user.") || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
    };
    Ok(entry
        .xattrs
        .iter()
        .filter(move |(name, _)| wanted(name))
        .map(|(name, value)| (name.as_slice(), value.as_slice())))
}

/// Gone below and made anew here: nothing of what is below may shine through.
fn replace_whiteout(parent: &OwnedFd, name: &[u8]) -> Result<(), LayerError> {
    unlinkat(parent, name, AtFlags::empty())?;
    mkdirat(parent, name, Mode::RWXU)?;
    chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
    set_opaque(parent, name)
}

fn set_opaque(parent: &OwnedFd, name: &[u8]) -> Result<(), LayerError> {
    Ok(lsetxattr(path_of(parent, name), OPAQUE_XATTR, b"y", XattrFlags::empty())?)
}

fn kind_at(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<FileType> {
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// For the calls that know no folder's descriptor. Does not follow a link in `name` if the call does not.
pub fn path_of(dir: &impl AsRawFd, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat()
}
