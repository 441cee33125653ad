//! Makes, moves and removes files and folders.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
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
/// a copy and a removal; a copy that fails leaves the source and no destination.
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

fn copy(source: &Path, destination: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(source)?;
    if metadata.is_symlink() {
        return symlink(fs::read_link(source)?, destination);
    }
    if metadata.is_file() {
        return fs::copy(source, destination).map(drop);
    }
    if !metadata.is_dir() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    fs::create_dir(destination)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        copy(&entry.path(), &destination.join(entry.file_name()))?;
    }
    // Last: it may forbid writing.
    fs::set_permissions(destination, metadata.permissions())
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
        (true, Recursive::Yes) => fs::remove_dir_all(path),
        (true, Recursive::No) => Err(io::ErrorKind::IsADirectory.into()),
    }
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

        copy_and_remove(&source, &destination).unwrap();

        assert!(!exists(&source));
        assert_eq!(fs::read_to_string(destination.join("l")).unwrap(), "x");
        assert!(fs::symlink_metadata(destination.join("l")).unwrap().is_symlink());
        assert_eq!(fs::metadata(destination.join("sub")).unwrap().permissions().mode() & 0o777, 0o500);
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
