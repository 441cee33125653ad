//! /proc, /sys and /dev of a sandbox, mounted and masked before the sandbox is known.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::super::sys;
use super::{Fault, Step};

/// Detached mounts, each with what lies on it.
pub(super) struct Furniture {
    pub(super) proc: OwnedFd,
    pub(super) sys: OwnedFd,
    pub(super) dev: OwnedFd,
}

/// Nothing is to be seen there: what tells of the host, and what has been a way out of containers.
const MASKED_IN_PROC: [&str; 17] = [
    "acpi",
    "asound",
    // The host's, with whatever secrets its operator boots it with.
    "cmdline",
    "config.gz",
    "iomem",
    "interrupts",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
    "sysrq-trigger",
];
const READ_ONLY_IN_PROC: [&str; 4] = ["bus", "fs", "irq", "sys"];
/// DMI holds serial numbers of the host.
const MASKED_IN_SYS: [&str; 7] = [
    "firmware",
    "devices/virtual/dmi",
    "devices/virtual/powercap",
    "kernel/debug",
    "kernel/security",
    "fs/cgroup",
    "fs/bpf",
];

/// Of one sandbox. All sandboxes of a host have together what the host's `kernel.pty.max` (4096) leaves them.
const TERMINALS_MAX: &str = "128";

const PLAIN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// `staging` is the zygote's, of which this namespace has a copy.
pub(super) fn furnish(staging: &Path, shared_memory_pages: u64) -> Result<Furniture, Fault> {
    let dev = devices(staging)?;
    let attributes = PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let empty =
        new_mount("tmpfs", &[("size", "4k"), ("mode", "555")], attributes).step("make an empty folder")?;
    attach(&empty, &staging.join("empty")).step("attach an empty folder")?;
    let covers = Covers { dev: &dev, empty: &empty };

    let proc = &staging.join("proc");
    let proc_mount = new_mount("proc", &[], PLAIN).step("mount /proc")?;
    attach(&proc_mount, proc).step("attach /proc")?;
    limit_shared_memory(&proc_mount, shared_memory_pages);
    for path in READ_ONLY_IN_PROC {
        make_read_only(&proc_mount, path).step("protect a part of /proc")?;
    }
    for path in MASKED_IN_PROC {
        covers.mask(&proc_mount, path).step("mask a part of /proc")?;
    }

    let sys = &staging.join("sys");
    let sys_mount = new_mount("sysfs", &[], PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY).step("mount /sys")?;
    attach(&sys_mount, sys).step("attach /sys")?;
    for path in MASKED_IN_SYS {
        covers.mask(&sys_mount, path).step("mask a part of /sys")?;
    }
    Ok(Furniture { proc: proc_mount, sys: sys_mount, dev })
}

/// The zygote's device nodes, and terminals and queues of this sandbox's own.
fn devices(staging: &Path) -> Result<OwnedFd, Fault> {
    let clone = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    let dev = open_tree(CWD, staging.join("devices"), clone).step("take the device nodes")?;
    attach(&dev, &staging.join("dev")).step("attach /dev")?;
    let options =
        [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"), ("max", TERMINALS_MAX)];
    let no_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let terminals = new_mount("devpts", &options, no_exec).step("mount /dev/pts")?;
    attach_at(&terminals, &dev, "pts").step("attach /dev/pts")?;
    let queues = new_mount("mqueue", &[], PLAIN).step("mount /dev/mqueue")?;
    attach_at(&queues, &dev, "mqueue").step("attach /dev/mqueue")?;
    Ok(dev)
}

/// A fresh file system, mounted nowhere yet. An empty value is a flag.
pub(super) fn new_mount(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value.is_empty() {
            true => rustix::mount::fsconfig_set_flag(&context, *key)?,
            false => fsconfig_set_string(&context, *key, *value)?,
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn attach(mount: &OwnedFd, place: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// On `path` beneath a mount of ours.
pub(super) fn attach_at(mount: impl AsFd, on: impl AsFd, path: &str) -> io::Result<()> {
    let place = beneath(on, path)?;
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", &place, "", both)?)
}

/// Never through a symlink or another mount: the kernel's files are replaced in place, or not at all.
fn beneath(dir: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    Ok(openat2(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// What is put over masked places. Both are attached: kernels before 6.15 copy no other mounts.
struct Covers<'a> {
    dev: &'a OwnedFd,
    empty: &'a OwnedFd,
}

impl Covers<'_> {
    /// What a kernel lacks needs no mask.
    fn mask(&self, dir: &OwnedFd, path: &str) -> io::Result<()> {
        let place = match beneath(dir, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            place => place?,
        };
        let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode).is_dir();
        let clone = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
        let cover = match is_dir {
            true => open_tree(self.empty, "", clone | OpenTreeFlags::AT_EMPTY_PATH)?,
            false => open_tree(self.dev, "null", clone)?,
        };
        let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&cover, "", &place, "", both)?)
    }
}

fn make_read_only(dir: &OwnedFd, path: &str) -> io::Result<()> {
    let place = match beneath(dir, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        place => place?,
    };
    let clone =
        OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(&place, "", clone)?;
    sys::mount_setattr(&copy, u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), None, false)?;
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&copy, "", &place, "", both)?)
}

/// System V segments outlive their processes, so that killing for memory would not free them. Kernels before 6.0 do not
/// let a sandbox's root set this; there the memory limit alone holds.
fn limit_shared_memory(proc: &OwnedFd, pages: u64) {
    let file = openat2(
        proc,
        "sys/kernel/shmall",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    );
    if let Ok(file) = file {
        let _ = io::Write::write_all(&mut fs::File::from(file), pages.to_string().as_bytes());
    }
}
