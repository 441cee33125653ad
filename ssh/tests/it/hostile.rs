//! Clients that are no clients: garbage, silence, crowds.

use std::sync::Arc;
use std::time::Duration;

use atoll_ssh::{SshConfig, SshLimits, SshServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{World, openssh_is_here, run, text, within_patience};

/// Everything until the server closes.
async fn read_to_the_end(tcp: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    // A reset is a close too.
    let _ = within_patience(tcp.read_to_end(&mut received)).await;
    received
}

fn hasty() -> SshLimits {
    SshLimits { login_deadline_ms: 300, ..SshLimits::default() }
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let world = World::with_limits(hasty()).await;
    let after_version = |tail: &[u8]| [b"SSH-2.0-x\r\n", tail].concat();
    let garbage = [
        vec![0; 70_000],
        vec![0xff; 70_000],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"SSH-1.5-old\r\n".to_vec(),
        after_version(&[0xff; 64]),
        after_version(&[0, 0, 0, 0, 0, 0, 0, 0]),
        after_version(&[0, 0, 0, 12, 4, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        after_version(&[0x7f, 0xff, 0xff, 0xff, 1]),
        b"\r\n".repeat(30_000),
    ];

    for bytes in garbage {
        let mut tcp = TcpStream::connect(world.server.local_addr()).await.unwrap();
        let _ = tcp.write_all(&bytes).await;
        read_to_the_end(&mut tcp).await;
    }

    if openssh_is_here() {
        let unhurried = World::new().await;
        assert_eq!(text(&run(unhurried.ssh(&[], "echo fine")).await.stdout), "fine\n");
    }
}

#[tokio::test]
async fn half_open_clients_are_cut_at_the_deadline() {
    let world = World::with_limits(hasty()).await;
    for opening in [&b""[..], b"SSH-2.0-slow", b"SSH-2.0-slow\r\n"] {
        let mut tcp = TcpStream::connect(world.server.local_addr()).await.unwrap();
        tcp.write_all(opening).await.unwrap();

        let received = read_to_the_end(&mut tcp).await;

        assert!(received.starts_with(b"SSH-2.0-Atoll_"), "{}", text(&received));
    }
}

#[tokio::test]
async fn a_crowd_from_one_address_is_turned_away_with_words() {
    let limits = SshLimits { connections_per_address_max: 2, ..SshLimits::default() };
    let world = World::with_limits(limits).await;
    let mut crowd = Vec::new();
    for _ in 0..2 {
        let mut tcp = TcpStream::connect(world.server.local_addr()).await.unwrap();
        tcp.read_exact(&mut [0; 8]).await.unwrap();
        crowd.push(tcp);
    }

    let mut third = TcpStream::connect(world.server.local_addr()).await.unwrap();
    assert!(text(&read_to_the_end(&mut third).await).contains("from your address"));

    drop(crowd);
    within_patience(async {
        loop {
            let mut tcp = TcpStream::connect(world.server.local_addr()).await.unwrap();
            let mut start = [0; 8];
            if tcp.read_exact(&mut start).await.is_ok() && &start == b"SSH-2.0-" {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_taken_port_is_an_error_at_start() {
    let world = World::new().await;
    let config = SshConfig::new(world.server.local_addr(), [0; 32]);

    let second = SshServer::start(config, world.directory.clone(), Arc::clone(&world.sandbox) as _).await;

    assert!(second.is_err_and(|error| error.to_string().contains("listen for SSH on")));
}

#[tokio::test]
async fn the_host_key_follows_from_the_seed() {
    let (one, other) = (World::new().await, World::new().await);

    assert_eq!(one.server.host_key_openssh(), other.server.host_key_openssh());
    assert!(one.server.host_key_openssh().starts_with("ssh-ed25519 "));
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_clients_that_say_nothing() {
    let world = World::new().await;
    let mut tcp = TcpStream::connect(world.server.local_addr()).await.unwrap();
    tcp.read_exact(&mut [0; 8]).await.unwrap();

    tokio::time::timeout(Duration::from_secs(10), world.server.shutdown(Duration::from_secs(5)))
        .await
        .unwrap();

    read_to_the_end(&mut tcp).await;
}
