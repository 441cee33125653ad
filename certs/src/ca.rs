//! The cluster's certificate authority: it signs the keys of nodes and of the public doors, and nothing else.
//!
//! A node is named by its key: [`node_id_of_spki`]. Its certificate repeats that name in a URI, so that a certificate
//! for a public door, signed by the same authority, can never pass for a node's.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use atoll_api::ids::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509CertificationRequest};

use crate::pem;
use crate::public_tls::{PublicCertificate, PublicName};

/// The name in TLS of every node's mesh endpoint. Which node it is, the certificate's URI says.
pub const NODE_SERVER_NAME: &str = "node.atoll.internal";
/// Clocks of nodes may differ by this much before a fresh certificate looks as if from the future.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(3600);
pub const NODE_CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * 86_400);
pub const SERVER_CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * 86_400);
pub const CA_CERTIFICATE_VALIDITY: Duration = Duration::from_secs(20 * 365 * 86_400);

const NODE_URI_PREFIX: &str = "atoll://node/";

/// SHA-256 of the CA certificate's DER. A join token carries it, so that a joining node knows whom to believe.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CaFingerprint(pub [u8; 32]);

impl CaFingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> CaFingerprint {
        CaFingerprint(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not what it should hold: the operator, or whoever wrote the file, must look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be read: {cause}")]
pub struct MalformedTrust {
    pub what: &'static str,
    pub cause: String,
}

/// The public half of the authority, which every node holds.
#[derive(Clone, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
}

impl CaCertificate {
    pub fn from_pem(text: &str) -> Result<CaCertificate, MalformedTrust> {
        const WHAT: &str = "the cluster's CA certificate";
        let chain = pem::decode_certificates(text.as_bytes())
            .map_err(|cause| MalformedTrust { what: WHAT, cause })?;
        let [der] = <[_; 1]>::try_from(chain)
            .map_err(|_| MalformedTrust { what: WHAT, cause: "it holds more than one certificate".into() })?;
        CaCertificate::from_der(der)
    }

    pub fn from_der(der: CertificateDer<'static>) -> Result<CaCertificate, MalformedTrust> {
        const WHAT: &str = "the cluster's CA certificate";
        let certificate = parse_certificate(&der).map_err(|cause| MalformedTrust { what: WHAT, cause })?;
        if !certificate.is_ca() {
            return Err(MalformedTrust { what: WHAT, cause: "it is not the certificate of a CA".into() });
        }
        Ok(CaCertificate { der })
    }

    pub fn to_pem(&self) -> String {
        pem::encode_certificate(&self.der)
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.der)
    }
}

impl fmt::Debug for CaCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaCertificate({})", self.fingerprint())
    }
}

/// Why a certificate was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The peer sent something that is no request for a P-256 key, or whose signature is not that key's.
    #[error("the certificate request is not acceptable: {0}")]
    BadRequest(String),
    /// The peer asked for a name that its key does not have.
    #[error("the key of the request is that of node {derived}, not of {asked}")]
    NotItsKey { asked: NodeId, derived: NodeId },
    /// A bug: the request was sound and signing failed.
    #[error("signing failed: {0}")]
    Failed(String),
}

/// The authority with its private key. In the cluster's state it is only ever sealed.
pub struct ClusterCa {
    certificate: CaCertificate,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterCa {
    pub fn generate(cluster_id: Uuid, now: SystemTime) -> ClusterCa {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system gives random bytes");
        let mut params = params_valid_for(CA_CERTIFICATE_VALIDITY, now);
        params.distinguished_name = common_name(&format!("atoll cluster {cluster_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("these parameters can be signed with a P-256 key");
        ClusterCa::assemble(CaCertificate { der: certificate.der().clone() }, key)
            .expect("a certificate just made can be read")
    }

    /// The parts of [`ClusterCa::certificate`] and [`ClusterCa::private_key_pem`]. They must belong together.
    pub fn from_pem(certificate_pem: &str, private_key_pem: &str) -> Result<ClusterCa, MalformedTrust> {
        const WHAT: &str = "the cluster's CA key";
        let malformed = |cause: String| MalformedTrust { what: WHAT, cause };
        let certificate = CaCertificate::from_pem(certificate_pem)?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(private_key_pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(|e| malformed(e.to_string()))?;
        let parsed = parse_certificate(certificate.der()).map_err(malformed)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(malformed("it is not the key of the CA certificate".into()));
        }
        ClusterCa::assemble(certificate, key)
    }

    fn assemble(certificate: CaCertificate, key: KeyPair) -> Result<ClusterCa, MalformedTrust> {
        let key_pem = pem::encode_private_key(key.serialized_der());
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key)
            .map_err(|e| MalformedTrust { what: "the cluster's CA certificate", cause: e.to_string() })?;
        Ok(ClusterCa { certificate, key_pem, issuer })
    }

    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    pub fn fingerprint(&self) -> CaFingerprint {
        self.certificate.fingerprint()
    }

    /// PKCS#8. Seal it before it leaves this process.
    pub fn private_key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs a node's key. Of the request only the key is taken; every other field is ours.
    /// Returns PEM: the node's certificate, then the CA's.
    pub fn sign_node(&self, csr_der: &[u8], node_id: NodeId, now: SystemTime) -> Result<String, SignError> {
        let derived = node_id_of_request(csr_der)?;
        if derived != node_id {
            return Err(SignError::NotItsKey { asked: node_id, derived });
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|e| SignError::BadRequest(e.to_string()))?;
        let mut params = leaf_params(
            &format!("atoll node {node_id}"),
            vec![
                SanType::DnsName(NODE_SERVER_NAME.try_into().expect("the name is ASCII")),
                SanType::URI(format!("{NODE_URI_PREFIX}{node_id}").try_into().expect("the URI is ASCII")),
            ],
            NODE_CERTIFICATE_VALIDITY,
            now,
        );
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|e| SignError::Failed(e.to_string()))?;
        // The signer rebuilt the key's encoding; a name derived from another encoding would be another node.
        match node_id_of_certificate(certificate.der()) {
            Ok(signed) if signed == node_id => {}
            other => return Err(SignError::Failed(format!("the certificate names {other:?}"))),
        }
        Ok(pem::encode_certificate(certificate.der()) + &self.certificate.to_pem())
    }

    /// Makes a key and a certificate for the public TLS doors of a node. The first name is the main one.
    pub fn sign_server(&self, names: &[PublicName], now: SystemTime) -> Result<PublicCertificate, SignError> {
        let Some(first) = names.first() else {
            return Err(SignError::BadRequest("a server certificate needs a name".into()));
        };
        let failed = |e: rcgen::Error| SignError::Failed(e.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let names_in_x509 = names
            .iter()
            .map(|name| match name {
                PublicName::Ip(ip) => Ok(SanType::IpAddress(*ip)),
                PublicName::Dns(dns) => Ok(SanType::DnsName(dns.as_str().try_into().map_err(failed)?)),
            })
            .collect::<Result<_, SignError>>()?;
        let mut params = leaf_params(&first.to_string(), names_in_x509, SERVER_CERTIFICATE_VALIDITY, now);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(PublicCertificate::signed_here(
            vec![certificate.der().clone(), self.certificate.der().clone()],
            key.serialize_der(),
        ))
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterCa({})", self.fingerprint())
    }
}

fn leaf_params(name: &str, names: Vec<SanType>, validity: Duration, now: SystemTime) -> CertificateParams {
    let mut params = params_valid_for(validity, now);
    params.distinguished_name = common_name(name);
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn params_valid_for(validity: Duration, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::from(now - CLOCK_SKEW_MAX);
    params.not_after = OffsetDateTime::from(now + validity);
    // A renewed certificate has the same key: without a number of its own it would repeat the old one's.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    // A common name holds at most 64 characters; nothing reads it but people.
    distinguished_name.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    distinguished_name
}

/// The id of the node that has this key: the first eight bytes of SHA-256 of its SubjectPublicKeyInfo, big endian.
pub fn node_id_of_spki(spki_der: &[u8]) -> NodeId {
    let digest = Sha256::digest(spki_der);
    NodeId(u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes")))
}

/// The id of the node whose key the request asks to have signed. The request's own signature is not checked here,
/// but in [`ClusterCa::sign_node`].
pub fn node_id_of_request(csr_der: &[u8]) -> Result<NodeId, SignError> {
    // Of all P-256 keys: the fixed head of an uncompressed point's SubjectPublicKeyInfo.
    const P256_SPKI_BYTES: usize = 91;
    const P256_SPKI_HEAD: &str = "3059301306072a8648ce3d020106082a8648ce3d03010703420004";
    let (rest, request) = X509CertificationRequest::from_der(csr_der)
        .map_err(|e| SignError::BadRequest(format!("it cannot be parsed: {e}")))?;
    if !rest.is_empty() {
        return Err(SignError::BadRequest("bytes follow it".into()));
    }
    let spki = request.certification_request_info.subject_pki.raw;
    if spki.len() != P256_SPKI_BYTES || !hex::encode(spki).starts_with(P256_SPKI_HEAD) {
        return Err(SignError::BadRequest("its key is not of the curve P-256".into()));
    }
    Ok(node_id_of_spki(spki))
}

/// A certificate that is not a node's: whoever showed it is not a member of this cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotANode {
    #[error("the certificate cannot be parsed: {0}")]
    Malformed(String),
    #[error("the certificate names no node")]
    NoName,
    #[error("the certificate names node {named} and holds the key of node {derived}")]
    OtherKey { named: NodeId, derived: NodeId },
}

/// The node a certificate names. Says nothing of who signed it: verify the chain first.
pub fn node_id_of_certificate(certificate: &CertificateDer<'_>) -> Result<NodeId, NotANode> {
    let parsed = parse_certificate(certificate).map_err(NotANode::Malformed)?;
    let names = parsed.subject_alternative_name().map_err(|e| NotANode::Malformed(e.to_string()))?;
    let named = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(NODE_URI_PREFIX)?.parse::<NodeId>().ok(),
            _ => None,
        })
        .ok_or(NotANode::NoName)?;
    let derived = node_id_of_spki(parsed.public_key().raw);
    if named == derived { Ok(named) } else { Err(NotANode::OtherKey { named, derived }) }
}

/// When a certificate begins and ends to be valid.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), String> {
    let parsed = parse_certificate(certificate)?;
    let at = |time: x509_parser::time::ASN1Time| SystemTime::from(time.to_datetime());
    Ok((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

pub(crate) fn parse_certificate<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    if rest.is_empty() { Ok(certificate) } else { Err("bytes follow the certificate".into()) }
}

impl FromStr for CaFingerprint {
    type Err = MalformedTrust;

    fn from_str(text: &str) -> Result<Self, MalformedTrust> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|e| MalformedTrust { what: "a CA fingerprint", cause: e.to_string() })?;
        Ok(CaFingerprint(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;

    fn ca() -> ClusterCa {
        ClusterCa::generate(Uuid::from_u128(7), SystemTime::now())
    }

    #[test]
    fn a_node_is_named_by_its_key() {
        let key = NodeKey::generate();

        let chain = ca().sign_node(&key.csr(), key.node_id(), SystemTime::now()).unwrap();

        let chain = pem::decode_certificates(chain.as_bytes()).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(node_id_of_certificate(&chain[0]).unwrap(), key.node_id());
        assert_eq!(node_id_of_request(&key.csr()).unwrap(), key.node_id());
    }

    #[test]
    fn a_key_is_not_signed_under_another_nodes_name() {
        let key = NodeKey::generate();
        let other = NodeKey::generate().node_id();

        let refused = ca().sign_node(&key.csr(), other, SystemTime::now());

        assert_eq!(refused, Err(SignError::NotItsKey { asked: other, derived: key.node_id() }));
    }

    #[test]
    fn a_request_with_a_broken_signature_is_refused() {
        let key = NodeKey::generate();
        let mut csr = key.csr();
        let last = csr.len() - 1;
        csr[last] ^= 1;

        let refused = ca().sign_node(&csr, key.node_id(), SystemTime::now());

        assert!(matches!(refused, Err(SignError::BadRequest(_))), "{refused:?}");
    }

    #[test]
    fn a_request_for_a_key_of_another_kind_is_refused() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let csr = CertificateParams::default().serialize_request(&key).unwrap();
            let node_id = node_id_of_spki(&key.subject_public_key_info());

            let refused = ca().sign_node(csr.der(), node_id, SystemTime::now());

            assert!(matches!(refused, Err(SignError::BadRequest(_))), "{refused:?}");
        }
    }

    #[test]
    fn garbage_is_not_a_request() {
        for bytes in [&b""[..], b"\x30", &[0xff; 300]] {
            assert!(ca().sign_node(bytes, NodeId(1), SystemTime::now()).is_err());
        }
    }

    #[test]
    fn what_else_a_request_asks_for_is_ignored() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&key).unwrap();
        let node_id = node_id_of_spki(&key.subject_public_key_info());

        let chain = ca().sign_node(csr.der(), node_id, SystemTime::now()).unwrap();

        let leaf = &pem::decode_certificates(chain.as_bytes()).unwrap()[0];
        let parsed = parse_certificate(leaf).unwrap();
        assert!(!parsed.is_ca());
        assert!(!format!("{:?}", parsed.subject_alternative_name()).contains("evil"));
    }

    #[test]
    fn two_certificates_of_one_key_have_different_numbers() {
        let (ca, key) = (ca(), NodeKey::generate());
        let serial = || {
            let chain = ca.sign_node(&key.csr(), key.node_id(), SystemTime::now()).unwrap();
            let leaf = pem::decode_certificates(chain.as_bytes()).unwrap().remove(0);
            parse_certificate(&leaf).unwrap().raw_serial().to_vec()
        };

        assert_ne!(serial(), serial());
    }

    #[test]
    fn the_authority_survives_pem() {
        let ca = ca();

        let again = ClusterCa::from_pem(&ca.certificate().to_pem(), ca.private_key_pem()).unwrap();

        assert_eq!(again.fingerprint(), ca.fingerprint());
        assert_eq!(ca.fingerprint().to_string().parse(), Ok(ca.fingerprint()));
        let key = NodeKey::generate();
        let chain = again.sign_node(&key.csr(), key.node_id(), SystemTime::now()).unwrap();
        key.certify(&chain, SystemTime::now()).unwrap();
    }

    #[test]
    fn a_key_of_another_authority_does_not_fit() {
        let refused = ClusterCa::from_pem(&ca().certificate().to_pem(), ca().private_key_pem());

        assert_eq!(refused.unwrap_err().cause, "it is not the key of the CA certificate");
    }

    #[test]
    fn a_leaf_is_not_an_authority() {
        let key = NodeKey::generate();
        let chain = ca().sign_node(&key.csr(), key.node_id(), SystemTime::now()).unwrap();
        let leaf = pem::decode_certificates(chain.as_bytes()).unwrap().remove(0);

        assert!(CaCertificate::from_der(leaf).is_err());
        assert!(CaCertificate::from_pem(&chain).is_err());
    }

    #[test]
    fn a_server_certificate_names_no_node() {
        let certificate = ca().sign_server(&["localhost".parse().unwrap()], SystemTime::now()).unwrap();

        assert_eq!(node_id_of_certificate(&certificate.chain()[0]), Err(NotANode::NoName));
    }
}
