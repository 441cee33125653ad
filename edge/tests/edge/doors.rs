//! Who gets in by which door, and what is seen behind it.

use std::sync::atomic::Ordering;

use atoll_api::access::Target;
use atoll_api::file_link::FileOperation;
use atoll_api::tokens::ApiKey;
use atoll_mesh::dial::DialError;

use crate::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_preview_opens_to_each_credential_and_to_nothing_else() {
    let world = World::new().await;
    let host = preview(3000, PRIVATE);

    let bare = world.send(get_from(&host, "/")).await;
    let key = world.send(get_from(&host, "/").header("authorization", bearer(&key_of(1)))).await;
    let header = world.send(get_from(&host, "/").header("x-daytona-preview-token", PREVIEW_TOKEN)).await;
    let query = world.send(get_from(&host, "/?DAYTONA_SANDBOX_AUTH_KEY=right")).await;
    let signed = world.send(get_from(&format!("3000-{SIGNED}.{DOMAIN}"), "/")).await;
    let wrong = world.send(get_from(&host, "/").header("x-daytona-preview-token", "wrong")).await;
    let jwt = world.send(get_from(&host, "/").header("authorization", "Bearer e.y.J")).await;
    let unknown_key =
        world.send(get_from(&host, "/").header("authorization", bearer(&ApiKey::from_random([9; 32])))).await;
    let other_organization =
        world.send(get_from(&host, "/").header("authorization", bearer(&key_of(2)))).await;
    let other_port = world.send(get_from(&format!("3001-{SIGNED}.{DOMAIN}"), "/")).await;
    let expired = world.send(get_from(&format!("3000-{SIGNED_EXPIRED}.{DOMAIN}"), "/")).await;
    let revoked = world.send(get_from(&format!("3000-00cccccccccccccc.{DOMAIN}"), "/")).await;

    for open in [&key, &header, &query, &signed] {
        assert_eq!(open.status, 200, "{open:?}");
    }
    for closed in [&bare, &wrong, &jwt, &unknown_key, &other_port, &expired, &revoked] {
        assert_eq!(closed.status, 401, "{closed:?}");
    }
    assert_eq!(other_organization.status, 404);
    assert_eq!(bare.json()["source"], "DAYTONA_PROXY");
    assert_eq!(bare.json()["statusCode"], 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_the_url_becomes_a_cookie_that_opens_only_its_port() {
    let world = World::new().await;
    let host = preview(3000, PRIVATE);

    let first = world.send(get_from(&host, "/a?x=%2F&DAYTONA_SANDBOX_AUTH_KEY=right&y")).await;
    let set = first.header("set-cookie").unwrap().to_owned();
    let pair = set.split(';').next().unwrap();
    let again = world.send(get_from(&host, "/b").header("cookie", format!("mine=1; {pair}"))).await;
    let elsewhere = world.send(get_from(&preview(3001, PRIVATE), "/").header("cookie", pair)).await;
    let forged = world.send(get_from(&host, "/").header("cookie", pair.replace(".3000.", ".3000.9"))).await;

    assert_eq!(first.json()["target"], "/a?x=%2F&y");
    assert!(
        set.contains("HttpOnly") && set.contains("SameSite=Lax") && set.contains("Max-Age=3600"),
        "{set}"
    );
    assert_eq!((again.status, again.saw("cookie").as_deref()), (200, Some("mine=1")));
    assert_eq!(again.header("set-cookie"), None);
    assert_eq!((elsewhere.status, forged.status), (401, 401));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_cookie_is_no_use_to_a_page_of_another_sandbox() {
    let world = World::new().await;
    let host = preview(2280, PRIVATE);
    let first = world.send(get_from(&host, "/?DAYTONA_SANDBOX_AUTH_KEY=right")).await;
    let pair = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let asked = |origin: String| get_from(&host, "/").header("cookie", &pair).header("origin", origin);

    let own = world.send(asked(format!("http://{host}"))).await;
    let foreign = world.send(asked(format!("http://{}", preview(3000, PUBLIC)))).await;
    let with_a_key =
        world.send(asked("http://elsewhere".into()).header("x-daytona-preview-token", "right")).await;

    assert_eq!((own.status, foreign.status, with_a_key.status), (200, 401, 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_links_cookie_keeps_the_page_working() {
    let world = World::new().await;

    let first = world.send(get_from(&format!("3000-{SIGNED}.{DOMAIN}"), "/")).await;
    let pair = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    world.directory.signed_links_ended.store(true, Ordering::SeqCst);
    let without = world.send(get_from(&format!("3000-{SIGNED}.{DOMAIN}"), "/")).await;
    let with = world.send(get_from(&format!("3000-{SIGNED}.{DOMAIN}"), "/").header("cookie", &pair)).await;
    let on_another_label =
        world.send(get_from(&format!("3000-{SIGNED_EXPIRED}.{DOMAIN}"), "/").header("cookie", &pair)).await;

    assert!(pair.starts_with(&format!("daytona-sandbox-auth-{SIGNED}=")), "{pair}");
    assert_eq!((without.status, with.status, on_another_label.status), (401, 200, 401));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_code_sees_no_credential_of_ours_and_no_forged_header() {
    let world = World::new().await;
    let host = preview(3000, PUBLIC);

    let seen = world
        .send(
            get_from(&host, "/x?a=b%20c&DAYTONA_SANDBOX_AUTH_KEY=k")
                .header("authorization", bearer(&key_of(1)))
                .header("x-daytona-preview-token", PREVIEW_TOKEN)
                .header("cookie", "daytona-sandbox-auth-x=1; theirs=2")
                .header("x-forwarded-for", "6.6.6.6")
                .header("x_forwarded_for", "6.6.6.6")
                .header("x-forwarded-host", "evil")
                .header("forwarded", "for=6.6.6.6")
                .header("x-real-ip", "6.6.6.6")
                .header("x-atoll-node", "n")
                .header("x-request-id", "mine-1"),
        )
        .await;

    for name in [
        "authorization",
        "x-daytona-preview-token",
        "forwarded",
        "x-real-ip",
        "x-atoll-node",
        "x_forwarded_for",
    ] {
        assert_eq!(seen.saw(name), None, "{name}");
    }
    assert_eq!(seen.saw("cookie").as_deref(), Some("theirs=2"));
    assert_eq!(seen.saw("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.saw("x-forwarded-host").as_deref(), Some(host.as_str()));
    assert_eq!(seen.saw("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(seen.saw("host").as_deref(), Some(host.as_str()));
    assert_eq!(seen.saw("x-request-id").as_deref(), Some("mine-1"));
    assert_eq!(seen.header("x-request-id"), Some("mine-1"));
    assert_eq!(seen.json()["target"], "/x?a=b%20c");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_usable_id_is_given_one() {
    let world = World::new().await;

    let answer = world.send(get_from(&preview(3000, PUBLIC), "/").header("x-request-id", "not one!")).await;

    let id = answer.header("x-request-id").unwrap();
    assert_eq!((id.len(), answer.saw("x-request-id").as_deref()), (32, Some(id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_fail_has_its_status_and_its_words() {
    let world = World::new().await;
    let cases = [
        (DialError::NotFound, 404, "sandbox not found"),
        (
            DialError::NotRunning { state: "stopped".into() },
            400,
            "sandbox is stopped. Is the Sandbox started?",
        ),
        (DialError::PortClosed { port: 3000 }, 502, "nothing listens on port 3000"),
        (DialError::Unreachable("node 7 at 10.0.0.7".into()), 503, "cannot be reached"),
        (DialError::Overloaded, 503, "too many connections"),
        (DialError::TimedOut, 504, "in time"),
        (DialError::Internal("secret detail".into()), 500, "internal error"),
    ];
    for (error, status, words) in cases {
        world.dial.set(PUBLIC, 3000, Err(error.clone()));

        let answer = world.send(get_from(&preview(3000, PUBLIC), "/")).await;

        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, status, "{error}");
        assert!(message.contains(words), "{error}: {message}");
        assert!(!message.contains("10.0.0.7") && !message.contains("secret"), "{message}");
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{error}");
    }
    assert_eq!(world.send(get_from(&preview(3000, 99), "/")).await.status, 404);
    world.directory.region_down.store(true, Ordering::SeqCst);
    assert_eq!(world.send(get_from(&preview(3000, PUBLIC), "/")).await.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_gets_a_page_and_a_program_gets_json() {
    let world = World::new().await;
    let host = preview(3000, PRIVATE);

    let page = world.send(get_from(&host, "/").header("accept", "text/html,*/*")).await;
    let head = world.send(get_from(&host, "/").method("HEAD").header("accept", "text/html")).await;

    assert_eq!(page.status, 401);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(String::from_utf8_lossy(&page.body).contains("signed preview link"));
    assert_eq!((head.status, head.body.len()), (401, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_preview_label_never_reaches_the_api() {
    let world = World::new().await;

    for host in ["x.preview.localhost", "0-x.PREVIEW.localhost:80", "3000.preview.localhost."] {
        let answer = world.send(get_from(host, "/api/health")).await;
        assert_eq!((answer.status, answer.header("x-app")), (404, None), "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_case_insensitive() {
    let world = World::new().await;

    let answer = world.send(get_from(&preview(3000, PUBLIC).to_uppercase(), "/")).await;

    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_port_is_never_public_and_its_channel_never_reachable() {
    let world = World::new().await;
    let host = preview(2280, PUBLIC);
    let with_key = |target: &str| get_from(&host, target).header("authorization", bearer(&key_of(1)));

    let public = world.send(get_from(&host, "/version")).await;
    let open = world.send(with_key("/version")).await;
    let channel = world
        .send(with_key("/%61toll/channel").header("upgrade", "atoll-channel").header("connection", "upgrade"))
        .await;

    assert_eq!((public.status, open.status, channel.status), (401, 200, 404));
    assert_eq!(world.dial.dialed.lock().unwrap()[..], [(sandbox_id(PUBLIC), Target::Daemon)]);
}

/// Both ways to a toolbox: today's, and that of SDKs up to 0.110. What holds for one holds for the other.
fn toolbox_paths(id: impl std::fmt::Display) -> [String; 2] {
    [format!("/toolbox/{id}"), format!("/api/toolbox/{id}/toolbox")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_toolbox_forwards_path_and_query_byte_for_byte() {
    let world = World::new().await;
    let id = sandbox_id(PRIVATE);

    for path in toolbox_paths(id) {
        for rest in ["/files/a%2Fb//c?path=/tmp/x&q=%zz+", "/", "/process/pty/%E2%82%AC", "/x?y?z"] {
            let answer = world
                .send(
                    get_from("127.0.0.1:9100", &format!("{path}{rest}"))
                        .header("authorization", bearer(&key_of(1))),
                )
                .await;
            assert_eq!((answer.status, answer.json()["target"].as_str()), (200, Some(rest)), "{answer:?}");
            assert_eq!(answer.saw("authorization"), None);
        }
    }
    assert_eq!(world.dial.dialed.lock().unwrap()[0], (id, Target::Daemon));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_toolbox_needs_a_credential_of_its_sandbox() {
    let world = World::new().await;

    for way in 0..2 {
        let at = |id: &str, rest: &str| format!("{}{rest}", toolbox_paths(id)[way]);
        let target = |n: u8| at(&sandbox_id(n).to_string(), "/version");
        let request = |n: u8| get_from("localhost", &target(n));

        let bare = world.send(request(PUBLIC).header("accept", "text/html")).await;
        let foreign = world.send(request(PUBLIC).header("authorization", bearer(&key_of(2)))).await;
        let unknown = world.send(request(99).header("authorization", bearer(&key_of(1)))).await;
        let malformed = world.send(get_from("localhost", &at("box", "/version"))).await;
        let token = world.send(request(PRIVATE).header("x-daytona-preview-token", PREVIEW_TOKEN)).await;
        let query = world
            .send(get_from("localhost", &format!("{}?DAYTONA_SANDBOX_AUTH_KEY=right", target(PRIVATE))))
            .await;
        let channel = world
            .send(
                get_from("localhost", &at(&sandbox_id(1).to_string(), "/atoll/channel"))
                    .header("authorization", bearer(&key_of(1))),
            )
            .await;

        let said = bare.json()["message"].as_str().map(str::to_owned);
        assert_eq!((bare.status, said.as_deref()), (401, Some("a valid credential is required")));
        assert_eq!((foreign.status, unknown.status, malformed.status, channel.status), (404, 404, 404, 404));
        assert_eq!((token.status, query.status), (200, 200));
        assert_eq!((query.json()["target"].as_str(), query.header("set-cookie")), (Some("/version"), None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_link_opens_its_file_and_nothing_else() {
    let world = World::new().await;
    let key = |version| signing_secret().key_of(sandbox_id(PRIVATE), version);
    let link = |version, operation: FileOperation, path: &str, expires: &str| {
        let signature = key(version).sign(operation, path, expires);
        format!("{}?path={path}&expires={expires}&signature={signature}", operation.path())
    };
    let right = link(0, FileOperation::Download, "/tmp/x", "0");
    let upload = link(0, FileOperation::Upload, "/tmp/x", "99999999999");

    for way in 0..2 {
        let at = |n: u8, rest: &str| format!("{}{rest}", toolbox_paths(sandbox_id(n))[way]);
        let get = |n: u8, rest: &str| get_from("localhost", &at(n, rest));

        let read = world.send(get(PRIVATE, &right)).await;
        let written = world.send(get(PRIVATE, &upload).method("POST")).await;
        // Of what is not signed nothing arrives.
        let more = world.send(get(PRIVATE, &format!("{right}&user=root"))).await;
        assert_eq!((read.status, written.status), (200, 200), "{read:?} {written:?}");
        assert_eq!(read.json()["target"], "/files/download?path=%2Ftmp%2Fx");
        assert_eq!(written.json()["target"], "/files/upload-v2?path=%2Ftmp%2Fx");
        assert_eq!(more.json()["target"], read.json()["target"]);

        for (what, target) in [
            ("another file", right.replace("/tmp/x", "/tmp/y")),
            ("two files", format!("{right}&path=/tmp/y")),
            ("a later end", right.replace("expires=0", "expires=99999999999")),
            ("ended", link(0, FileOperation::Download, "/tmp/x", "1")),
            ("an upload's signature", upload.replace("upload-v2", "download")),
            ("another operation", right.replace("/files/download", "/files/info")),
            ("a key of the future", link(1, FileOperation::Download, "/tmp/x", "0")),
        ] {
            let answer = world.send(get(PRIVATE, &target)).await;
            assert_eq!(answer.status, 401, "{what}: {answer:?}");
        }
        let deleted = world.send(get(PRIVATE, &right).method("DELETE")).await;
        let another_sandbox = world.send(get(PUBLIC, &right)).await;
        assert_eq!((deleted.status, another_sandbox.status), (401, 401));
        assert_eq!(another_sandbox.json()["code"], "WRONG_SIGNATURE");
        // Whoever shows a key needs no signature.
        let spoilt =
            get(PRIVATE, &right.replace("/tmp/x", "/tmp/y")).header("authorization", bearer(&key_of(1)));
        assert_eq!(world.send(spoilt).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_ends_with_its_signing_key() {
    let world = World::new().await;
    let get = |version| {
        let signature =
            signing_secret().key_of(sandbox_id(PRIVATE), version).sign(FileOperation::Download, "x", "0");
        let id = sandbox_id(PRIVATE);
        get_from("localhost", &format!("/toolbox/{id}/files/download?path=x&expires=0&signature={signature}"))
    };
    assert_eq!(world.send(get(0)).await.status, 200);

    world.directory.signing_key_version.store(1, Ordering::SeqCst);
    assert_eq!(
        world.send(get(1)).await.status,
        200,
        "signed with a key that this node's replica has not heard of"
    );

    world.directory.stale_signing_key_version.store(1, Ordering::SeqCst);
    assert_eq!(world.send(get(1)).await.status, 200);
    assert_eq!(world.send(get(0)).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_redirects_stay_below_the_toolbox_path() {
    let world = World::new().await;

    for path in toolbox_paths(sandbox_id(PRIVATE)) {
        let answer = world
            .send(
                get_from("localhost", &format!("{path}/redirect"))
                    .header("authorization", bearer(&key_of(1))),
            )
            .await;

        assert_eq!(answer.header("location"), Some(format!("{path}/elsewhere?x=1").as_str()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_may_use_the_toolbox_from_any_origin() {
    let world = World::new().await;
    let target = format!("/toolbox/{}/files", sandbox_id(PRIVATE));

    let preflight = world
        .send(
            get_from("localhost", &target)
                .method("OPTIONS")
                .header("origin", "https://a.example")
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "authorization,x-daytona-source"),
        )
        .await;
    let answer = world.send(get_from("localhost", &target).header("authorization", bearer(&key_of(1)))).await;
    let denied = world.send(get_from("localhost", &target)).await;
    let preview_preflight = world
        .send(
            get_from(&preview(3000, PUBLIC), "/")
                .method("OPTIONS")
                .header("origin", "https://a.example")
                .header("access-control-request-method", "POST"),
        )
        .await;

    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization,x-daytona-source"));
    for answer in [&preflight, &answer, &denied] {
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    }
    assert_eq!(preview_preflight.json()["method"], "OPTIONS");
    assert_eq!(preview_preflight.header("access-control-allow-origin"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_activity_unless_it_says_otherwise() {
    let world = World::new().await;
    let host = preview(3000, PUBLIC);

    world.send(get_from(&host, "/").header("x-daytona-skip-last-activity-update", "true")).await;
    assert_eq!(world.directory.touches.load(Ordering::SeqCst), 0);

    world.send(get_from(&host, "/")).await;
    assert_eq!(world.directory.touches.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sandboxes_never_share_a_connection() {
    let world = World::new().await;
    let (two, three) = (App::named("two"), App::named("three"));
    world.dial.set(2, 3000, Ok(two.serve().await));
    world.dial.set(3, 3000, Ok(three.serve().await));
    let mut client = world.client().await;

    for _ in 0..50 {
        for (n, name) in [(2, "two"), (3, "three")] {
            let answer = client.send(get_from(&preview(3000, n), "/")).await;
            assert_eq!(answer.json()["app"], name);
        }
    }

    assert_eq!(two.connections.load(Ordering::SeqCst), 50);
    assert_eq!(three.connections.load(Ordering::SeqCst), 50);
}
