//! Starting and stopping.

use std::time::{Duration, Instant};

use atoll_edge::{CookieKey, Edge, EdgeConfig, EdgeLimits};
use bytes::Bytes;
use tokio::net::TcpStream;

use crate::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_progress_finishes_and_idle_connections_close() {
    let world = World::new().await;
    let mut idle = world.client().await;
    idle.send(get_from(&preview(3000, PUBLIC), "/")).await;
    let mut busy = world.client().await;
    let asked = tokio::spawn(async move { busy.send(get_from(&preview(3000, PUBLIC), "/held")).await });
    world.app.held.notified().await;
    let (address, app) = (world.http, world.app.clone());

    let stopped = tokio::spawn(world.edge.shutdown(PATIENCE));
    idle.closed().await;
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("no new connections");
    app.go_on.notify_one();

    assert_eq!(asked.await.unwrap().body, "done");
    tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlives_the_deadline_is_cut() {
    let world = World::new().await;
    let mut client = world.client().await;
    let response = client.open(get_from(&preview(3000, PUBLIC), "/sse"), Bytes::new()).await;
    let began = Instant::now();

    world.edge.shutdown(Duration::from_millis(100)).await;

    assert!(began.elapsed() < PATIENCE);
    drop(response);
    client.closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starting_on_a_taken_port_or_with_a_bad_configuration_is_an_error() {
    let world = World::new().await;
    let config = |http: std::net::SocketAddr, domain: &str| EdgeConfig {
        http,
        https: None,
        preview_domain: domain.into(),
        api_socket: "/tmp/api.sock".into(),
        cookie_key: CookieKey::new([5; 32]),
        signing_secret: signing_secret(),
        threads: None,
        limits: EdgeLimits::default(),
    };
    let start = |config| Edge::start(config, None, world.directory.clone(), world.dial.clone());
    let any = "127.0.0.1:0".parse().unwrap();

    let taken = start(config(world.http, DOMAIN)).unwrap_err();
    assert!(format!("{taken:#}").contains(&world.http.to_string()), "{taken:#}");
    assert!(start(config(any, "Preview:80")).is_err());
    assert!(start(EdgeConfig { https: Some(any), ..config(any, DOMAIN) }).is_err());
    assert!(start(EdgeConfig { api_socket: "x".repeat(200).into(), ..config(any, DOMAIN) }).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_the_cap_connections_wait_and_are_not_dropped() {
    let world = World::with(None, EdgeLimits { connections_max: 4, ..EdgeLimits::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(world.client().await);
    }

    let mut answers = tokio::task::JoinSet::new();
    for mut client in clients {
        answers.spawn(async move { client.send(get_from(&preview(3000, PUBLIC), "/")).await.status });
    }

    assert_eq!(answers.join_all().await, vec![200; 12]);
}
