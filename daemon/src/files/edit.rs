//! Replaces text in files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Larger files are not edited in memory.
const EDIT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Every occurrence, literally. The file is replaced whole or not at all, and keeps its mode.
pub fn replace(path: &Path, pattern: &str, new_value: &str) -> io::Result<()> {
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > EDIT_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {EDIT_BYTES_MAX} bytes"),
        ));
    }
    let mut text = String::new();
    (&mut file).take(EDIT_BYTES_MAX).read_to_string(&mut text)?;
    if !text.contains(pattern) {
        return Ok(());
    }
    let (temporary, mut new) = create_beside(path)?;
    let written = new
        .write_all(text.replace(pattern, new_value).as_bytes())
        .and_then(|()| new.set_permissions(metadata.permissions()))
        .and_then(|()| fs::rename(&temporary, fs::canonicalize(path)?));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A new file that will take the place of `path`: hidden, in the folder of what `path` leads to.
pub fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = format!(".atoll-{}.tmp", uuid::Uuid::new_v4().simple());
    let temporary = target.parent().unwrap_or(Path::new("/")).join(name);
    let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    if let Ok(metadata) = fs::metadata(&target) {
        // A file that is overwritten keeps its mode; who may not set it may still write.
        let _ = file.set_permissions(fs::Permissions::from_mode(metadata.permissions().mode() & 0o7777));
    }
    Ok((temporary, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_is_literal_and_keeps_mode_and_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("f"), dir.path().join("l"));
        fs::write(&file, "a.c abc a.c").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();

        replace(&link, "a.c", "$1").unwrap();

        assert_eq!(fs::read_to_string(&file).unwrap(), "$1 abc $1");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
