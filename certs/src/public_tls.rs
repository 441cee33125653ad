//! TLS of the public door: one certificate, from the operator's files or signed by the cluster, replaceable while it serves.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use atoll_api::ids::ParseIdError;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::ca::{self, NODE_SERVER_NAME};
use crate::pem;
use crate::tls::{TlsError, provider};

/// A name the public door answers to: a host name, `*.` and a host name, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PublicName {
    Dns(String),
    Ip(IpAddr),
}

impl FromStr for PublicName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const ERROR: ParseIdError = ParseIdError {
            what: "public name",
            expected: "a host name in lower case, *. and a host name, or an IP address",
        };
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(PublicName::Ip(ip));
        }
        let host = text.strip_prefix("*.").unwrap_or(text);
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let label = |l: &str| {
            (1..=63).contains(&l.len()) && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-')
        };
        let ok = text.len() <= 253 && host.split('.').all(label);
        // The mesh's own name must not be had at the public door.
        let ours = NODE_SERVER_NAME.split_once('.').is_some_and(|(_, zone)| host.ends_with(zone));
        if ok && !ours { Ok(PublicName::Dns(text.to_owned())) } else { Err(ERROR) }
    }
}

impl fmt::Display for PublicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PublicName::Dns(name) => f.write_str(name),
            PublicName::Ip(ip) => ip.fmt(f),
        }
    }
}

/// The operator: a file is missing, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum PublicCertificateError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{what} cannot be used: {cause}")]
    Malformed { what: String, cause: String },
}

/// A chain, leaf first, and the key of its leaf.
pub struct PublicCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl PublicCertificate {
    pub(crate) fn signed_here(chain: Vec<CertificateDer<'static>>, pkcs8: Vec<u8>) -> PublicCertificate {
        PublicCertificate { chain, key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8)) }
    }

    pub fn from_files(chain: &Path, key: &Path) -> Result<PublicCertificate, PublicCertificateError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| PublicCertificateError::Io { path: path.to_owned(), source })
        };
        let malformed = |path: &Path, cause| PublicCertificateError::Malformed {
            what: path.display().to_string(),
            cause,
        };
        let certificate = PublicCertificate {
            chain: pem::decode_certificates(&read(chain)?).map_err(|cause| malformed(chain, cause))?,
            key: pem::decode_private_key(&read(key)?).map_err(|cause| malformed(key, cause))?,
        };
        certificate.certified().map_err(|e| malformed(key, e.to_string()))?;
        Ok(certificate)
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(pem::encode_certificate).collect()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// From here on a new one should be made: two thirds of its time have passed. `None` if its dates can't be read.
    pub fn renew_after(&self) -> Option<SystemTime> {
        let (not_before, not_after) = ca::validity(self.chain.first()?).ok()?;
        let lifetime = not_after.duration_since(not_before).unwrap_or(Duration::ZERO);
        Some(not_before + lifetime * 2 / 3)
    }

    fn certified(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        CertifiedKey::from_der(self.chain.clone(), self.private_key(), &provider())
            .map(Arc::new)
            .map_err(|e| TlsError::Certificate(e.to_string()))
    }
}

impl Clone for PublicCertificate {
    fn clone(&self) -> PublicCertificate {
        PublicCertificate { chain: self.chain.clone(), key: self.private_key() }
    }
}

impl fmt::Debug for PublicCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicCertificate({} in the chain)", self.chain.len())
    }
}

/// What the door shows now. A replacement holds from the next handshake on.
pub struct PublicCertificates {
    current: RwLock<Arc<CertifiedKey>>,
}

impl PublicCertificates {
    pub fn new(certificate: PublicCertificate) -> Result<Arc<PublicCertificates>, TlsError> {
        Ok(Arc::new(PublicCertificates { current: RwLock::new(certificate.certified()?) }))
    }

    /// A certificate that can't be used leaves the current one in place.
    pub fn replace(&self, certificate: PublicCertificate) -> Result<(), TlsError> {
        let certified = certificate.certified()?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }
}

impl ResolvesServerCert for PublicCertificates {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl fmt::Debug for PublicCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicCertificates")
    }
}

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, whatever certificate the resolver has at the moment.
pub fn edge_server_config(certificates: Arc<PublicCertificates>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("ring knows both versions")
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::ClusterCa;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};
    use rustls_pki_types::ServerName;
    use uuid::Uuid;

    fn names(names: &[&str]) -> Vec<PublicName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    /// A client that trusts the CA visits `host`, as curl with `--cacert` would.
    fn visit(ca: &ClusterCa, certificates: &Arc<PublicCertificates>, host: &str) -> Result<Vec<u8>, String> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().der().clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), host).unwrap();
        let mut server = ServerConnection::new(Arc::new(edge_server_config(certificates.clone()))).unwrap();
        while client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().map_err(|e| e.to_string())?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().map_err(|e| e.to_string())?;
        }
        Ok(client.alpn_protocol().unwrap_or_default().to_vec())
    }

    #[test]
    fn a_visitor_who_trusts_the_ca_is_served_under_every_name() {
        let ca = ClusterCa::generate(Uuid::nil(), SystemTime::now());
        let certificate = ca
            .sign_server(&names(&["localhost", "*.preview.localhost", "127.0.0.1", "::1"]), SystemTime::now())
            .unwrap();
        let certificates = PublicCertificates::new(certificate).unwrap();

        for host in ["localhost", "3000-abc.preview.localhost", "127.0.0.1", "::1"] {
            assert_eq!(visit(&ca, &certificates, host), Ok(b"http/1.1".to_vec()), "{host}");
        }
        assert!(visit(&ca, &certificates, "example.com").unwrap_err().contains("not valid for name"));
    }

    #[test]
    fn a_replaced_certificate_holds_from_the_next_handshake() {
        let ca = ClusterCa::generate(Uuid::nil(), SystemTime::now());
        let sign = |name| ca.sign_server(&names(&[name]), SystemTime::now()).unwrap();
        let certificates = PublicCertificates::new(sign("a.example")).unwrap();
        assert!(visit(&ca, &certificates, "b.example").is_err());

        certificates.replace(sign("b.example")).unwrap();

        assert!(visit(&ca, &certificates, "b.example").is_ok());
    }

    #[test]
    fn operators_files_are_read_and_a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ca = ClusterCa::generate(Uuid::nil(), SystemTime::now());
        let sign = || ca.sign_server(&names(&["a.example"]), SystemTime::now()).unwrap();
        let (one, two) = (sign(), sign());
        let file = |name: &str, text: String| {
            fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name)
        };
        let chain = file("chain.pem", one.chain_pem());
        let key = file("key.pem", pem::encode_private_key(one.private_key().secret_der()));
        let other_key = file("other.pem", pem::encode_private_key(two.private_key().secret_der()));

        assert_eq!(PublicCertificate::from_files(&chain, &key).unwrap().chain(), one.chain());
        assert!(PublicCertificate::from_files(&chain, &other_key).is_err());
        assert!(PublicCertificate::from_files(&key, &key).is_err());
        assert!(PublicCertificate::from_files(&folder.path().join("absent"), &key).is_err());
        assert!(one.renew_after().unwrap() > SystemTime::now());
    }

    #[test]
    fn malformed_names_and_the_meshs_own_are_refused() {
        for bad in [
            "",
            ".",
            "a..b",
            "-a",
            "A.example",
            "*.*.a",
            "a b",
            "é",
            "*",
            "node.atoll.internal",
            "*.atoll.internal",
        ] {
            assert!(bad.parse::<PublicName>().is_err(), "{bad}");
        }
    }
}
