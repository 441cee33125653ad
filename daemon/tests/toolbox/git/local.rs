//! What happens here: status, commits, branches, resets, settings.

use std::path::Path;

use axum::body::Body;
use hyper::Method;
use serde_json::{Value, json};

use super::server::GitServer;
use super::{clone, commit_all, sh, small, status, words, world};
use crate::world::encoded;

#[tokio::test]
async fn a_repository_without_a_commit_has_a_status() {
    let Some(world) = world().await else { return };
    world.post("/git/init", json!({ "path": "r", "initial_branch": "trunk" })).await.expect(201);
    sh(&world, "touch new staged").await;
    world.post("/git/add", json!({ "path": "r", "files": ["staged"] })).await.expect(200);

    let status = status(&world).await;

    assert_eq!((&status["currentBranch"], &status["detached"]), (&json!("trunk"), &json!(false)));
    assert_eq!(words(&status), ["staged: Added/Unmodified", "new: Untracked/Untracked"]);
    assert_eq!(
        world.get("/git/branches?path=r").await.expect(200).json(),
        json!({ "branches": [], "current": "trunk" })
    );
    assert_eq!(world.get("/git/history?path=r").await.expect(200).json(), json!([]));
    world.post("/git/branches", json!({ "path": "r", "name": "b" })).await.expect_error(409, "CONFLICT");
    commit_all(&world, "first").await;
    assert_eq!(world.get("/git/branches?path=r").await.expect(200).json()["branches"], json!(["trunk"]));
}

#[tokio::test]
async fn every_change_has_its_word() {
    let Some(world) = world().await else { return };
    small(&world).await;
    sh(&world, "for i in 1 2 3 4; do seq $i 100 >f$i; done; echo t >t; echo d >d; seq 1000 1100 >f3").await;
    commit_all(&world, "more").await;
    sh(&world, "git config status.renames copies
        git mv f1 renamed; echo x >>f2; git add f2; echo y >>f2; git rm -q --cached f3; rm f4
        echo z >>b; cp b copied; git add b copied; rm t; ln -s a t; mkdir sub; touch sub/one sub/two; git rm -q d")
    .await;

    let mut words = words(&status(&world).await);

    words.sort();
    assert_eq!(
        words,
        [
            "b: Modified/Unmodified",
            "copied<b: Copied/Unmodified",
            "d: Deleted/Unmodified",
            "f2: Modified/Modified",
            "f3: Deleted/Unmodified",
            "f3: Untracked/Untracked",
            "f4: Unmodified/Deleted",
            "renamed<f1: Renamed/Unmodified",
            "sub/one: Untracked/Untracked",
            "sub/two: Untracked/Untracked",
            "t: Unmodified/Modified",
        ]
    );
}

#[tokio::test]
async fn any_file_name_is_a_name() {
    let Some(world) = world().await else { return };
    small(&world).await;
    let names =
        ["line\nbreak", "quo\"te", "-dash", "a*", ":(top)x", "spa ce ", "tab\t", "ünï", "back\\slash"];
    for name in names {
        std::fs::write(world.home().join("r").join(name), "x").unwrap();
    }
    sh(&world, r"printf x >$'byte\xff'").await;

    let listed = words(&status(&world).await);
    for name in names.into_iter().chain(["byte\u{fffd}"]) {
        assert!(listed.contains(&format!("{name}: Untracked/Untracked")), "{name:?}: {listed:?}");
    }
    // Not a pattern: the file `a` stays as it is.
    sh(&world, "echo changed >a").await;
    world.post("/git/add", json!({ "path": "r", "files": ["a*", "-dash", ":(top)x"] })).await.expect(200);
    let listed = words(&status(&world).await);
    for added in [
        "a*: Added/Unmodified",
        "-dash: Added/Unmodified",
        ":(top)x: Added/Unmodified",
        "a: Unmodified/Modified",
    ] {
        assert!(listed.contains(&added.to_owned()), "{added}: {listed:?}");
    }
    let reset = json!({ "path": "r", "files": ["-dash", "a*"] });
    world.post("/git/reset", reset).await.expect(200);
    assert!(words(&status(&world).await).contains(&"-dash: Untracked/Untracked".to_owned()));
    commit_all(&world, "all").await;
    assert_eq!(status(&world).await["fileStatus"], json!([]));
    let restore = json!({ "path": "r", "files": names });
    for name in names {
        std::fs::write(world.home().join("r").join(name), "y").unwrap();
    }
    world.post("/git/restore", restore).await.expect(200);
    assert_eq!(status(&world).await["fileStatus"], json!([]));
}

#[tokio::test]
async fn a_commit_is_of_its_author_and_of_something() {
    let Some(world) = world().await else { return };
    small(&world).await;
    let commit = async |more: Value| {
        let mut request = json!({ "path": "r", "message": "m", "author": "Zoë Z", "email": "z@example.org" });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/git/commit", request).await
    };

    commit(json!({})).await.expect_error(400, "BAD_REQUEST");
    let hash =
        commit(json!({ "allow_empty": true, "message": "-m\n\n# no comment\n" })).await.expect(200).json();
    assert_eq!(hash["hash"], sh(&world, "git rev-parse HEAD").await);
    assert_eq!(
        sh(&world, "git log -1 --format='%an %ae %cn %ce%n%B'").await,
        "Zoë Z z@example.org Zoë Z z@example.org\n-m\n\n# no comment"
    );
    for bad in [
        json!({ "message": " \n" }),
        json!({ "author": "" }),
        json!({ "author": "a\nb" }),
        json!({ "email": "a> <b" }),
        json!({ "message": "a\0b", "allow_empty": true }),
    ] {
        commit(bad).await.expect_error(400, "BAD_REQUEST");
    }
    for (files, code) in [
        (json!(["none"]), "INVALID_FILE_PATH"),
        (json!(["../../etc/passwd"]), "INVALID_FILE_PATH"),
        (json!([]), "INVALID_REQUEST_BODY"),
        (json!([""]), "INVALID_REQUEST_BODY"),
    ] {
        world.post("/git/add", json!({ "path": "r", "files": files })).await.expect_error(400, code);
    }
    // The repository's own hook runs as the user, and may refuse.
    sh(
        &world,
        "printf '#!/bin/sh\nid -un >../who; echo not today >&2; exit 1' >.git/hooks/pre-commit
        chmod +x .git/hooks/pre-commit",
    )
    .await;
    let refused = commit(json!({ "allow_empty": true })).await;
    assert!(refused.text().contains("not today"));
    refused.expect_error(422, "UNPROCESSABLE_ENTITY");
    sh(&world, "test -O ../who").await;
}

#[tokio::test]
async fn branches_come_and_go() {
    let Some(world) = world().await else { return };
    let server = GitServer::with_repository("x").await;
    clone(&world, &server.url("public", "x"), json!({})).await.expect(200);
    let list = async || world.get("/git/branches?path=r").await.expect(200).json();
    let create = async |name: &str| world.post("/git/branches", json!({ "path": "r", "name": name })).await;
    let checkout =
        async |name: &str| world.post("/git/checkout", json!({ "path": "r", "branch": name })).await;
    let delete = async |name: &str| {
        let body = Body::from(json!({ "path": "r", "name": name }).to_string());
        world.call(Method::DELETE, "/git/branches", body, &[]).await
    };

    create("feature/one").await.expect(201);
    assert_eq!(list().await, json!({ "branches": ["feature/one", "main"], "current": "main" }));
    create("feature/one").await.expect_error(409, "GIT_BRANCH_EXISTS");
    for bad in ["a..b", "a b", "a~1", "refs/heads/", "x.lock"] {
        create(bad).await.expect_error(400, "BAD_REQUEST");
    }
    for bad in ["", "-d", "--list", "a\nb"] {
        create(bad).await.expect_error(400, "INVALID_REQUEST_BODY");
        checkout(bad).await.expect_error(400, "INVALID_REQUEST_BODY");
        delete(bad).await.expect_error(400, "INVALID_REQUEST_BODY");
    }

    checkout("feature/one").await.expect(200);
    delete("feature/one").await.expect_error(400, "BAD_REQUEST");
    sh(&world, "echo o >o").await;
    commit_all(&world, "unmerged").await;
    checkout("main").await.expect(200);
    delete("feature/one").await.expect(204);
    delete("feature/one").await.expect_error(404, "GIT_BRANCH_NOT_FOUND");
    checkout("feature/one").await.expect_error(404, "GIT_BRANCH_NOT_FOUND");
    // A file's name is no branch, and its changes are not thrown away for it.
    sh(&world, "echo changed >a").await;
    checkout("a").await.expect_error(404, "GIT_BRANCH_NOT_FOUND");
    assert_eq!(sh(&world, "cat a; git checkout -q a").await, "changed");

    // What only the remote has becomes a branch of here that follows it.
    checkout("side").await.expect(200);
    assert_eq!(status(&world).await["upstream"], "origin/side");
    checkout("main~1").await.expect(200);
    assert_eq!(list().await, json!({ "branches": ["main", "side"], "current": "" }));
    let detached = status(&world).await;
    assert_eq!((&detached["detached"], &detached["currentBranch"]), (&json!(true), &json!("HEAD")));

    checkout("main").await.expect(200);
    sh(&world, "echo dirty >s").await;
    checkout("side").await.expect_error(409, "GIT_DIRTY_WORKTREE");
    sh(&world, "rm s; git rm -q b").await;
    checkout("side").await.expect(200);
}

#[tokio::test]
async fn a_reset_goes_as_far_as_its_mode() {
    let Some(world) = world().await else { return };
    small(&world).await;
    sh(&world, "echo two >a; echo two >c").await;
    let second = commit_all(&world, "second").await;
    let reset = async |more: Value| {
        let mut request = json!({ "path": "r" });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/git/reset", request).await
    };

    reset(json!({ "mode": "soft", "target": "HEAD~1" })).await.expect(200);
    assert_eq!(words(&status(&world).await), ["a: Modified/Unmodified", "c: Added/Unmodified"]);
    reset(json!({ "files": ["a"] })).await.expect(200);
    assert_eq!(words(&status(&world).await), ["a: Unmodified/Modified", "c: Added/Unmodified"]);
    reset(json!({})).await.expect(200);
    assert_eq!(words(&status(&world).await), ["a: Unmodified/Modified", "c: Untracked/Untracked"]);
    reset(json!({ "mode": "keep", "target": second })).await.expect_error(409, "GIT_DIRTY_WORKTREE");
    reset(json!({ "mode": "hard", "target": second })).await.expect(200);
    assert_eq!(status(&world).await["fileStatus"], json!([]));
    reset(json!({ "mode": "merge", "target": "HEAD~1" })).await.expect(200);
    reset(json!({ "mode": "mixed", "target": second })).await.expect(200);

    reset(json!({ "target": "none" })).await.expect_error(404, "GIT_BRANCH_NOT_FOUND");
    reset(json!({ "mode": "harder" })).await.expect_error(400, "INVALID_REQUEST_BODY");
    reset(json!({ "target": "--hard" })).await.expect_error(400, "INVALID_REQUEST_BODY");
    reset(json!({ "mode": "hard", "files": ["a"] })).await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn files_are_restored_where_it_is_asked() {
    let Some(world) = world().await else { return };
    small(&world).await;
    let restore = async |more: Value| {
        let mut request = json!({ "path": "r", "files": ["a"] });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/git/restore", request).await
    };
    sh(&world, "echo staged >a; git add a; echo work >a").await;

    restore(json!({ "staged": true })).await.expect(200);
    assert_eq!(words(&status(&world).await), ["a: Unmodified/Modified"]);
    restore(json!({})).await.expect(200);
    assert_eq!(sh(&world, "cat a").await, "a");
    sh(&world, "echo staged >a; git add a; echo work >a").await;
    restore(json!({ "staged": true, "worktree": true })).await.expect(200);
    assert_eq!(status(&world).await["fileStatus"], json!([]));
    sh(&world, "echo two >a").await;
    commit_all(&world, "second").await;
    restore(json!({ "source": "HEAD~1" })).await.expect(200);
    assert_eq!(sh(&world, "cat a").await, "a");

    restore(json!({ "files": ["none"] })).await.expect_error(400, "INVALID_FILE_PATH");
    restore(json!({ "source": "none" })).await.expect_error(404, "GIT_BRANCH_NOT_FOUND");
    restore(json!({ "source": "-x" })).await.expect_error(400, "INVALID_REQUEST_BODY");
    restore(json!({ "staged": false, "worktree": false })).await.expect_error(400, "BAD_REQUEST");
    restore(json!({ "files": [] })).await.expect_error(400, "INVALID_REQUEST_BODY");
}

#[tokio::test]
async fn settings_are_kept_where_they_belong() {
    let Some(world) = world().await else { return };
    small(&world).await;
    let get = async |query: &str| world.get(&format!("/git/config?{query}")).await;
    let set = async |request: Value| world.post("/git/config", request).await;

    assert_eq!(get("key=user.name").await.expect(200).json(), json!({ "value": "Una User" }));
    assert_eq!(get("key=user.none&scope=global").await.expect(200).json(), json!({ "value": null }));
    assert_eq!(get("key=user.name&scope=system").await.expect(200).json(), json!({ "value": null }));
    assert_eq!(get("key=user.name&scope=local&path=r").await.expect(200).json(), json!({ "value": null }));
    let user = json!({ "name": "L", "email": "l@example.org", "scope": "local", "path": "r" });
    world.post("/git/config/user", user).await.expect(200);
    assert_eq!(
        get("key=user.email&scope=local&path=r").await.expect(200).json(),
        json!({ "value": "l@example.org" })
    );
    for value in ["-x", "--unset", "two\nlines", "", "\"quoted\" \\ #"] {
        set(json!({ "key": "atoll.odd", "value": value })).await.expect(200);
        assert_eq!(get("key=atoll.odd").await.expect(200).json(), json!({ "value": value }));
    }
    sh(&world, "git config --global --add atoll.odd second").await;
    set(json!({ "key": "atoll.odd", "value": "only" })).await.expect(200);
    assert_eq!(sh(&world, "git config --global --get-all atoll.odd").await, "only");

    set(json!({ "key": "a.b", "value": "c", "scope": "system" }))
        .await
        .expect_error(403, "FILE_ACCESS_DENIED");
    set(json!({ "key": "a.b", "value": "c", "scope": "local" })).await.expect_error(400, "BAD_REQUEST");
    set(json!({ "key": "a.b", "value": "c", "scope": "worktree" }))
        .await
        .expect_error(400, "INVALID_REQUEST_BODY");
    set(json!({ "key": "--unset-all", "value": "c" })).await.expect_error(400, "INVALID_REQUEST_BODY");
    get("key=plain").await.expect_error(400, "BAD_REQUEST");
    get("scope=global").await.expect_error(400, "BAD_REQUEST");
    get("key=a.b&scope=local").await.expect_error(400, "BAD_REQUEST");
    get("key=a.b&scope=local&path=.").await.expect_error(404, "GIT_REPO_NOT_FOUND");
    set(json!({ "key": "a.b", "value": "c", "scope": "local", "path": "." }))
        .await
        .expect_error(404, "GIT_REPO_NOT_FOUND");
    let nobody = json!({ "name": "", "email": "x" });
    world.post("/git/config/user", nobody).await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn what_is_no_repository_is_said_to_be_none() {
    let Some(world) = world().await else { return };
    world.execute("mkdir plain; touch file").await;

    for path in ["plain", "none", "/etc"] {
        for route in ["status", "branches", "history", "remotes"] {
            let answer = world.get(&format!("/git/{route}?path={}", encoded(Path::new(path)))).await;
            answer.expect_error(404, "GIT_REPO_NOT_FOUND");
        }
        for (route, request) in [
            ("add", json!({ "files": ["."] })),
            ("commit", json!({ "message": "m", "author": "a", "email": "e" })),
            ("push", json!({})),
            ("pull", json!({})),
            ("reset", json!({})),
            ("restore", json!({ "files": ["."] })),
            ("checkout", json!({ "branch": "b" })),
            ("branches", json!({ "name": "b" })),
            ("remotes", json!({ "name": "o", "url": "/x" })),
        ] {
            let mut request = request.clone();
            request["path"] = path.into();
            world.post(&format!("/git/{route}"), request).await.expect_error(404, "GIT_REPO_NOT_FOUND");
        }
    }
    world.get("/git/status?path=file").await.expect_error(400, "INVALID_FILE_PATH");
    world.get("/git/status?path=").await.expect_error(400, "INVALID_FILE_PATH");
    world.get("/git/status").await.expect_error(400, "BAD_REQUEST");
    world.get("/git/status?path=%00").await.expect_error(400, "INVALID_FILE_PATH");
    world.get("/git/status?path=/root").await.expect_error(403, "FILE_ACCESS_DENIED");
}
