//! The disk of a sandbox: a folder that holds its writable layer, on a file system of the size that it was promised.
//!
//! ```text
//! <dir>/disk.img    sparse, ext4; absent where this host has no loop devices: then nothing bounds the disk
//! <dir>/fs/         the image mounted, or a plain folder
//!     upper/ work/  of overlayfs        etc/  hosts, hostname, resolv.conf
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::sys;

const GIB: u64 = 1 << 30;
/// Bytes of disk for one inode: package trees have many small files.
const BYTES_PER_INODE: &str = "16384";
/// Free loop devices that others may take before we get one.
const LOOP_TRIES: u32 = 32;

#[derive(Debug)]
pub(super) struct Disks {
    /// Formatted images, one per size, that disks are copied from.
    templates: PathBuf,
    /// Why disks have no limit here.
    unbounded: Option<String>,
}

impl Disks {
    pub(super) fn open(templates: PathBuf) -> io::Result<Disks> {
        fs::create_dir_all(&templates)?;
        let mut disks = Disks { templates, unbounded: None };
        disks.unbounded = disks.probe().err().map(|error| error.to_string());
        Ok(disks)
    }

    /// `None` where disks are bounded.
    pub(super) fn unbounded(&self) -> Option<&str> {
        self.unbounded.as_deref()
    }

    fn probe(&self) -> io::Result<()> {
        File::open("/dev/loop-control")
            .map_err(|error| io::Error::other(format!("no loop devices (/dev/loop-control: {error})")))?;
        self.template(1).map(drop)
    }

    /// Makes a disk in `dir`, mounted, empty.
    pub(super) fn make(&self, dir: &Path, gib: u32) -> io::Result<()> {
        let gib = gib.max(1);
        fs::create_dir_all(dir)?;
        if self.unbounded.is_none() {
            copy_sparse(&self.template(gib)?, &image(dir))?;
        }
        self.mount(dir)?;
        let root = fs_dir(dir);
        for name in ["upper", "work", "etc"] {
            let path = root.join(name);
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// Fine if it is mounted.
    pub(super) fn mount(&self, dir: &Path) -> io::Result<()> {
        let (image, place) = (image(dir), fs_dir(dir));
        fs::create_dir_all(&place)?;
        if !image.exists() || is_mounted(&place)? {
            return Ok(());
        }
        let (device, _until_mounted) = attach_loop(&image)?;
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", &device)?;
        // Blocks that are freed inside are freed outside too.
        fsconfig_set_flag(&context, "discard")?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
        let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(move_mount(&mounted, "", rustix::fs::CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }

    /// Fine if it is not mounted. Its loop device goes with the last user.
    pub(super) fn unmount(&self, dir: &Path) -> io::Result<()> {
        match unmount(fs_dir(dir), UnmountFlags::DETACH) {
            // Not a mount point, or nothing there.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A sandbox's folder goes, with all that is in it. Fine if there is none.
    pub(super) fn destroy(&self, dir: &Path) -> io::Result<()> {
        self.unmount(dir)?;
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Made once per size.
    fn template(&self, gib: u32) -> io::Result<PathBuf> {
        let path = self.templates.join(format!("ext4-{gib}g.img"));
        if path.exists() {
            return Ok(path);
        }
        let partial = self.templates.join(format!("ext4-{gib}g.{}.partial", rand::random::<u64>()));
        let made = File::options().write(true).create_new(true).mode(0o600).open(&partial);
        made?.set_len(u64::from(gib) * GIB)?;
        let output = Command::new("mkfs.ext4")
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
            // No journal: after a crash of the host a sandbox begins from its last checkpoint.
            .args([
                "-q",
                "-F",
                "-m",
                "0",
                "-O",
                "^has_journal,^resize_inode,sparse_super2",
                "-i",
                BYTES_PER_INODE,
            ])
            .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
            .arg(&partial)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                io::Error::other(format!("cannot run mkfs.ext4 (package e2fsprogs): {error}"))
            })?;
        if !output.status.success() {
            let _ = fs::remove_file(&partial);
            return Err(io::Error::other(format!(
                "mkfs.ext4: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        fs::rename(&partial, &path)?;
        Ok(path)
    }
}

pub(super) fn fs_dir(dir: &Path) -> PathBuf {
    dir.join("fs")
}

fn image(dir: &Path) -> PathBuf {
    dir.join("disk.img")
}

fn is_mounted(place: &Path) -> io::Result<bool> {
    let parent = place.parent().unwrap_or(place);
    Ok(fs::metadata(place)?.dev() != fs::metadata(parent)?.dev())
}

/// Holes stay holes.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let bytes = source.metadata()?.len();
    target.set_len(bytes)?;
    let mut position = 0;
    while position < bytes {
        let data = match seek(&source, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(&source, SeekFrom::Hole(data))?;
        let (mut read_at, mut write_at) = (data, data);
        while read_at < hole {
            let length = usize::try_from(hole - read_at).unwrap_or(usize::MAX);
            let copied = rustix::fs::copy_file_range(
                &source,
                Some(&mut read_at),
                &target,
                Some(&mut write_at),
                length,
            )?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        position = hole;
    }
    Ok(())
}

/// The device's path, and a descriptor to be kept until it is mounted: it lets go of the image with its last user.
fn attach_loop(image: &Path) -> io::Result<(String, File)> {
    let file = File::options().read(true).write(true).open(image)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..LOOP_TRIES {
        let path = format!("/dev/loop{}", sys::loop_get_free(&control)?);
        let device = match File::options().read(true).write(true).open(&path) {
            Ok(device) => device,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => continue,
            Err(error) => return Err(error),
        };
        if !device.metadata()?.file_type().is_block_device() {
            return Err(io::Error::other(format!("{path} is not a device")));
        }
        // Direct I/O keeps the page cache from holding everything twice; not every file system can.
        let configured = sys::loop_configure(&device, &file, true).or_else(|error| {
            if error.raw_os_error() == Some(libc::EINVAL) {
                sys::loop_configure(&device, &file, false)
            } else {
                Err(error)
            }
        });
        match configured {
            Ok(()) => return Ok((path, device)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => continue,
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no free loop device"))
}
