//! Looks for a set-user-id `sudo` in a stack of layers, as the mounted image would show it.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, lgetxattr, readlinkat, statat};
use rustix::io::Errno;

use super::unpack::OPAQUE_XATTR;

const PLACES: [&str; 3] = ["usr/bin/sudo", "bin/sudo", "usr/local/bin/sudo"];
/// `sudo` of some distributions is a link to a link.
const HOPS_MAX: usize = 8;
const S_ISUID: u32 = 0o4000;

/// `layers` lowest first.
pub fn has_sudo(layers: &[PathBuf]) -> io::Result<bool> {
    for place in PLACES {
        if is_sudo(layers, place)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_sudo(layers: &[PathBuf], place: &str) -> io::Result<bool> {
    let mut left: Vec<Vec<u8>> = names(place.as_bytes());
    left.reverse();
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut hops = 0;
    while let Some(name) = left.pop() {
        match name.as_slice() {
            b".." => drop(at.pop()),
            _ => {
                at.push(name);
                match look(layers, &at)? {
                    Found::Dir => {}
                    Found::File { set_user_id_root } => return Ok(left.is_empty() && set_user_id_root),
                    Found::Link(target) if hops < HOPS_MAX => {
                        hops += 1;
                        at.pop();
                        if target.first() == Some(&b'/') {
                            at.clear();
                        }
                        left.extend(names(&target).into_iter().rev());
                    }
                    Found::Link(_) | Found::Nothing => return Ok(false),
                }
            }
        }
    }
    Ok(false)
}

enum Found {
    Nothing,
    Dir,
    Link(Vec<u8>),
    File { set_user_id_root: bool },
}

/// `path` has no link before its last name, as each of its parents was looked at before.
fn look(layers: &[PathBuf], path: &[Vec<u8>]) -> io::Result<Found> {
    for layer in layers.iter().rev() {
        let mut full = layer.as_os_str().as_bytes().to_vec();
        for (index, name) in path.iter().enumerate() {
            full.push(b'/');
            full.extend_from_slice(name);
            let stat = match statat(CWD, full.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => break,
                Err(error) => return Err(error.into()),
            };
            let last = index + 1 == path.len();
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if last => return Ok(Found::Dir),
                FileType::Directory => {}
                FileType::Symlink if last => {
                    return Ok(Found::Link(readlinkat(CWD, full.as_slice(), Vec::new())?.into_bytes()));
                }
                FileType::RegularFile if last => {
                    return Ok(Found::File {
                        set_user_id_root: stat.st_uid == 0 && stat.st_mode & S_ISUID != 0,
                    });
                }
                // A whiteout, or something in the way.
                _ => return Ok(Found::Nothing),
            }
        }
        if hides_below(layer, path)? {
            return Ok(Found::Nothing);
        }
    }
    Ok(Found::Nothing)
}

/// Whether a folder on the way is opaque in this layer.
fn hides_below(layer: &std::path::Path, path: &[Vec<u8>]) -> io::Result<bool> {
    let mut full = layer.as_os_str().as_bytes().to_vec();
    for name in &path[..path.len() - 1] {
        full.push(b'/');
        full.extend_from_slice(name);
        let mut value = [0; 2];
        match lgetxattr(full.as_slice(), OPAQUE_XATTR, &mut value) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}
