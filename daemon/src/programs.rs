//! Finds programs by name, as the sandbox's user would.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::environment::Variables;
use crate::routes::Daemon;

/// Looked for as the user: a PATH may begin with folders that only root may enter.
pub async fn first_in_path(
    daemon: &Daemon,
    env: &Variables,
    names: &'static [&'static str],
) -> Option<(&'static str, PathBuf)> {
    let path = env.get("PATH")?.clone();
    let find = move || names.iter().find_map(|name| Some((*name, in_path(&path, name)?)));
    daemon.workers.run(find).await
}

/// To be called where the user's rights hold.
pub fn in_path(path: &str, name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    path.split(':').filter(|dir| dir.starts_with('/')).map(|dir| Path::new(dir).join(name)).find(is_program)
}
