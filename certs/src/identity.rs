//! A node's own key, which is made here and never leaves, and the certificate that makes it a member.
//!
//!   [`NodeKey`] ──csr──▶ the cluster signs ──chain──▶ [`NodeIdentity`] ──renewed after two thirds of its time──▶ …

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use atoll_api::ids::NodeId;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use ring::hkdf;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use crate::ca::{self, CaCertificate, NODE_SERVER_NAME, node_id_of_certificate, node_id_of_spki};
use crate::{pem, private_file, tls};

const KEY_FILE: &str = "node.key";
const CHAIN_FILE: &str = "node.pem";

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The operator: the disk, or the rights on it.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The operator: the file was changed by somebody else.
    #[error("{} is damaged: {cause}", path.display())]
    Damaged { path: PathBuf, cause: String },
    /// The peer, or an old folder: this certificate does not make this key a node.
    #[error("the node's certificate is not usable: {0}")]
    BadChain(String),
}

/// The key of a node that may not be a member yet.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeKey {
    pkcs8: Vec<u8>,
    spki: Vec<u8>,
}

impl NodeKey {
    pub fn generate() -> NodeKey {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system gives random bytes");
        NodeKey { spki: key.subject_public_key_info(), pkcs8: key.serialize_der() }
    }

    /// The key in `folder`, or a new one that is on disk when this returns: a join that is tried again is the same node.
    pub fn load_or_generate(folder: &Path) -> Result<NodeKey, IdentityError> {
        if let Some(key) = NodeKey::load(folder)? {
            return Ok(key);
        }
        let key = NodeKey::generate();
        key.save(folder)?;
        Ok(key)
    }

    fn load(folder: &Path) -> Result<Option<NodeKey>, IdentityError> {
        let path = folder.join(KEY_FILE);
        let Some(text) =
            private_file::read(&path).map_err(|source| IdentityError::Io { path: path.clone(), source })?
        else {
            return Ok(None);
        };
        let damaged = |cause: String| IdentityError::Damaged { path: path.clone(), cause };
        let PrivateKeyDer::Pkcs8(pkcs8) = pem::decode_private_key(&text).map_err(damaged)? else {
            return Err(damaged("it is not a PKCS#8 key".into()));
        };
        let pair = key_pair(pkcs8.secret_pkcs8_der()).map_err(|e| damaged(e.to_string()))?;
        Ok(Some(NodeKey { spki: pair.subject_public_key_info(), pkcs8: pkcs8.secret_pkcs8_der().to_vec() }))
    }

    fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        write(folder, KEY_FILE, pem::encode_private_key(&self.pkcs8).as_bytes())
    }

    pub fn node_id(&self) -> NodeId {
        node_id_of_spki(&self.spki)
    }

    /// A certificate request (PKCS#10, DER), signed with this key.
    pub fn csr(&self) -> Vec<u8> {
        let pair = key_pair(&self.pkcs8).expect("the key was read or made as P-256");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("atoll node {}", self.node_id()));
        params.serialize_request(&pair).expect("a P-256 key signs").der().to_vec()
    }

    /// Becomes a member with the chain that the cluster signed: this node's certificate, then the CA's.
    /// The chain must be sound at `now`; whether its CA is the right one, the caller knows.
    pub fn certify(self, chain_pem: &str, now: SystemTime) -> Result<NodeIdentity, IdentityError> {
        let identity = NodeIdentity::assemble(self, chain_pem)?;
        let bad = |e: rustls::Error| IdentityError::BadChain(e.to_string());
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        tls::verifier_of(&identity.ca)
            .map_err(|e| IdentityError::BadChain(e.to_string()))?
            .verify_server_cert(
                &identity.chain[0],
                &[],
                &ServerName::try_from(NODE_SERVER_NAME).expect("the name is a DNS name"),
                &[],
                UnixTime::since_unix_epoch(since_1970),
            )
            .map_err(bad)?;
        Ok(identity)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.node_id())
    }
}

/// A member of a cluster: a key, the certificate of that key, and the CA that signed it.
#[derive(Clone)]
pub struct NodeIdentity {
    key: NodeKey,
    node_id: NodeId,
    chain: Vec<CertificateDer<'static>>,
    ca: CaCertificate,
    not_before: SystemTime,
    expires_at: SystemTime,
}

impl NodeIdentity {
    fn assemble(key: NodeKey, chain_pem: &str) -> Result<NodeIdentity, IdentityError> {
        let bad = IdentityError::BadChain;
        let chain = pem::decode_certificates(chain_pem.as_bytes()).map_err(bad)?;
        let [leaf, ca] = chain.as_slice() else {
            return Err(bad("it must hold the node's certificate and the CA's".into()));
        };
        let ca = CaCertificate::from_der(ca.clone()).map_err(|e| bad(e.to_string()))?;
        let node_id = node_id_of_certificate(leaf).map_err(|e| bad(e.to_string()))?;
        if node_id != key.node_id() {
            return Err(bad(format!("it is for node {node_id}, and the key is that of {}", key.node_id())));
        }
        let (not_before, expires_at) = ca::validity(leaf).map_err(bad)?;
        Ok(NodeIdentity { node_id, key, chain, ca, not_before, expires_at })
    }

    /// `None` if this folder holds no node yet, or only its key. An expired certificate is loaded:
    /// the caller looks at [`NodeIdentity::expires_at`] and says so.
    pub fn load(folder: &Path) -> Result<Option<NodeIdentity>, IdentityError> {
        let path = folder.join(CHAIN_FILE);
        let chain_pem = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        let key = NodeKey::load(folder)?.ok_or_else(|| IdentityError::Damaged {
            path: folder.join(KEY_FILE),
            cause: "it is missing, and its certificate is there".into(),
        })?;
        NodeIdentity::assemble(key, &chain_pem).map(Some)
    }

    /// Writes key and chain; they are on disk when this returns.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        self.key.save(folder)?;
        write(folder, CHAIN_FILE, self.chain_pem().as_bytes())
    }

    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// This node's certificate, then the CA's.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(pem::encode_certificate).collect()
    }

    pub fn ca(&self) -> &CaCertificate {
        &self.ca
    }

    /// From here on a new certificate should be asked for, with the same key.
    pub fn renew_after(&self) -> SystemTime {
        let lifetime = self.expires_at.duration_since(self.not_before).unwrap_or(Duration::ZERO);
        self.not_before + lifetime * 2 / 3
    }

    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.pkcs8.clone()))
    }

    /// A secret of this node alone that survives restarts, for one named purpose.
    pub fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"atoll node secret 1");
        let mut secret = [0; 32];
        salt.extract(&self.key.pkcs8)
            .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut secret))
            .expect("32 bytes is one block of HKDF");
        secret
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeIdentity({}, {:?})", self.node_id(), self.ca)
    }
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, rcgen::Error> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ECDSA_P256_SHA256)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = folder.join(name);
    fs::create_dir_all(folder).map_err(|source| IdentityError::Io { path: folder.to_owned(), source })?;
    private_file::write(&path, bytes).map_err(|source| IdentityError::Io { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{ClusterCa, NODE_CERTIFICATE_VALIDITY};
    use uuid::Uuid;

    fn ca() -> ClusterCa {
        ClusterCa::generate(Uuid::from_u128(7), SystemTime::now())
    }

    fn member_since(ca: &ClusterCa, now: SystemTime) -> NodeIdentity {
        let key = NodeKey::generate();
        let chain = ca.sign_node(&key.csr(), key.node_id(), now).unwrap();
        key.certify(&chain, now).unwrap()
    }

    #[test]
    fn an_identity_survives_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let identity = member_since(&ca(), SystemTime::now());

        identity.save(folder.path()).unwrap();

        let again = NodeIdentity::load(folder.path()).unwrap().unwrap();
        assert_eq!(again.node_id(), identity.node_id());
        assert_eq!(again.ca(), identity.ca());
        assert_eq!(again.derive_secret("x"), identity.derive_secret("x"));
        assert_ne!(again.derive_secret("x"), identity.derive_secret("y"));
    }

    #[test]
    fn a_join_tried_again_is_the_same_node() {
        let folder = tempfile::tempdir().unwrap();

        let first = NodeKey::load_or_generate(folder.path()).unwrap();

        assert_eq!(NodeKey::load_or_generate(folder.path()).unwrap(), first);
        assert!(NodeIdentity::load(folder.path()).unwrap().is_none());
    }

    #[test]
    fn a_certificate_for_another_key_is_refused() {
        let (ca, key) = (ca(), NodeKey::generate());
        let chain = ca.sign_node(&key.csr(), key.node_id(), SystemTime::now()).unwrap();

        let refused = NodeKey::generate().certify(&chain, SystemTime::now());

        assert!(matches!(refused, Err(IdentityError::BadChain(_))));
    }

    #[test]
    fn a_chain_whose_leaf_another_authority_signed_is_refused() {
        let (ours, foreign, key) = (ca(), ca(), NodeKey::generate());
        let chain = foreign.sign_node(&key.csr(), key.node_id(), SystemTime::now()).unwrap();
        let leaf = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().to_owned();

        let refused = key.certify(&(leaf + &ours.certificate().to_pem()), SystemTime::now());

        assert!(matches!(refused, Err(IdentityError::BadChain(_))));
    }

    #[test]
    fn an_expired_certificate_makes_no_member() {
        let (ca, key) = (ca(), NodeKey::generate());
        let long_ago = SystemTime::now() - NODE_CERTIFICATE_VALIDITY - Duration::from_secs(60);
        let chain = ca.sign_node(&key.csr(), key.node_id(), long_ago).unwrap();

        let refused = key.certify(&chain, SystemTime::now());

        assert!(matches!(refused, Err(IdentityError::BadChain(cause)) if cause.contains("expired")));
    }

    #[test]
    fn renewal_is_due_long_before_the_end() {
        let now = SystemTime::now();

        let identity = member_since(&ca(), now);

        assert!(identity.renew_after() > now + NODE_CERTIFICATE_VALIDITY / 2);
        assert!(identity.renew_after() < identity.expires_at() - NODE_CERTIFICATE_VALIDITY / 4);
    }

    #[test]
    fn a_damaged_key_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        NodeKey::load_or_generate(folder.path()).unwrap();
        write(folder.path(), KEY_FILE, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
            .unwrap();

        let error = NodeKey::load_or_generate(folder.path()).unwrap_err();

        assert!(error.to_string().contains("node.key is damaged"), "{error}");
    }

    #[test]
    fn a_key_never_prints_itself() {
        let identity = member_since(&ca(), SystemTime::now());

        assert!(format!("{identity:?} {:?}", identity.key()).len() < 200);
    }
}
