//! Everything that is for no sandbox goes to this node's API.

use atoll_edge::{CookieKey, Edge, EdgeConfig, EdgeLimits};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_gets_the_request_with_our_forwarding_headers() {
    let world = World::new().await;
    let mut client = world.client().await;

    for target in ["/api/sandbox?labels=%7B%7D", "/", "/dashboard/x", "/api"] {
        let answer = client
            .send(
                get_from("node1.example:9100", target)
                    .header("authorization", "Bearer anything")
                    .header("x-forwarded-for", "6.6.6.6")
                    .header("x-daytona-source", "cli"),
            )
            .await;
        assert_eq!(
            (answer.json()["app"].as_str(), answer.json()["target"].as_str()),
            (Some("api"), Some(target))
        );
        assert_eq!(answer.saw("authorization").as_deref(), Some("Bearer anything"));
        assert_eq!(answer.saw("x-daytona-source").as_deref(), Some("cli"));
        assert_eq!(answer.saw("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert_eq!(answer.saw("x-forwarded-host").as_deref(), Some("node1.example:9100"));
        assert!(answer.header("x-request-id").is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_takes_websockets() {
    let world = World::new().await;
    let request = format!("ws://{}/ws", world.http).into_client_request().unwrap();
    let tcp = TcpStream::connect(world.http).await.unwrap();

    let (mut socket, _) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();

    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_api_the_edge_still_answers() {
    let world = World::new().await;
    let config = EdgeConfig {
        http: "127.0.0.1:0".parse().unwrap(),
        https: None,
        preview_domain: DOMAIN.into(),
        api_socket: "/nonexistent/api.sock".into(),
        cookie_key: CookieKey::new([5; 32]),
        signing_secret: signing_secret(),
        threads: Some(1),
        limits: EdgeLimits::default(),
    };
    let edge = Edge::start(config, None, world.directory.clone(), world.dial.clone()).unwrap();

    let answer =
        Client::connect(edge.local_addrs().http).await.send(get_from("localhost", "/api/health")).await;

    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(answer.json()["source"], "DAYTONA_PROXY");
}
