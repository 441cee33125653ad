//! Credentials for one organization's contexts that no node needs to remember: the session token says whose they are and
//! until when, with a proof by the cluster's secret, and the secret key is derived from it.

use std::time::Duration;

use atoll_api::ids::OrganizationId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use super::errors::S3Error;

/// Long enough for a large context on a slow line; SDKs don't renew them during an upload. Less than the store's grace
/// for blobs that nothing speaks of yet, or parts could be collected before they are put together.
pub const CREDENTIALS_LIVE: Duration = Duration::from_secs(45 * 60);
const VERSION: u8 = 1;
/// version, organization, end in seconds since 1970, salt
const CLAIM_BYTES: usize = 1 + 16 + 8 + 8;
const PROOF_BYTES: usize = 32;

/// Makes and recognizes credentials and other proofs; the same on every node of the cluster.
#[derive(Clone)]
pub struct Issuer(hmac::Key);

#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    pub access_key: String,
    pub secret: String,
    pub session_token: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// What a session token proves, and the secret that its bearer must know.
pub(super) struct Known {
    pub(super) organization_id: OrganizationId,
    pub(super) secret: String,
}

impl Issuer {
    /// `key` is derived from the cluster's secret for this purpose only.
    pub fn new(key: [u8; 32]) -> Issuer {
        Issuer(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    pub fn issue(&self, organization_id: OrganizationId, now_s: u64, salt: [u8; 8]) -> Issued {
        let mut claim = [0; CLAIM_BYTES];
        claim[0] = VERSION;
        claim[1..17].copy_from_slice(organization_id.0.as_bytes());
        claim[17..25].copy_from_slice(&(now_s + CREDENTIALS_LIVE.as_secs()).to_be_bytes());
        claim[25..].copy_from_slice(&salt);
        let token = [&claim[..], &self.proof("session", &[&claim])].concat();
        Issued {
            access_key: access_key(&salt),
            secret: self.secret(&claim),
            session_token: URL_SAFE_NO_PAD.encode(token),
        }
    }

    pub(super) fn know(
        &self,
        access_key_shown: &str,
        session_token: &str,
        now_s: u64,
    ) -> Result<Known, S3Error> {
        let token = URL_SAFE_NO_PAD.decode(session_token).map_err(|_| S3Error::InvalidToken)?;
        let (claim, proof) = token.split_first_chunk::<CLAIM_BYTES>().ok_or(S3Error::InvalidToken)?;
        if claim[0] != VERSION || !self.is_proof("session", &[claim], proof) {
            return Err(S3Error::InvalidToken);
        }
        let mut organization_id = [0; 16];
        organization_id.copy_from_slice(&claim[1..17]);
        let mut ends_s = [0; 8];
        ends_s.copy_from_slice(&claim[17..25]);
        if u64::from_be_bytes(ends_s) <= now_s {
            return Err(S3Error::ExpiredToken);
        }
        if access_key(&claim[25..]) != access_key_shown {
            return Err(S3Error::InvalidAccessKeyId);
        }
        Ok(Known {
            organization_id: OrganizationId(uuid::Uuid::from_bytes(organization_id)),
            secret: self.secret(claim),
        })
    }

    fn secret(&self, claim: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(self.proof("secret key", &[claim]))
    }

    /// That whoever holds the cluster's secret said `fields` in the sense of `purpose`.
    pub(super) fn proof(&self, purpose: &str, fields: &[&[u8]]) -> [u8; PROOF_BYTES] {
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(hmac::sign(&self.0, &framed(purpose, fields)).as_ref());
        proof
    }

    /// In constant time.
    pub(super) fn is_proof(&self, purpose: &str, fields: &[&[u8]], proof: &[u8]) -> bool {
        hmac::verify(&self.0, &framed(purpose, fields), proof).is_ok()
    }
}

/// Each field with its length, so that no two lists of fields are the same message.
fn framed(purpose: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut message = Vec::new();
    for field in [purpose.as_bytes()].iter().chain(fields) {
        message.extend_from_slice(&(field.len() as u64).to_be_bytes());
        message.extend_from_slice(field);
    }
    message
}

fn access_key(salt: &[u8]) -> String {
    format!("ATOLL{}", hex::encode_upper(salt))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_700_000_000;

    fn issuer() -> Issuer {
        Issuer::new([7; 32])
    }

    fn organization() -> OrganizationId {
        OrganizationId(uuid::Uuid::from_u128(9))
    }

    #[test]
    fn what_one_node_issues_another_knows_until_it_ends() {
        let issued = issuer().issue(organization(), NOW_S, [1; 8]);
        let ends_s = NOW_S + CREDENTIALS_LIVE.as_secs();

        let known = issuer().know(&issued.access_key, &issued.session_token, ends_s - 1).unwrap();

        assert_eq!((known.organization_id, known.secret), (organization(), issued.secret));
        let late = issuer().know(&issued.access_key, &issued.session_token, ends_s);
        assert!(matches!(late, Err(S3Error::ExpiredToken)));
    }

    #[test]
    fn no_bit_of_a_token_can_be_changed() {
        let issued = issuer().issue(organization(), NOW_S, [1; 8]);
        let token = URL_SAFE_NO_PAD.decode(&issued.session_token).unwrap();

        for at in 0..token.len() * 8 {
            let mut changed = token.clone();
            changed[at / 8] ^= 1 << (at % 8);
            let known = issuer().know(&issued.access_key, &URL_SAFE_NO_PAD.encode(changed), NOW_S);
            assert!(matches!(known, Err(S3Error::InvalidToken)), "bit {at}");
        }
        for token in ["", "?", "AAAA", &issued.session_token[1..]] {
            assert!(matches!(issuer().know(&issued.access_key, token, NOW_S), Err(S3Error::InvalidToken)));
        }
    }

    #[test]
    fn another_cluster_and_another_access_key_are_refused() {
        let issued = issuer().issue(organization(), NOW_S, [1; 8]);

        let foreign = Issuer::new([8; 32]).know(&issued.access_key, &issued.session_token, NOW_S);
        let other = issuer().know("ATOLL0000000000000000", &issued.session_token, NOW_S);

        assert!(matches!(foreign, Err(S3Error::InvalidToken)));
        assert!(matches!(other, Err(S3Error::InvalidAccessKeyId)));
    }

    #[test]
    fn fields_cannot_be_moved_into_one_another() {
        assert_ne!(issuer().proof("a", &[b"bc"]), issuer().proof("ab", &[b"c"]));
        assert_ne!(issuer().proof("a", &[b"b", b"c"]), issuer().proof("a", &[b"bc"]));
    }
}
