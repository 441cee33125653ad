//! The writable layer of a sandbox (an overlay's upper folder) as an uncompressed OCI layer: the same tree gives the
//! same bytes.
//!
//! Files with holes are written in PAX sparse format 1.0, which GNU tar, Go's tar and our own reader know, so that a
//! sparse file of a terabyte takes what it holds. Times are written to the nanosecond. Sockets and devices are left out,
//! as are names that begin with `.wh.`, which a layer cannot carry, and what the runtime and its daemon have made there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, lgetxattr, llistxattr, open, openat,
    openat2, readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::entry_path::{OPAQUE_NAME, WHITEOUT_PREFIX};
use super::extended::SparseMap;
use super::tar_writer::{Head, TarWriter, Type};
use super::unpack::{ID_MAX, OPAQUE_XATTR, path_of};

const PATH_BYTES_MAX: usize = 4095;
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// Places for mounts, which nobody inside can change, and the daemon's own folder.
const OURS: [&[u8]; 5] = [b".atoll", b"etc/hostname", b"etc/hosts", b"etc/resolv.conf", b"run/atoll-daemon"];
/// Holes that save less than this together are not worth a map.
const HOLE_BYTES_MIN: u64 = 64 * 1024;

/// Writes the layer. `upper` must not change meanwhile (its sandbox is stopped or frozen); its overlay must have been
/// mounted with `redirect_dir=off,metacopy=off`, or this fails with words.
pub fn write_layer(upper: &Path, out: impl Write) -> io::Result<()> {
    let dir = open(upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    write_layer_at(dir.as_fd(), out)
}

/// [`write_layer`] of an open folder.
pub fn write_layer_at(upper: BorrowedFd<'_>, out: impl Write) -> io::Result<()> {
    let mut walk = Walk { root: upper, tar: TarWriter::new(out), links: HashMap::new() };
    let stat = rustix::fs::fstat(upper)?;
    let head = walk.head(upper, b".", b"", Type::Dir, &stat)?;
    walk.tar.append(&head, None)?;
    // Folders still to be read, the next one last.
    let mut todo = vec![Vec::new()];
    while let Some(dir) = todo.pop() {
        walk.dir(&dir, &mut todo)?;
    }
    walk.tar.finish()
}

struct Walk<'a, W: Write> {
    root: BorrowedFd<'a>,
    tar: TarWriter<W>,
    /// Device and inode of files with several names → the first of them.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Walk<'_, W> {
    fn dir(&mut self, path: &[u8], todo: &mut Vec<Vec<u8>>) -> io::Result<()> {
        let dir = self.open_dir(path)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        // Before what the folder has itself, so that an unpacker that deletes on the way deletes nothing new.
        if !path.is_empty() && is_opaque(&dir, path)? {
            self.mark(&join(path, OPAQUE_NAME))?;
        }
        let mut below = Vec::new();
        for name in names {
            if name.starts_with(WHITEOUT_PREFIX) {
                tracing::warn!(name = %name.escape_ascii(), "left out: a layer cannot carry a name with .wh.");
                continue;
            }
            let full = join(path, &name);
            if full.len() > PATH_BYTES_MAX {
                return Err(io::Error::other(format!(
                    "a path in the sandbox is longer than {PATH_BYTES_MAX} bytes and cannot be stored: {}…",
                    full[..100].escape_ascii()
                )));
            }
            if self.entry(dir.as_fd(), &name, &full)? {
                below.push(full);
            }
        }
        todo.extend(below.into_iter().rev());
        Ok(())
    }

    /// True for a folder, whose content is to come.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &[u8], full: &[u8]) -> io::Result<bool> {
        if OURS.contains(&full) {
            return Ok(false);
        }
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            let (above, name) = full.split_at(full.len() - name.len());
            self.mark(&[above, WHITEOUT_PREFIX, name].concat())?;
            return Ok(false);
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let head = Head { link: first.clone(), ..Head::new(Type::HardLink, full, &stat) };
                self.tar.append(&head, None)?;
                return Ok(false);
            }
            if matches!(kind, FileType::RegularFile | FileType::Symlink | FileType::Fifo) {
                self.links.insert((stat.st_dev, stat.st_ino), full.to_vec());
            }
        }
        match kind {
            FileType::Directory => {
                let head = self.head(dir, name, full, Type::Dir, &stat)?;
                self.tar.append(&head, None)?;
                return Ok(true);
            }
            FileType::RegularFile => self.file(dir, name, full, &stat)?,
            FileType::Symlink => {
                let mut head = self.head(dir, name, full, Type::Symlink, &stat)?;
                head.link = readlinkat(dir, name, Vec::new())?.into_bytes();
                self.tar.append(&head, None)?;
            }
            FileType::Fifo => {
                let head = self.head(dir, name, full, Type::Fifo, &stat)?;
                self.tar.append(&head, None)?;
            }
            _ => tracing::debug!(path = %full.escape_ascii(), "left out: a socket or a device"),
        }
        Ok(false)
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &[u8], full: &[u8], stat: &Stat) -> io::Result<()> {
        let mut head = self.head(dir, name, full, Type::File, stat)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(openat(dir, name, flags, Mode::empty())?);
        head.size = stat.st_size as u64;
        head.sparse = sparse_map(&file, head.size)?;
        self.tar.append(&head, Some(&mut file))
    }

    fn head(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        full: &[u8],
        kind: Type,
        stat: &Stat,
    ) -> io::Result<Head> {
        if stat.st_uid > ID_MAX || stat.st_gid > ID_MAX {
            return Err(io::Error::other(format!(
                "/{} belongs to {}:{}; a layer's ids are 0 to {ID_MAX}",
                full.escape_ascii(),
                stat.st_uid,
                stat.st_gid
            )));
        }
        let mut head = Head::new(kind, full, stat);
        head.xattrs = xattrs(dir, name, full)?;
        Ok(head)
    }

    /// An empty file whose name says what is gone.
    fn mark(&mut self, path: &[u8]) -> io::Result<()> {
        self.tar.append(&Head::mark(path), None)
    }

    fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        Ok(openat2(self.root, path, flags, Mode::empty(), resolve)?)
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn is_opaque(dir: &OwnedFd, path: &[u8]) -> io::Result<bool> {
    let mut value = [0; 2];
    match rustix::fs::fgetxattr(dir, OPAQUE_XATTR, &mut value) {
        Ok(1) if value[0] == b'y' => Ok(true),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(io::Error::new(
            io::Error::from(error).kind(),
            format!("cannot read the marks of /{}: {error}", path.escape_ascii()),
        )),
    }
}

/// Without what belongs to the host: overlayfs's own marks and labels of security modules.
fn xattrs(dir: BorrowedFd<'_>, name: &[u8], full: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = path_of(&dir, name);
    let mut list = vec![0; XATTR_BYTES_MAX];
    let length = match llistxattr(path.as_slice(), list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut names: Vec<&[u8]> =
        list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut kept = Vec::new();
    for name in names {
        if matches!(name, b"trusted.overlay.redirect" | b"trusted.overlay.metacopy") {
            return Err(io::Error::other(format!(
                "/{} is stored as a reference to a lower layer; mount the overlay with redirect_dir=off,metacopy=off",
                full.escape_ascii()
            )));
        }
        let wanted = name.starts_with(b"user.")
            || name == b"security.capability"
            || name.starts_with(b"system.posix_acl_");
        if wanted {
            let mut value = vec![0; XATTR_BYTES_MAX];
            let length = lgetxattr(path.as_slice(), name, value.as_mut_slice())?;
            value.truncate(length);
            kept.push((name.to_vec(), portable(name, value)));
        }
    }
    Ok(kept)
}

/// Capabilities set from within a user namespace carry that namespace's root. Ours is the image's own root, which the
/// older form means without saying, and which every other tool can read.
fn portable(name: &[u8], value: Vec<u8>) -> Vec<u8> {
    const REVISION_MASK: u8 = 0xff;
    let is_v3_of_root = name == b"security.capability"
        && value.len() == 24
        && value[3] & REVISION_MASK == 3
        && value[20..] == [0, 0, 0, 0];
    if !is_v3_of_root {
        return value;
    }
    let mut older = value[..20].to_vec();
    older[3] = 2;
    older
}

/// `None` when the file has no hole worth a word.
fn sparse_map(file: &File, size: u64) -> io::Result<Option<SparseMap>> {
    let mut regions = Vec::new();
    let (mut at, mut content) = (0, 0);
    while at < size {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(begin))?.min(size);
        if begin >= end {
            break;
        }
        regions.push((begin, end - begin));
        content += end - begin;
        at = end;
    }
    seek(file, SeekFrom::Start(0))?;
    if size - content < HOLE_BYTES_MIN {
        return Ok(None);
    }
    // A file that ends with a hole: without this, GNU tar makes it end before the hole.
    if at < size {
        regions.push((size, 0));
    }
    Ok(Some(SparseMap(regions)))
}

/// Exactly `length` bytes from `offset` on.
pub(super) fn copy_region(file: &mut File, offset: u64, length: u64, out: &mut impl Write) -> io::Result<()> {
    file.seek(io::SeekFrom::Start(offset))?;
    let copied = io::copy(&mut file.take(length), out)?;
    if copied < length {
        return Err(io::Error::other(
            "a file became shorter while it was read; stop or pause the sandbox first",
        ));
    }
    Ok(())
}
