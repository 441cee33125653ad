//! Unix sockets by paths of any length: an address holds 107 bytes, and a data folder may lie deep.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::net::{UnixListener, UnixStream};

const ADDRESS_BYTES_MAX: usize = 107;

pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_held, path) = short(path)?;
    UnixStream::connect(path).await
}

/// Nothing may be at the path.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let (_held, path) = short(path)?;
    UnixListener::bind(path)
}

/// A path that fits, and what keeps it meaning the same.
fn short(path: &Path) -> io::Result<(Option<OwnedFd>, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if length(path.as_os_str()) <= ADDRESS_BYTES_MAX {
        return Ok((None, path.to_owned()));
    }
    let folder = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((Some(folder), path))
}

fn length(path: &OsStr) -> usize {
    path.as_encoded_bytes().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deep_path_is_reached() {
        let root = std::env::temp_dir().join(format!("atoll-address-{}", std::process::id()));
        let folder = root.join("d".repeat(120));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("socket");
        let listener = bind(&path).unwrap();

        let (connected, accepted) = tokio::join!(connect(&path), listener.accept());

        assert!(connected.is_ok() && accepted.is_ok());
        std::fs::remove_dir_all(root).unwrap();
    }
}
