//! Uses the cluster's CA, whose key is sealed in the replicated state: any member can sign, so any member can let a node
//! in, renew its own certificate and certify its public door.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use atoll_api::file_link::SigningSecret;
use atoll_certs::ca::ClusterCa;
use atoll_certs::identity::NodeIdentity;
use atoll_certs::public_tls::{PublicCertificates, PublicName};
use atoll_certs::seal::ClusterSecret;
use atoll_consensus::ClusterGroup;
use atoll_consensus::state::cluster::ClusterIdentity;
use atoll_mesh::endpoint::MeshEndpoint;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Layout;

/// The purpose under which the CA's key is sealed in the cluster state.
pub const SEALED_CA_KEY: &str = "ca key";
/// Certificates hold for weeks: an hour more or less does not matter, and a failure is tried again soon.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Well before a certificate of [`ClusterCa::sign_server`] ends; every start makes a new one anyway.
const PUBLIC_RENEW_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

pub fn cluster_ca(identity: &ClusterIdentity, secret: &ClusterSecret) -> Result<ClusterCa> {
    let key = secret.unseal(SEALED_CA_KEY, &identity.sealed_ca_key).context("unseal the CA key")?;
    let key = String::from_utf8(key).context("read the CA key as text")?;
    ClusterCa::from_pem(&identity.ca_certificate_pem, &key).context("read the CA")
}

/// What links to files are signed with.
pub fn signing_secret(secret: &ClusterSecret) -> SigningSecret {
    SigningSecret::new(secret.derive("file links"))
}

pub struct Renewal {
    pub cluster: ClusterGroup,
    pub secret: Arc<ClusterSecret>,
    pub layout: Layout,
    pub mesh: MeshEndpoint,
    pub public: Arc<PublicCertificates>,
    pub public_names: Vec<PublicName>,
}

impl Renewal {
    pub async fn run(self, cancel: CancellationToken) {
        let mut public_since = SystemTime::now();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            if let Err(error) = self.renew_if_due(&mut public_since) {
                warn!(error = format!("{error:#}"), "certificates not renewed, trying again in an hour");
            }
        }
    }

    fn renew_if_due(&self, public_since: &mut SystemTime) -> Result<()> {
        let now = SystemTime::now();
        let founded =
            self.cluster.read(|state| state.identity.clone()).context("the cluster has no identity")?;
        let folder = self.layout.identity_dir();
        let identity = NodeIdentity::load(&folder)?.context("the node's identity is gone")?;
        if now >= identity.renew_after() {
            let ca = cluster_ca(&founded, &self.secret)?;
            let key = identity.key().clone();
            let chain =
                ca.sign_node(&key.csr(), identity.node_id(), now).context("sign the node's certificate")?;
            let renewed = key.certify(&chain, now)?;
            renewed.save(&folder).context("save the identity")?;
            self.mesh.renew(renewed).context("use the renewed certificate")?;
            info!("the node's certificate is renewed");
        }
        if now.duration_since(*public_since).is_ok_and(|age| age >= PUBLIC_RENEW_AFTER) {
            let ca = cluster_ca(&founded, &self.secret)?;
            self.public.replace(ca.sign_server(&self.public_names, now)?)?;
            *public_since = now;
            info!("the public certificate is renewed");
        }
        Ok(())
    }
}
