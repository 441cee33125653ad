//! Makes, moves and removes files and folders.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, Timespec, Timestamps, fstat, openat, renameat_with,
    unlinkat, utimensat,
};
use rustix::io::Errno;

/// With its parents, which get the usual mode; an existing folder is fine. The mode is exact, whatever the umask.
pub fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Never over something that exists. Across file systems (and for a folder of a lower image layer, which can't be renamed) it is
/// a copy, which keeps modes and times, and a removal; a copy that fails leaves the source and no destination.
pub fn move_to(source: &Path, destination: &Path) -> io::Result<()> {
    match renameat_with(CWD, source, CWD, destination, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // A file system without that flag.
        Err(Errno::INVAL | Errno::NOSYS)
            if !exists(destination) && exists(source) && !destination.starts_with(source) =>
        {
            fs::rename(source, destination)
        }
        Err(Errno::XDEV) => copy_and_remove(source, destination),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_and_remove(source: &Path, destination: &Path) -> io::Result<()> {
    if exists(destination) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    if let Err(error) = copy(source, destination) {
        let _ = remove(destination, Recursive::Yes);
        return Err(error);
    }
    remove(source, Recursive::Yes)
}

/// What is left of a copy. A list and not a recursion, as a tree may be deeper than a thread's stack.
enum Step {
    Copy(PathBuf, PathBuf),
    /// Of a folder, once all in it is copied: that changes its time, and its mode may forbid writing.
    Finish(PathBuf, fs::Metadata),
}

fn copy(source: &Path, destination: &Path) -> io::Result<()> {
    let mut steps = vec![Step::Copy(source.to_owned(), destination.to_owned())];
    while let Some(step) = steps.pop() {
        let (source, destination) = match step {
            Step::Finish(folder, metadata) => {
                keep_time(&metadata, &folder)?;
                fs::set_permissions(folder, metadata.permissions())?;
                continue;
            }
            Step::Copy(source, destination) => (source, destination),
        };
        let metadata = fs::symlink_metadata(&source)?;
        if metadata.is_symlink() {
            symlink(fs::read_link(source)?, destination)?;
        } else if metadata.is_file() {
            fs::copy(source, &destination)?;
            keep_time(&metadata, &destination)?;
        } else if metadata.is_dir() {
            fs::create_dir(&destination)?;
            steps.push(Step::Finish(destination.clone(), metadata));
            for entry in fs::read_dir(source)? {
                let entry = entry?;
                steps.push(Step::Copy(entry.path(), destination.join(entry.file_name())));
            }
        } else {
            return Err(io::ErrorKind::Unsupported.into());
        }
    }
    Ok(())
}

/// Of an owner's own file, which a copy is. By path, as the file may not be open for writing.
fn keep_time(of: &fs::Metadata, destination: &Path) -> io::Result<()> {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(of.atime(), of.atime_nsec()),
        last_modification: time(of.mtime(), of.mtime_nsec()),
    };
    Ok(utimensat(CWD, destination, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recursive {
    Yes,
    /// Also an empty folder is refused.
    No,
}

pub fn remove(path: &Path, recursive: Recursive) -> io::Result<()> {
    match (fs::symlink_metadata(path)?.is_dir(), recursive) {
        (false, _) => fs::remove_file(path),
        (true, Recursive::Yes) => remove_tree(path),
        (true, Recursive::No) => Err(io::ErrorKind::IsADirectory.into()),
    }
}

/// A folder on the way down, by what it was when it was entered.
struct Entered {
    name: CString,
    device: u64,
    inode: u64,
}

/// Neither the stack nor the number of descriptors grows with the depth, nor does any path: a tree may be deeper than a path
/// can be long. No link is followed.
fn remove_tree(root: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(CWD, root, flags, Mode::empty())?;
    let mut above: Vec<Entered> = Vec::new();
    loop {
        match first_full_folder(&at)? {
            Some(name) => {
                let here = fstat(&at)?;
                at = openat(&at, &name, flags, Mode::empty())?;
                above.push(Entered { name, device: here.st_dev, inode: here.st_ino });
            }
            None => {
                let Some(Entered { name, device, inode }) = above.pop() else { break };
                at = openat(&at, c"..", flags, Mode::empty())?;
                let parent = fstat(&at)?;
                if (parent.st_dev, parent.st_ino) != (device, inode) {
                    return Err(io::Error::other("a folder was moved away while it was being removed"));
                }
                unlinkat(&at, &name, AtFlags::REMOVEDIR)?;
            }
        }
    }
    fs::remove_dir(root)
}

/// Removes all in a folder up to the first folder in it that is not empty.
fn first_full_folder(folder: &OwnedFd) -> io::Result<Option<CString>> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            // Linux says the one of a folder, POSIX the other.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some(name.to_owned())),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_across_file_systems_keeps_kinds_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        let (source, destination) = (dir.path().join("s"), dir.path().join("d"));
        make_folder(&source.join("sub"), 0o500).unwrap();
        fs::write(source.join("f"), "x").unwrap();
        symlink("f", source.join("l")).unwrap();
        let modified = fs::metadata(source.join("f")).unwrap().modified().unwrap();

        copy_and_remove(&source, &destination).unwrap();

        assert!(!exists(&source));
        assert_eq!(fs::read_to_string(destination.join("l")).unwrap(), "x");
        assert!(fs::symlink_metadata(destination.join("l")).unwrap().is_symlink());
        assert_eq!(fs::metadata(destination.join("f")).unwrap().modified().unwrap(), modified);
        assert_eq!(fs::metadata(destination.join("sub")).unwrap().permissions().mode() & 0o777, 0o500);
    }

    /// Deeper than a path can be long, on a stack like that of a file worker.
    #[test]
    fn the_depth_of_a_tree_costs_no_stack() {
        const DEPTH: usize = 5_000;
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        fs::write(top.join("file"), "x").unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "kept").unwrap();
        let mut at = openat(CWD, &top, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        rustix::fs::symlinkat(&outside, &at, "link").unwrap();
        let small = || std::thread::Builder::new().stack_size(128 * 1024);
        let (source, copied) = (top.clone(), dir.path().join("copied"));

        let copying = small().spawn(move || copy(&source, &copied)).unwrap().join().unwrap();
        assert!(copying.is_err(), "its path is too long to copy");
        small().spawn(move || remove(&top, Recursive::Yes)).unwrap().join().unwrap().unwrap();

        assert!(!exists(&dir.path().join("top")));
        assert_eq!(fs::read_to_string(outside).unwrap(), "kept");
        remove(&dir.path().join("copied"), Recursive::Yes).unwrap();
    }

    #[test]
    fn nothing_is_moved_over_something() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();

        for moving in [move_to, copy_and_remove] {
            assert_eq!(moving(&a, &b).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read_to_string(&b).unwrap(), "b");
    }
}
