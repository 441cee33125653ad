//! What names stand for, here and elsewhere. A foreign registry says what its tags mean; of our own names the latest word
//! of any node counts, and the note that a name was removed is a word, too.

use std::collections::BTreeSet;

use super::StoreError;
use super::fetch::Store;
use super::names::{Named, Origin, now_ms};
use super::reference::Reference;
use crate::image::Digest;

impl Named {
    pub fn is_removed(&self) -> bool {
        self.origin == Origin::Removed
    }

    /// Of two words about one name the later one; nodes that hear both in either order agree.
    pub fn later(one: Option<Named>, other: Option<Named>) -> Option<Named> {
        one.into_iter().chain(other).max_by_key(|named| (named.set_ms, named.digest))
    }
}

impl Store {
    /// What a whole name stands for on this machine.
    pub fn name_here(&self, name: &Reference) -> Option<Named> {
        self.word_here(name).filter(|named| !named.is_removed())
    }

    /// Also that it was removed.
    pub fn word_here(&self, name: &Reference) -> Option<Named> {
        let seeded = || {
            let digest = self.seeds().iter().find_map(|seed| seed.find(name))?;
            Some(Named { name: name.to_string(), digest, origin: Origin::Given, set_ms: 0 })
        };
        self.names().get(name).or_else(seeded)
    }

    pub fn names_here(&self) -> Result<Vec<Named>, StoreError> {
        let mut names = self.names().list()?;
        names.retain(|named| !named.is_removed());
        Ok(names)
    }

    /// Those that begin with `prefix`, and which of them were removed. Blocks on the disk.
    pub fn words_below(&self, prefix: &str) -> Result<Vec<Named>, StoreError> {
        let mut names = self.names().list()?;
        names.retain(|named| named.name.starts_with(prefix));
        Ok(names)
    }

    /// Every manifest that a name with this prefix stands for here, and what these speak of. Blocks on the disk.
    pub fn digests_below(&self, prefix: &str) -> Result<BTreeSet<Digest>, StoreError> {
        let stands = self.words_below(prefix)?.into_iter().filter(|named| !named.is_removed());
        Ok(self.led_to(stands.map(|named| named.digest)))
    }

    /// What a name stands for by all that can be asked. A foreign one that is known here is not asked for again.
    pub async fn latest_name(&self, name: &Reference) -> Option<Named> {
        let here = self.word_here(name);
        let latest = match (self.peers(), &here) {
            (Some(peers), Some(_)) if name.is_local() => {
                Named::later(here, peers.name(&name.to_string()).await)
            }
            (Some(peers), None) => peers.name(&name.to_string()).await,
            _ => here,
        };
        latest.filter(|named| !named.is_removed())
    }

    /// From now on `name` stands for `digest`, whatever was said of it here before.
    pub fn set_name(&self, name: &Reference, digest: Digest, origin: Origin) -> Result<Named, StoreError> {
        self.set_name_after(name, digest, origin, 0)
    }

    /// The same, and also after what another node said at `after_ms` by its clock.
    pub fn set_name_after(
        &self,
        name: &Reference,
        digest: Digest,
        origin: Origin,
        after_ms: u64,
    ) -> Result<Named, StoreError> {
        let decided = self.names().decide(name, |before| {
            let before_ms = before.map_or(0, |before| before.set_ms).max(after_ms);
            let set_ms = now_ms().max(before_ms.saturating_add(1));
            Some(Named { name: name.to_string(), digest, origin, set_ms })
        })?;
        Ok(decided.expect("a word was decided on"))
    }

    /// Takes another node's word for a name that is here, too, if it is the later one. Whether it was.
    pub fn adopt_name(&self, named: &Named) -> Result<bool, StoreError> {
        let name: Reference = named.name.parse()?;
        if !name.is_local() {
            return Ok(false);
        }
        let decided = self.names().decide(&name, |here| {
            let here = here?;
            ((here.set_ms, here.digest) < (named.set_ms, named.digest)).then(|| named.clone())
        })?;
        Ok(decided.is_some())
    }

    /// Only here. Whether it was.
    pub fn remove_name(&self, name: &Reference) -> Result<bool, StoreError> {
        Ok(self.names().remove(&name.to_string())?)
    }
}
