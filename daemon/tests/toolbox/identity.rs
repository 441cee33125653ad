//! A sandbox that was started before anybody had asked for it becomes somebody's.

use atoll_api::daemon::{IDENTITY_PATH, Identity};
use axum::body::Body;
use hyper::{Method, Request};
use serde_json::json;

use crate::world::{Answer, UID, USER, World};

async fn become_another(world: &World, user: &str, env: &[(&str, &str)]) -> Answer {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let identity = serde_json::to_vec(&Identity { user: user.into(), env }).unwrap();
    let request = Request::builder().method(Method::POST).uri(IDENTITY_PATH).header("host", "sandbox");
    world.send_as_owner(request.body(Body::from(identity)).unwrap()).await
}

const WHO: &str = "echo $(id -u) $USER $HOME ${COLOR:-none} ${FROM_CONFIG:-none}";

#[tokio::test]
async fn what_starts_afterwards_is_the_new_users_in_the_new_environment() {
    let world = World::new().await;

    become_another(&world, "root", &[("COLOR", "blue")]).await.expect(200);

    assert_eq!(world.execute(WHO).await["result"], "0 root /root blue none\n");
    assert_eq!(world.execute("pwd").await["result"], "/root\n");
    assert_eq!(world.get("/user-home-dir").await.expect(200).json()["dir"], "/root");
    world.post("/process/session", json!({ "sessionId": "s" })).await.expect(201);
    let ran = world.post("/process/session/s/exec", json!({ "command": WHO })).await.expect(200).json();
    assert!(ran["output"].as_str().unwrap().contains("0 root /root blue none"), "{ran}");
    // Files are touched as the new user too: the folder above the home is root's.
    let folder = world.dir.path().join("of-root");
    let path = format!("/files/folder?path={}&mode=755", folder.display());
    world.call(Method::POST, &path, Body::empty(), &[]).await.expect(201);
    assert!(folder.is_dir());
}

#[tokio::test]
async fn what_runs_goes_on_as_it_is_and_is_still_found() {
    let world = World::new().await;
    world.post("/process/session", json!({ "sessionId": "before" })).await.expect(201);
    let started = world.execute("sleep 300 >/dev/null 2>&1 & echo $!").await;
    let pid = started["result"].as_str().unwrap().trim().to_owned();

    become_another(&world, "root", &[]).await.expect(200);

    world.get("/process/session/before").await.expect(200);
    let running = format!("stat -c %u /proc/{pid}");
    assert_eq!(world.execute(&running).await["result"], format!("{UID}\n"));
}

#[tokio::test]
async fn a_connection_that_is_open_already_gets_the_new_identity() {
    let world = World::new().await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(world.connect().await))
            .await
            .unwrap();
    tokio::spawn(connection);

    become_another(&world, USER, &[("COLOR", "blue")]).await.expect(200);

    let request = Request::post("/process/execute").header("host", "sandbox");
    let body = Body::from(json!({ "command": "echo $COLOR" }).to_string());
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    let bytes = axum::body::to_bytes(Body::new(response.into_body()), usize::MAX).await.unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("blue"), "{bytes:?}");
}

#[tokio::test]
async fn the_same_identity_again_keeps_what_was_set_meanwhile() {
    let world = World::new().await;
    become_another(&world, USER, &[("COLOR", "blue")]).await.expect(200);
    world.post("/env", json!({ "set": { "COLOR": "red" } })).await.expect(200);

    become_another(&world, USER, &[("COLOR", "blue")]).await.expect(200);

    assert_eq!(world.execute("echo $COLOR").await["result"], "red\n");
}

#[tokio::test]
async fn an_unknown_user_is_refused_and_changes_nothing() {
    let world = World::new().await;

    let answer = become_another(&world, "ghost", &[("COLOR", "blue")]).await.expect(422);

    assert!(answer.text().contains("no user \"ghost\""), "{}", answer.text());
    let who = world.execute(WHO).await["result"].as_str().unwrap().to_owned();
    assert!(who.contains(USER) && who.ends_with("none yes\n"), "{who}");
}

#[tokio::test]
async fn the_owners_room_and_everybodys_are_apart() {
    let world = World::new().await;

    world.post(IDENTITY_PATH, json!({ "user": "root", "env": {} })).await.expect_error(404, "NOT_FOUND");
    let version = Request::get("/version").header("host", "sandbox").body(Body::empty()).unwrap();
    world.send_as_owner(version).await.expect(404);
    let garbage = Request::post(IDENTITY_PATH).header("host", "sandbox").body(Body::from("{")).unwrap();
    world.send_as_owner(garbage).await.expect(400);

    assert_eq!(world.execute("echo $FROM_CONFIG").await["result"], "yes\n");
}
