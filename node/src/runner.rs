//! `atoll runner`: the small process that is root, owns this host's sandboxes and does what its one node asks.
//!
//!   lock ─▶ the node's identity is there ─▶ adopt what runs ─▶ listen ─▶ READY … SIGTERM ─▶ sandboxes go on

use std::fs::{DirBuilder, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use atoll_api::ids::NodeId;
use atoll_certs::identity::NodeIdentity;
use atoll_runner::Runtime;
use atoll_runner::remote::{ServeConfig, bind, serve};
use rustix::process::geteuid;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::account::Ids;
use crate::cli::RunnerArgs;
use crate::config::Config;
use crate::parent::{self, Parent};
use crate::{runtimes, service_manager};

/// Until `cluster init` or `node join` has made the node that this runner is for.
const LOOK_FOR_IDENTITY_EVERY: Duration = Duration::from_millis(100);
const PREPARE_DEADLINE: Duration = Duration::from_secs(60);
const TEARDOWN_DEADLINE: Duration = Duration::from_secs(120);

pub async fn run(args: RunnerArgs, cancel: CancellationToken) -> Result<()> {
    let config = Config::load(&args.config)?;
    let (node, state_dir) = (node_ids(&config)?, config.state_dir());
    if !geteuid().is_root() {
        bail!("atoll runner makes and owns sandboxes: start it as root");
    }
    ensure_roots_own(&args.config, node)?;
    let parent_ended = parent::follow(args.parent, &cancel)?;
    make_state_dir(&state_dir, node)?;
    let _lock = lock(&state_dir)?;
    let pid_file = state_dir.join("runner.pid");
    std::fs::write(&pid_file, std::process::id().to_string()).context("write the pid file")?;

    let served = serve_node(&config, node, &cancel, &parent_ended, args.remove_with_parent).await;
    let _ = std::fs::remove_file(pid_file);
    served
}

async fn serve_node(
    config: &Config,
    node: Ids,
    cancel: &CancellationToken,
    parent: &Parent,
    remove_with_parent: bool,
) -> Result<()> {
    let Some(node_id) = identity_arrives(config, cancel).await? else { return Ok(()) };
    let runtime = runtimes::open(config, node_id)?;
    // What runs already must be known before anybody asks for it. The node will say what is wrong, and try again.
    let prepared = tokio::time::timeout(PREPARE_DEADLINE, runtime.prepare()).await;
    match prepared {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => {
            error!(%problem, "sandboxes cannot run (`atoll doctor` says what this machine lacks)")
        }
        Err(_) => error!("preparing this machine for sandboxes takes too long"),
    }
    let socket = Socket::open(config.socket(), node)?;
    let listener = socket.listen()?;
    info!(socket = %socket.path.display(), %node_id, node_uid = node.uid, "runner serves");
    service_manager::notify_ready();

    serve(listener, runtime.clone(), ServeConfig::new(config.data_dir.clone(), node.uid), cancel.clone())
        .await;

    drop(socket);
    if parent.has_ended() && remove_with_parent {
        info!("removing every sandbox");
        return teardown(&*runtime).await;
    }
    info!("runner ends, sandboxes go on");
    Ok(())
}

pub async fn teardown(runtime: &dyn Runtime) -> Result<()> {
    let removed = tokio::time::timeout(TEARDOWN_DEADLINE, runtime.teardown()).await;
    Ok(removed.context("removing this node's sandboxes takes too long")??)
}

/// Who may call.
fn node_ids(config: &Config) -> Result<Ids> {
    match &config.runtime.node_user {
        Some(account) => account.ids(),
        None => Ok(Ids { uid: 0, gid: 0 }),
    }
}

/// Otherwise the node's user could say where root is to write.
fn ensure_roots_own(config: &Path, node: Ids) -> Result<()> {
    let metadata = std::fs::metadata(config).with_context(|| format!("look at {}", config.display()))?;
    ensure!(
        node.uid == 0 || metadata.uid() == 0 && metadata.mode() & 0o022 == 0,
        "{} must be root's and writable by root only: it says what root is to do (`chown root`, `chmod go-w`)",
        config.display()
    );
    Ok(())
}

/// Root's; the node's group may pass through it, to the socket.
pub fn make_state_dir(state_dir: &Path, node: Ids) -> Result<()> {
    let made = || -> Result<()> {
        DirBuilder::new().recursive(true).mode(0o710).create(state_dir)?;
        let metadata = std::fs::symlink_metadata(state_dir)?;
        ensure!(metadata.is_dir() && metadata.uid() == 0, "it is not a folder of root's");
        chown(state_dir, Some(0), Some(node.gid))?;
        std::fs::set_permissions(state_dir, Permissions::from_mode(0o710))?;
        Ok(())
    };
    made().with_context(|| format!("make the runner's folder {}", state_dir.display()))
}

/// One process at a time: two would make everything twice.
fn lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join("runner.lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    rustix::fs::flock(file.as_fd(), rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("{} is in use by another runner process", path.display()))?;
    Ok(file)
}

/// `None` when the runner is to end before.
async fn identity_arrives(config: &Config, cancel: &CancellationToken) -> Result<Option<NodeId>> {
    let folder = config.layout().identity_dir();
    let mut said = false;
    loop {
        if let Some(identity) = NodeIdentity::load(&folder)? {
            return Ok(Some(identity.node_id()));
        }
        if !said {
            info!(folder = %folder.display(), "waiting for `atoll cluster init` or `atoll node join` to make the node");
            said = true;
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(LOOK_FOR_IDENTITY_EVERY) => {}
        }
    }
}

/// The node's door. It goes with this value.
struct Socket {
    path: PathBuf,
    node: Ids,
}

impl Socket {
    /// The lock is held: whatever is there was left behind.
    fn open(path: PathBuf, node: Ids) -> Result<Socket> {
        let folder = path.parent().context("runtime.socket has no folder")?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o710)
            .create(folder)
            .with_context(|| format!("make {}", folder.display()))?;
        let metadata = std::fs::metadata(folder).with_context(|| format!("look at {}", folder.display()))?;
        ensure!(
            metadata.uid() == 0 && metadata.mode() & 0o022 == 0,
            "{} must be root's and writable by root only, or somebody else could pose as the runner",
            folder.display()
        );
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove the old {}", path.display()))
            }
            _ => Ok(Socket { path, node }),
        }
    }

    fn listen(&self) -> Result<tokio::net::UnixListener> {
        let listener = bind(&self.path).with_context(|| format!("listen on {}", self.path.display()))?;
        chown(&self.path, Some(0), Some(self.node.gid)).context("give the socket to the node's group")?;
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o660))
            .context("close the socket to others")?;
        Ok(listener)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A runner for one node, that ends when this process does and leaves the sandboxes running. Its log is ours.
pub fn spawn_child(config: &Path) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    std::process::Command::new(program)
        .args(["runner", "--config"])
        .arg(config)
        .args(["--parent", &std::process::id().to_string()])
        .stdin(std::process::Stdio::null())
        .spawn()
        .context("start the runner")?;
    Ok(())
}

/// The runtime through the runner's socket, as everything but the runner itself uses it.
pub fn remote(config: &Config) -> Arc<atoll_runner::RemoteRuntime> {
    Arc::new(atoll_runner::RemoteRuntime::new(atoll_runner::RemoteConfig {
        socket: config.socket(),
        data_dir: config.data_dir.clone(),
    }))
}
