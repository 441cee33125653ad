//! Execute, code-run, environment, info, metrics, ports and the proxy.

use axum::body::Body;
use hyper::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::world::{SECOND_GROUP, Setup, UID, USER, World, eventually};

#[tokio::test]
async fn the_sandbox_tells_about_itself() {
    let world = World::new().await;

    let home = world.home().to_str().unwrap().to_owned();
    assert_eq!(world.hello.sandbox_id, "sandbox-1");
    assert_eq!(world.hello.secret, world.secret());
    assert_eq!(
        world.get("/version").await.expect(200).json()["version"],
        format!("v{}", world.hello.version)
    );
    for path in ["/work-dir", "/user-home-dir", "/project-dir"] {
        assert_eq!(world.get(path).await.expect(200).json(), json!({ "dir": home }));
    }
    assert!(world.post("/init", json!({ "token": "t" })).await.expect(200).json()["message"].is_string());
    let metrics = world.get("/system/metrics").await.expect(200).json();
    for field in ["cpuCount", "memTotal", "memUsed", "diskTotal", "diskFree", "timestampUnix"] {
        assert!(metrics[field].as_u64().unwrap() > 0, "{field}: {metrics}");
    }
    for field in ["memCache", "diskUsed"] {
        assert!(metrics[field].is_u64(), "{field}: {metrics}");
    }
    assert!(
        metrics["cpuUsedPct"].is_number() && metrics["timestamp"].as_str().unwrap().contains('T'),
        "{metrics}"
    );
}

#[tokio::test]
async fn the_request_id_comes_back() {
    let world = World::new().await;

    let answer = world.call(Method::GET, "/nowhere", Body::empty(), &[("x-request-id", "r-1")]).await;

    assert_eq!(answer.headers["x-request-id"], "r-1");
    answer.expect_error(404, "NOT_FOUND");
}

#[tokio::test]
async fn bad_input_is_a_documented_refusal() {
    let world = World::new().await;
    let raw = async |body: Vec<u8>| world.call(Method::POST, "/process/execute", Body::from(body), &[]).await;

    raw(b"{".to_vec()).await.expect_error(400, "INVALID_REQUEST_BODY");
    raw(b"".to_vec()).await.expect_error(400, "INVALID_REQUEST_BODY");
    raw(br#"{"command":7}"#.to_vec()).await.expect_error(400, "INVALID_REQUEST_BODY");
    raw(vec![b'['; 100_000]).await.expect_error(400, "INVALID_REQUEST_BODY");
    raw(vec![b' '; 9 * 1024 * 1024]).await.expect_error(413, "BAD_REQUEST");
    for bad in [
        json!({ "command": "  " }),
        json!({ "command": "true", "envs": { "A-B": "1" } }),
        json!({ "command": "true", "envs": { "A": "\u{0}" } }),
        json!({ "command": "true", "timeout": -1 }),
    ] {
        world.post("/process/execute", bad).await.expect_error(400, "BAD_REQUEST");
    }
    world
        .post("/process/code-run", json!({ "code": "", "language": "cobol" }))
        .await
        .expect_error(400, "INVALID_REQUEST_BODY");
    world.get("/files/info").await.expect_error(400, "BAD_REQUEST");
    world.get("/files?depth=x").await.expect_error(400, "BAD_REQUEST");
    world.delete("/process/execute").await.expect_error(405, "BAD_REQUEST");
    world.get("/port/80/in-use").await.expect_error(400, "BAD_REQUEST");
    world.get("/port/x/in-use").await.expect_error(400, "BAD_REQUEST");
    world.get("/atoll/channel").await.expect_error(400, "BAD_REQUEST");
    world.get("/process/pty/x/connect").await.expect_error(400, "BAD_REQUEST");
    world.get("/files/%FF%FE/x").await.expect_error(400, "BAD_REQUEST");
    world.post("/process/execute", json!({ "command": "\u{0}" })).await.expect(200);
    // And it goes on.
    assert_eq!(world.execute("echo on").await["result"], "on\n");
}

#[tokio::test]
async fn both_streams_come_in_the_order_they_were_written() {
    let world = World::new().await;

    let ended = world.execute("for i in 1 2 3; do echo out$i; echo err$i >&2; done; exit 7").await;

    let expected = json!({
        "exitCode": 7,
        "result": "out1\nerr1\nout2\nerr2\nout3\nerr3\n",
        "stdout": "out1\nout2\nout3\n",
        "stderr": "err1\nerr2\nerr3\n",
    });
    assert_eq!(ended, expected);
}

/// As many writes as the pipes hold, with nothing between them, some longer than what is kept apart.
#[tokio::test]
async fn the_order_of_writes_is_exact_however_fast_they_come() {
    let world = World::new().await;
    let code = r#"
import os
for i in range(300):
    os.write(1 if i * i % 7 < 3 else 2, b"%d\n" % i)
    if i % 40 == 0:
        os.write(1, b"o" * 9999 + b"\n")
        os.write(2, b"e" * 9999 + b"\n")
"#;
    let (mut both, mut apart) = (String::new(), [String::new(), String::new()]);
    for i in 0..300 {
        let mut write = |stream: usize, text: &str| {
            both.push_str(text);
            apart[stream].push_str(text);
        };
        write(usize::from(i * i % 7 >= 3), &format!("{i}\n"));
        if i % 40 == 0 {
            write(0, &format!("{}\n", "o".repeat(9999)));
            write(1, &format!("{}\n", "e".repeat(9999)));
        }
    }
    for _ in 0..20 {
        let ended = world
            .post("/process/code-run", json!({ "code": code, "language": "python" }))
            .await
            .expect(200)
            .json();

        assert_eq!(ended["exitCode"], 0, "{ended}");
        for (field, expected) in [("result", &both), ("stdout", &apart[0]), ("stderr", &apart[1])] {
            let got = ended[field].as_str().unwrap();
            let differs = got.bytes().zip(expected.bytes()).position(|(got, expected)| got != expected);
            assert!(got == expected, "{field} differs from byte {differs:?} of {} on", expected.len());
        }
    }
}

/// Such a program does not wait for room, and forgets what it could not write when it exits.
#[tokio::test]
async fn a_program_that_exits_without_waiting_loses_nothing() {
    let world = World::new().await;
    let long = "console.log('x'.repeat(300000)); console.error('y'.repeat(300000)); process.exit(3)";
    let many = "for (let i = 0; i < 2000; i++) { console.log(i); if (i == 20) { const end = Date.now() + 200; while (Date.now() < end); } } process.exit(3)";
    let thrown = "console.log('before'); for (let i = 0; i < 10; i++) console.error(i); throw new Error('z'.repeat(5000))";

    let run = async |code: &str| {
        let request = json!({ "command": format!("node -e \"{code}\"") });
        world.post("/process/execute", request).await.expect(200).json()
    };

    let long = run(long).await;
    assert_eq!((&long["exitCode"], long["stdout"].as_str().unwrap().len()), (&json!(3), 300_001));
    assert_eq!(long["stderr"].as_str().unwrap().len(), 300_001);
    let many = run(many).await;
    let expected: String = (0..2000).map(|number| format!("{number}\n")).collect();
    assert!(many["stdout"] == expected && many["result"] == expected, "{many}");
    let thrown = run(thrown).await;
    let told = thrown["stderr"].as_str().unwrap();
    assert!(told.starts_with("0\n1\n2\n") && told.contains(&"z".repeat(5000)), "{thrown}");
    assert!(told.trim_end().lines().last().unwrap().starts_with("Node.js v"), "{thrown}");
}

#[tokio::test]
async fn no_byte_of_either_stream_is_lost() {
    let world = World::new().await;

    // The second half is written by two at once, and through descriptors that are opened anew.
    let command = "seq 1 100000; seq 1 100000 >&2; seq 1 9 >/dev/stdout & seq 1 9 >/dev/stderr; wait";
    let ended = world.execute(command).await;

    let expected: String = (1..=100_000).chain(1..=9).map(|number| format!("{number}\n")).collect();
    assert!(ended["stdout"] == expected && ended["stderr"] == expected);
    assert_eq!(ended["result"].as_str().unwrap().len(), 2 * expected.len());
}

#[tokio::test]
async fn a_command_is_the_user_in_the_users_environment() {
    let world = World::new().await;

    let request = json!({ "command": "id -u; id -G; echo $USER $HOME $FROM_CONFIG $EXTRA; pwd; umask", "envs": { "EXTRA": "x" } });
    let ended = world.post("/process/execute", request).await.expect(200).json();

    let home = world.home().display().to_string();
    let expected = format!("{UID}\n{UID} {SECOND_GROUP}\n{USER} {home} yes x\n{home}\n0022\n");
    assert_eq!(ended["result"], expected);
}

/// Though whoever started the daemon ignores some of them.
#[tokio::test]
async fn a_command_neither_ignores_nor_blocks_a_signal() {
    let world = World::new().await;

    let ended = world.execute("sed -n 's/^Sig\\(Blk\\|Ign\\):\\t//p' /proc/self/status").await;

    let sets = ended["result"].as_str().unwrap().lines();
    // Two above those with names are the C library's own.
    let sets: Vec<u64> = sets.map(|set| u64::from_str_radix(set, 16).unwrap() & 0x7fff_ffff).collect();
    assert_eq!(sets, [0, 0]);
}

#[tokio::test]
async fn a_commands_input_is_empty_and_its_directory_may_be_chosen() {
    let world = World::new().await;

    assert_eq!(world.execute("cat; echo done").await["result"], "done\n");
    let there = world.post("/process/execute", json!({ "command": "pwd", "cwd": "/usr" })).await.json();
    assert_eq!(there["result"], "/usr\n");
    let nowhere =
        world.post("/process/execute", json!({ "command": "pwd", "cwd": "/no/such" })).await.expect(200);
    let nowhere = nowhere.json();
    assert_eq!(nowhere["exitCode"], -1);
    assert!(nowhere["result"].as_str().unwrap().contains(" in /no/such: "), "{nowhere}");
    let forbidden =
        world.post("/process/execute", json!({ "command": "pwd", "cwd": "/root" })).await.expect(200);
    assert_eq!(forbidden.json()["exitCode"], -1);
}

#[tokio::test]
async fn a_timeout_kills_the_whole_group() {
    let world = World::new().await;
    let marker = world.home().join("pid");

    let command = format!("sleep 300 & echo $! > {}; wait", marker.display());
    let answer = world.post("/process/execute", json!({ "command": command, "timeout": 1 })).await;

    answer.expect_error(408, "PROCESS_EXECUTION_TIMEOUT");
    let pid = std::fs::read_to_string(marker).unwrap();
    let process = format!("/proc/{}", pid.trim());
    eventually("the child is gone", async || !std::path::Path::new(&process).exists()).await;
}

#[tokio::test]
async fn a_child_in_the_background_holds_nothing_up() {
    let world = World::new().await;
    let begin = std::time::Instant::now();

    let silent = world.execute("sleep 300 & echo started").await;
    let chatty = world.execute("while :; do echo; sleep 0.02; done & echo started").await;

    assert_eq!(silent["result"], "started\n");
    assert_eq!(chatty["result"].as_str().unwrap().trim(), "started");
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
}

#[tokio::test]
async fn endless_output_is_cut_in_the_middle() {
    let world = World::new().await;

    let ended = world.execute("echo first; head -c 100000000 /dev/zero | tr '\\0' x; echo; echo last").await;

    let result = ended["result"].as_str().unwrap();
    assert!(result.len() < 9 * 1024 * 1024, "{}", result.len());
    assert!(result.starts_with("first\nxxx") && result.ends_with("x\nlast\n"));
    assert!(result.contains("bytes omitted"));
    let peak = status_kib(world.pid(), "VmHWM");
    assert!(peak < 100 * 1024, "the daemon took {peak} KiB for it");
}

#[tokio::test]
async fn a_caller_who_goes_takes_the_command_along() {
    let world = World::new().await;
    let marker = world.home().join("pid");
    let body = json!({ "command": format!("echo $$ > {}; sleep 300", marker.display()) }).to_string();
    let mut stream = world.connect().await;
    let head =
        format!("POST /process/execute HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    eventually("it runs", async || std::fs::read_to_string(&marker).is_ok_and(|pid| pid.ends_with('\n')))
        .await;

    drop(stream);

    let pid = std::fs::read_to_string(&marker).unwrap();
    eventually("it is gone", async || !std::path::Path::new(&format!("/proc/{}", pid.trim())).exists()).await;
}

#[tokio::test]
async fn code_runs_with_arguments_and_variables() {
    let world = World::new().await;
    let runs: [(&str, &str); 2] = [
        ("python", "import sys, os\nprint(sys.argv[1:], os.environ['V'])\nsys.exit(3)"),
        (
            "javascript",
            "console.log(JSON.stringify(process.argv.slice(2)).replace(',', ', ').replaceAll('\"', \"'\"), process.env.V); process.exit(3)",
        ),
    ];

    for (language, code) in runs {
        for path in ["/process/code-run", "/process/code"] {
            let request =
                json!({ "code": code, "language": language, "argv": ["a b", "$(c)"], "envs": { "V": "v" } });
            let ended = world.post(path, request).await.expect(200).json();
            let printed = "['a b', '$(c)'] v\n";
            let expected = json!({ "exitCode": 3, "result": printed, "stdout": printed, "stderr": "" });
            assert_eq!(ended, expected, "{language}");
        }
    }
    let slow = json!({ "code": "import time; time.sleep(300)", "language": "python", "timeout": 1 });
    world.post("/process/code-run", slow).await.expect_error(408, "PROCESS_EXECUTION_TIMEOUT");
}

#[tokio::test]
async fn later_processes_see_a_changed_environment() {
    let world = World::new().await;

    world.post("/env", json!({ "set": { "NEW": "1" }, "unset": ["FROM_CONFIG"] })).await.expect(200);

    assert_eq!(world.execute("echo [$NEW] [$FROM_CONFIG]").await["result"], "[1] []\n");
    world.post("/env", json!({ "set": { "A B": "1" } })).await.expect_error(400, "BAD_REQUEST");
    let secrets = json!({ "set": { "S1": "secret-1", "S2": "secret-2", "NEW": null } });
    world.post("/env", secrets).await.expect_error(400, "INVALID_REQUEST_BODY");
    world.post("/env", json!({ "set": { "S1": "secret-1", "S2": "secret-2" } })).await.expect(200);
    let reconciled = json!({ "set": { "S2": "secret-3" }, "unsetValuePrefix": "secret-" });
    world.post("/env", reconciled).await.expect(200);
    assert_eq!(world.execute("echo [$S1] [$S2] [$NEW]").await["result"], "[] [secret-3] [1]\n");
    // Sessions and terminals that start from now on, too.
    world.post("/process/session", json!({ "sessionId": "s" })).await.expect(201);
    let exec = world.post("/process/session/s/exec", json!({ "command": "echo $S2" })).await.expect(200);
    assert_eq!(exec.json()["output"], "secret-3\n");
}

#[tokio::test]
async fn one_may_ask_for_a_single_port() {
    let world = World::new().await;
    let listener = async {
        for port in 3000..=9999 {
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
                return listener;
            }
        }
        panic!("no port from 3000 to 9999 is free");
    };
    let listener = listener.await;
    let path = format!("/port/{}/in-use", listener.local_addr().unwrap().port());

    assert_eq!(world.get(&path).await.expect(200).json(), json!({ "isInUse": true }));
    drop(listener);
    eventually("it is free", async || world.get(&path).await.json() == json!({ "isInUse": false })).await;
    world.get("/port/2999/in-use").await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn the_entrypoint_runs_and_its_log_can_be_read() {
    let entrypoint = ["sh", "-c", "echo up; echo oh >&2; id -u; exec sleep 300"].map(str::to_owned).into();
    let world = World::with(Setup { entrypoint, ..Setup::default() }).await;

    let logs = async || {
        let path = "/process/session/entrypoint/logs";
        world.call(Method::GET, path, Body::empty(), &[crate::world::NEW_SDK]).await.expect(200).json()
    };

    eventually("it has written", async || {
        let logs = logs().await;
        logs["stdout"] == format!("up\n{UID}\n") && logs["stderr"] == "oh\n"
    })
    .await;
    let session = world.get("/process/session/entrypoint").await.expect(200).json();
    assert_eq!(session["commands"][0]["id"], "entrypoint_command");
    assert_eq!(session["commands"][0].get("exitCode"), None);
    assert_eq!(world.get("/process/session").await.json(), json!([]));
    world.delete("/process/session/entrypoint").await.expect_error(400, "BAD_REQUEST");
    world
        .post("/process/session", json!({ "sessionId": "entrypoint" }))
        .await
        .expect_error(400, "BAD_REQUEST");
    let exec = world.post("/process/session/entrypoint/exec", json!({ "command": "true" })).await;
    exec.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn listening_ports_are_seen_and_proxied_to() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let read = stream.read(&mut head).await.unwrap();
        stream.write_all(b"HTTP/1.1 418 Teapot\r\nContent-Length: 3\r\nX-Own: 1\r\n\r\ntea").await.unwrap();
        String::from_utf8_lossy(&head[..read]).into_owned()
    });

    let ports = world.get("/port").await.expect(200).json();
    let answer = world.get(&format!("/proxy/{port}/a%20b?c=%2F")).await.expect(418);

    assert!(ports["ports"].as_array().unwrap().contains(&json!(port)), "{ports}");
    assert_eq!((answer.text().as_str(), &answer.headers["x-own"]), ("tea", &"1".parse().unwrap()));
    let head = server.await.unwrap().to_lowercase();
    assert!(head.starts_with("get /a%20b?c=%2f http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: localhost:{port}\r\n")), "{head}");
    world.get(&format!("/proxy/{port}/")).await.expect_error(502, "BAD_GATEWAY");
    world.get("/proxy/2280/").await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn upgrades_go_through_the_proxy() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use futures_util::{SinkExt, StreamExt};
        let stream = listener.accept().await.unwrap().0;
        let app = async |stream| {
            let mut socket: tokio_tungstenite::WebSocketStream<tokio::net::TcpStream> =
                tokio_tungstenite::accept_async(stream).await.unwrap();
            let message = socket.next().await.unwrap().unwrap();
            socket.send(message).await.unwrap();
        };
        app(stream).await;
    });

    let (mut socket, _) = world.websocket(&format!("/proxy/{port}/ws"), "").await;
    use futures_util::{SinkExt, StreamExt};
    socket.send("ping".into()).await.unwrap();

    assert_eq!(socket.next().await.unwrap().unwrap().to_text().unwrap(), "ping");
}

/// A line of `/proc/<pid>/status`, in KiB.
pub fn status_kib(pid: i32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn typescript_runs_with_a_projects_own_ts_node() {
    let world = World::new().await;
    let modules = std::env::var("ATOLL_NODE_MODULES").unwrap_or_default();
    if !std::path::Path::new(&modules).join(".bin/ts-node").exists() {
        assert!(std::env::var("ATOLL_TESTS_REQUIRE_ALL").is_err(), "ATOLL_NODE_MODULES has no ts-node");
        println!("skipped: ATOLL_NODE_MODULES has no ts-node");
        return;
    }
    // As the user could have installed it.
    std::os::unix::fs::symlink(&modules, world.home().join("node_modules")).unwrap();

    let code = "interface Pair { a: number }\nconst pair: Pair = { a: 1 };\nimport * as os from 'os';\nconsole.log(pair.a, typeof os.hostname(), process.argv.slice(2), process.env.V); process.exit(3)";
    let request =
        json!({ "code": code, "language": "typescript", "argv": ["a b", "$(c)"], "envs": { "V": "v" } });
    let ended = world.post("/process/code-run", request).await.expect(200).json();
    assert_eq!((&ended["exitCode"], &ended["result"]), (&json!(3), &json!("1 string [ 'a b', '$(c)' ] v\n")));

    let wrong = json!({ "code": "const n: number = 'text'", "language": "typescript" });
    let wrong = world.post("/process/code-run", wrong).await.expect(200).json();
    assert_eq!(wrong["exitCode"], 1);
    assert!(wrong["result"].as_str().unwrap().contains("TS2322"), "{wrong}");
    let slow = json!({ "code": "setInterval(() => {}, 1000)", "language": "typescript", "timeout": 3 });
    world.post("/process/code-run", slow).await.expect_error(408, "PROCESS_EXECUTION_TIMEOUT");
    let slow = json!({ "code": "setInterval(() => {}, 1000)", "language": "javascript", "timeout": 1 });
    world.post("/process/code-run", slow).await.expect_error(408, "PROCESS_EXECUTION_TIMEOUT");
}
