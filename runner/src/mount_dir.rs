//! The folder that a sandbox is to see at `/.atoll`, held open, so that what was checked is what is mounted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use crate::runtime::RuntimeError;

/// A folder below the node's data folder. It holds the daemon, its configuration and the hello socket (see
/// `atoll_api::daemon`), all of them its owner's: inside the sandbox that owner is to be root.
#[derive(Debug, Clone)]
pub struct MountDir {
    path: PathBuf,
    dir: Arc<OwnedFd>,
    owner: (u32, u32),
}

impl MountDir {
    /// One that the caller has made itself.
    pub fn open(path: &Path) -> Result<MountDir, RuntimeError> {
        let dir = openat(CWD, path, OPEN, Mode::empty()).map_err(|error| unusable(path, error))?;
        MountDir::of(path.to_owned(), dir)
    }

    /// One that a less trusted process names: below `root`, reached through no symbolic link, and a folder of `owner`'s.
    /// The path stays what it is only while that process leaves it alone; the descriptor is what was checked.
    pub fn beneath(root: &Path, relative: &Path, owner: u32) -> Result<MountDir, RuntimeError> {
        let path = root.join(relative);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let root = openat(CWD, root, OPEN & !OFlags::NOFOLLOW, Mode::empty());
        let dir = root.and_then(|root| openat2(root, relative, OPEN, Mode::empty(), resolve));
        let opened = MountDir::of(path.clone(), dir.map_err(|error| unusable(&path, error))?)?;
        if opened.owner_uid() != owner {
            return Err(RuntimeError::Host(format!(
                "{} belongs to uid {} and not to the node's own, {owner}",
                path.display(),
                opened.owner_uid()
            )));
        }
        Ok(opened)
    }

    fn of(path: PathBuf, dir: OwnedFd) -> Result<MountDir, RuntimeError> {
        let stat = fstat(&dir).map_err(|error| unusable(&path, error))?;
        Ok(MountDir { path, dir: Arc::new(dir), owner: (stat.st_uid, stat.st_gid) })
    }

    /// Absolute. For an engine that opens it itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Open with `O_PATH`: fit for `open_tree(2)` and `openat(2)`.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub fn owner_uid(&self) -> u32 {
        self.owner.0
    }

    pub fn owner_gid(&self) -> u32 {
        self.owner.1
    }
}

const OPEN: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn unusable(path: &Path, error: Errno) -> RuntimeError {
    let why = match error {
        Errno::XDEV => "it leads out of the node's data folder".to_owned(),
        Errno::LOOP => "there is a symbolic link in it".to_owned(),
        error => error.to_string(),
    };
    RuntimeError::Host(format!("the folder {} cannot be mounted into a sandbox: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn only_a_folder_of_the_nodes_own_below_its_data_can_be_named() {
        let root = std::env::temp_dir().join(format!("atoll-mount-dir-{}", std::process::id()));
        fs::create_dir_all(root.join("data/a/mount")).unwrap();
        fs::create_dir_all(root.join("outside")).unwrap();
        symlink(root.join("outside"), root.join("data/absolute")).unwrap();
        symlink("a", root.join("data/inner")).unwrap();
        fs::write(root.join("data/file"), "").unwrap();
        let uid = fs::metadata(&root).unwrap().uid();
        let data = root.join("data");
        let open = |relative: &str, owner| MountDir::beneath(&data, Path::new(relative), owner);

        assert_eq!(open("a/mount", uid).unwrap().path(), data.join("a/mount"));
        for wrong in ["../outside", "/etc", "absolute", "inner/mount", "a/../../outside", "file", "none"] {
            assert!(matches!(open(wrong, uid), Err(RuntimeError::Host(_))), "{wrong}");
        }
        let foreign = open("a/mount", uid + 1).unwrap_err().to_string();
        assert!(foreign.contains("belongs to uid"), "{foreign}");
        fs::remove_dir_all(root).unwrap();
    }
}
