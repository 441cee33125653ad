//! Finds text in files, and files by name.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use memchr::memmem::Finder;
use rustix::fs::OFlags;
use serde::Serialize;

use super::glob::Glob;
use super::walk::{Ended, Visit, WALK_DEADLINE, walk};

const MATCHES_MAX: usize = 10_000;
/// Of all matches together; a few lines of a minified file are as much as thousands of others.
const MATCHED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A longer line is searched and shown only this far.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// A file with a zero byte this early is binary.
const PROBE_BYTES: usize = 8 * 1024;
/// No one file is read further.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Match {
    pub file: String,
    /// From 1.
    pub line: u64,
    pub content: String,
}

/// Lines that contain `pattern`, in text files at or below `root`.
pub fn find_text(root: &Path, pattern: &str) -> (Vec<Match>, Ended) {
    let mut search = Search {
        finder: Finder::new(pattern),
        matches: Vec::new(),
        matched_bytes: 0,
        deadline: Instant::now() + WALK_DEADLINE,
    };
    let ended = walk(root, None, |path, metadata| {
        if metadata.is_file() {
            // A file that can't be read has no lines for this user.
            let _ = search.look_into(path);
        }
        if search.has_enough() { Visit::Enough } else { Visit::Continue }
    });
    (search.matches, ended)
}

struct Search<'a> {
    finder: Finder<'a>,
    matches: Vec<Match>,
    matched_bytes: usize,
    deadline: Instant,
}

impl Search<'_> {
    fn has_enough(&self) -> bool {
        self.matches.len() >= MATCHES_MAX
            || self.matched_bytes >= MATCHED_BYTES_MAX
            || Instant::now() > self.deadline
    }

    fn look_into(&mut self, path: &Path) -> io::Result<()> {
        // Not blocking: it may have become a FIFO since it was looked at.
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if !file.metadata()?.is_file() || is_binary(&file)? {
            return Ok(());
        }
        let mut reader = BufReader::with_capacity(PROBE_BYTES, file.take(FILE_BYTES_MAX));
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.len() as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
                reader.skip_until(b'\n')?;
            }
            if self.finder.find(&line).is_some() {
                let content = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                let found = Match { file: path.to_string_lossy().into_owned(), line: number, content };
                self.matched_bytes += found.file.len() + found.content.len();
                self.matches.push(found);
            }
            if self.has_enough() {
                break;
            }
        }
        Ok(())
    }
}

/// Looks at the beginning, and leaves the file's position where it is.
pub fn is_binary(file: &File) -> io::Result<bool> {
    let mut probe = [0; PROBE_BYTES];
    let read = file.read_at(&mut probe, 0)?;
    Ok(probe[..read].contains(&0))
}

/// Paths below `root` whose last name matches.
pub fn find_names(root: &Path, glob: &Glob) -> (Vec<String>, Ended) {
    let mut files = Vec::new();
    let ended = walk(root, None, |path, _| {
        if path.file_name().is_some_and(|name| glob.matches(&name.to_string_lossy())) {
            files.push(path.to_string_lossy().into_owned());
        }
        if files.len() < MATCHES_MAX { Visit::Continue } else { Visit::Enough }
    });
    (files, ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_by_line_and_binaries_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.txt"), "one\ntwo needle\r\nthree needle").unwrap();
        std::fs::write(dir.path().join("b.bin"), b"needle\0needle").unwrap();

        let (matches, ended) = find_text(dir.path(), "needle");

        let found: Vec<_> = matches.iter().map(|found| (found.line, found.content.as_str())).collect();
        assert_eq!(found, [(2, "two needle"), (3, "three needle")]);
        assert_eq!(ended, Ended::Complete);
    }

    #[test]
    fn a_line_without_end_counts_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(LINE_BYTES_MAX as usize * 2);
        std::fs::write(dir.path().join("a"), format!("{long}\nneedle\n")).unwrap();

        assert_eq!(find_text(dir.path(), "needle").0[0].line, 2);
    }
}
