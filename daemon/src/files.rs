//! `/files…`: the sandbox's files, as the user may touch them. Every call to the file system runs on [`workers`].

mod download;
mod edit;
mod glob;
mod info;
mod listing;
mod multipart;
pub mod routes;
mod search;
mod tree;
mod upload;
mod walk;
pub mod workers;

use std::path::{Component, Path, PathBuf};

use crate::errors::ApiError;
use crate::routes::Daemon;

/// The kernel takes no longer ones.
const PATH_BYTES_MAX: usize = 4096;

/// A path as a caller wrote it: absolute, or relative to the working directory.
pub fn parse_path(daemon: &Daemon, path: &str) -> Result<PathBuf, ApiError> {
    if path.is_empty() {
        return Err(ApiError::invalid_path("path is empty"));
    }
    if path.contains('\0') || path.len() > PATH_BYTES_MAX {
        return Err(ApiError::invalid_path("not a path"));
    }
    Ok(daemon.resolve(path))
}

/// The tail of `/files/{path}`. Absolute if it begins with a slash (also an encoded one); else relative to the working directory,
/// unless its first folder is one of `/` and none of there: `/files/tmp/x` is `/tmp/x`.
async fn parse_tail(daemon: &Daemon, tail: &str) -> Result<PathBuf, ApiError> {
    let relative = parse_path(daemon, tail)?;
    if tail.starts_with('/') {
        return Ok(relative);
    }
    let Some((first, _)) = tail.split_once('/') else { return Ok(relative) };
    let (here, there) = (daemon.resolve(first), Path::new("/").join(first));
    let absolute = Path::new("/").join(tail);
    let is_absolute = daemon.workers.run(move || !here.exists() && there.is_dir()).await;
    Ok(if is_absolute { absolute } else { relative })
}

/// The last name of a path; of `/`, that.
fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// `/` by any spelling without symlinks.
fn is_root(path: &Path) -> bool {
    path.components()
        .all(|component| matches!(component, Component::RootDir | Component::CurDir | Component::ParentDir))
}

fn parse_mode(mode: &str) -> Result<u32, ApiError> {
    let digits = mode.strip_prefix("0o").unwrap_or(mode);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(ApiError::bad_request(format!("not an octal mode: {mode:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0755").unwrap(), 0o755);
        assert_eq!(parse_mode("1777").unwrap(), 0o1777);
        for bad in ["", "abc", "999", "77777", "-1"] {
            assert!(parse_mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_root_is_known_by_any_spelling() {
        assert!(is_root(Path::new("/")) && is_root(Path::new("//./..")));
        assert!(!is_root(Path::new("/tmp")));
    }
}
