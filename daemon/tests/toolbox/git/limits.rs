//! What must not happen: a secret that shows, a git that hangs, half a folder.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::server::{GitServer, PASSWORD, secrets};
use super::{clone, commit_all, sh, small, status, with_credentials, words, world, world_with};
use crate::world::{DEADLINE, Setup, eventually};

#[tokio::test]
async fn credentials_go_to_their_own_server_only() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;

    let refused = clone(&world, &server.url("redirect", "x"), with_credentials(json!({}))).await;

    refused.expect_error(401, "GIT_AUTH_FAILED");
    let seen = server.seen();
    assert!(seen.iter().any(|seen| seen.path.starts_with("/private/")), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.authorization.is_none()), "{seen:?}");
}

#[tokio::test]
async fn credentials_are_nowhere_to_be_found() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let setup = Setup { log: Some(log.reopen().unwrap()), ..Setup::default() };
    let Some(world) = world_with(setup).await else { return };
    let server = GitServer::with_repository("x").await;
    server.open_gate(false);
    let gated = server.url_with_credentials("gated", "x");

    // While it runs: what any user can read of all processes, and what their own user can of the environment.
    let calls = [
        ("/git/clone", json!({ "url": gated, "path": "r" })),
        ("/git/pull", with_credentials(json!({ "path": "r" }))),
        ("/git/push", with_credentials(json!({ "path": "r", "set_upstream": true }))),
        ("/git/remotes", json!({ "path": "r", "name": "two", "url": gated, "fetch": true })),
    ];
    for (path, request) in calls {
        let before = server.seen().len();
        let scan = async {
            let is_waiting = async || server.seen()[before..].iter().any(|seen| seen.authorization.is_some());
            eventually("git has shown its credentials", is_waiting).await;
            let found: Vec<String> = processes().into_iter().filter(|text| has_secret(text)).collect();
            server.open_gate(true);
            found
        };
        let (answer, found) = tokio::join!(world.post(path, request), scan);
        assert_eq!(found, [""; 0], "{path}");
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
        server.open_gate(false);
    }
    server.open_gate(true);
    for (path, request) in [
        ("/git/clone", json!({ "url": server.url_with_credentials("private", "none"), "path": "n" })),
        ("/git/clone", json!({ "url": server.url_with_credentials("broken", "x"), "path": "n" })),
        (
            "/git/clone",
            json!({ "url": server.url("private", "x").replace("http", "x y"), "path": "n", "password": PASSWORD }),
        ),
        ("/git/clone", json!({ "url": 7, "path": "n", "password": [PASSWORD] })),
        ("/git/push", with_credentials(json!({ "path": "r", "remote": "none" }))),
    ] {
        let answer = world.post(path, request).await;
        assert!(answer.status.is_client_error() || answer.status.is_server_error());
        assert!(!has_secret(&answer.text()), "{}", answer.text());
    }

    // And afterwards.
    for dir in [world.home(), world.dir.path().join("state")] {
        for file in files_below(&dir) {
            let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
            assert!(!has_secret(&text), "{}", file.display());
        }
    }
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("serving") && !has_secret(&log), "{log}");
    assert!(processes().iter().all(|text| !has_secret(text)));
}

fn has_secret(text: &str) -> bool {
    secrets().iter().any(|secret| text.contains(secret))
}

/// Arguments and environment of every process but this one.
fn processes() -> Vec<String> {
    let own = std::process::id().to_string();
    let pids =
        std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let others = pids.filter(|name| name.parse::<u32>().is_ok() && *name != own);
    others
        .flat_map(|pid| ["cmdline", "environ"].map(|file| std::fs::read(format!("/proc/{pid}/{file}"))))
        .filter_map(|read| Some(String::from_utf8_lossy(&read.ok()?).into_owned()))
        .collect()
}

fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.symlink_metadata().unwrap() {
            metadata if metadata.is_dir() => files_below(&path),
            metadata if metadata.is_file() => vec![path],
            _ => vec![],
        })
        .collect()
}

#[tokio::test]
async fn a_clone_that_fails_leaves_what_was_there() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    let home = world.home();
    let existing = |name: &str| home.join(name).exists();
    world.execute("mkdir empty; chmod 710 empty; mkdir full; touch full/f file; ln -s nowhere link").await;

    for (door, name, more, status, code) in [
        ("public", "none", json!({}), 404, "GIT_REPO_NOT_FOUND"),
        ("public", "x", json!({ "branch": "none" }), 404, "GIT_BRANCH_NOT_FOUND"),
        ("public", "x", json!({ "commit_id": "a".repeat(40) }), 404, "GIT_BRANCH_NOT_FOUND"),
        ("public", "x", json!({ "commit_id": "abcdef" }), 404, "GIT_BRANCH_NOT_FOUND"),
        ("forbidden", "x", json!({}), 403, "FORBIDDEN"),
        ("broken", "x", json!({}), 502, "GIT_TRANSPORT_FAILED"),
    ] {
        for path in ["new/parents/r", "empty"] {
            let mut more = more.clone();
            more["path"] = path.into();
            clone(&world, &server.url(door, name), more).await.expect_error(status, code);
            assert!(!existing("new") && existing("empty"), "{door}/{name}: {path}");
            assert_eq!(std::fs::read_dir(home.join("empty")).unwrap().count(), 0);
        }
    }
    clone(&world, "http://127.0.0.1:1/x", json!({})).await.expect_error(502, "GIT_TRANSPORT_FAILED");
    clone(&world, "/no/such", json!({})).await.expect_error(404, "GIT_REPO_NOT_FOUND");

    let url = server.url("public", "x");
    for (path, status, code) in [
        ("full", 409, "CONFLICT"),
        ("link", 409, "CONFLICT"),
        ("file", 400, "INVALID_FILE_PATH"),
        ("file/r", 400, "INVALID_FILE_PATH"),
        ("", 400, "INVALID_FILE_PATH"),
        ("\0", 400, "INVALID_FILE_PATH"),
        ("/proc/none/r", 422, "UNPROCESSABLE_ENTITY"),
        ("/root/r", 403, "FILE_ACCESS_DENIED"),
    ] {
        clone(&world, &url, json!({ "path": path })).await.expect_error(status, code);
    }
    assert!(existing("full/f") && existing("file") && !existing("nowhere"));
    clone(&world, &url, json!({ "path": "empty" })).await.expect(200);
    assert!(existing("empty/a"));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    let set = async |variables: Value| {
        world.post("/env", json!({ "set": variables })).await.expect(200);
    };

    set(json!({ "GIT_HTTP_LOW_SPEED_TIME": "1" })).await;
    let begin = Instant::now();
    clone(&world, &server.url("hung", "x"), json!({})).await.expect_error(502, "GIT_TRANSPORT_FAILED");

    set(json!({ "GIT_HTTP_LOW_SPEED_TIME": "600", "ATOLL_GIT_DEADLINE_SECONDS": "1" })).await;
    clone(&world, &server.url("hung", "x"), json!({})).await.expect_error(408, "REQUEST_TIMEOUT");
    assert!(begin.elapsed() < DEADLINE, "{:?}", begin.elapsed());
    assert!(!world.home().join("r").exists());
    let left =
        processes().into_iter().filter(|text| text.contains(&server.url("hung", "x"))).collect::<Vec<_>>();
    assert_eq!(left, [""; 0], "nothing runs on");
}

#[tokio::test]
async fn a_git_that_ignores_the_request_to_end_is_killed_with_its_children() {
    let Some(world) = world().await else { return };
    small(&world).await;
    sh(
        &world,
        "printf '#!/bin/sh\ntrap \"\" TERM\necho $$ >../pid\nsleep 1000\nsleep 1001' >.git/hooks/pre-commit
        chmod +x .git/hooks/pre-commit",
    )
    .await;
    world.post("/env", json!({ "set": { "ATOLL_GIT_DEADLINE_SECONDS": "1" } })).await.expect(200);

    let request = json!({ "path": "r", "message": "m", "author": "A", "email": "a@b", "allow_empty": true });
    world.post("/git/commit", request).await.expect_error(408, "REQUEST_TIMEOUT");

    let pid = std::fs::read_to_string(world.home().join("pid")).unwrap();
    let is_gone = async || !Path::new(&format!("/proc/{}", pid.trim())).exists();
    eventually("the hook is gone", is_gone).await;
    world.post("/env", json!({ "unset": ["ATOLL_GIT_DEADLINE_SECONDS"] })).await.expect(200);
    sh(&world, "rm .git/hooks/pre-commit").await;
    // Its lock went with it.
    sh(&world, "echo more >>a").await;
    commit_all(&world, "goes on").await;
}

#[tokio::test]
async fn an_operation_goes_on_when_its_caller_has_gone() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    server.open_gate(false);
    let url = server.url("gated", "x");

    let asked = clone(&world, &url, with_credentials(json!({})));
    let is_waiting = async || server.seen().iter().any(|seen| seen.authorization.is_some());
    tokio::select! {
        _ = asked => panic!("answered through a closed gate"),
        () = eventually("git waits", is_waiting) => {}
    }
    // Nobody makes the same folder meanwhile.
    clone(&world, &server.url("public", "x"), json!({})).await.expect_error(409, "CONFLICT");
    server.open_gate(true);

    eventually("it is cloned", async || world.get("/git/history?path=r").await.status == 200).await;
    eventually("it is checked out", async || world.home().join("r/b").exists()).await;
}

#[tokio::test]
async fn the_sandboxs_environment_does_not_lead_git_elsewhere() {
    let Some(world) = world().await else { return };
    small(&world).await;
    world.execute("git init -q other").await;
    let variables = json!({ "GIT_DIR": world.home().join("other/.git"), "GIT_WORK_TREE": "/", "GIT_TRACE": "1",
        "GIT_TRACE_CURL": "1", "GIT_INDEX_FILE": "/nowhere", "LANG": "de_DE.UTF-8", "LANGUAGE": "de" });
    world.post("/env", json!({ "set": variables })).await.expect(200);

    assert_eq!(world.get("/git/branches?path=r").await.expect(200).json()["branches"], json!(["main"]));
    assert_eq!(status(&world).await["fileStatus"], json!([]));
}

#[tokio::test]
async fn a_status_beyond_any_reader_is_refused_and_a_long_history_is_cut() {
    let Some(world) = world().await else { return };
    small(&world).await;
    sh(&world, "yes 'line of a long message' | head -c 1000000 >../m; for i in 1 2 3 4 5 6 7 8 9; do git commit -q --allow-empty -F ../m; done")
        .await;

    let history = world.get("/git/history?path=r").await.expect(200).json();
    let history = history.as_array().unwrap();
    assert_eq!(history.len(), 8, "of ten the newest that fit, whole");
    assert!(history.iter().all(|commit| commit["message"].as_str().unwrap().len() >= 999_000));

    let name = "n".repeat(240);
    sh(&world, &format!("seq -f {name}%g 36000 | xargs touch")).await;
    let refused = world.get("/git/status?path=r").await;
    assert!(refused.text().contains(".gitignore"));
    refused.expect_error(422, "UNPROCESSABLE_ENTITY");
    sh(&world, "echo 'n*' >.gitignore").await;
    assert_eq!(words(&status(&world).await), [".gitignore: Untracked/Untracked"]);
}

#[tokio::test]
async fn a_sandbox_without_git_says_so() {
    let Some(world) = world().await else { return };
    small(&world).await;
    world.post("/env", json!({ "set": { "PATH": "/nonexistent" } })).await.expect(200);

    let answer = world.get("/git/status?path=r").await;

    assert!(answer.text().contains("install"), "{}", answer.text());
    answer.expect_error(422, "UNPROCESSABLE_ENTITY");
}
