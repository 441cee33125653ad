//! What the runtime takes from the node's folder of a sandbox, and what it writes for the sandbox's /etc. The node is another, less
//! trusted user: nothing of its is opened through a symlink, and its answers are bounded.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, fstat, memfd_create, openat2};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::record::MountPlace;
use super::runtime::host;
use crate::runtime::RuntimeError;

const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Ready to be handed to a daemon.
pub(super) struct NodeFiles {
    /// A copy in memory of the daemon's configuration, at its beginning.
    pub(super) config: OwnedFd,
    /// Connected to the node, which waits there for the daemon's hello.
    pub(super) hello: OwnedFd,
}

impl NodeFiles {
    /// See [`crate::mount`]: the node has armed the folder for one start.
    pub(super) fn open(mount_dir: &MountPlace) -> Result<NodeFiles, RuntimeError> {
        NodeFiles::try_open(mount_dir).map_err(host("read what the node has prepared for the daemon"))
    }

    fn try_open(mount_dir: &MountPlace) -> io::Result<NodeFiles> {
        let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let run = openat2(CWD, mount_dir.path.join("run"), path | OFlags::DIRECTORY, Mode::empty(), plain)?;
        owned(&run, mount_dir.owner)?;
        let beneath = plain | ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
        let read = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let config = File::from(openat2(&run, "config.json", read, Mode::empty(), beneath)?);
        owned(&config, mount_dir.owner)?;
        let mut json = Vec::new();
        config.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut json)?;
        if json.len() as u64 > CONFIG_BYTES_MAX {
            return Err(io::Error::other("the daemon's configuration is too large"));
        }
        let mut memory = File::from(memfd_create("atoll-config", MemfdFlags::CLOEXEC)?);
        memory.write_all(&json)?;
        io::Seek::rewind(&mut memory)?;
        let socket = openat2(&run, "hello.sock", path, Mode::empty(), beneath)?;
        owned(&socket, mount_dir.owner)?;
        Ok(NodeFiles { config: memory.into(), hello: connect(&socket)? })
    }
}

/// Never waits: whoever has bound it and takes no connections would keep us.
fn connect(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ours = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let place = SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
    rustix::net::connect(&ours, &place)?;
    Ok(ours)
}

/// A hard link may be to anything of anybody's: what root alone may read, or a socket that root alone may connect to.
fn owned(file: impl AsFd, owner: u32) -> io::Result<()> {
    match fstat(file)?.st_uid {
        found if found == owner => Ok(()),
        found => Err(io::Error::other(format!("something in it belongs to uid {found} and not to {owner}"))),
    }
}

/// `hosts`, `hostname` and `resolv.conf`, as the sandbox sees them.
pub(super) fn write_etc(
    dir: &Path,
    hostname: &str,
    address: Option<Ipv4Addr>,
    nameservers: &[IpAddr],
) -> io::Result<()> {
    let own = address.map(|address| format!("{address}\t{hostname}\n")).unwrap_or_default();
    fs::write(
        dir.join("hosts"),
        format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n{own}"
        ),
    )?;
    fs::write(dir.join("hostname"), format!("{hostname}\n"))?;
    let lines: String = nameservers.iter().map(|address| format!("nameserver {address}\n")).collect();
    fs::write(dir.join("resolv.conf"), lines)
}
