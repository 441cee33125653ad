//! The cluster's secret, and sealing with it: what the replicated state must hold but nobody may read off a disk.
//!
//! Sealed: version (1 byte, 1), nonce (12 bytes, random), AES-256-GCM ciphertext and tag. The key is derived from the
//! secret by HKDF, and the purpose is authenticated, so that one sealed value can't be put in another's place.

use std::fmt;
use std::io;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use serde::{Deserialize, Serialize};

use crate::private_file;

const VERSION: u8 = 1;

/// Every member knows it; it is given with the join and never stored in the replicated state.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterSecret([u8; 32]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// A newer version of this program wrote it, or it is not a sealed value at all.
    #[error("it is not sealed in a form this version knows")]
    UnknownForm,
    /// Another cluster's secret, another purpose, or changed bytes.
    #[error("it was sealed with another secret or for another purpose, or it was changed")]
    NotOurs,
}

impl ClusterSecret {
    pub fn generate() -> ClusterSecret {
        ClusterSecret(rand::random())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> ClusterSecret {
        ClusterSecret(bytes)
    }

    /// For deriving other secrets. Never log or store it.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    /// A secret that every member can derive and nobody else, for one named purpose.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"atoll cluster secret, derived 1");
        let mut secret = [0; 32];
        salt.extract(&self.0)
            .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut secret))
            .expect("32 bytes is one block of HKDF");
        secret
    }

    pub fn seal(&self, purpose: &str, plaintext: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut text = plaintext.to_vec();
        self.key()
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), &mut text)
            .expect("AES-GCM seals anything below 64 GiB");
        [&[VERSION][..], &nonce, &text].concat()
    }

    pub fn unseal(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, UnsealError> {
        let (nonce, text) = sealed
            .strip_prefix(&[VERSION])
            .and_then(|rest| rest.split_first_chunk::<NONCE_LEN>())
            .ok_or(UnsealError::UnknownForm)?;
        let mut text = text.to_vec();
        let length = self
            .key()
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose), &mut text)
            .map_err(|_| UnsealError::NotOurs)?
            .len();
        text.truncate(length);
        Ok(text)
    }

    fn key(&self) -> LessSafeKey {
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"atoll seal 1")
            .extract(&self.0)
            .expand(&[b"aes-256-gcm"], &AES_256_GCM)
            .map(UnboundKey::from)
            .expect("a key of AES-256 is one block of HKDF");
        LessSafeKey::new(key)
    }

    /// `None` if there is no such file.
    pub fn load(path: &Path) -> io::Result<Option<ClusterSecret>> {
        let Some(bytes) = private_file::read(path)? else { return Ok(None) };
        let mut secret = [0; 32];
        hex::decode_to_slice(bytes.trim_ascii(), &mut secret).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, "the cluster secret must be 64 hex digits")
        })?;
        Ok(Some(ClusterSecret(secret)))
    }

    pub fn save(&self, path: &Path) -> io::Result<()> {
        private_file::write(path, format!("{}\n", hex::encode(self.0)).as_bytes())
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_comes_back() {
        let secret = ClusterSecret::generate();

        for plaintext in [&b""[..], b"x", &[7; 70_000]] {
            let sealed = secret.seal("registry password", plaintext);
            assert_eq!(secret.unseal("registry password", &sealed).unwrap(), plaintext);
        }
    }

    #[test]
    fn another_purpose_or_secret_does_not_open_it() {
        let secret = ClusterSecret::generate();

        let sealed = secret.seal("one", b"text");

        assert_eq!(secret.unseal("two", &sealed), Err(UnsealError::NotOurs));
        assert_eq!(ClusterSecret::generate().unseal("one", &sealed), Err(UnsealError::NotOurs));
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let secret = ClusterSecret::generate();
        let sealed = secret.seal("one", b"text");

        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x10;
            assert!(secret.unseal("one", &changed).is_err(), "byte {at}");
            assert!(secret.unseal("one", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn sealing_twice_gives_different_bytes() {
        let secret = ClusterSecret::generate();

        assert_ne!(secret.seal("one", b"text"), secret.seal("one", b"text"));
    }

    #[test]
    fn derived_secrets_depend_on_secret_and_purpose() {
        let derive = |secret: u8, purpose| ClusterSecret::from_bytes([secret; 32]).derive(purpose);

        assert_eq!(derive(7, "one"), derive(7, "one"));
        assert_ne!(derive(7, "one"), derive(7, "two"));
        assert_ne!(derive(7, "one"), derive(8, "one"));
    }

    #[test]
    fn the_secret_survives_its_file_and_never_prints_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster.secret");
        let secret = ClusterSecret::from_bytes([7; 32]);

        secret.save(&path).unwrap();

        assert_eq!(ClusterSecret::load(&path).unwrap(), Some(secret.clone()));
        assert_eq!(ClusterSecret::load(&folder.path().join("absent")).unwrap(), None);
        assert!(!format!("{secret:?}").contains('7'));
        private_file::write(&path, b"07").unwrap();
        assert!(ClusterSecret::load(&path).is_err());
    }
}
