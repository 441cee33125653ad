//! Walks a tree without following symlinks, within a number of entries and a time.

use std::ffi::OsString;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Of one walk, whatever it looks for.
pub const ENTRIES_MAX: usize = 1_000_000;
/// A walk holds a worker; nobody waits longer for it.
pub const WALK_DEADLINE: Duration = Duration::from_secs(30);
/// Deeper trees are loops or attacks; what lies below is not seen.
const DEPTH_MAX: usize = 256;
/// Not files, and some of them wait for events when read.
const KERNEL_TREES: [&str; 2] = ["/proc", "/sys"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Complete,
    /// By entries, by time, or because the visitor had enough.
    Cut,
}

pub enum Visit {
    Continue,
    Enough,
}

/// Visits `root` itself when it is a file, else everything below it, parents first, folders sorted by name.
/// Folders that can't be read are passed over.
pub fn walk(
    root: &Path,
    depth_max: Option<usize>,
    mut visit: impl FnMut(&Path, &Metadata) -> Visit,
) -> Ended {
    let deadline = Instant::now() + WALK_DEADLINE;
    let mut left = ENTRIES_MAX;
    let mut waiting: Vec<(PathBuf, usize)> = match std::fs::metadata(root) {
        Ok(metadata) if !metadata.is_dir() => {
            visit(root, &metadata);
            return Ended::Complete;
        }
        _ => vec![(root.to_owned(), 1)],
    };
    let depth_max = depth_max.unwrap_or(DEPTH_MAX).min(DEPTH_MAX);
    while let Some((dir, depth)) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        // Names, not paths: a folder may have very many.
        let mut names: Vec<OsString> = entries.flatten().take(left).map(|entry| entry.file_name()).collect();
        names.sort_unstable();
        let mut folders = Vec::new();
        for name in names {
            let path = dir.join(name);
            left -= 1;
            if left == 0 || Instant::now() > deadline {
                return Ended::Cut;
            }
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if let Visit::Enough = visit(&path, &metadata) {
                return Ended::Cut;
            }
            let is_kernels = KERNEL_TREES.iter().any(|tree| path == Path::new(tree));
            if metadata.is_dir() && depth < depth_max && !is_kernels {
                folders.push((path, depth + 1));
            }
        }
        // The stack gives the last one first.
        waiting.extend(folders.into_iter().rev());
    }
    Ended::Complete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(root: &Path, depth_max: Option<usize>) -> Vec<String> {
        let mut seen = Vec::new();
        walk(root, depth_max, |path, _| {
            seen.push(path.strip_prefix(root).unwrap().display().to_string());
            Visit::Continue
        });
        seen
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_symlinks_are_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("b/c")).unwrap();
        std::fs::write(dir.path().join("b/c/f"), "").unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("b/loop")).unwrap();

        assert_eq!(seen(dir.path(), None), ["a", "b", "b/c", "b/loop", "b/c/f"]);
        assert_eq!(seen(dir.path(), Some(1)), ["a", "b"]);
    }
}
