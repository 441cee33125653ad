//! Handshakes in memory between the configurations of [`super`]: who is let in, who is not, and that nothing is resumed.

use std::time::{Duration, SystemTime};

use rustls::{ClientConnection, ServerConnection};
use uuid::Uuid;

use super::*;
use crate::ca::{ClusterCa, NODE_CERTIFICATE_VALIDITY, NODE_SERVER_NAME};
use crate::identity::NodeKey;

const ALPN: &[u8] = b"test/1";

fn ca() -> ClusterCa {
    ClusterCa::generate(Uuid::from_u128(7), SystemTime::now())
}

fn member_since(ca: &ClusterCa, since: SystemTime) -> NodeIdentity {
    let key = NodeKey::generate();
    let chain = ca.sign_node(&key.csr(), key.node_id(), since).unwrap();
    key.certify(&chain, since).unwrap()
}

fn member(ca: &ClusterCa) -> NodeIdentity {
    member_since(ca, SystemTime::now())
}

/// Runs a handshake to its end; `Err` holds what the side that refused said.
fn handshake(client: ClientConfig, server: ServerConfig) -> Result<ServerConnection, String> {
    let name = ServerName::try_from(NODE_SERVER_NAME).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets().map_err(|e| format!("server: {e}"))?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut &wire[..]).unwrap();
        client.process_new_packets().map_err(|e| format!("client: {e}"))?;
    }
    assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    assert_eq!(client.tls13_tickets_received(), 0);
    Ok(server)
}

fn check_refused(client: ClientConfig, server: ServerConfig, words: &str) {
    let refused = handshake(client, server).map(|_| ()).unwrap_err();
    assert!(refused.contains(words), "{refused:?} should contain {words:?}");
}

fn server(identity: &NodeIdentity) -> ServerConfig {
    mesh_server_config(identity, &[ALPN]).unwrap()
}

fn client(identity: &NodeIdentity, peer: &NodeIdentity) -> ClientConfig {
    mesh_client_config(identity, peer.node_id(), ALPN).unwrap()
}

#[test]
fn two_members_know_each_other_by_name() {
    let ca = ca();
    let (a, b) = (member(&ca), member(&ca));

    let accepted = handshake(client(&a, &b), server(&b)).unwrap();

    assert_eq!(peer_node(accepted.peer_certificates().unwrap()), Ok(a.node_id()));
    assert_eq!(accepted.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[test]
fn no_session_is_resumed() {
    let ca = ca();
    let (a, b) = (member(&ca), member(&ca));
    let (client, server) = (client(&a, &b), server(&b));

    // `handshake` asserts that it was a full one and that no ticket came.
    handshake(client.clone(), server.clone()).unwrap();
    handshake(client, server.clone()).unwrap();

    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!server.ticketer.enabled());
    assert!(!server.session_storage.can_cache());
    assert_eq!(server.max_early_data_size, 0);
}

#[test]
fn a_peer_of_another_cluster_is_refused_by_both_sides() {
    let (ours, foreign) = (ca(), ca());
    let (a, b, stranger) = (member(&ours), member(&ours), member(&foreign));

    check_refused(client(&a, &stranger), server(&stranger), "client: invalid peer certificate");
    // The stranger trusts our CA here, so that it is our server that has to refuse.
    let trusting = join_client_config(ours.fingerprint(), ALPN);
    let mut lying = client(&stranger, &b);
    lying.dangerous().set_certificate_verifier(Arc::new(ThisCluster { pinned: ours.fingerprint() }));
    check_refused(lying, server(&b), "server: invalid peer certificate");
    handshake(trusting, server(&b)).unwrap();
}

#[test]
fn another_node_than_the_one_dialed_is_refused() {
    let ca = ca();
    let (a, b, c) = (member(&ca), member(&ca), member(&ca));

    check_refused(
        client(&a, &c),
        server(&b),
        &format!("the peer is node {}, not node {}", b.node_id(), c.node_id()),
    );
}

#[test]
fn an_expired_certificate_is_refused_by_both_sides() {
    let ca = ca();
    let long_ago = SystemTime::now() - NODE_CERTIFICATE_VALIDITY - Duration::from_secs(60);
    let (fresh, old) = (member(&ca), member_since(&ca, long_ago));

    check_refused(
        client(&fresh, &old),
        server(&old),
        "client: invalid peer certificate: certificate expired",
    );
    check_refused(
        client(&old, &fresh),
        server(&fresh),
        "server: invalid peer certificate: certificate expired",
    );
}

#[test]
fn a_certificate_of_the_next_hour_is_accepted_and_of_the_next_day_not() {
    let ca = ca();
    let (now, minutes) = (SystemTime::now(), Duration::from_secs(60));
    let (a, soon, later) =
        (member(&ca), member_since(&ca, now + 50 * minutes), member_since(&ca, now + 1440 * minutes));

    handshake(client(&a, &soon), server(&soon)).unwrap();
    check_refused(client(&a, &later), server(&later), "not valid yet");
}

#[test]
fn a_public_doors_certificate_is_no_nodes() {
    let ca = ca();
    let (a, b) = (member(&ca), member(&ca));
    let public = ca.sign_server(&["localhost".parse().unwrap()], SystemTime::now()).unwrap();
    let mut as_server = server(&b);
    as_server.cert_resolver = crate::public_tls::PublicCertificates::new(public.clone()).unwrap();
    let mut as_client = client(&a, &b);
    as_client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
        rustls::sign::CertifiedKey::from_der(public.chain().to_vec(), public.private_key(), &provider())
            .unwrap(),
    ));

    check_refused(client(&a, &b), as_server, "client: invalid peer certificate");
    check_refused(as_client, server(&b), "server: invalid peer certificate");
}

#[test]
fn a_joining_node_believes_only_the_pinned_cluster() {
    let (ours, foreign) = (ca(), ca());
    let (node, stranger) = (member(&ours), member(&foreign));
    let joining = || join_client_config(ours.fingerprint(), ALPN);

    let accepted = handshake(joining(), server(&node)).unwrap();

    assert!(accepted.peer_certificates().is_none());
    check_refused(joining(), server(&stranger), "not the one the join token names");
}

#[test]
fn showing_the_pinned_ca_beside_a_foreign_leaf_does_not_help() {
    let (ours, foreign) = (ca(), ca());
    let stranger = member(&foreign);
    let chain = vec![stranger.chain()[0].clone(), ours.certificate().der().clone()];
    let mut lying = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, stranger.private_key())
        .unwrap();
    lying.alpn_protocols = vec![ALPN.to_vec()];

    let joining = join_client_config(ours.fingerprint(), ALPN);

    check_refused(joining, lying, "client: invalid peer certificate");
}
