//! What travels: clone, push, pull, remotes, and who may.

use serde_json::{Value, json};

use super::server::{GitServer, PASSWORD, USERNAME};
use super::{clone, commit_all, sh, small, status, with_credentials, words, world};

#[tokio::test]
async fn a_repository_is_cloned_whole_or_at_a_branch_or_a_commit_or_a_depth() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    let url = server.url("public", "x");
    let second = server.run("x", "git rev-parse main");
    let first = server.run("x", "git rev-parse main~1");

    clone(&world, &url, json!({})).await.expect(200);
    let history = world.get("/git/history?path=r").await.expect(200).json();
    assert_eq!(history.as_array().unwrap().len(), 2);
    assert_eq!((&history[0]["hash"], &history[1]["hash"]), (&json!(second), &json!(first)));
    assert_eq!((&history[0]["author"], &history[0]["email"]), (&json!("Ann"), &json!("ann@example.org")));
    assert_eq!(history[0]["message"].as_str().unwrap().trim_end(), "second\n\nwith a body");
    assert!(history[0]["timestamp"].as_str().unwrap().contains('T'));
    assert_eq!(
        status(&world).await,
        json!({ "currentBranch": "main", "detached": false, "upstream": "origin/main", "ahead": 0, "behind": 0,
            "branchPublished": true, "fileStatus": [] })
    );
    assert_eq!(
        world.get("/git/remotes?path=r").await.expect(200).json(),
        json!({ "remotes": [{ "name": "origin", "url": url }] })
    );
    // All of it is the user's.
    assert_eq!(sh(&world, "find . -not -uid $(id -u)").await, "");

    for (more, head, commits) in [
        (json!({ "branch": "side" }), "side", "3"),
        (json!({ "commit_id": first }), "HEAD", "1"),
        (json!({ "commit_id": first[..8] }), "HEAD", "1"),
        (json!({ "depth": 1 }), "main", "1"),
        (json!({ "depth": 1, "branch": "side" }), "side", "1"),
        // It is not among what a depth of 1 brings.
        (json!({ "depth": 1, "commit_id": first }), "HEAD", "1"),
        (json!({ "depth": 0, "branch": "", "commit_id": "", "username": "", "password": null }), "main", "2"),
    ] {
        sh(&world, "cd ..; rm -rf r").await;
        clone(&world, &url, more.clone()).await.expect(200);
        let is_detached = head == "HEAD";
        let status = status(&world).await;
        assert_eq!(
            (&status["currentBranch"], &status["detached"]),
            (&json!(head), &json!(is_detached)),
            "{more}"
        );
        assert_eq!(status["fileStatus"], json!([]), "{more}");
        assert_eq!(sh(&world, "git rev-list --count HEAD").await, commits, "{more}");
    }
}

#[tokio::test]
async fn a_private_repository_wants_the_right_credentials() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    let url = server.url("private", "x");

    clone(&world, &url, json!({})).await.expect_error(401, "GIT_AUTH_FAILED");
    for (username, password) in [(USERNAME, "wrong"), ("bob", PASSWORD), (USERNAME, ""), ("", PASSWORD)] {
        let more = json!({ "username": username, "password": password });
        clone(&world, &url, more).await.expect_error(401, "GIT_AUTH_FAILED");
        assert!(!world.home().join("r").exists());
    }
    clone(&world, &url, with_credentials(json!({}))).await.expect(200);
    sh(&world, "cd ..; rm -rf r").await;
    clone(&world, &server.url_with_credentials("private", "x"), json!({})).await.expect(200);

    // A later fetch has none of them.
    let config = std::fs::read_to_string(world.home().join("r/.git/config")).unwrap();
    assert!(config.contains(&format!("url = {url}\n")), "{config}");
    world.post("/git/pull", json!({ "path": "r" })).await.expect_error(401, "GIT_AUTH_FAILED");
    world.post("/git/pull", with_credentials(json!({ "path": "r" }))).await.expect(200);
}

#[tokio::test]
async fn commits_travel_both_ways() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    clone(&world, &server.url("private", "x"), with_credentials(json!({}))).await.expect(200);

    sh(&world, "echo mine >mine").await;
    let mine = commit_all(&world, "mine").await;
    assert_eq!((&status(&world).await["ahead"], &status(&world).await["behind"]), (&json!(1), &json!(0)));
    let push = with_credentials(json!({ "path": "r" }));
    world.post("/git/push", json!({ "path": "r" })).await.expect_error(401, "GIT_AUTH_FAILED");
    world.post("/git/push", push.clone()).await.expect(200);
    assert_eq!(server.run("x", "git rev-parse main"), mine);
    assert_eq!(status(&world).await["ahead"], 0);

    server.commit("x", "main", "theirs", "t");
    world.post("/git/pull", with_credentials(json!({ "path": "r" }))).await.expect(200);
    assert!(world.home().join("r/theirs").exists());

    // A new branch is published when it is pushed, and followed when asked for.
    world.post("/git/branches", json!({ "path": "r", "name": "new" })).await.expect(201);
    world.post("/git/checkout", json!({ "path": "r", "branch": "new" })).await.expect(200);
    let unpublished = status(&world).await;
    assert_eq!((&unpublished["branchPublished"], &unpublished["upstream"]), (&json!(false), &json!("")));
    world.post("/git/push", push).await.expect(200);
    let published = status(&world).await;
    assert_eq!((&published["branchPublished"], &published["upstream"]), (&json!(true), &json!("")));
    let request =
        with_credentials(json!({ "path": "r", "branch": "new", "remote": "origin", "set_upstream": true }));
    world.post("/git/push", request).await.expect(200);
    assert_eq!(status(&world).await["upstream"], "origin/new");

    // Both sides moved: a merge, of the branch that is named.
    server.commit("x", "side", "elsewhere", "e");
    sh(&world, "echo again >again").await;
    commit_all(&world, "again").await;
    let request = with_credentials(json!({ "path": "r", "branch": "side", "remote": "origin" }));
    world.post("/git/pull", request).await.expect(200);
    assert!(world.home().join("r/elsewhere").exists() && world.home().join("r/again").exists());
}

#[tokio::test]
async fn what_a_remote_refuses_has_a_reason() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    clone(&world, &server.url("public", "x"), json!({})).await.expect(200);
    let push = async |more: Value| {
        let mut request = json!({ "path": "r" });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/git/push", request).await
    };

    server.commit("x", "main", "theirs", "t");
    sh(&world, "echo mine >mine").await;
    commit_all(&world, "mine").await;
    push(json!({})).await.expect_error(409, "GIT_PUSH_REJECTED");
    world.post("/git/pull", json!({ "path": "r" })).await.expect(200);
    // Known not to be an ancestor, without asking the server.
    sh(&world, "git branch old HEAD^2~1; git push -q origin HEAD:refs/heads/old").await;
    push(json!({ "branch": "old" })).await.expect_error(409, "GIT_PUSH_REJECTED");

    server.run(
        "x",
        "printf '#!/bin/sh\necho fatal: Authentication failed for no one >&2; exit 1' >hooks/pre-receive
        chmod +x hooks/pre-receive",
    );
    let refused = push(json!({})).await;
    assert!(refused.text().contains("no one"), "the hook's words arrive: {}", refused.text());
    refused.expect_error(422, "GIT_REMOTE_REJECTED");
    server.run("x", "rm hooks/pre-receive");
    push(json!({})).await.expect(200);

    push(json!({ "branch": "none" })).await.expect_error(404, "GIT_BRANCH_NOT_FOUND");
    push(json!({ "remote": "none" })).await.expect_error(404, "GIT_REPO_NOT_FOUND");
    push(json!({ "branch": "a..b" })).await.expect(422);
    let pull = json!({ "path": "r", "branch": "none" });
    world.post("/git/pull", pull).await.expect_error(404, "GIT_BRANCH_NOT_FOUND");
    sh(&world, "git checkout -q --detach").await;
    push(json!({})).await.expect_error(400, "BAD_REQUEST");
    world.post("/git/pull", json!({ "path": "r" })).await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn a_pull_neither_overwrites_changes_nor_hides_conflicts() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    clone(&world, &server.url("public", "x"), json!({})).await.expect(200);
    let pull = async || world.post("/git/pull", json!({ "path": "r" })).await;

    server.commit("x", "main", "a", "theirs");
    sh(&world, "echo mine >a").await;
    pull().await.expect_error(409, "GIT_DIRTY_WORKTREE");
    assert_eq!(sh(&world, "cat a").await, "mine");

    commit_all(&world, "mine").await;
    pull().await.expect_error(409, "GIT_MERGE_CONFLICT");
    let status = status(&world).await;
    assert_eq!(words(&status), ["a: Updated but unmerged/Updated but unmerged"]);
    assert_eq!((&status["ahead"], &status["behind"]), (&json!(1), &json!(1)));
    pull().await.expect_error(409, "GIT_MERGE_CONFLICT");
    world
        .post("/git/checkout", json!({ "path": "r", "branch": "side" }))
        .await
        .expect_error(409, "GIT_MERGE_CONFLICT");
    let commit = json!({ "path": "r", "message": "m", "author": "A", "email": "a@b" });
    world.post("/git/commit", commit.clone()).await.expect_error(409, "GIT_MERGE_CONFLICT");

    sh(&world, "echo both >a").await;
    world.post("/git/add", json!({ "path": "r", "files": ["a"] })).await.expect(200);
    world.post("/git/commit", commit).await.expect(200);
    world.post("/git/push", json!({ "path": "r" })).await.expect(200);
    // Who rebases by habit is not made to merge.
    server.commit("x", "main", "t2", "theirs");
    sh(&world, "git config pull.rebase true; echo n >n").await;
    commit_all(&world, "mine").await;
    let merges = sh(&world, "git rev-list --merges --count HEAD").await;
    pull().await.expect(200);
    assert_eq!(sh(&world, "git rev-list --merges --count HEAD; ls t2").await, format!("{merges}\nt2"));
}

#[tokio::test]
async fn remotes_are_added_fetched_and_replaced() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    small(&world).await;
    let add = async |more: Value| {
        let mut request = json!({ "path": "r", "name": "o.1" });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/git/remotes", request).await
    };
    let list = async || world.get("/git/remotes?path=r").await.expect(200).json()["remotes"].clone();

    assert_eq!(list().await, json!([]));
    add(json!({ "url": server.url("private", "x"), "fetch": true }))
        .await
        .expect_error(401, "GIT_AUTH_FAILED");
    assert_eq!(list().await, json!([]), "so that it can be asked for again");
    add(json!({ "url": server.url_with_credentials("private", "x"), "fetch": true })).await.expect(201);
    assert_eq!(list().await, json!([{ "name": "o.1", "url": server.url("private", "x") }]));
    assert_eq!(sh(&world, "git rev-parse o.1/main").await, server.run("x", "git rev-parse main"));
    add(json!({ "url": "https://other.example/x" })).await.expect_error(409, "CONFLICT");
    add(json!({ "url": "https://other.example/x", "overwrite": true })).await.expect(201);
    assert_eq!(list().await, json!([{ "name": "o.1", "url": "https://other.example/x" }]));
    add(json!({ "name": "two", "url": "git@other.example:x.git", "overwrite": true })).await.expect(201);
    assert_eq!(list().await[1], json!({ "name": "two", "url": "git@other.example:x.git" }));

    add(json!({ "name": "a b", "url": "/x" })).await.expect_error(400, "BAD_REQUEST");
    add(json!({ "name": "-f", "url": "/x" })).await.expect_error(400, "INVALID_REQUEST_BODY");
    for url in ["", "-f", "ext::sh -c true", "https://"] {
        add(json!({ "name": "three", "url": url })).await.expect_error(400, "INVALID_REQUEST_BODY");
    }
}

#[tokio::test]
async fn stored_credentials_serve_later_operations() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    let url = server.url("private", "x");
    let host = url.trim_start_matches("http://").split('/').next().unwrap().to_owned();
    let store = async |more: Value| {
        let mut request = with_credentials(json!({ "host": host, "protocol": "http" }));
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/git/credentials", request).await
    };

    store(json!({})).await.expect(200);
    store(json!({})).await.expect(200);
    clone(&world, &url, json!({})).await.expect(200);
    // A request's own come first.
    sh(&world, "cd ..; rm -rf r").await;
    clone(&world, &url, json!({ "username": USERNAME, "password": "wrong" }))
        .await
        .expect_error(401, "GIT_AUTH_FAILED");
    clone(&world, &url, json!({})).await.expect(200);
    sh(&world, "test $(git config --global --get-all credential.helper) = store; test $(stat -c %a ~/.git-credentials) = 600
        test $(wc -l <~/.git-credentials) = 1")
    .await;

    store(json!({ "host": null, "protocol": null })).await.expect(200);
    assert!(sh(&world, "cat ~/.git-credentials").await.contains("@github.com"));
    for bad in [
        json!({ "host": "a/b" }),
        json!({ "host": "a\nhost=b" }),
        json!({ "host": "https://a" }),
        json!({ "protocol": "ssh" }),
        json!({ "password": "a\nb" }),
        json!({ "username": "" }),
    ] {
        store(bad).await.expect_error(400, "BAD_REQUEST");
    }
}

#[tokio::test]
async fn certificates_go_unchecked_only_where_it_is_asked_for() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    let log = world.home().join("log");
    let wrapper = format!("#!/bin/sh\necho \"$@\" >>{}\nPATH=${{PATH#*:}} exec git \"$@\"\n", log.display());
    world.execute(&format!("mkdir bin; printf %s {} >bin/git; chmod +x bin/git", quoted(&wrapper))).await;
    let path = world.execute("printf %s $PATH").await["result"].as_str().unwrap().to_owned();
    let bin = world.home().join("bin");
    world.post("/env", json!({ "set": { "PATH": format!("{}:{path}", bin.display()) } })).await.expect(200);
    let first = server.run("x", "git rev-parse main~1");

    clone(&world, &server.url("public", "x"), json!({ "insecure_skip_tls": false })).await.expect(200);
    assert!(!std::fs::read_to_string(&log).unwrap().contains("sslVerify"));
    std::fs::remove_file(&log).unwrap();
    let more = json!({ "path": "s", "insecure_skip_tls": true, "depth": 1, "commit_id": first });
    clone(&world, &server.url("public", "x"), more).await.expect(200);

    let calls = std::fs::read_to_string(&log).unwrap();
    let to_the_server = calls.lines().filter(|call| call.contains("clone") || call.contains("fetch"));
    let to_the_server: Vec<&str> = to_the_server.collect();
    assert!(
        to_the_server.len() >= 2
            && to_the_server.iter().all(|call| call.starts_with("-c http.sslVerify=false ")),
        "{calls}"
    );
    let config = std::fs::read_to_string(world.home().join("s/.git/config")).unwrap();
    assert!(!config.contains("sslVerify"), "{config}");
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[tokio::test]
async fn a_bare_repository_takes_what_is_pushed_by_path() {
    let Some(world) = world().await else { return };
    small(&world).await;
    world
        .post("/git/init", json!({ "path": "bare.git", "bare": true, "initial_branch": "main" }))
        .await
        .expect(201);
    let url = world.home().join("bare.git");
    world.post("/git/remotes", json!({ "path": "r", "name": "origin", "url": url })).await.expect(201);

    world.post("/git/push", json!({ "path": "r", "set_upstream": true })).await.expect(200);

    let history = world.get("/git/history?path=bare.git").await.expect(200).json();
    assert_eq!(history[0]["hash"], sh(&world, "git rev-parse HEAD").await);
    world.get("/git/status?path=bare.git").await.expect_error(400, "BAD_REQUEST");
    // Again is no failure.
    world.post("/git/init", json!({ "path": "r", "initial_branch": "" })).await.expect(201);
    world.post("/git/init", json!({ "path": "r/a" })).await.expect_error(400, "BAD_REQUEST");
    world
        .post("/git/init", json!({ "path": "i", "initial_branch": "a..b" }))
        .await
        .expect_error(400, "BAD_REQUEST");
}
