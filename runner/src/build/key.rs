//! The name under which a step's layer is found again: everything that the layer depends on, hashed.

use ring::digest::{Context, SHA256};

use super::BuildError;
use super::copy::Selection;
use super::host::Made;
use super::plan::{CopyStep, RunStep};
use super::program::Network;
use crate::image::{Digest, Layer};

/// Changes when the same step would make another layer than before.
const EDITION: &[u8] = b"atoll build 2";

pub struct Key(Context);

impl Key {
    fn new(kind: &str) -> Key {
        let mut key = Key(Context::new(&SHA256));
        key.field(EDITION);
        key.field(kind.as_bytes());
        key
    }

    /// What a stage begins with.
    pub fn base(layers: &[Layer]) -> Digest {
        let mut key = Key::new("base");
        for layer in layers {
            key.field(layer.diff_id.to_string().as_bytes());
        }
        key.digest()
    }

    pub fn dir(parent: &Digest, path: &str) -> Digest {
        let mut key = Key::new("dir");
        key.field(parent.to_string().as_bytes());
        key.field(path.as_bytes());
        key.digest()
    }

    pub fn run(parent: &Digest, run: &RunStep) -> Digest {
        let mut key = Key::new("run");
        key.field(parent.to_string().as_bytes());
        key.list(run.argv.iter().map(String::as_str));
        key.list(run.env.iter().flat_map(|(name, value)| [name.as_str(), value]));
        key.list([run.user.as_str(), &run.work_dir]);
        key.field(match run.network {
            Network::Open => b"open",
            Network::Blocked => b"blocked",
        });
        key.digest()
    }

    /// From the context.
    pub fn copy(parent: &Digest, copy: &CopyStep, selection: &Selection<'_>) -> Result<Digest, BuildError> {
        let mut key = Key::any_copy("copy", parent, copy);
        selection.digest(|part| key.field(part))?;
        Ok(key.digest())
    }

    /// From what `from` stands for.
    pub fn copy_from(parent: &Digest, copy: &CopyStep, from: &Digest) -> Digest {
        let mut key = Key::any_copy("copy from", parent, copy);
        key.field(from.to_string().as_bytes());
        key.list(copy.sources.iter().map(String::as_str));
        key.digest()
    }

    /// What stands after a step: the step made again may make something else, and then what was built on the former is
    /// not to be found.
    pub fn after(step: &Digest, made: &Made) -> Digest {
        let mut key = Key::new("after");
        key.field(step.to_string().as_bytes());
        key.field(made.map(|layer| layer.diff_id.to_string()).unwrap_or_default().as_bytes());
        key.digest()
    }

    fn any_copy(kind: &str, parent: &Digest, copy: &CopyStep) -> Key {
        let mut key = Key::new(kind);
        key.field(parent.to_string().as_bytes());
        key.list(copy.inline.iter().flat_map(|(name, body)| [name.as_str(), body]));
        let flags = format!("{:?} {:?} {:?} {}", copy.dest, copy.chown, copy.chmod, copy.unpack);
        key.field(flags.as_bytes());
        key
    }

    fn list<'a>(&mut self, items: impl IntoIterator<Item = &'a str>) {
        let items: Vec<&str> = items.into_iter().collect();
        self.field(&(items.len() as u64).to_le_bytes());
        items.into_iter().for_each(|item| self.field(item.as_bytes()));
    }

    /// With its length, so that no two sequences of fields look the same.
    fn field(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn digest(self) -> Digest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        Digest::new(bytes)
    }
}
