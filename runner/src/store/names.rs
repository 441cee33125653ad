//! What names stand for on this node. One small file each, so that many can change at once.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::reference::Reference;
use crate::image::Digest;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Whole, as [`Reference`] writes it.
    pub name: String,
    /// Of a manifest or an index.
    pub digest: Digest,
    pub origin: Origin,
    /// Since 1970; of two nodes' answers the later one counts.
    pub set_ms: u64,
}

/// How it came here, and so whether it may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Can be fetched again: goes when disk is short.
    Fetched,
    /// Stays until somebody removes it.
    Given,
    /// Was pushed, and is asked for by its digest. Goes when disk is short, unless a tag keeps its blobs.
    Untagged,
    /// Was removed: a note for the nodes that still have the name.
    Removed,
}

#[derive(Debug, Clone)]
pub struct Names {
    dir: PathBuf,
    /// Held while a word is judged by the one before it.
    deciding: Arc<Mutex<()>>,
}

impl Names {
    pub fn open(store_dir: &Path) -> io::Result<Names> {
        let dir = store_dir.join("names");
        fs::create_dir_all(&dir)?;
        Ok(Names { dir, deciding: Arc::default() })
    }

    pub fn get(&self, name: &Reference) -> Option<Named> {
        serde_json::from_slice(&fs::read(self.path(&name.to_string())).ok()?).ok()
    }

    /// What `decide` makes of the word that is there. `None`: it stays.
    pub fn decide(
        &self,
        name: &Reference,
        decide: impl FnOnce(Option<Named>) -> Option<Named>,
    ) -> io::Result<Option<Named>> {
        let _alone = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let decided = decide(self.get(name));
        if let Some(named) = &decided {
            self.set(named)?;
        }
        Ok(decided)
    }

    pub fn set(&self, named: &Named) -> io::Result<()> {
        let path = self.path(&named.name);
        let mut file = tempfile_in(&self.dir)?;
        file.1.write_all(&serde_json::to_vec(named)?)?;
        file.1.sync_all()?;
        fs::rename(&file.0, path)?;
        fs::File::open(&self.dir)?.sync_all()
    }

    /// Whether it was there.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        match fs::remove_file(self.path(name)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub fn list(&self) -> io::Result<Vec<Named>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some() {
                continue;
            }
            match fs::read(&path).map(|json| serde_json::from_slice(&json)) {
                Ok(Ok(named)) => names.push(named),
                Ok(Err(error)) => {
                    tracing::warn!(path = %path.display(), %error, "an image's name cannot be read")
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        names.sort_by(|a: &Named, b| a.name.cmp(&b.name));
        Ok(names)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(Digest::of(name.as_bytes()).hex())
    }
}

pub fn now_ms() -> u64 {
    millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn tempfile_in(dir: &Path) -> io::Result<(PathBuf, fs::File)> {
    let mut random = [0u8; 16];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut random);
    let path = dir.join(format!("{}.new", hex::encode(random)));
    let file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    Ok((path, file))
}
