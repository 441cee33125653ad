//! Moving into the sandbox's root file system. Its content is hostile: an image, or a disk that an earlier run has prepared.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};

use super::furnish::{Furniture, attach_at, new_mount};
use super::{Fault, Step};

/// Where the daemon's folder is seen.
const DAEMON_DIR: &str = ".atoll";
const ETC_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLOEXEC.union(OpenTreeFlags::OPEN_TREE_CLONE);
const ONTO: MoveMountFlags =
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);

pub(super) fn move_in(
    root: OwnedFd,
    program_dir: OwnedFd,
    etc: OwnedFd,
    furniture: Furniture,
    staging: &Path,
    shared_memory_bytes: u64,
) -> Result<(), Fault> {
    // Onto some folder of the old root that is there on every host.
    move_mount(&root, "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("attach the root")?;
    let Furniture { proc, sys, dev } = furniture;
    for (mount, name) in [(proc, "proc"), (sys, "sys"), (dev, "dev"), (program_dir, DAEMON_DIR)] {
        let place = directory(&root, name)?;
        move_mount(&mount, "", &place, "", ONTO).step("attach a mount")?;
        if name == "dev" {
            attach_shared_memory(&mount, shared_memory_bytes)?;
        }
    }
    // Attached for a moment: kernels before 6.15 copy no other mounts.
    move_mount(&etc, "", CWD, staging.join("root"), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step("attach the files for /etc")?;
    let inside = directory(&root, "etc")?;
    for name in ETC_FILES {
        let source = open_tree(&etc, name, CLONE).step("take a file for /etc")?;
        let place = file(&inside, name)?;
        move_mount(&source, "", &place, "", ONTO).step("attach a file in /etc")?;
    }
    fchdir(&root).step("enter the root")?;
    pivot_root(".", ".").step("make the root ours")?;
    unmount(".", UnmountFlags::DETACH).step("leave the old root")?;
    rustix::process::chdir("/").step("enter the root")
}

fn attach_shared_memory(dev: &OwnedFd, bytes: u64) -> Result<(), Fault> {
    let options = [("size", &*bytes.to_string()), ("mode", "1777")];
    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let shm = new_mount("tmpfs", &options, plain).step("mount /dev/shm")?;
    attach_at(&shm, dev, "shm").step("attach /dev/shm")
}

fn no_symlinks() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// A folder directly in the root; made when it is missing.
fn directory(root: &OwnedFd, name: &str) -> Result<OwnedFd, Fault> {
    match mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).step(&format!("make /{name}")),
    }
    let opened =
        openat2(root, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), no_symlinks());
    opened.map_err(|error| match error {
        Errno::LOOP | Errno::NOTDIR | Errno::XDEV => {
            Fault::of_image(format!("/{name} of the image is not a folder"))
        }
        error => Fault { image: false, reason: format!("cannot open /{name}: {error}") },
    })
}

/// A plain file in a folder; made when it is missing, in the place of a symlink too (as systemd's resolv.conf is one).
fn file(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Fault> {
    let make = || -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat2(dir, name, flags, Mode::from_raw_mode(0o644), no_symlinks())?;
        Ok(())
    };
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode).is_symlink() => {
            unlinkat(dir, name, AtFlags::empty()).step("replace a symlink in /etc")?;
            make().step("make a file in /etc")?;
        }
        Ok(_) => {}
        Err(Errno::NOENT) => make().step("make a file in /etc")?,
        Err(error) => return Err(error).step("look at a file in /etc"),
    }
    let place =
        openat2(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), no_symlinks())
            .step("open a file in /etc")?;
    let is_file =
        FileType::from_raw_mode(fstat(place.as_fd()).step("look at a file in /etc")?.st_mode).is_file();
    if is_file { Ok(place) } else { Err(Fault::of_image(format!("/etc/{name} of the image is not a file"))) }
}
