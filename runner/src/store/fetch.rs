//! The store's handle: finds an image's parts wherever they are, and fetches each only once however many ask for it.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;

use super::access::{Credentials, Identity, KnownCredentials, Registries};
use super::blobs::{BlobWriter, Blobs};
use super::commit::ConfigChange;
use super::layout::{Layout, read_small};
use super::manifest::{self, Manifest, Parsed};
use super::names::{Named, Names, Origin};
use super::reference::{Reference, Version};
use super::registry::{Place, RegistryClient};
use super::{BLOB_BYTES_MAX, CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX, StoreError};
use crate::image::{Digest, Image, ImageSource, Kept};
use crate::runtime::{LayerTar, RuntimeError};

/// At once, all images together.
const DOWNLOADS_MAX: usize = 6;
/// Of one image.
const LAYERS_AT_ONCE: usize = 3;
/// Remembered blobs of which we know where they can be had.
const PLACES_MAX: usize = 20_000;
/// Whoever stands for the other nodes gives up earlier, and tries the next one first.
const PEER_SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
pub struct StoreConfig {
    /// Made if it is not there.
    pub dir: PathBuf,
    /// OCI layouts, searched read-only.
    pub seeds: Vec<PathBuf>,
    pub registries: Registries,
}

/// The other nodes' stores.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// A blob or manifest from whoever has it, from byte `from` on; not yet checked.
    async fn blob(&self, digest: &Digest, from: u64) -> Option<PeerBlob>;
    /// What a name stands for by the latest answer, which may be that it was removed.
    async fn name(&self, name: &str) -> Option<Named>;
}

/// What another node sends.
pub struct PeerBlob {
    /// Of the whole blob.
    pub bytes: u64,
    /// Where `content` begins: what was asked for, or 0 when the blob is shorter than that.
    pub from: u64,
    pub content: Box<dyn AsyncRead + Send + Unpin>,
}

/// Called often while something is fetched, with a blob's digest, how much of it is there, and its length.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Tell>>);

type Tell = dyn Fn(&Digest, u64, u64) + Send + Sync;

impl Progress {
    pub fn new(tell: impl Fn(&Digest, u64, u64) + Send + Sync + 'static) -> Progress {
        Progress(Some(Arc::new(tell)))
    }

    pub fn tell(&self, digest: &Digest, written: u64, bytes: u64) {
        if let Some(tell) = &self.0 {
            tell(digest, written, bytes);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// An image that is here whole.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The same image for ever, whatever its tag comes to mean: what a snapshot should remember.
    pub pinned: String,
    /// Of the manifest for this platform.
    pub digest: Digest,
    pub image: Image,
    /// Of all its layers as they are stored.
    pub bytes: u64,
}

/// A handle; as many as one likes.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    blobs: Blobs,
    names: Names,
    seeds: Vec<Layout>,
    registry: RegistryClient,
    peers: OnceLock<Arc<dyn Peers>>,
    flights: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    places: Mutex<HashMap<Digest, (Place, u64)>>,
    downloads: Semaphore,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

impl Store {
    /// Blocks on the disk for a moment.
    pub fn open(config: StoreConfig) -> Result<Store, StoreError> {
        Ok(Store(Arc::new(Inner {
            blobs: Blobs::open(&config.dir)?,
            names: Names::open(&config.dir)?,
            seeds: config.seeds.iter().map(|dir| Layout::at(dir)).collect(),
            registry: RegistryClient::new(Arc::new(config.registries))?,
            peers: OnceLock::new(),
            flights: Mutex::default(),
            places: Mutex::default(),
            downloads: Semaphore::new(DOWNLOADS_MAX),
        })))
    }

    /// From now on other nodes are asked, too. Only the first call counts.
    pub fn set_peers(&self, peers: Arc<dyn Peers>) {
        let _ = self.0.peers.set(peers);
    }

    pub(super) fn peers(&self) -> Option<&Arc<dyn Peers>> {
        self.0.peers.get()
    }

    /// A blob or manifest that is here or with another node, and is here afterwards.
    pub async fn fetch_by_digest(&self, digest: Digest) -> Result<(File, u64), StoreError> {
        self.fetch(digest, None, None, &Progress::default()).await
    }

    /// What others than root may still write where the blobs are.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let stat = rustix::fs::statvfs(self.0.blobs.dir()).map_err(std::io::Error::from)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// From now on what is known by its digest is also asked for with these. Only the first call counts.
    pub fn set_known_credentials(&self, known: Arc<dyn KnownCredentials>) {
        self.0.registry.set_known(known);
    }

    pub(super) fn blobs(&self) -> &Blobs {
        &self.0.blobs
    }

    pub(super) fn names(&self) -> &Names {
        &self.0.names
    }

    pub(super) fn seeds(&self) -> &[Layout] {
        &self.0.seeds
    }

    /// A blob or manifest that is on this machine, with its length.
    pub fn open_here(&self, digest: &Digest) -> Option<(File, u64)> {
        let own = self.0.blobs.open_blob(digest);
        own.or_else(|| self.0.seeds.iter().find_map(|seed| seed.open_blob(digest)))
    }

    /// A new blob, to be written and finished.
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        Ok(self.0.blobs.writer(BLOB_BYTES_MAX)?)
    }

    pub async fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let mut writer = self.writer()?;
        writer.write(bytes).await?;
        Ok(writer.finish(None).await?.0)
    }

    /// Takes a manifest or an index whose parts are all here.
    pub async fn put_manifest(&self, json: &[u8]) -> Result<(Digest, Parsed), StoreError> {
        let parsed = Parsed::read(json)?;
        if let Some(missing) = parsed.references().iter().find(|digest| self.open_here(digest).is_none()) {
            return Err(StoreError::NotFound(format!(
                "the manifest speaks of {missing}, which was not pushed"
            )));
        }
        Ok((self.put_bytes(json).await?, parsed))
    }

    /// What `reference` stands for: a name, or `sha256:…` of a manifest. Its layers may still be elsewhere; to open one
    /// fetches it. A tag of a foreign registry that is known here is not asked for again.
    pub async fn resolve(&self, reference: &str) -> Result<Image, StoreError> {
        // Whoever knows a digest was told it by somebody with a right to the image; a tag anybody can guess.
        let identity = match reference.parse::<Reference>() {
            Ok(Reference { version: Version::Digest(_), .. }) => Identity::Anybody,
            Ok(_) | Err(_) => Identity::Of(None),
        };
        let (name, place) = self.read_reference(reference, identity)?;
        let top = match &name.version {
            Version::Digest(digest) => *digest,
            Version::Tag(_) => self.find_name(&name, place.as_ref()).await?,
        };
        Ok(self.read_image(reference, top, place.as_ref()).await?.2)
    }

    /// [`Store::pull`] as each of these in turn, for as long as the registry denies it; with none, as nobody in particular.
    pub async fn pull_as_any(
        &self,
        reference: &str,
        identities: Vec<Credentials>,
        progress: Progress,
    ) -> Result<Pulled, StoreError> {
        if identities.is_empty() {
            return self.pull(reference, None, progress).await;
        }
        let mut refused = StoreError::Denied(format!("nobody may pull {reference}"));
        for identity in identities {
            match self.pull(reference, Some(identity), progress.clone()).await {
                Err(error @ StoreError::Denied(_)) => refused = error,
                ended => return ended,
            }
        }
        Err(refused)
    }

    /// Brings a whole image here. A registry is asked every time what its tag stands for and whether these credentials
    /// may have it; so nobody gets a private image because somebody else had it fetched.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: Progress,
    ) -> Result<Pulled, StoreError> {
        let (name, place) = self.read_reference(reference, Identity::Of(credentials))?;
        let is_given = |named: &Named| named.origin == Origin::Given && !name.is_local();
        let given = self.name_here(&name).filter(is_given);
        let (place, top) = match (&name.version, given, place) {
            (_, Some(given), _) => (None, given.digest),
            (Version::Digest(digest), None, None) => (None, *digest),
            (Version::Tag(_), None, None) => (None, self.find_name(&name, None).await?),
            (_, None, Some(place)) => {
                let json = self.0.registry.manifest(&place, &name.version).await?;
                let digest = self.put_bytes(&json).await?;
                (Some(place), digest)
            }
        };
        let (digest, manifest, image) = self.read_image(reference, top, place.as_ref()).await?;
        let layers = futures_util::stream::iter(
            manifest
                .layers
                .clone()
                .into_iter()
                .map(|layer| self.fetch(layer.digest, Some(layer.size), place.clone(), &progress)),
        );
        let mut layers = layers.buffer_unordered(LAYERS_AT_ONCE);
        while let Some(fetched) = layers.next().await {
            fetched?;
        }
        if place.is_some() && matches!(name.version, Version::Tag(_)) {
            self.set_name(&name, top, Origin::Fetched)?;
        }
        let pinned = name.pinned(digest);
        // So that its blobs have a root to hang on until somebody claims them.
        self.set_name(&pinned, digest, if place.is_some() { Origin::Fetched } else { Origin::Given })?;
        Ok(Pulled {
            pinned: pinned.to_string(),
            digest,
            image,
            bytes: manifest.layers.iter().map(|layer| layer.size).sum(),
        })
    }

    /// A blob, from wherever it can be had. `None` for `bytes` when only this machine and peers shall be asked.
    pub(super) async fn fetch(
        &self,
        digest: Digest,
        bytes: Option<u64>,
        place: Option<Place>,
        progress: &Progress,
    ) -> Result<(File, u64), StoreError> {
        if let Some(here) = self.open_here(&digest) {
            return Ok(here);
        }
        let flight = self.0.flight(digest);
        let fetched = {
            let _alone = flight.lock().await;
            match self.open_here(&digest) {
                Some(here) => Ok(here),
                None => self.fetch_alone(digest, bytes, place, progress).await,
            }
        };
        drop(flight);
        self.0.land(digest);
        fetched
    }

    async fn fetch_alone(
        &self,
        digest: Digest,
        bytes: Option<u64>,
        place: Option<Place>,
        progress: &Progress,
    ) -> Result<(File, u64), StoreError> {
        let _permit = self.0.downloads.acquire().await;
        if let Err(error) = self.fetch_from_peers(digest, progress).await {
            tracing::info!(%digest, %error, "no other node gave the blob");
        }
        if let Some(here) = self.open_here(&digest) {
            return Ok(here);
        }
        let (Some(place), Some(bytes)) = (place, bytes) else {
            return Err(StoreError::NotFound(format!("no node has {digest}: pull or push the image again")));
        };
        if bytes > BLOB_BYTES_MAX {
            return Err(StoreError::Bad(format!("a layer is larger than {BLOB_BYTES_MAX} bytes")));
        }
        let mut writer = self.0.blobs.continue_writing(&digest, bytes).await?;
        self.0.registry.blob(&place, &digest, bytes, &mut writer, progress).await?;
        writer.finish(Some(&digest)).await?;
        self.open_here(&digest).ok_or_else(|| StoreError::NotFound(format!("{digest} was removed at once")))
    }

    /// Goes on where an earlier fetch, from whomever, broke off.
    async fn fetch_from_peers(&self, digest: Digest, progress: &Progress) -> Result<(), StoreError> {
        let Some(peers) = self.0.peers.get() else { return Ok(()) };
        let written = self.0.blobs.partial_bytes(&digest);
        let Some(PeerBlob { bytes, from, mut content }) = peers.blob(&digest, written).await else {
            return Ok(());
        };
        if bytes > BLOB_BYTES_MAX {
            return Err(StoreError::Bad(format!("{digest} is larger than {BLOB_BYTES_MAX} bytes")));
        }
        let mut writer = self.0.blobs.continue_writing(&digest, bytes).await?;
        if from != writer.written() {
            writer.restart().await?;
            if from != 0 {
                return Err(StoreError::Unreachable("another node goes on elsewhere than asked".to_owned()));
            }
        }
        let mut chunk = vec![0; 128 * 1024];
        loop {
            let read = tokio::time::timeout(PEER_SILENCE_MAX, content.read(&mut chunk)).await;
            let count =
                read.map_err(|_| StoreError::Unreachable("another node fell silent".to_owned()))??;
            if count == 0 {
                break;
            }
            writer.write(&chunk[..count]).await?;
            progress.tell(&digest, writer.written(), bytes);
        }
        if writer.written() < bytes {
            // What is still on its way to the file would change it under whoever goes on.
            writer.flush().await?;
            return Err(StoreError::Unreachable("another node broke off".to_owned()));
        }
        writer.finish(Some(&digest)).await.map(|_| ())
    }

    fn read_reference(
        &self,
        text: &str,
        identity: Identity,
    ) -> Result<(Reference, Option<Place>), StoreError> {
        if let Ok(digest) = text.parse::<Digest>() {
            let reference = Reference {
                host: super::LOCAL_HOST.to_owned(),
                repository: "by-digest".to_owned(),
                version: Version::Digest(digest),
            };
            return Ok((reference, None));
        }
        let reference: Reference = text.parse()?;
        let place = (!reference.is_local()).then(|| self.0.registry.place(&reference, identity));
        Ok((reference, place))
    }

    async fn find_name(&self, name: &Reference, place: Option<&Place>) -> Result<Digest, StoreError> {
        if let Some(named) = self.latest_name(name).await {
            return Ok(named.digest);
        }
        let Some(place) = place else {
            return Err(StoreError::NotFound(format!("no node knows the image {name}: push it first")));
        };
        let json = self.0.registry.manifest(place, &name.version).await?;
        let digest = self.put_bytes(&json).await?;
        self.set_name(name, digest, Origin::Fetched)?;
        Ok(digest)
    }

    /// The manifest for this platform with its digest, and the image.
    pub(super) async fn read_image(
        &self,
        reference: &str,
        top: Digest,
        place: Option<&Place>,
    ) -> Result<(Digest, Manifest, Image), StoreError> {
        let (digest, manifest) = match Parsed::read(&self.manifest_json(top, place).await?)? {
            Parsed::Manifest(manifest) => (top, manifest),
            Parsed::Index(index) => {
                let digest = index.here()?.digest;
                match Parsed::read(&self.manifest_json(digest, place).await?)? {
                    Parsed::Manifest(manifest) => (digest, manifest),
                    Parsed::Index(_) => {
                        return Err(StoreError::Bad(format!("{reference} is an index of indexes")));
                    }
                }
            }
        };
        if manifest.config.size > CONFIG_BYTES_MAX {
            return Err(StoreError::Bad(format!("the configuration of {reference} is too large")));
        }
        let config = manifest.config.digest;
        let (file, _) =
            self.fetch(config, Some(manifest.config.size), place.cloned(), &Progress::default()).await?;
        let image = manifest::image(reference, &manifest, &read_small(file, &config, CONFIG_BYTES_MAX)?)?;
        if let Some(place) = place {
            self.0.remember(place, &manifest);
        }
        Ok((digest, manifest, image))
    }

    async fn manifest_json(&self, digest: Digest, place: Option<&Place>) -> Result<Vec<u8>, StoreError> {
        // A manifest is no blob to a registry, so this asks only here and at peers.
        let found = match (self.fetch(digest, None, None, &Progress::default()).await, place) {
            (Err(StoreError::NotFound(_)), Some(place)) => {
                let json = self.0.registry.manifest(place, &Version::Digest(digest)).await?;
                self.put_bytes(&json).await?;
                return Ok(json);
            }
            (found, _) => found?,
        };
        read_small(found.0, &digest, MANIFEST_BYTES_MAX)
    }
}

impl Inner {
    fn flight(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).entry(digest).or_default().clone()
    }

    /// Forgets a fetch that nobody waits for any more.
    fn land(&self, digest: Digest) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(&digest).is_some_and(|flight| Arc::strong_count(flight) == 1) {
            flights.remove(&digest);
        }
    }

    fn remember(&self, place: &Place, manifest: &Manifest) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() + manifest.layers.len() > PLACES_MAX {
            places.clear();
        }
        for layer in &manifest.layers {
            places.insert(layer.digest, (place.clone(), layer.size));
        }
    }

    fn place_of(&self, digest: &Digest) -> Option<(Place, u64)> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }
}

#[async_trait]
impl ImageSource for Store {
    async fn resolve(&self, reference: &str) -> Result<Image, RuntimeError> {
        Ok(Store::resolve(self, reference).await?)
    }

    async fn open(&self, blob: &Digest) -> Result<File, RuntimeError> {
        let (place, bytes) = self.0.place_of(blob).unzip();
        Ok(self.fetch(*blob, bytes, place, &Progress::default()).await?.0)
    }

    async fn read_layer(&self, layer: LayerTar) -> Result<BlobWriter, RuntimeError> {
        let mut writer = self.writer()?;
        writer.copy_from(layer).await?;
        Ok(writer)
    }

    async fn keep(&self, base: &Image, layer: BlobWriter, name: &str) -> Result<Kept, RuntimeError> {
        let name: Reference = name.parse()?;
        let layer = self.finish_layer(layer).await?;
        let (digest, _) =
            self.commit_image(Some(base), std::slice::from_ref(&layer), ConfigChange::Keep).await?;
        let pinned = name.pinned(digest);
        self.set_name(&pinned, digest, Origin::Given)?;
        Ok(Kept { reference: pinned.to_string(), bytes: layer.blob_bytes })
    }
}
