//! Replaces text in files, in pieces: neither a large file nor a large replacement is ever in memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use memchr::memmem::Finder;
use rustix::fs::OFlags;

use super::search::is_binary;

/// Larger files are not edited, nor made by editing: a worker is held for as long as it takes.
const EDIT_BYTES_MAX: u64 = 256 * 1024 * 1024;
const STEP_BYTES: usize = 64 * 1024;

/// Every occurrence, literally, from left to right. The file is replaced whole or not at all, and keeps its mode.
pub fn replace(path: &Path, pattern: &str, new_value: &str) -> io::Result<()> {
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > EDIT_BYTES_MAX {
        return Err(too_large());
    }
    if is_binary(&file)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a binary file"));
    }
    let finder = Finder::new(pattern);
    let mut occurrences = 0_u64;
    pieces(&mut file, &finder, |piece| {
        occurrences += u64::from(piece == Piece::Occurrence);
        Ok(())
    })?;
    if occurrences == 0 {
        return Ok(());
    }
    file.rewind()?;
    let (temporary, mut new) = create_beside(path)?;
    let written = write_replaced(&mut file, &finder, new_value.as_bytes(), &mut new)
        .and_then(|()| new.set_permissions(metadata.permissions()))
        .and_then(|()| fs::rename(&temporary, fs::canonicalize(path)?));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_replaced(from: &mut File, finder: &Finder, new_value: &[u8], to: &mut File) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(STEP_BYTES, to);
    let mut bytes = 0;
    pieces(from, finder, |piece| {
        let piece = match piece {
            Piece::Between(text) => text,
            Piece::Occurrence => new_value,
        };
        bytes += piece.len() as u64;
        if bytes > EDIT_BYTES_MAX { Err(too_large()) } else { to.write_all(piece) }
    })?;
    to.flush()
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {EDIT_BYTES_MAX} bytes"))
}

#[derive(PartialEq, Eq)]
enum Piece<'a> {
    Between(&'a [u8]),
    Occurrence,
}

/// All of a text, cut at the occurrences.
fn pieces(
    from: &mut impl Read,
    finder: &Finder,
    mut take: impl FnMut(Piece) -> io::Result<()>,
) -> io::Result<()> {
    let length = finder.needle().len();
    let mut held = Vec::new();
    loop {
        // More than the pattern at once, or a long one would be looked for again with every step.
        let read = from.by_ref().take(STEP_BYTES.max(length) as u64).read_to_end(&mut held)?;
        let mut at = 0;
        while let Some(before) = finder.find(&held[at..]) {
            take(Piece::Between(&held[at..at + before]))?;
            take(Piece::Occurrence)?;
            at += before + length;
        }
        // The beginning of an occurrence may be the end of what is here.
        let kept = if read == 0 { 0 } else { (length - 1).min(held.len() - at) };
        let end = held.len() - kept;
        take(Piece::Between(&held[at..end]))?;
        held.drain(..end);
        if read == 0 {
            return Ok(());
        }
    }
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
    fn occurrences_are_found_across_steps_and_from_the_left() {
        for (text, pattern, new, expected) in [
            ("aaaaa", "aa", "b", "bba"),
            ("abab", "abab", "", ""),
            ("ababab", "abab", "x", "xab"),
            ("a", "ab", "x", "a"),
        ] {
            let mut replaced = Vec::new();
            // One byte a time is the worst that a reader can do.
            let mut reader = OneByOne(text.as_bytes());
            pieces(&mut reader, &Finder::new(pattern), |piece| {
                replaced.extend_from_slice(match piece {
                    Piece::Between(text) => text,
                    Piece::Occurrence => new.as_bytes(),
                });
                Ok(())
            })
            .unwrap();
            assert_eq!(String::from_utf8(replaced).unwrap(), expected, "{pattern} in {text}");
        }

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let text = "x".repeat(STEP_BYTES - 3) + "needle" + &"y".repeat(STEP_BYTES - 4) + "needle";
        fs::write(&file, &text).unwrap();
        replace(&file, "needle", "pin").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), text.replace("needle", "pin"));
    }

    struct OneByOne<'a>(&'a [u8]);

    impl Read for OneByOne<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(1);
            self.0.read(&mut buffer[..length])
        }
    }

    #[test]
    fn what_would_grow_too_large_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x".repeat(1000)).unwrap();

        let error = replace(&file, "x", &"y".repeat(1024 * 1024)).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(fs::metadata(&file).unwrap().len(), 1000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&file, b"x\0x").unwrap();
        assert_eq!(replace(&file, "x", "y").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

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
