//! What the runtime has found and made on this host.
//!
//! ```text
//! <state>/             0700, a mount of its own, so that sandboxes' disks are not copied into every new mount namespace
//!     sandboxes/       see record
//!     blanks/ trash/   folders of sandboxes that are yet to be, and that were
//!     templates/       formatted disk images
//!     daemon/<sha256>/ the daemon's binary, seen in sandboxes at /.atoll
//!     staging/ scratch/  empty; mount points of the zygote, and of kernels before 6.15
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use sha2::{Digest as _, Sha256};

use super::blanks::Blanks;
use super::cgroup::Cgroups;
use super::commit::stream_layer;
use super::disk::{Disks, fs_dir};
use super::layers::LayerStore;
use super::live::Live;
use super::maker::Maker;
use super::mounts::Mounter;
use super::network::Network;
use super::pool::Pool;
use super::pressure;
use super::record::{Record, dir_name, parse_dir_name};
use super::runtime::{EmbeddedConfig, ensure_private_dir, host};
use super::sandbox::Sandbox;
use super::start::micros;
use super::timings::Timings;
use crate::docker::namespace::Namespaces;
use crate::image::{Digest, Image};
use crate::runtime::{Finding, Incarnation, LayerTar, RuntimeError};

pub(super) struct Home {
    pub(super) config: EmbeddedConfig,
    pub(super) cpus: u32,
    pub(super) pool: Arc<Pool>,
    pub(super) blanks: Arc<Blanks>,
    pub(super) network: Arc<Network>,
    pub(super) disks: Arc<Disks>,
    pub(super) layers: LayerStore,
    pub(super) mounter: Mounter,
    pub(super) daemon_dir: PathBuf,
    pub(super) namespaces: Namespaces,
    pub(super) timings: Timings,
    cgroups: Arc<Cgroups>,
    trashed: AtomicU64,
}

impl Home {
    pub(super) fn open(config: EmbeddedConfig) -> io::Result<Home> {
        let state = &config.state_dir;
        if !state.is_absolute() {
            return Err(io::Error::other(format!("the folder {} must be an absolute path", state.display())));
        }
        ensure_private_dir(state)?;
        own_mount(state)?;
        for name in ["sandboxes", "trash", "staging", "scratch"] {
            ensure_private_dir(&state.join(name))?;
        }
        empty_trash(&state.join("trash"))?;
        let daemon_dir = write_daemon(&state.join("daemon"), &config.daemon_binary)?;
        let cgroups = Arc::new(Cgroups::open(config.node_id)?);
        let disks = Arc::new(Disks::open(state.join("templates"))?);
        let network = Arc::new(Network::new(config.network.clone()).map_err(io::Error::other)?);
        let maker = Maker::new(config.zygote.clone(), state.clone(), config.uid_base);
        Ok(Home {
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
            pool: Arc::new(Pool::new(
                maker,
                cgroups.clone(),
                network.clone(),
                config.slots_max,
                config.parked,
            )),
            blanks: Arc::new(Blanks::open(state.join("blanks"), disks.clone(), config.parked)?),
            network,
            layers: LayerStore::open(&config.layers_dir).map_err(io::Error::other)?,
            mounter: Mounter::new(state.join("scratch"), config.attach_layers),
            namespaces: Namespaces::spawn()?,
            timings: Timings::default(),
            trashed: AtomicU64::new(rand::random()),
            disks,
            cgroups,
            daemon_dir,
            config,
        })
    }

    /// By the records on disk. A record that cannot be read is reported and left alone.
    pub(super) fn find_sandboxes(&self) -> io::Result<Vec<(Incarnation, Sandbox)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.sandboxes_dir())? {
            let dir = entry?.path();
            let Some(incarnation) = dir.file_name().and_then(|name| parse_dir_name(name.to_str()?)) else {
                continue;
            };
            let record = match Record::load(&dir) {
                Ok(record) => record,
                // A create that was cut short; the node will ask for it again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.disks.destroy(&dir)?;
                    continue;
                }
                Err(error) => {
                    tracing::error!(dir = %dir.display(), %error, "cannot read a sandbox's record");
                    continue;
                }
            };
            let live = match record.run {
                Some(run) => Live::adopt(run, self.cgroups.slot(run.slot))?,
                None => None,
            };
            if let Some(live) = &live {
                self.pool.adopt(live.run.slot);
            }
            let ended_unseen = record.run.is_some() && live.is_none();
            let sandbox = Sandbox::found(dir, record, live);
            if ended_unseen {
                sandbox.note(|record| record.run = None)?;
            }
            found.push((incarnation, sandbox));
        }
        Ok(found)
    }

    /// A made sandbox, not started. Blocks.
    pub(super) fn make_sandbox(
        &self,
        incarnation: Incarnation,
        record: Record,
    ) -> Result<Sandbox, RuntimeError> {
        let began = Instant::now();
        // Refused before anything is made.
        pressure::check(&self.config.state_dir)?;
        self.layers_of(&record.image)?;
        let dir = self.sandboxes_dir().join(dir_name(incarnation));
        let made = (|| {
            self.disks.destroy(&dir)?;
            self.blanks.become_dir(record.spec.resources.disk_gib.max(1), &dir)?;
            record.save(&dir)
        })();
        made.map_err(host("make a sandbox's disk"))?;
        Ok(Sandbox::made(dir, record, micros(began)))
    }

    /// Lowest first.
    pub(super) fn layers_of(&self, image: &Image) -> Result<Vec<PathBuf>, RuntimeError> {
        if image.layers.is_empty() {
            return Err(RuntimeError::Spec(format!(
                "the image {} is not in this node's store: push or pull it there first",
                image.reference
            )));
        }
        let path = |layer: &crate::image::Layer| {
            self.layers.path(&layer.diff_id).ok_or_else(|| {
                RuntimeError::Host(format!("the layer {} was not unpacked here", layer.diff_id))
            })
        };
        image.layers.iter().map(path).collect()
    }

    /// Removes unpacked layers that are over the budget and that neither these nor another runtime's sandboxes need.
    pub(super) fn collect_layers(&self, used: &BTreeSet<Digest>) -> Result<(), RuntimeError> {
        let holder = self.config.node_id.to_string();
        let freed_bytes = self.layers.collect(&holder, used, self.config.layers_budget_bytes)?;
        if freed_bytes > 0 {
            tracing::info!(freed_bytes, "removed unpacked layers that no sandbox needs");
        }
        Ok(())
    }

    pub(super) fn nameservers(&self) -> Vec<IpAddr> {
        vec![self.network.layout().gateway().into()]
    }

    /// The sandbox must be still.
    pub(super) fn write_layer(&self, sandbox: &Sandbox) -> Result<LayerTar, RuntimeError> {
        self.disks.mount(&sandbox.dir).map_err(host("mount a sandbox's disk"))?;
        let upper = fs_dir(&sandbox.dir).join("upper");
        stream_layer(upper).map_err(host("start reading a sandbox's disk"))
    }

    /// The sandbox's folder is out of the way at once; what is in it goes a little later. It must have ended.
    pub(super) fn discard(&self, sandbox: &Sandbox) -> io::Result<()> {
        let number = self.trashed.fetch_add(1, Ordering::Relaxed);
        let trash = self.config.state_dir.join("trash").join(format!("{number:016x}"));
        fs::rename(&sandbox.dir, &trash)?;
        let disks = self.disks.clone();
        let destroy = move || {
            if let Err(error) = disks.destroy(&trash) {
                tracing::error!(dir = %trash.display(), %error, "cannot remove a sandbox's disk");
            }
        };
        std::thread::Builder::new().name("trash".into()).spawn(destroy).map(drop)
    }

    pub(super) fn check(&self) -> Vec<Finding> {
        let unbounded = self.disks.unbounded().map(|reason| {
            Finding::Limitation(format!("the disk limit of sandboxes is not enforced on this host: {reason}"))
        });
        unbounded.into_iter().collect()
    }

    /// All sandboxes must have been removed, and the pool and the network be empty.
    pub(super) fn teardown(&self) -> io::Result<()> {
        self.blanks.drain()?;
        self.cgroups.teardown()?;
        empty_trash(&self.config.state_dir.join("trash"))?;
        match unmount(&self.config.state_dir, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sandboxes_dir(&self) -> PathBuf {
        self.config.state_dir.join("sandboxes")
    }
}

/// Makes the folder a private mount, unless it is one.
fn own_mount(dir: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let path = dir.to_str().ok_or_else(|| io::Error::other("the state folder's path is not UTF-8"))?;
    if !mounts.lines().any(|line| line.split(' ').nth(4) == Some(path)) {
        mount_bind(dir, dir)?;
    }
    Ok(mount_change(dir, MountPropagationFlags::PRIVATE)?)
}

/// Disks may be mounted there still.
fn empty_trash(trash: &Path) -> io::Result<()> {
    for entry in fs::read_dir(trash)? {
        let dir = entry?.path();
        let _ = unmount(fs_dir(&dir), UnmountFlags::DETACH);
        match fs::remove_dir_all(&dir) {
            // Somebody else is at it.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The folder with this build's daemon; written once.
fn write_daemon(parent: &Path, binary: &[u8]) -> io::Result<PathBuf> {
    let dir = parent.join(hex::encode(Sha256::digest(binary)));
    let path = dir.join("atoll-daemon");
    if !fs::metadata(&path).is_ok_and(|found| found.size() == binary.len() as u64) {
        fs::create_dir_all(&dir)?;
        let partial = dir.join(format!("partial.{:016x}", rand::random::<u64>()));
        fs::write(&partial, binary)?;
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
        fs::rename(partial, path)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    }
    Ok(dir)
}
