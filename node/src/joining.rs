//! Joining a cluster: a key made here, a request that carries only its public half, a certificate in return.

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use atoll_api::ids::NodeId;
use atoll_certs::identity::{NodeIdentity, NodeKey};
use atoll_certs::join_token::JoinToken;
use atoll_mesh::join::{JoinRequest, NodeAddresses, NodeCapacity, join};

use crate::config::Config;
use crate::duties::COMMAND_VERSION;
use crate::files::{private_dir, write_private};

pub async fn join_cluster(config: &Config, peer: &str, token: &JoinToken) -> Result<NodeId> {
    let layout = config.layout();
    if NodeIdentity::load(&layout.identity_dir())?.is_some() {
        bail!(
            "{} holds a node already; start it with `atoll node start`, or choose another data_dir",
            config.data_dir.display()
        );
    }
    private_dir(&config.data_dir).context("make the data folder private")?;
    std::fs::create_dir_all(layout.identity_dir()).context("make the identity folder")?;
    let key = NodeKey::load_or_generate(&layout.identity_dir()).context("make the node's key")?;
    let (addresses, capacity) = (config.addresses(), config.capacity());
    let request = JoinRequest {
        token_secret: token.secret().clone(),
        csr_der: key.csr(),
        name: config.name.clone(),
        region: config.region.clone(),
        zone: config.zone.clone().unwrap_or_default(),
        addresses: NodeAddresses {
            mesh: addresses.mesh,
            http: addresses.http,
            https: addresses.https,
            ssh: addresses.ssh,
        },
        capacity: NodeCapacity { total: capacity.total, sandboxes_max: capacity.sandboxes_max },
        command_version: COMMAND_VERSION,
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let response = join(peer, token, &request).await.with_context(|| format!("join through {peer}"))?;

    let node_id = key.node_id();
    response.cluster_secret.save(&layout.cluster_secret()).context("save the cluster secret")?;
    std::fs::write(layout.ca_certificate(), &response.ca_pem).context("write the CA certificate")?;
    let peers: BTreeMap<NodeId, String> =
        response.peers.iter().map(|peer| (peer.node_id, peer.mesh.clone())).collect();
    write_private(&layout.first_peers(), &serde_json::to_vec_pretty(&peers)?)
        .context("write the first peers")?;
    // The identity comes last: with it the node is whole, without it the join can be tried again.
    response
        .identity(key, SystemTime::now())
        .context("read the node's certificate")?
        .save(&layout.identity_dir())
        .context("save the identity")?;
    Ok(node_id)
}
