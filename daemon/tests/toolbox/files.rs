//! Files: everything as the user, uploads whole or not at all.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use axum::body::{Body, Bytes};
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::world::{Answer, UID, USER, World, encoded, eventually};

async fn upload(world: &World, path: &str, content: impl Into<Body>) -> Answer {
    let headers = [("content-type", "application/octet-stream")];
    world.call(Method::POST, &format!("/files/upload-v2?path={path}"), content.into(), &headers).await
}

/// One body of `multipart/form-data`: name, file name, content.
async fn multipart(world: &World, path: &str, fields: &[(&str, Option<&str>, &[u8])]) -> Answer {
    let mut body = Vec::new();
    for (name, file, content) in fields {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        body.extend_from_slice(
            format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").as_bytes(),
        );
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--B--\r\n");
    let headers = [("content-type", "multipart/form-data; boundary=B")];
    world.call(Method::POST, path, Body::from(body), &headers).await
}

#[tokio::test]
async fn a_folder_is_made_listed_described_changed_and_deleted() {
    let world = World::new().await;

    world.call(Method::POST, "/files/folder?path=a/b&mode=0750", Body::empty(), &[]).await.expect(201);
    upload(&world, "a/b/f.txt", "hello").await.expect(200);
    let listed = world.get("/files?path=a").await.expect(200).json();
    let deep = world.get("/files?path=a&depth=2").await.expect(200).json();
    let info = world.get("/files/info?path=a/b/f.txt").await.expect(200).json();

    assert_eq!(listed.as_array().unwrap().len(), 1);
    let b = &listed[0];
    assert_eq!((&b["name"], &b["isDir"], &b["permissions"]), (&json!("b"), &json!(true), &json!("0750")));
    assert_eq!((&b["mode"], &b["owner"], &b["group"]), (&json!("drwxr-x---"), &json!(USER), &json!(USER)));
    assert_eq!(b.get("path"), None);
    assert_eq!(deep[1]["path"], world.home().join("a/b/f.txt").to_str().unwrap());
    assert_eq!((&info["size"], &info["mode"]), (&json!(5), &json!("-rw-r--r--")));
    assert!(info["modifiedAt"].as_str().unwrap().contains('T') && info["modTime"].is_string());
    world.get("/files?path=a&depth=0").await.expect_error(400, "BAD_REQUEST");
    world.get("/files?path=none").await.expect_error(404, "FILE_NOT_FOUND");

    let change = "/files/permissions?path=a/b/f.txt&mode=0600&group=second";
    world.call(Method::POST, change, Body::empty(), &[]).await.expect(200);
    let info = world.get("/files/info?path=a/b/f.txt").await.json();
    assert_eq!((&info["permissions"], &info["group"]), (&json!("0600"), &json!("second")));
    let give = "/files/permissions?path=a/b/f.txt&owner=root";
    world.call(Method::POST, give, Body::empty(), &[]).await.expect_error(403, "FILE_ACCESS_DENIED");

    world.delete("/files?path=a").await.expect_error(400, "INVALID_FILE_PATH");
    world.delete("/files?path=a&recursive=true").await.expect(204);
    world.delete("/files?path=a&recursive=true").await.expect_error(404, "FILE_NOT_FOUND");
    world.delete("/files?path=/&recursive=true").await.expect_error(400, "INVALID_FILE_PATH");
}

#[tokio::test]
async fn moving_replaces_nothing() {
    let world = World::new().await;
    upload(&world, "a", "a").await.expect(200);
    upload(&world, "b", "b").await.expect(200);
    let rename = async |from: &str, to: &str| {
        let path = format!("/files/move?source={from}&destination={to}");
        world.call(Method::POST, &path, Body::empty(), &[]).await
    };

    rename("a", "b").await.expect_error(409, "CONFLICT");
    rename("none", "c").await.expect_error(404, "FILE_NOT_FOUND");
    rename("a", "no/such/c").await.expect_error(404, "FILE_NOT_FOUND");
    rename("a", "c").await.expect(200);

    assert_eq!(world.get("/files/download?path=c").await.expect(200).text(), "a");
}

#[tokio::test]
async fn a_move_to_another_file_system_copies() {
    let world = World::new().await;
    let other = format!("/dev/shm/atoll-daemon-test-{}", uuid::Uuid::new_v4().simple());
    upload(&world, "d/f", "content").await.expect(200);

    let path = format!("/files/move?source=d&destination={other}");
    world.call(Method::POST, &path, Body::empty(), &[]).await.expect(200);

    assert_eq!(world.get(&format!("/files/download?path={other}/f")).await.expect(200).text(), "content");
    assert!(!world.home().join("d").exists());
    world.delete(&format!("/files?path={other}&recursive=true")).await.expect(204);
}

#[tokio::test]
async fn uploads_arrive_by_every_route_and_belong_to_the_user() {
    let world = World::new().await;
    let fields: [(&str, Option<&str>, &[u8]); 2] =
        [("other", None, b"x"), ("file", Some("client.txt"), b"multi\r\n--part")];

    let raw = upload(&world, "new/raw.bin", vec![0u8, 1, 2]).await.expect(200).json();
    multipart(&world, "/files/upload-v2?path=multi", &fields).await.expect(200);
    multipart(&world, "/files/upload?path=legacy", &fields).await.expect(200);
    world.call(Method::PUT, "/files/alias/put", Body::from("put"), &[]).await.expect(200);

    let path = world.home().join("new/raw.bin");
    assert_eq!(raw, json!({ "name": "raw.bin", "path": path.to_str().unwrap(), "type": "file" }));
    assert_eq!(std::fs::read(&path).unwrap(), [0, 1, 2]);
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), UID);
    for name in ["multi", "legacy"] {
        assert_eq!(world.get(&format!("/files/download?path={name}")).await.text(), "multi\r\n--part");
    }
    assert_eq!(world.get("/files/alias/put").await.expect(200).text(), "put");
    world.delete("/files/alias/put").await.expect(204);
    world.get("/files/alias/put").await.expect_error(404, "FILE_NOT_FOUND");
    let wrong: [(&str, Option<&str>, &[u8]); 1] = [("data", Some("f"), b"x")];
    multipart(&world, "/files/upload-v2?path=wrong", &wrong).await.expect_error(400, "BAD_REQUEST");
    upload(&world, "new", "x").await.expect_error(400, "INVALID_FILE_PATH");
    upload(&world, "/root/f", vec![b'x'; 20_000_000]).await.expect_error(403, "FILE_ACCESS_DENIED");
    upload(&world, "/dev/null", "x").await.expect_error(400, "INVALID_FILE_PATH");
}

#[tokio::test]
async fn the_alias_takes_absolute_paths_three_ways() {
    let world = World::new().await;
    let dir = world.home().join("x");
    let home = world.home().to_str().unwrap().to_owned();
    upload(&world, "x/f", "abs").await.expect(200);

    for path in [
        format!("/files/{home}/x/f"),
        format!("/files{home}/x/f"),
        format!("/files/{}", format!("{home}/x/f").replace('/', "%2F")),
    ] {
        assert_eq!(world.get(&path).await.expect(200).text(), "abs", "{path}");
    }
    assert_eq!(world.get(&format!("/files{}", dir.display())).await.expect(200).json()[0]["name"], "f");
}

#[tokio::test]
async fn an_upload_that_breaks_leaves_the_old_file_and_nothing_else() {
    let world = World::new().await;
    upload(&world, "f", "old").await.expect(200);
    std::fs::set_permissions(world.home().join("f"), std::fs::Permissions::from_mode(0o640)).unwrap();

    let mut stream = world.connect().await;
    let head = "POST /files/upload-v2?path=f HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf";
    stream.write_all(head.as_bytes()).await.unwrap();
    let names = || {
        let mut names: Vec<_> =
            std::fs::read_dir(world.home()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    eventually("the upload has begun", async || names().len() == 2).await;
    drop(stream);

    eventually("its trace is gone", async || names() == ["f"]).await;
    assert_eq!(std::fs::read_to_string(world.home().join("f")).unwrap(), "old");
    upload(&world, "f", "new").await.expect(200);
    let metadata = std::fs::metadata(world.home().join("f")).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (3, 0o640));
}

#[tokio::test]
async fn large_files_go_both_ways() {
    let world = World::new().await;
    let content: Bytes = (0..40_000_000u32).map(|number| (number % 251) as u8).collect();

    upload(&world, "big", content.clone()).await.expect(200);
    let answer = world.get("/files/download?path=big").await.expect(200);

    assert!(answer.bytes() == &content);
    assert_eq!(answer.headers["content-length"], "40000000");
    let disposition = answer.headers["content-disposition"].to_str().unwrap();
    assert_eq!(disposition, "attachment; filename=\"big\"; filename*=utf-8''big");
    let peak = crate::processes::status_kib(world.pid(), "VmHWM");
    assert!(peak < 40 * 1024, "the daemon took {peak} KiB for it");
}

#[tokio::test]
async fn bulk_upload_takes_pairs_and_reports_each() {
    let world = World::new().await;
    let home = world.home().to_str().unwrap().to_owned();

    let (one, two) = (format!("{home}/one"), format!("{home}/sub/two ü.txt"));
    let good = [
        ("files[0].path", None, one.as_bytes()),
        ("files[0].file", Some("ignored"), &b"1"[..]),
        ("files[1].path", None, two.as_bytes()),
        ("files[1].file", Some("ignored"), &b""[..]),
    ];
    let answer = multipart(&world, "/files/bulk-upload", &good).await.expect(200).json();
    let bad = [
        ("files[0].file", Some("x"), &b"early"[..]),
        ("files[1].path", None, &b"/etc/never"[..]),
        ("files[1].file", Some("x"), &[b'x'; 300_000][..]),
        ("files[2].path", None, &b"three"[..]),
        ("files[2].file", Some("x"), &b"3"[..]),
        ("files[3].path", None, &b"lonely"[..]),
    ];
    let failed = multipart(&world, "/files/bulk-upload", &bad).await.expect(400).json();

    assert_eq!(answer, json!({ "files": [{ "path": one, "bytes": 1 }, { "path": two, "bytes": 0 }] }));
    assert_eq!(std::fs::read(world.home().join("sub/two ü.txt")).unwrap(), b"");
    assert_eq!(failed["files"], json!([{ "path": "three", "bytes": 1 }]));
    let errors = failed["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 3, "{failed}");
    let of_never =
        errors.iter().filter_map(|error| error.as_str()).find(|error| error.contains("/etc/never"));
    assert_eq!(of_never.unwrap().matches("/etc/never").count(), 1, "the path is named once: {failed}");
    let not_multipart = world.post("/files/bulk-upload", json!({})).await;
    not_multipart.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn bulk_download_frames_files_and_errors() {
    let world = World::new().await;
    upload(&world, "one", "1\r\n--DAYTONA-FILE-BOUNDARY--\r\n").await.expect(200);
    upload(&world, "zero", "").await.expect(200);

    let paths = json!({ "paths": ["one", "zero", "none", "/root/x", "./one"] });
    let answer = world.post("/files/bulk-download", paths).await.expect(200);

    let content_type = answer.headers["content-type"].to_str().unwrap().to_owned();
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
    let text = answer.text();
    let mut parts: Vec<_> = text.split(&format!("--{boundary}")).collect();
    assert_eq!((parts.remove(0), parts.pop()), ("", Some("--\r\n")));
    let parsed: Vec<(&str, &str)> =
        parts.iter().map(|part| part.trim_start().split_once("\r\n\r\n").unwrap()).collect();
    for ((head, body), (kind, name, content)) in parsed.iter().zip([
        ("file", "one", Some("1\r\n--DAYTONA-FILE-BOUNDARY--\r\n")),
        ("file", "zero", Some("")),
        ("error", "none", None),
        ("error", "/root/x", None),
        ("file", "./one", Some("1\r\n--DAYTONA-FILE-BOUNDARY--\r\n")),
    ]) {
        assert!(head.contains(&format!("name=\"{kind}\"; filename=\"{name}\"; filename*=utf-8''")), "{head}");
        let body = body.strip_suffix("\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
        match content {
            Some(content) => assert_eq!(body, content),
            None => assert!(
                serde_json::from_str::<Value>(body).unwrap()["code"].as_str().unwrap().starts_with("FILE_")
            ),
        }
    }
    assert_eq!(parsed.len(), 5);
    world.post("/files/bulk-download", json!({ "paths": [] })).await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn text_and_names_are_found_and_replaced() {
    let world = World::new().await;
    upload(&world, "p/a.txt", "one\ntwo x.y\n").await.expect(200);
    upload(&world, "p/q/b.txt", "x.y and xzy").await.expect(200);
    let file = |name: &str| world.home().join(name).to_str().unwrap().to_owned();

    let found = world.get("/files/find?path=p&pattern=x.y").await.expect(200).json();
    let named = world.get("/files/search?path=p&pattern=b.*").await.expect(200).json();
    let request = json!({ "files": ["p/a.txt", "p/none"], "pattern": "x.y", "newValue": "Z" });
    let replaced = world.post("/files/replace", request).await.expect(200).json();

    assert_eq!(
        found,
        json!([
            { "file": file("p/a.txt"), "line": 2, "content": "two x.y" },
            { "file": file("p/q/b.txt"), "line": 1, "content": "x.y and xzy" }
        ])
    );
    assert_eq!(named, json!({ "files": [file("p/q/b.txt")] }));
    assert_eq!((&replaced[0]["success"], &replaced[1]["success"]), (&json!(true), &json!(false)));
    assert!(replaced[1]["error"].is_string());
    assert_eq!(world.get("/files/download?path=p/a.txt").await.text(), "one\ntwo Z\n");
    world.get("/files/search?path=p&pattern=%5B").await.expect_error(400, "BAD_REQUEST");
    world.get("/files/find?path=p&pattern=").await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn no_path_leads_further_than_the_user_may_go() {
    let world = World::new().await;
    let secret = world.dir.path().join("root-only");
    std::fs::write(&secret, "secret").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&secret, world.home().join("link")).unwrap();
    symlink("/root", world.home().join("dir")).unwrap();
    symlink(world.dir.path(), world.home().join("up")).unwrap();
    let secret = encoded(&secret);

    for path in [&secret, "link", "up/config.json", "dir/.bashrc", "/etc/shadow"] {
        world.get(&format!("/files/download?path={path}")).await.expect_error(403, "FILE_ACCESS_DENIED");
        upload(&world, path, "overwritten").await.expect_error(403, "FILE_ACCESS_DENIED");
        let replace = json!({ "files": [path], "pattern": "s", "newValue": "t" });
        assert_eq!(world.post("/files/replace", replace).await.json()[0]["success"], false, "{path}");
    }
    for path in ["/proc/1/environ", "/proc/self/mem", "/proc/self/environ", "/proc/thread-self/environ"] {
        world.get(&format!("/files/download?path={path}")).await.expect_error(403, "FILE_ACCESS_DENIED");
    }
    world.get("/files?path=dir").await.expect_error(403, "FILE_ACCESS_DENIED");
    world.delete("/files?path=up/root-only").await.expect_error(403, "FILE_ACCESS_DENIED");
    let stolen = format!("/files/move?source={secret}&destination=stolen");
    world.call(Method::POST, &stolen, Body::empty(), &[]).await.expect_error(403, "FILE_ACCESS_DENIED");
    let opened = format!("/files/permissions?path={secret}&mode=0666");
    world.call(Method::POST, &opened, Body::empty(), &[]).await.expect_error(403, "FILE_ACCESS_DENIED");
    let found = world.get("/files/find?path=up&pattern=secret").await.expect(200).json();
    assert_eq!(found, json!([]));
    let bulk = world.post("/files/bulk-download", json!({ "paths": ["link"] })).await.expect(200).text();
    assert!(bulk.contains("name=\"error\"") && !bulk.contains("\r\n\r\nsecret"));
    assert_eq!(std::fs::read_to_string(world.dir.path().join("root-only")).unwrap(), "secret");
}

#[tokio::test]
async fn what_is_no_plain_file_holds_nothing_up() {
    let world = World::new().await;
    world.execute("mkfifo fifo; ln -s loop loop; echo text > plain").await;

    world.get("/files/download?path=fifo").await.expect_error(400, "INVALID_FILE_PATH");
    world.get("/files/download?path=.").await.expect_error(400, "INVALID_FILE_PATH");
    world.get("/files/download?path=loop").await.expect_error(400, "INVALID_FILE_PATH");
    upload(&world, "fifo", "x").await.expect_error(400, "INVALID_FILE_PATH");
    let found = world.get("/files/find?path=.&pattern=te").await.expect(200).json();
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert!(world.get("/files/download?path=/proc/version").await.expect(200).text().starts_with("Linux"));
}

#[tokio::test]
async fn a_large_tree_is_searched_in_little_memory_and_time() {
    let world = World::new().await;
    // 20,000 files in 200 folders, loops of symlinks, binaries and a folder that nobody may read.
    let script = "python3 -c '
import os
for d in range(200):
    os.makedirs(f\"t/{d}\")
    os.symlink(\"../..\", f\"t/{d}/loop\")
    for f in range(100):
        with open(f\"t/{d}/{f}.txt\", \"w\") as file: file.write(\"filler\\n\" * 20 + (\"needle\\n\" if f == 7 else \"\"))
    with open(f\"t/{d}/binary\", \"wb\") as file: file.write(b\"\\0needle\\n\")
os.makedirs(\"t/closed\", 0)
'";
    assert_eq!(world.execute(script).await["exitCode"], 0);
    let before = crate::processes::status_kib(world.pid(), "VmRSS");
    let begin = std::time::Instant::now();

    let found = world.get("/files/find?path=t&pattern=needle").await.expect(200);
    let named = world.get("/files/search?path=t&pattern=7.txt").await.expect(200);
    let files: Vec<_> = found.json().as_array().unwrap().iter().map(|found| found["file"].clone()).collect();
    let request = json!({ "files": files, "pattern": "needle", "newValue": "pin" });
    let replaced = world.post("/files/replace", request).await.expect(200).json();

    assert_eq!((found.json().as_array().unwrap().len(), found.headers.get("x-atoll-truncated")), (200, None));
    assert!(found.json().as_array().unwrap().iter().all(|found| found["line"] == 21));
    assert_eq!(named.json()["files"].as_array().unwrap().len(), 200);
    assert!(replaced.as_array().unwrap().iter().all(|replaced| replaced["success"] == true));
    assert_eq!(world.get("/files/find?path=t&pattern=needle").await.expect(200).json(), json!([]));
    assert_eq!(
        world.get("/files?path=t&depth=2").await.expect(200).json().as_array().unwrap().len(),
        201 + 200 * 102
    );
    assert!(begin.elapsed() < crate::world::DEADLINE * 2, "{:?}", begin.elapsed());
    let peak = crate::processes::status_kib(world.pid(), "VmHWM");
    assert!(peak < before + 60 * 1024, "from {before} KiB to {peak} KiB");
    // Too many matches are cut, and that is said.
    let many = world.get("/files/find?path=t&pattern=filler").await.expect(200);
    assert_eq!(
        (many.json().as_array().unwrap().len(), &many.headers["x-atoll-truncated"]),
        (10_000, &"true".parse().unwrap())
    );
}

#[tokio::test]
async fn a_folder_that_becomes_a_link_meanwhile_leads_nowhere() {
    let world = World::new().await;
    let kept = world.dir.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("f"), "root's").unwrap();
    std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o755)).unwrap();
    let swap = format!(
        "mkdir real; (while [ ! -e stop ]; do rm -rf x; ln -s {} x; rm x; cp -r real x; done) >/dev/null 2>&1 & echo",
        kept.display()
    );
    world.post("/process/session", json!({ "sessionId": "s" })).await.expect(201);
    world.post("/process/session/s/exec", json!({ "command": swap })).await.expect(200);

    for _ in 0..200 {
        upload(&world, "x/f", "the user's").await;
        world.delete("/files?path=x/f").await;
        let replace = json!({ "files": ["x/f"], "pattern": "root", "newValue": "user" });
        world.post("/files/replace", replace).await.expect(200);
        world.call(Method::POST, "/files/permissions?path=x/f&mode=0666", Body::empty(), &[]).await;
    }

    std::fs::write(world.home().join("stop"), "").unwrap();
    let metadata = std::fs::metadata(kept.join("f")).unwrap();
    assert_eq!(std::fs::read_to_string(kept.join("f")).unwrap(), "root's");
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o644));
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
}
