//! Lists a folder, to a depth.

use std::path::Path;

use super::info::FileInfo;
use super::walk::{Visit, walk};
use crate::accounts::Accounts;

/// Of one answer; a folder with more is cut.
const LISTED_MAX: usize = 100_000;
/// Below the folder itself; its own entries are depth 1.
pub const DEPTH_MAX: usize = 64;

pub fn list(dir: &Path, depth: usize, accounts: &Accounts) -> std::io::Result<Vec<FileInfo>> {
    // The walk passes over what it can't read; the folder that was asked for must be readable.
    std::fs::read_dir(dir)?;
    let mut infos = Vec::new();
    walk(dir, Some(depth), |path, metadata| {
        let mut info = FileInfo::new(path, metadata, accounts);
        if depth > 1 {
            info.path = Some(path.to_string_lossy().into_owned());
        }
        infos.push(info);
        if infos.len() < LISTED_MAX { Visit::Continue } else { Visit::Enough }
    });
    Ok(infos)
}
