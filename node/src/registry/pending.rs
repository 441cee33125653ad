//! Uploads that are not finished: who began them, how far they are, and when they are given up. On one node and in its
//! memory; the bytes are a file of the store's, which goes with the upload.
//!
//!   begin ──▶ open ──chunk──▶ open ──finish──▶ a blob
//!                └── cancelled, idle for too long, or broken ──▶ nothing

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atoll_api::ids::{NodeId, OrganizationId};
use atoll_runner::store::BlobWriter;

use super::errors::RegistryError;
use super::path::Repository;

/// On one node; each costs an open file.
const UPLOADS_MAX: usize = 256;
/// Of one organization on one node.
const UPLOADS_OF_ONE_MAX: usize = 64;
/// An upload that nothing came for in so long is given up.
const IDLE_MAX: Duration = Duration::from_secs(20 * 60);

/// Says at which node the upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UploadId {
    node_id: NodeId,
    random: [u8; 16],
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.node_id, hex::encode(self.random))
    }
}

impl FromStr for UploadId {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<UploadId, RegistryError> {
        let parsed = text.split_once('-').and_then(|(node_id, digits)| {
            let mut random = [0; 16];
            hex::decode_to_slice(digits, &mut random).ok()?;
            Some(UploadId { node_id: node_id.parse().ok()?, random })
        });
        parsed.ok_or_else(|| RegistryError::BlobUploadUnknown("there is no such upload".to_owned()))
    }
}

pub struct Upload {
    pub id: UploadId,
    organization_id: OrganizationId,
    path: String,
    /// Locked by the one request that writes. `None` when nothing more can be written.
    pub writer: Arc<tokio::sync::Mutex<Option<BlobWriter>>>,
    progress: Mutex<Progress>,
}

#[derive(Clone, Copy)]
struct Progress {
    written: u64,
    at: Instant,
}

impl Upload {
    pub fn written(&self) -> u64 {
        self.progress().written
    }

    pub fn note(&self, written: u64) {
        *self.progress() = Progress { written, at: Instant::now() };
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Uploads {
    node_id: NodeId,
    open: Mutex<HashMap<UploadId, Arc<Upload>>>,
}

impl Uploads {
    pub fn new(node_id: NodeId) -> Uploads {
        Uploads { node_id, open: Mutex::default() }
    }

    pub fn begin(
        &self,
        repository: &Repository,
        writer: BlobWriter,
        now: Instant,
    ) -> Result<Arc<Upload>, RegistryError> {
        let mut open = self.open();
        open.retain(|_, upload| now.saturating_duration_since(upload.progress().at) < IDLE_MAX);
        let owner = repository.organization_id;
        let own = open.values().filter(|upload| upload.organization_id == owner).count();
        if open.len() >= UPLOADS_MAX || own >= UPLOADS_OF_ONE_MAX {
            return Err(RegistryError::TooManyUploads);
        }
        let id = UploadId { node_id: self.node_id, random: rand::random() };
        let upload = Arc::new(Upload {
            id,
            organization_id: owner,
            path: repository.path.clone(),
            writer: Arc::new(tokio::sync::Mutex::new(Some(writer))),
            progress: Mutex::new(Progress { written: 0, at: now }),
        });
        open.insert(id, upload.clone());
        Ok(upload)
    }

    /// Only in the repository that it was begun in.
    pub fn find(&self, repository: &Repository, id: &str) -> Result<Arc<Upload>, RegistryError> {
        let id: UploadId = id.parse()?;
        if id.node_id != self.node_id {
            return Err(RegistryError::BlobUploadUnknown(format!(
                "this upload was begun at node {} and cannot go on at node {}: begin it again, and keep to one node",
                id.node_id, self.node_id
            )));
        }
        let found = self.open().get(&id).cloned().filter(|upload| {
            upload.organization_id == repository.organization_id && upload.path == repository.path
        });
        found.ok_or_else(|| {
            RegistryError::BlobUploadUnknown(
                "there is no such upload, or it was given up: begin it again".to_owned(),
            )
        })
    }

    /// The file goes when the last request that writes to it has ended.
    pub fn remove(&self, upload: &Upload) {
        self.open().remove(&upload.id);
    }

    /// Gives up what nobody goes on with.
    pub fn expire(&self, now: Instant) {
        self.open().retain(|_, upload| now.saturating_duration_since(upload.progress().at) < IDLE_MAX);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Upload>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_runner::store::{Registries, Store, StoreConfig};

    struct World {
        store: Store,
        uploads: Uploads,
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let (path, seeds, registries) = (dir.path().to_owned(), vec![], Registries::default());
            let store = Store::open(StoreConfig { dir: path, seeds, registries }).unwrap();
            World { store, uploads: Uploads::new(NodeId(1)), dir }
        }

        fn begin(&self, owner: u128, now: Instant) -> Result<Arc<Upload>, RegistryError> {
            self.uploads.begin(&repository(owner, "app"), self.store.writer().unwrap(), now)
        }

        fn files(&self) -> usize {
            std::fs::read_dir(self.dir.path().join("ingest")).unwrap().count()
        }
    }

    fn repository(owner: u128, path: &str) -> Repository {
        let organization_id = OrganizationId(uuid::Uuid::from_u128(owner));
        Repository { organization_id, path: path.to_owned(), written: path.to_owned() }
    }

    #[test]
    fn an_upload_is_found_by_who_began_it_where_it_was_begun() {
        let world = World::new();
        let upload = world.begin(1, Instant::now()).unwrap();
        let id = upload.id.to_string();
        let find =
            |owner, path, id: &str| world.uploads.find(&repository(owner, path), id).map(|found| found.id);
        let elsewhere = UploadId { node_id: NodeId(2), ..upload.id };

        assert_eq!(find(1, "app", &id), Ok(upload.id));
        for (owner, path, id) in [
            (2, "app", id.as_str()),
            (1, "other", &id),
            (1, "app", "nonsense"),
            (1, "app", &elsewhere.to_string()),
            (1, "app", &UploadId { random: [0; 16], ..upload.id }.to_string()),
        ] {
            let missing = find(owner, path, id);
            assert!(matches!(missing, Err(RegistryError::BlobUploadUnknown(_))), "{owner} {path} {id}");
        }
        assert!(find(1, "app", &elsewhere.to_string()).unwrap_err().to_string().contains("0000000000000002"));
    }

    #[test]
    fn no_organization_takes_all_the_room_and_idle_uploads_make_room() {
        let world = World::new();
        let began = Instant::now();
        let later = began + IDLE_MAX;
        for _ in 0..UPLOADS_OF_ONE_MAX {
            world.begin(1, began).unwrap();
        }

        assert_eq!(world.begin(1, began).err(), Some(RegistryError::TooManyUploads));
        let used = world.begin(2, began).unwrap();
        assert_eq!(world.files(), UPLOADS_OF_ONE_MAX + 1, "a refused upload leaves no file");
        used.progress().at = later;
        world.begin(1, later).unwrap();

        assert_eq!(world.files(), 2, "what was given up is gone from the disk");
        drop(used);
        world.uploads.expire(later + IDLE_MAX);
        assert_eq!(world.files(), 0);
    }

    #[test]
    fn the_node_has_a_bound_whoever_asks() {
        let world = World::new();
        let now = Instant::now();
        let begun = (0..UPLOADS_MAX).filter(|n| world.begin(*n as u128, now).is_ok()).count();

        assert_eq!(begun, UPLOADS_MAX);
        assert_eq!(world.begin(u128::MAX, now).err(), Some(RegistryError::TooManyUploads));
    }
}
