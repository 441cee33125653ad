//! Secrets that people and programs present: API keys, SSH tokens, preview tokens. Only their SHA-256 is ever stored.
//!
//! SSH and signed preview tokens begin with their region in base 36, so that any node knows whom to ask.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{ParseIdError, RegionOrdinal, SandboxId};

/// SHA-256 of a token's text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    pub fn of(token: &str) -> TokenHash {
        TokenHash(Sha256::digest(token.as_bytes()).into())
    }

    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}…", hex::encode(&self.0[..4]))
    }
}

macro_rules! secret_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(String);

        impl $name {
            /// The secret itself. Never log it.
            pub fn reveal(&self) -> &str {
                &self.0
            }

            pub fn hash(&self) -> TokenHash {
                TokenHash::of(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let check: fn(&str) -> bool = $check;
                check(text)
                    .then(|| $name(text.to_owned()))
                    .ok_or(ParseIdError { what: $what, expected: $expected })
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.hash())
            }
        }
    };
}

secret_text!(
    /// `dtn_` and 64 hex digits.
    ApiKey, "API key", "dtn_ and 64 hex digits",
    |t| t.strip_prefix("dtn_").is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
);
secret_text!(
    /// The SSH user name: 32 of `a-z0-9`, the first two naming the region.
    SshToken, "SSH token", "32 of a-z and 0-9",
    |t| t.len() == 32 && t.bytes().all(is_base36)
);
secret_text!(
    /// The host label of a signed preview URL: 16 of `a-z0-9`, the first two naming the region.
    SignedPreviewToken, "signed preview token", "16 of a-z and 0-9",
    |t| t.len() == 16 && t.bytes().all(is_base36)
);
secret_text!(
    /// A sandbox's own preview token: 32 of `a-z0-9`, stable for its life, derived and never stored.
    PreviewToken, "preview token", "32 of a-z and 0-9",
    |t| t.len() == 32 && t.bytes().all(is_base36)
);

impl ApiKey {
    pub fn from_random(random: [u8; 32]) -> ApiKey {
        ApiKey(format!("dtn_{}", hex::encode(random)))
    }
}

impl SshToken {
    pub fn from_random(region: RegionOrdinal, random: [u8; 30]) -> SshToken {
        SshToken(regional(region, &random))
    }

    pub fn region(&self) -> RegionOrdinal {
        region_of(&self.0)
    }
}

impl SignedPreviewToken {
    pub fn from_random(region: RegionOrdinal, random: [u8; 14]) -> SignedPreviewToken {
        SignedPreviewToken(regional(region, &random))
    }

    pub fn region(&self) -> RegionOrdinal {
        region_of(&self.0)
    }
}

impl PreviewToken {
    /// HMAC-SHA-256 of the sandbox id under the cluster's secret, so every node can say it and none has to keep it.
    pub fn derive(cluster_secret: &[u8; 32], sandbox_id: SandboxId) -> PreviewToken {
        use hmac::Mac;
        let mut mac =
            hmac::Hmac::<Sha256>::new_from_slice(cluster_secret).expect("HMAC takes a key of any length");
        mac.update(b"atoll preview token 1");
        mac.update(sandbox_id.to_string().as_bytes());
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        PreviewToken(digest.iter().map(|b| base36_digit(*b)).collect())
    }
}

fn is_base36(b: u8) -> bool {
    b.is_ascii_digit() || b.is_ascii_lowercase()
}

/// Folds a random byte onto 36 digits. The bias (7 in 256 against 8) costs under 0.02 bits of the 5.17 a digit.
fn base36_digit(byte: u8) -> char {
    char::from(b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::from(byte) % 36])
}

fn regional(region: RegionOrdinal, random: &[u8]) -> String {
    let prefix = region.to_base36();
    prefix.iter().map(|b| char::from(*b)).chain(random.iter().map(|b| base36_digit(*b))).collect()
}

fn region_of(token: &str) -> RegionOrdinal {
    let bytes = token.as_bytes();
    RegionOrdinal::from_base36([bytes[0], bytes[1]]).expect("the parser admits only base-36 digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_their_region() {
        let region = RegionOrdinal::new(37).unwrap();

        let ssh = SshToken::from_random(region, [255; 30]);
        let preview = SignedPreviewToken::from_random(region, [3; 14]);

        assert_eq!(ssh.reveal().parse::<SshToken>().unwrap().region(), region);
        assert_eq!(preview.reveal().parse::<SignedPreviewToken>().unwrap().region(), region);
    }

    #[test]
    fn a_secret_never_prints_itself() {
        let key = ApiKey::from_random([7; 32]);

        assert!(!format!("{key:?}").contains("0707"));
    }

    #[test]
    fn a_preview_token_depends_on_the_secret_and_the_sandbox() {
        let id = |n| SandboxId::new(RegionOrdinal::new(0).unwrap(), [n; 14]);

        let token = PreviewToken::derive(&[1; 32], id(1));

        assert_eq!(token, PreviewToken::derive(&[1; 32], id(1)));
        assert_ne!(token, PreviewToken::derive(&[1; 32], id(2)));
        assert_ne!(token, PreviewToken::derive(&[2; 32], id(1)));
        assert!(token.reveal().parse::<PreviewToken>().is_ok());
    }

    #[test]
    fn malformed_tokens_are_refused() {
        assert!("dtn_".parse::<ApiKey>().is_err());
        assert!("dtn_ZZ".parse::<ApiKey>().is_err());
        assert!("A".repeat(32).parse::<SshToken>().is_err());
        assert!("é".repeat(16).parse::<SshToken>().is_err());
        assert!("".parse::<SignedPreviewToken>().is_err());
    }
}
