//! Repositories: by the sandbox's git, against a server that speaks as the world's do.

mod limits;
mod local;
mod remote;
mod server;

use std::path::Path;

use serde_json::{Value, json};

use self::server::{PASSWORD, USERNAME};
use crate::world::{Answer, Setup, World};

/// A daemon whose user has a name for commits. `None`, with a note, where there is no git to test with.
async fn world() -> Option<World> {
    world_with(Setup::default()).await
}

async fn world_with(setup: Setup) -> Option<World> {
    let backend = std::process::Command::new("git").args(["--exec-path"]).output();
    let is_here = backend.is_ok_and(|output| {
        let dir = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&dir).join("git-http-backend").exists()
    });
    if !is_here {
        assert!(std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_none(), "no git http-backend: install git");
        println!("skipped: no git http-backend");
        return None;
    }
    let world = World::with(setup).await;
    let user = json!({ "name": "Una User", "email": "una@example.org" });
    world.post("/git/config/user", user).await.expect(200);
    Some(world)
}

/// As the user, in the repository `r`. What it prints.
async fn sh(world: &World, script: &str) -> String {
    let ended = world.execute(&format!("set -e; cd {}/r; {script}", world.home().display())).await;
    assert_eq!(ended["exitCode"], 0, "{script}: {ended}");
    ended["result"].as_str().unwrap().trim_end().to_owned()
}

/// A repository `r` with one commit on `main`, which has the files `a` and `b`.
async fn small(world: &World) {
    world.post("/git/init", json!({ "path": "r", "initial_branch": "main" })).await.expect(201);
    sh(world, "echo a >a; seq 100 >b").await;
    commit_all(world, "first").await;
}

async fn commit_all(world: &World, message: &str) -> String {
    world.post("/git/add", json!({ "path": "r", "files": ["."] })).await.expect(200);
    let request = json!({ "path": "r", "message": message, "author": "Bo", "email": "bo@example.org" });
    world.post("/git/commit", request).await.expect(200).json()["hash"].as_str().unwrap().to_owned()
}

async fn clone(world: &World, url: &str, more: Value) -> Answer {
    let mut request = json!({ "url": url, "path": "r" });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.post("/git/clone", request).await
}

fn with_credentials(mut request: Value) -> Value {
    request["username"] = USERNAME.into();
    request["password"] = PASSWORD.into();
    request
}

async fn status(world: &World) -> Value {
    world.get("/git/status?path=r").await.expect(200).json()
}

/// `name: staging/worktree`, with `<extra` where there is one.
fn words(status: &Value) -> Vec<String> {
    let files = status["fileStatus"].as_array().unwrap().iter().map(|file| {
        let text = |field: &str| file[field].as_str().unwrap().to_owned();
        let extra = if text("extra").is_empty() { String::new() } else { format!("<{}", text("extra")) };
        format!("{}{extra}: {}/{}", text("name"), text("staging"), text("worktree"))
    });
    files.collect()
}
