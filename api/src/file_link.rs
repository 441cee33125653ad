//! Links to one file of a sandbox that open without any other credential: the SDK's `download_url` and `upload_url`.
//!
//!   {toolbox}/{sandbox id}/files/download?path=P&expires=E&signature=S     GET
//!   {toolbox}/{sandbox id}/files/upload-v2?path=P&expires=E&signature=S    POST
//!
//! S is `v1_` and the unpadded base64url HMAC-SHA-256 of `v1:files:{method}:{P}:{E}` under the sandbox's signing key; E is in Unix
//! seconds, 0 never ends. Clients sign by themselves, with the key that they have fetched. The key is derived from the cluster's
//! secret and never stored: every node can tell it, and it changes with the version that the sandbox's record counts.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::access::FileGrant;
use crate::ids::SandboxId;

const SIGNATURE_PREFIX: &str = "v1_";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOperation {
    Download,
    Upload,
}

impl FileOperation {
    /// As it is signed, and as it must be asked for.
    pub fn method(self) -> &'static str {
        match self {
            FileOperation::Download => "GET",
            FileOperation::Upload => "POST",
        }
    }

    /// In the toolbox.
    pub fn path(self) -> &'static str {
        match self {
            FileOperation::Download => "/files/download",
            FileOperation::Upload => "/files/upload-v2",
        }
    }
}

/// What a link says, decoded. Nothing of it is true until its signature has been verified.
#[derive(Clone, PartialEq, Eq)]
pub struct FileLink {
    pub operation: FileOperation,
    /// Of the file, as the toolbox takes it: may be relative to the working directory.
    pub path: String,
    /// As it stands in the link: what is signed is the text.
    pub expires: String,
    pub signature: String,
}

impl fmt::Debug for FileLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileLink({} {}, until {})", self.operation.method(), self.path, self.expires)
    }
}

impl FileLink {
    /// Whether any key could have signed it: worth looking for the right one.
    pub fn is_well_formed(&self) -> bool {
        let digest =
            self.signature.strip_prefix(SIGNATURE_PREFIX).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        digest.is_some_and(|digest| digest.len() == 32) && self.expires.parse::<u64>().is_ok()
    }
}

/// What every signing key of a cluster is derived from. The same on every node, and no client's to see.
#[derive(Clone)]
pub struct SigningSecret([u8; 32]);

impl SigningSecret {
    pub fn new(secret: [u8; 32]) -> SigningSecret {
        SigningSecret(secret)
    }

    /// `version` is what the sandbox's record counts.
    pub fn key_of(&self, sandbox_id: SandboxId, version: u32) -> SigningKey {
        let mut mac = mac(&self.0);
        mac.update(format!("{sandbox_id}\0{version}").as_bytes());
        SigningKey { sandbox_id, text: hex::encode(mac.finalize().into_bytes()) }
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

/// Makes and verifies links to one sandbox's files.
pub struct SigningKey {
    sandbox_id: SandboxId,
    text: String,
}

impl SigningKey {
    /// The secret itself, 64 hex digits: what clients sign with. Never log it.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    pub fn sign(&self, operation: FileOperation, path: &str, expires: &str) -> String {
        let digest = self.mac(operation, path, expires).finalize().into_bytes();
        format!("{SIGNATURE_PREFIX}{}", URL_SAFE_NO_PAD.encode(digest))
    }

    /// `None`: the signature is not this key's. Whether the link has ended is for [`crate::access::authorize`] to say.
    pub fn verify(&self, link: &FileLink) -> Option<FileGrant> {
        let signature = URL_SAFE_NO_PAD.decode(link.signature.strip_prefix(SIGNATURE_PREFIX)?).ok()?;
        let expires_at_s: u64 = link.expires.parse().ok()?;
        self.mac(link.operation, &link.path, &link.expires).verify_slice(&signature).ok()?;
        let expires_at_ms = if expires_at_s == 0 { u64::MAX } else { expires_at_s.saturating_mul(1000) };
        Some(FileGrant::verified(self.sandbox_id, expires_at_ms))
    }

    fn mac(&self, operation: FileOperation, path: &str, expires: &str) -> Hmac<Sha256> {
        let mut mac = mac(self.text.as_bytes());
        mac.update(format!("v1:files:{}:{path}:{expires}", operation.method()).as_bytes());
        mac
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RegionOrdinal;

    fn key(version: u32) -> SigningKey {
        SigningSecret([7; 32]).key_of(SandboxId::new(RegionOrdinal::new(1).unwrap(), [1; 14]), version)
    }

    fn link(key: &SigningKey, path: &str, expires: &str) -> FileLink {
        let operation = FileOperation::Download;
        let signature = key.sign(operation, path, expires);
        FileLink { operation, path: path.into(), expires: expires.into(), signature }
    }

    #[test]
    fn a_signature_is_what_the_sdk_computes() {
        let key = SigningKey { sandbox_id: key(0).sandbox_id, text: "sk".into() };

        // hmac.new(b"sk", b"v1:files:GET:/tmp/a b:12", "sha256"), as unpadded base64url.
        assert_eq!(
            key.sign(FileOperation::Download, "/tmp/a b", "12"),
            "v1_c_Ca9gYOAhAX_QMXmA5PhRrTUMO1p1VWCZyQJQec4Yg"
        );
    }

    #[test]
    fn a_link_holds_for_what_it_was_signed_for_and_nothing_else() {
        let right = link(&key(0), "/tmp/x", "12");
        assert!(key(0).verify(&right).is_some());
        assert!(key(0).verify(&link(&key(0), "/tmp/x", "0")).is_some());

        let cut = right.signature[..right.signature.len() - 2].to_owned();
        for (what, wrong) in [
            ("another file", FileLink { path: "/tmp/y".into(), ..right.clone() }),
            ("later", FileLink { expires: "13".into(), ..right.clone() }),
            ("the same number written otherwise", FileLink { expires: "012".into(), ..right.clone() }),
            ("an upload", FileLink { operation: FileOperation::Upload, ..right.clone() }),
            ("a shorter signature", FileLink { signature: cut, ..right.clone() }),
            ("an empty signature", FileLink { signature: "v1_".into(), ..right.clone() }),
            (
                "another version",
                FileLink { signature: right.signature.replace("v1_", "v2_"), ..right.clone() },
            ),
            ("a key that was replaced", link(&key(1), "/tmp/x", "12")),
            ("no time", link(&key(0), "/tmp/x", "-1")),
        ] {
            assert!(key(0).verify(&wrong).is_none(), "{what}");
            let could_be =
                !["a shorter signature", "an empty signature", "another version", "no time"].contains(&what);
            assert_eq!(wrong.is_well_formed(), could_be, "{what}");
        }
    }
}
