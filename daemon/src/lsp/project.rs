//! The sources of a project, found without reading them: for servers that look only at what is opened.

use std::path::{Path, PathBuf};

/// Looked at per walk, so that a walk stays a short piece of work.
const ENTRIES_MAX: usize = 20_000;
/// What people don't write themselves.
const PASSED_OVER: [&str; 6] = ["node_modules", "__pycache__", "site-packages", "venv", "target", "dist"];

/// At most `files_max` with one of the extensions, those near the root first. Symlinks are not followed.
pub fn sources(root: &Path, extensions: &[&str], files_max: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries_left = ENTRIES_MAX;
    let mut level = vec![root.to_owned()];
    while !level.is_empty() {
        let mut next_level = Vec::new();
        for dir in level {
            let mut names: Vec<_> =
                std::fs::read_dir(&dir).into_iter().flatten().flatten().take(entries_left).collect();
            entries_left -= names.len();
            names.sort_by_key(|entry| entry.file_name());
            for entry in names {
                let (name, path) = (entry.file_name(), entry.path());
                let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() && !PASSED_OVER.contains(&name) => next_level.push(path),
                    Ok(kind) if kind.is_file() && has_one_of(extensions, &path) => found.push(path),
                    Ok(_) | Err(_) => {}
                }
                if found.len() >= files_max {
                    return found;
                }
            }
        }
        level = next_level;
    }
    found
}

fn has_one_of(extensions: &[&str], path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|it| extensions.contains(&it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_is_found_near_the_root_first() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["b/deep.py", "a.py", "a.txt", "node_modules/x.py", ".git/x.py", "b/c/deeper.py"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink("/", dir.path().join("everything")).unwrap();

        let found = sources(dir.path(), &["py"], 9);

        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.py", "b/deep.py", "b/c/deeper.py"]);
        assert_eq!(sources(dir.path(), &["py"], 2).len(), 2);
    }
}
