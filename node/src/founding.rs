//! Founding a cluster: its CA, its secrets, its first node's identity and its first API key, all made here.
//! Nothing is proposed yet: the node does that at its first start, from the file this leaves behind.

use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use atoll_api::ids::{NodeId, OrganizationId, UserId};
use atoll_api::sandbox::Resources;
use atoll_api::tokens::ApiKey;
use atoll_certs::ca::ClusterCa;
use atoll_certs::identity::{NodeIdentity, NodeKey};
use atoll_certs::seal::ClusterSecret;
use atoll_certs::ssh_host_key::SshHostKeySeed;
use atoll_consensus::state::cluster::{
    ApiKeyRecord, ClusterCommand, ClusterIdentity, NodeRecord, OrganizationRecord, SnapshotRecord,
};

use crate::clock::now_ms;
use crate::config::{Config, DESKTOP_SNAPSHOT};
use crate::duties::COMMAND_VERSION;
use crate::files::{private_dir, write_private};
use crate::trust::SEALED_CA_KEY;

/// What a create without numbers gets.
pub const DEFAULT_RESOURCES: Resources = Resources { cpu: 1, memory_gib: 1, disk_gib: 3 };
/// A browser and a screen need more.
const DESKTOP_RESOURCES: Resources = Resources { cpu: 2, memory_gib: 4, disk_gib: 8 };
const DEFAULT_USER: &str = "daytona";

/// Shown once, to the person who founded the cluster.
pub struct Founded {
    pub node_id: NodeId,
    pub api_key: ApiKey,
    pub organization_id: OrganizationId,
}

pub fn found(config: &Config) -> Result<Founded> {
    let layout = config.layout();
    if NodeIdentity::load(&layout.identity_dir())?.is_some() {
        bail!(
            "{} holds a node already; start it with `atoll node start`, or choose another data_dir",
            config.data_dir.display()
        );
    }
    private_dir(&config.data_dir).context("make the data folder private")?;
    std::fs::create_dir_all(layout.identity_dir()).context("make the identity folder")?;
    let cluster_id = uuid::Uuid::new_v4();
    let now_ms = now_ms();
    let now = SystemTime::now();
    let ca = ClusterCa::generate(cluster_id, now);
    let secret = ClusterSecret::generate();
    let key = NodeKey::generate();
    let node_id = key.node_id();
    let chain = ca.sign_node(&key.csr(), node_id, now).context("sign the node's certificate")?;
    let identity = key.certify(&chain, now).context("become the first node")?;
    secret.save(&layout.cluster_secret()).context("save the cluster secret")?;
    std::fs::write(layout.ca_certificate(), ca.certificate().to_pem()).context("write the CA certificate")?;

    let api_key = ApiKey::from_random(rand::random());
    let organization_id = OrganizationId(uuid::Uuid::new_v4());
    let user_id = UserId(uuid::Uuid::new_v4());
    let mut commands = vec![
        ClusterCommand::Found {
            identity: ClusterIdentity {
                cluster_id,
                ca_certificate_pem: ca.certificate().to_pem(),
                sealed_ca_key: secret.seal(SEALED_CA_KEY, ca.private_key_pem().as_bytes()),
                sealed_ssh_host_key: SshHostKeySeed::generate().seal(&secret),
                created_at_ms: now_ms,
            },
        },
        ClusterCommand::AdmitNode { token_hash: None, node_id, node: node_record(config, now_ms), now_ms },
        ClusterCommand::PutOrganization {
            organization_id,
            organization: OrganizationRecord {
                name: "Default".into(),
                created_by: user_id,
                created_at_ms: now_ms,
            },
        },
        ClusterCommand::PutApiKey {
            key_hash: api_key.hash(),
            key: ApiKeyRecord {
                name: "founder".into(),
                organization_id,
                user_id,
                hint: hint(&api_key),
                may_administer: true,
                created_at_ms: now_ms,
                expires_at_ms: None,
            },
        },
        ClusterCommand::PutSnapshot {
            name: config.default_snapshot.clone(),
            snapshot: SnapshotRecord {
                default_user: DEFAULT_USER.into(),
                ..SnapshotRecord::given(
                    uuid::Uuid::new_v4(),
                    config.runtime.image.clone(),
                    DEFAULT_RESOURCES,
                    now_ms,
                )
            },
        },
    ];
    // Where its layout was made before the cluster.
    if config
        .runtime
        .seeds
        .iter()
        .any(|seed| seed.ends_with(format!("{DESKTOP_SNAPSHOT}.oci")) && seed.exists())
    {
        let id = uuid::Uuid::new_v4();
        let made = SnapshotRecord::given(id, DESKTOP_SNAPSHOT.into(), DESKTOP_RESOURCES, now_ms);
        commands.push(ClusterCommand::PutSnapshot {
            name: DESKTOP_SNAPSHOT.into(),
            snapshot: SnapshotRecord { default_user: DEFAULT_USER.into(), ..made },
        });
    }
    let bytes = atoll_api::wire::encode(&commands).context("encode the founding commands")?;
    write_private(&layout.founding(), &bytes).context("write the founding commands")?;
    // The identity comes last: with it the node is whole, without it the founding can be tried again.
    identity.save(&layout.identity_dir()).context("save the identity")?;
    Ok(Founded { node_id, api_key, organization_id })
}

/// The founding commands that wait to be proposed, if this node has not done so yet.
pub fn pending(config: &Config) -> Result<Option<Vec<ClusterCommand>>> {
    let path = config.layout().founding();
    match std::fs::read(&path) {
        Ok(bytes) => {
            Ok(Some(atoll_api::wire::decode(&bytes).with_context(|| format!("read {}", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

pub fn done(config: &Config) -> Result<()> {
    std::fs::remove_file(config.layout().founding()).context("remove the founding commands")
}

fn node_record(config: &Config, now_ms: u64) -> NodeRecord {
    NodeRecord {
        name: config.name.clone(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        addresses: config.addresses(),
        capacity: config.capacity(),
        command_version: COMMAND_VERSION,
        joined_at_ms: now_ms,
    }
}

/// Enough to tell one's keys apart.
pub fn hint(key: &ApiKey) -> String {
    let text = key.reveal();
    format!("{}…{}", &text[..3], &text[text.len() - 3..])
}
