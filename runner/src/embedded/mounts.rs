//! The mounts that a sandbox is given, made by the host's root and handed over as descriptors. Files lie on disk with the ids of
//! the image; each mount of them shifts the ids into the sandbox's own range.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_fd, fsconfig_set_string, fsmount, fsopen, mount, move_mount, open_tree,
    unmount,
};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use super::sys;

/// Kernels from here on stack layers that are mounted nowhere (6.15).
const DETACHED_LAYERS_SINCE: (u32, u32) = (6, 15);

#[derive(Debug)]
pub(super) struct Mounter {
    /// Where layers are attached while an older kernel stacks them.
    scratch: PathBuf,
    detached_layers: bool,
    next: AtomicU64,
}

impl Mounter {
    /// `scratch` is a folder of the runtime's own.
    /// `attach_layers`: as older kernels need it, on every kernel.
    pub(super) fn new(scratch: PathBuf, attach_layers: bool) -> Mounter {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let detached_layers =
            kernel_version(&release).is_some_and(|version| version >= DETACHED_LAYERS_SINCE);
        let detached_layers = detached_layers && !attach_layers;
        Mounter { scratch, detached_layers, next: AtomicU64::new(0) }
    }

    /// A root file system, mounted nowhere yet. `layers`: lowest first, at least one. `disk` holds `upper` and `work`.
    /// `root_id` is what id 0 is shifted to.
    pub(super) fn root(
        &self,
        layers: &[PathBuf],
        disk: &Path,
        user_namespace: BorrowedFd<'_>,
        root_id: u32,
    ) -> io::Result<OwnedFd> {
        let shifted = |path: &Path| shifted(path, 0, user_namespace);
        let layers = layers.iter().rev().map(|layer| shifted(layer)).collect::<io::Result<Vec<_>>>()?;
        let disk = shifted(disk)?;
        // What overlayfs does by itself, it does as whoever mounts it, and our own id has no place on a shifted disk.
        let _acting = ActingAs::enter(root_id)?;
        match self.detached_layers {
            true => stack_detached(&layers, &disk),
            false => self.stack_attached(&layers, &disk),
        }
    }

    /// Highest first. For kernels that stack only what is attached.
    fn stack_attached(&self, layers: &[OwnedFd], disk: &OwnedFd) -> io::Result<OwnedFd> {
        let scratch = self.scratch.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let mut attached = Attached { root: scratch, places: Vec::new() };
        fs::create_dir_all(&attached.root)?;
        let mut lower = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let place = attached.attach(layer, &number.to_string())?;
            lower.push(place.display().to_string());
        }
        let disk = attached.attach(disk, "disk")?.display().to_string();
        let place = attached.root.join("root");
        fs::create_dir(&place)?;
        let options = format!("lowerdir={},upperdir={disk}/upper,workdir={disk}/work", lower.join(":"));
        let options = CString::new(options).map_err(io::Error::other)?;
        mount("atoll", &place, "overlay", MountFlags::NODEV, Some(options.as_c_str()))?;
        attached.places.push(place.clone());
        Ok(open_tree(CWD, &place, OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE)?)
    }
}

/// This thread's file-system ids are another's while it lives; its capabilities stay.
struct ActingAs {
    capabilities: CapabilitySets,
}

impl ActingAs {
    fn enter(id: u32) -> io::Result<ActingAs> {
        let acting = ActingAs { capabilities: capabilities(None)? };
        setfsgid(Gid::from_raw(id));
        setfsuid(Uid::from_raw(id));
        // The kernel takes the capabilities over files with the id.
        set_capabilities(None, acting.capabilities)?;
        // They answer with the former id, never with an error: ask again to know.
        let acts = setfsgid(Gid::from_raw(id)) == Gid::from_raw(id)
            && setfsuid(Uid::from_raw(id)) == Uid::from_raw(id);
        set_capabilities(None, acting.capabilities)?;
        if acts { Ok(acting) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        setfsgid(Gid::from_raw(0));
        setfsuid(Uid::from_raw(0));
        if let Err(error) = set_capabilities(None, self.capabilities) {
            tracing::error!(%error, "a thread has lost its capabilities");
        }
    }
}

/// Undone when it is dropped.
struct Attached {
    root: PathBuf,
    places: Vec<PathBuf>,
}

impl Attached {
    fn attach(&mut self, mount: &OwnedFd, name: &str) -> io::Result<PathBuf> {
        let place = self.root.join(name);
        fs::create_dir(&place)?;
        move_mount(mount, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        self.places.push(place.clone());
        Ok(place)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for place in self.places.iter().rev() {
            let _ = unmount(place, UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Highest first.
fn stack_detached(layers: &[OwnedFd], disk: &OwnedFd) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "atoll")?;
    for layer in layers {
        fsconfig_set_fd(&context, "lowerdir+", layer)?;
    }
    let open =
        |name: &str| openat(disk, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    fsconfig_set_fd(&context, "upperdir", open("upper")?)?;
    fsconfig_set_fd(&context, "workdir", open("work")?)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?)
}

/// A copy of the mount at `path`, mounted nowhere yet, with its ids shifted.
pub(super) fn shifted(path: &Path, attributes: u64, user_namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    sys::mount_setattr(&tree, attributes, Some(user_namespace), false).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!(
                "cannot shift the ids of {}: {error}; this needs Linux 5.19 and ext4, xfs or btrfs",
                path.display()
            ),
        )
    })?;
    Ok(tree)
}

/// A read-only copy without shifted ids: its files belong to nobody inside, and everybody may read them.
pub(super) fn read_only(path: &Path) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    sys::mount_setattr(tree.as_fd(), u64::from(attributes.bits()), None, false)?;
    Ok(tree)
}

/// Major and minor of `6.18.44-fc`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_version_is_read_from_its_release() {
        assert_eq!(kernel_version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(kernel_version("6.1.0-28-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("weird"), None);
    }
}
