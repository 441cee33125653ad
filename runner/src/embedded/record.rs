//! What the runtime notes about each sandbox, so that a later process can adopt it.
//!
//! ```text
//! <state>/sandboxes/<id>-g<generation>/record.json    written whole, by rename
//!                                     /disk.img /fs/  its disk
//! ```

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use atoll_api::ids::Generation;
use atoll_api::sandbox::SandboxSpec;
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::mount_dir::MountDir;
use crate::runtime::Incarnation;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) spec: SandboxSpec,
    pub(super) image: Image,
    pub(super) mount_dir: MountPlace,
    pub(super) run: Option<Run>,
    /// Of the last run that has ended.
    pub(super) last_exit: Option<LastExit>,
}

/// The node's folder with the daemon's configuration and hello socket, as it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountPlace {
    /// Without symlinks.
    pub(super) path: PathBuf,
    pub(super) owner: u32,
}

impl MountPlace {
    pub(super) fn of(dir: &MountDir) -> io::Result<MountPlace> {
        let path = fs::read_link(format!("/proc/self/fd/{}", dir.dir().as_raw_fd()))?;
        Ok(MountPlace { path, owner: dir.owner_uid() })
    }
}

/// A run that has begun and, as far as is known, goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) slot: u16,
    pub(super) pid: i32,
    /// Clock ticks after boot; with the pid it names one process for ever.
    pub(super) started_at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastExit {
    pub(super) code: Option<i64>,
    pub(super) out_of_memory: bool,
}

impl Record {
    pub(super) fn load(dir: &Path) -> io::Result<Record> {
        let bytes = fs::read(dir.join("record.json"))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        let partial = dir.join("record.json.partial");
        fs::write(&partial, bytes)?;
        fs::rename(partial, dir.join("record.json"))
    }
}

pub(super) fn dir_name(incarnation: Incarnation) -> String {
    format!("{}-g{}", incarnation.sandbox_id, incarnation.generation)
}

pub(super) fn parse_dir_name(name: &str) -> Option<Incarnation> {
    let (sandbox_id, generation) = name.rsplit_once("-g")?;
    Some(Incarnation {
        sandbox_id: sandbox_id.parse().ok()?,
        generation: Generation(generation.parse().ok()?),
    })
}

/// When a process began, in clock ticks after boot. `NotFound` when it has ended, also if it is not reaped yet.
pub(super) fn process_started_at(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Its name may hold anything, also brackets and spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    if matches!(fields.first(), None | Some(&"Z") | Some(&"X")) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fields.get(19).and_then(|ticks| ticks.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
