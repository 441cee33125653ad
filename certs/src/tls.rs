//! TLS between nodes: version 1.3, both sides show a certificate of the cluster's CA, and nothing is ever resumed,
//! because a resumed session would not look at the certificate, or at the membership, again.
//!
//! The one exception is a node that joins: it has no certificate yet, and believes the CA that its token pins.

use std::sync::Arc;

use atoll_api::ids::NodeId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::ca::{CaCertificate, CaFingerprint, node_id_of_certificate};
use crate::identity::NodeIdentity;

/// The node's own certificate or CA is not usable: the operator must look at its folder.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    #[error("the cluster's CA certificate cannot be used: {0}")]
    Ca(String),
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
}

/// Why a peer is not who was dialed. Shown to the operator as the cause of a failed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrongPeer {
    #[error("the peer is node {found}, not node {expected}")]
    OtherNode { expected: NodeId, found: NodeId },
    #[error("the peer's cluster is not the one the join token names (CA {0})")]
    OtherCluster(CaFingerprint),
    #[error("the peer's certificate is not a node's")]
    NotANode,
}

/// For accepting: peers show a certificate of our CA or none. Whoever shows none may only join.
pub fn mesh_server_config(identity: &NodeIdentity, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots_of(identity.ca())?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| TlsError::Ca(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring knows TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.private_key())
        .map_err(|e| TlsError::Certificate(e.to_string()))?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// For dialing `peer`, and only that node.
pub fn mesh_client_config(
    identity: &NodeIdentity,
    peer: NodeId,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let verifier = ThisNode { inner: verifier_of(identity.ca())?, expected: peer };
    let config = client_builder(Arc::new(verifier))
        .with_client_auth_cert(identity.chain().to_vec(), identity.private_key())
        .map_err(|e| TlsError::Certificate(e.to_string()))?;
    Ok(without_resumption(config, alpn))
}

/// For joining: any node whose chain ends in the pinned CA. We show no certificate.
pub fn join_client_config(pinned: CaFingerprint, alpn: &[u8]) -> ClientConfig {
    let config = client_builder(Arc::new(ThisCluster { pinned })).with_no_client_auth();
    without_resumption(config, alpn)
}

/// The node at the other end of an accepted connection, from the chain TLS has verified.
pub fn peer_node(chain: &[CertificateDer<'_>]) -> Result<NodeId, WrongPeer> {
    let leaf = chain.first().ok_or(WrongPeer::NotANode)?;
    node_id_of_certificate(leaf).map_err(|_| WrongPeer::NotANode)
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

pub(crate) fn verifier_of(ca: &CaCertificate) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(roots_of(ca)?, provider())
        .build()
        .map_err(|e| TlsError::Ca(e.to_string()))
}

fn roots_of(ca: &CaCertificate) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).map_err(|e| TlsError::Ca(e.to_string()))?;
    Ok(Arc::new(roots))
}

fn client_builder(
    verifier: Arc<dyn ServerCertVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring knows TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

fn without_resumption(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    config
}

fn refuse(cause: WrongPeer) -> rustls::Error {
    // Not `CertificateError::Other`: its cause would be printed as a debugging aid, and operators read this.
    rustls::Error::General(cause.to_string())
}

/// The usual verification under the cluster's CA, and then: is it the node we dialed?
#[derive(Debug)]
struct ThisNode {
    inner: Arc<WebPkiServerVerifier>,
    expected: NodeId,
}

impl ServerCertVerifier for ThisNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match node_id_of_certificate(end_entity) {
            Ok(found) if found == self.expected => Ok(verified),
            Ok(found) => Err(refuse(WrongPeer::OtherNode { expected: self.expected, found })),
            Err(_) => Err(refuse(WrongPeer::NotANode)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("nodes speak TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Finds the pinned CA in the chain the peer shows, and verifies the peer under it.
#[derive(Debug)]
struct ThisCluster {
    pinned: CaFingerprint,
}

impl ServerCertVerifier for ThisCluster {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other_cluster = || refuse(WrongPeer::OtherCluster(self.pinned));
        let ca = intermediates
            .iter()
            .find(|certificate| CaFingerprint::of(certificate) == self.pinned)
            .ok_or_else(other_cluster)?;
        let ca = CaCertificate::from_der(ca.clone().into_owned()).map_err(|_| other_cluster())?;
        let verified = verifier_of(&ca).map_err(|_| other_cluster())?.verify_server_cert(
            end_entity,
            &[],
            server_name,
            ocsp_response,
            now,
        )?;
        node_id_of_certificate(end_entity).map_err(|_| refuse(WrongPeer::NotANode))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("nodes speak TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
