//! What an operator hands to a machine that shall join: a secret, and the fingerprint of the CA to believe.
//!
//!   `atl1.` base64url without padding ( secret: 32 bytes, SHA-256 of the CA certificate: 32 bytes )

use std::fmt;
use std::str::FromStr;

use atoll_api::ids::ParseIdError;
use atoll_api::tokens::TokenHash;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::ca::CaFingerprint;

const PREFIX: &str = "atl1.";
/// 64 bytes in base64 without padding.
const BODY_CHARS: usize = 86;

/// The half of the token that is shown to the cluster. The cluster keeps only its hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JoinSecret([u8; 32]);

impl JoinSecret {
    pub fn from_random(random: [u8; 32]) -> JoinSecret {
        JoinSecret(random)
    }

    /// What the cluster's state keeps and looks up.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinSecret({:?})", self.hash())
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: JoinSecret,
    ca_fingerprint: CaFingerprint,
}

impl JoinToken {
    pub fn new(secret: JoinSecret, ca_fingerprint: CaFingerprint) -> JoinToken {
        JoinToken { secret, ca_fingerprint }
    }

    pub fn generate(ca_fingerprint: CaFingerprint) -> JoinToken {
        JoinToken::new(JoinSecret::from_random(rand::random()), ca_fingerprint)
    }

    pub fn secret(&self) -> &JoinSecret {
        &self.secret
    }

    pub fn ca_fingerprint(&self) -> CaFingerprint {
        self.ca_fingerprint
    }

    /// Hash of the secret, for the cluster's state.
    pub fn hash(&self) -> TokenHash {
        self.secret.hash()
    }

    /// The token as the operator types it. Never log it.
    pub fn reveal(&self) -> String {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.secret.0);
        bytes[32..].copy_from_slice(&self.ca_fingerprint.0);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = ParseIdError;

    /// Strict: exactly one text stands for each token.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const ERROR: ParseIdError = ParseIdError {
            what: "join token",
            expected: "atl1. and 86 characters of A-Z, a-z, 0-9, - and _",
        };
        let body = text.strip_prefix(PREFIX).filter(|body| body.len() == BODY_CHARS).ok_or(ERROR)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| ERROR)?;
        let (secret, fingerprint) = bytes.split_at_checked(32).ok_or(ERROR)?;
        Ok(JoinToken {
            secret: JoinSecret(secret.try_into().map_err(|_| ERROR)?),
            ca_fingerprint: CaFingerprint(fingerprint.try_into().map_err(|_| ERROR)?),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({:?}, CA {})", self.secret, self.ca_fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_survives_its_text(secret: [u8; 32], fingerprint: [u8; 32]) {
            let token = JoinToken::new(JoinSecret(secret), CaFingerprint(fingerprint));

            prop_assert_eq!(token.reveal().parse::<JoinToken>().unwrap(), token);
        }

        #[test]
        fn any_text_is_refused_or_is_the_only_text_of_its_token(text in "(atl1\\.)?[A-Za-z0-9_=+/ é-]{80,90}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.reveal(), text);
            }
        }
    }

    #[test]
    fn a_shortened_lengthened_or_padded_token_is_refused() {
        let text = JoinToken::generate(CaFingerprint([9; 32])).reveal();

        for bad in [
            text[..text.len() - 1].to_owned(),
            format!("{text}A"),
            format!("{text}=="),
            format!(" {text}"),
            text.replacen("atl1.", "atl2.", 1),
            text.replacen("atl1.", "", 1),
            String::new(),
            "atl1.".to_owned(),
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_changed_token_is_another_secret() {
        let token = JoinToken::generate(CaFingerprint([9; 32]));
        let mut text = token.reveal();
        let other = if &text[5..6] == "A" { "B" } else { "A" };
        text.replace_range(5..6, other);

        assert_ne!(text.parse::<JoinToken>().unwrap().hash(), token.hash());
    }

    #[test]
    fn a_token_never_prints_its_secret() {
        let token = JoinToken::new(JoinSecret([7; 32]), CaFingerprint([9; 32]));

        let printed = format!("{token:?}");

        assert!(
            !printed.contains(&URL_SAFE_NO_PAD.encode([7; 32])) && !printed.contains(&hex::encode([7; 32]))
        );
    }
}
