//! From root to the node's own user, before the first thread is there. What only root can do is done here: the data
//! folder becomes that user's, and folders it could not reach by name are held open for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, chownat, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::account::Ids;
use crate::config::Config;

/// Every connection costs descriptors. What a host's hard limit is raised to, where that is allowed.
const FILES_MAX: u64 = 1 << 20;
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;
/// Deeper folders are none of ours.
const DEPTH_MAX: usize = 32;
/// Stays root's: a runner that reads it must not do what the node's user says.
const CONFIG_NAME: &str = "node.toml";

/// Makes this process what `atoll node` is to be: the configured user, without any right of root but, where a port below
/// 1024 is asked for, that to listen there. Started by another user, nothing changes. The configuration's paths may
/// be others afterwards, that lead to the same folders.
pub fn take_on_node_user(config: &mut Config) -> Result<()> {
    raise_file_limit();
    if !geteuid().is_root() {
        return Ok(());
    }
    let Some(account) = &config.runtime.node_user else {
        tracing::warn!("the node runs as root: let `runtime.node_user` name a user of its own");
        return Ok(());
    };
    let ids = account.ids()?;
    if ids.uid == 0 {
        return Ok(());
    }
    ensure_single_thread()?;
    std::fs::create_dir_all(&config.data_dir).context("make the data folder")?;
    ensure_a_nodes_folder(config)?;
    give(&config.data_dir, ids)
        .with_context(|| format!("give {} to the node's user {account}", config.data_dir.display()))?;
    let data_dir = hold(&config.data_dir)?;
    let socket = config.socket();
    let socket_dir = socket.parent().and_then(|folder| hold(folder).ok());
    drop_to(ids, wants_low_port(config)).with_context(|| format!("become the node's user {account}"))?;
    config.data_dir = reachable(data_dir, &config.data_dir);
    if let (Some(held), Some(folder), Some(name)) = (socket_dir, socket.parent(), socket.file_name()) {
        config.runtime.socket = Some(reachable(held, folder).join(name));
    }
    Ok(())
}

fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.map(|hard| hard.max(FILES_MAX));
    // Root may go above the hard limit, in a container perhaps not; everybody may go up to it.
    for maximum in [hard, limit.maximum] {
        if setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
            return;
        }
    }
    tracing::warn!("cannot raise the limit of open files");
}

/// What follows changes one thread only; all others are to be born from it.
fn ensure_single_thread() -> Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").context("count the threads")?.count();
    ensure!(threads == 1, "{threads} threads run before the node has become its user: this is a bug");
    Ok(())
}

fn wants_low_port(config: &Config) -> bool {
    let listen = &config.listen;
    let all = [Some(listen.http), listen.https, Some(listen.ssh), Some(listen.mesh)];
    all.into_iter().flatten().any(|address| (1..FIRST_UNPRIVILEGED_PORT).contains(&address.port()))
}

/// A misspelt `data_dir` must not give half of the host away.
fn ensure_a_nodes_folder(config: &Config) -> Result<()> {
    if config.layout().identity_dir().exists() {
        return Ok(());
    }
    let of_a_new_one = ["identity", "node.log", CONFIG_NAME];
    for entry in std::fs::read_dir(&config.data_dir).context("read the data folder")? {
        let name = entry?.file_name();
        ensure!(
            of_a_new_one.iter().any(|known| name == *known),
            "{} holds no node but {}: choose an empty data_dir",
            config.data_dir.display(),
            name.display()
        );
    }
    Ok(())
}

/// Everything below becomes the user's, following no link and leaving no file system. Files with a second name may be
/// somebody else's and stay.
pub fn give(folder: &Path, ids: Ids) -> Result<()> {
    let root = openat(CWD, folder, FOLDER, Mode::empty())?;
    let stat = fstat(&root)?;
    ensure!(
        stat.st_uid == 0 || stat.st_uid == ids.uid,
        "it belongs to uid {} already: `chown -R {}:{}` it, or let runtime.node_user be that user",
        stat.st_uid,
        ids.uid,
        ids.gid
    );
    give_folder(root.as_fd(), &stat, ids, 0)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn give_folder(folder: BorrowedFd<'_>, of: &Stat, ids: Ids, depth: usize) -> Result<()> {
    ensure!(depth < DEPTH_MAX, "folders lie more than {DEPTH_MAX} deep");
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || depth == 0 && name.to_bytes() == CONFIG_NAME.as_bytes()
        {
            continue;
        }
        // Held, so that what is looked at is what is given away.
        let held =
            match openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                held => held?,
            };
        let stat = fstat(&held)?;
        if stat.st_dev != of.st_dev {
            continue;
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = openat(&held, c".", FOLDER, Mode::empty())?;
                give_folder(inner.as_fd(), &stat, ids, depth + 1)?;
            }
            _ if stat.st_nlink == 1 => give_one(held.as_fd(), &stat, ids)?,
            _ => {}
        }
    }
    give_one(folder, of, ids)
}

fn give_one(held: BorrowedFd<'_>, stat: &Stat, ids: Ids) -> Result<()> {
    if (stat.st_uid, stat.st_gid) != (ids.uid, ids.gid) {
        let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
        chownat(held, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

fn hold(folder: &Path) -> Result<OwnedFd> {
    openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {}", folder.display()))
}

/// The folder's own path, or, where a folder above it is closed to this user, one through the open descriptor, which
/// stays open as long as the process lives.
fn reachable(held: OwnedFd, folder: &Path) -> PathBuf {
    if hold(folder).is_ok() {
        return folder.to_owned();
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    tracing::info!(folder = %folder.display(), reached_by = %path.display(), "a folder above is closed to the node's user");
    std::mem::forget(held);
    path
}

fn drop_to(ids: Ids, keep_low_ports: bool) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    let kept = if keep_low_ports { CapabilitySet::NET_BIND_SERVICE } else { CapabilitySet::empty() };
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // A kernel that does not know it yet.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error).context("give up capabilities for good"),
        }
    }
    set_keep_capabilities(keep_low_ports).context("keep capabilities")?;
    set_thread_groups(&[]).context("leave root's groups")?;
    set_thread_res_gid(gid, gid, gid).context("change the group")?;
    set_thread_res_uid(uid, uid, uid).context("change the user")?;
    set_keep_capabilities(false).context("keep capabilities no longer")?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).context("give up capabilities")?;
    clear_ambient_capability_set().context("give up ambient capabilities")?;
    set_no_new_privs(true).context("refuse new privileges")?;

    let left = capabilities(None).context("look at the capabilities left")?;
    if left.permitted != kept
        || left.effective != kept
        || set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_ok()
    {
        bail!("the kernel did not take root's rights away ({left:?})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn what_is_given_away_is_the_folders_own_and_nothing_it_points_to() {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: only root can give files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (data, outside) = (dir.path().join("data"), dir.path().join("outside"));
        fs::create_dir_all(data.join("a/b")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        for file in [data.join("a/b/file"), data.join(CONFIG_NAME), outside.join("secret")] {
            fs::write(file, "").unwrap();
        }
        symlink(&outside, data.join("link")).unwrap();
        fs::hard_link(outside.join("secret"), data.join("second-name")).unwrap();
        let ids = Ids { uid: 61_998, gid: 61_997 };

        give(&data, ids).unwrap();

        let owner = |path: PathBuf| {
            let metadata = fs::symlink_metadata(path).unwrap();
            (metadata.uid(), metadata.gid())
        };
        for given in ["", "a", "a/b", "a/b/file", "link"] {
            assert_eq!(owner(data.join(given)), (61_998, 61_997), "{given}");
        }
        for kept in [data.join(CONFIG_NAME), outside.clone(), outside.join("secret")] {
            assert_eq!(owner(kept.clone()), (0, 0), "{}", kept.display());
        }
        let another = give(&data, Ids { uid: 61_996, gid: 61_996 }).unwrap_err();
        assert!(another.to_string().contains("belongs to uid 61998"), "{another}");
    }
}
