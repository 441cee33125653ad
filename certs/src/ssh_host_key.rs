//! The cluster's one SSH host key, as the 32 bytes every Ed25519 implementation starts from. Any node may then answer
//! for the cluster without an SSH client noticing a change.

use std::fmt;

use crate::seal::{ClusterSecret, UnsealError};

const PURPOSE: &str = "ssh host key ed25519 seed";

#[derive(Clone, PartialEq, Eq)]
pub struct SshHostKeySeed([u8; 32]);

impl SshHostKeySeed {
    pub fn generate() -> SshHostKeySeed {
        SshHostKeySeed(rand::random())
    }

    /// The private key itself. Never log it.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    /// For the cluster's state.
    pub fn seal(&self, secret: &ClusterSecret) -> Vec<u8> {
        secret.seal(PURPOSE, &self.0)
    }

    pub fn unseal(secret: &ClusterSecret, sealed: &[u8]) -> Result<SshHostKeySeed, UnsealError> {
        let seed = secret.unseal(PURPOSE, sealed)?;
        Ok(SshHostKeySeed(seed.try_into().map_err(|_| UnsealError::UnknownForm)?))
    }
}

impl fmt::Debug for SshHostKeySeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SshHostKeySeed(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_unseals_the_same_key_and_nothing_else() {
        let (secret, seed) = (ClusterSecret::generate(), SshHostKeySeed::generate());

        let sealed = seed.seal(&secret);

        assert_eq!(SshHostKeySeed::unseal(&secret, &sealed), Ok(seed));
        assert!(SshHostKeySeed::unseal(&secret, &secret.seal(PURPOSE, b"short")).is_err());
        assert!(SshHostKeySeed::unseal(&secret, &secret.seal("other", &[0; 32])).is_err());
    }
}
