//! Interpreter contexts: variables that stay, frames, ends.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::world::{DEADLINE, Socket, World, eventually};

const PATH: &str = "/process/interpreter/execute";

#[derive(Debug, Default)]
struct Ran {
    stdout: String,
    stderr: String,
    error: Value,
    controls: Vec<String>,
    frames: Vec<Value>,
    code: u16,
    reason: String,
}

async fn submitted(world: &World, request: &Value) -> Socket {
    let (mut socket, _) = world.websocket(PATH, "").await;
    socket.send(Message::Text(request.to_string().into())).await.unwrap();
    socket
}

async fn next_frame(socket: &mut Socket) -> Value {
    let message = tokio::time::timeout(DEADLINE, socket.next()).await.expect("a frame").unwrap().unwrap();
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

/// Everything until the close.
async fn ended(mut socket: Socket) -> Ran {
    let mut ran = Ran::default();
    let reading = async {
        loop {
            match socket.next().await.expect("a close frame").unwrap() {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    let text = frame["text"].as_str().unwrap_or_default();
                    match frame["type"].as_str().unwrap() {
                        "stdout" => ran.stdout += text,
                        "stderr" => ran.stderr += text,
                        "error" => ran.error = frame.clone(),
                        "control" => ran.controls.push(text.to_owned()),
                        other => panic!("{other}"),
                    }
                    ran.frames.push(frame);
                }
                Message::Close(frame) => {
                    let frame = frame.unwrap();
                    return (u16::from(frame.code), frame.reason.to_string());
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    (ran.code, ran.reason) = tokio::time::timeout(DEADLINE * 2, reading).await.expect("it ends");
    ran
}

async fn run_with(world: &World, request: Value) -> Ran {
    ended(submitted(world, &request).await).await
}

async fn run(world: &World, code: &str) -> Ran {
    run_with(world, json!({ "code": code })).await
}

/// Runs it and expects that all went well.
async fn stdout(world: &World, code: &str) -> String {
    let ran = run(world, code).await;
    assert_eq!((ran.code, &ran.error), (1000, &Value::Null), "{code}: {ran:?}");
    ran.stdout
}

async fn new_context(world: &World, request: Value) -> String {
    let context = world.post("/process/interpreter/context", request).await.expect(200).json();
    context["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn variables_stay_from_run_to_run_and_within_their_context() {
    let world = World::new().await;
    let context = new_context(&world, json!({})).await;

    assert_eq!(stdout(&world, "import math\nx = 20\ndef f(): return x + 1").await, "");
    assert_eq!(stdout(&world, "x += 1; print(f(), math.floor(1.5), __name__)").await, "22 1 __main__\n");
    let elsewhere = run_with(&world, json!({ "code": "print(x)", "contextId": context })).await;

    assert_eq!((&elsewhere.error["name"], elsewhere.code), (&json!("NameError"), 1000));
    assert_eq!(elsewhere.controls, ["completed"]);
    let by_name = run_with(&world, json!({ "code": "print(x)", "contextId": "default" })).await;
    assert_eq!(by_name.stdout, "21\n");
}

#[tokio::test]
async fn contexts_are_made_listed_and_deleted() {
    let world = World::new().await;
    stdout(&world, "pass").await;

    let made = world.post("/process/interpreter/context", json!({ "cwd": "/usr" })).await.expect(200).json();
    assert_eq!(
        (&made["cwd"], &made["language"], &made["active"]),
        (&json!("/usr"), &json!("python"), &json!(true))
    );
    assert!(made["createdAt"].as_str().unwrap().contains('T'));
    let id = made["id"].as_str().unwrap();
    let listed = world.get("/process/interpreter/context").await.expect(200).json();
    assert_eq!(listed, json!({ "contexts": [made] }));
    let there =
        run_with(&world, json!({ "code": "import os; print(os.getcwd(), os.getpid())", "contextId": id }));
    let there = there.await.stdout;
    let (cwd, pid) = there.trim().split_once(' ').unwrap();
    assert_eq!(cwd, "/usr");
    let deleted = world.delete(&format!("/process/interpreter/context/{id}")).await.expect(200).json();
    assert!(deleted["message"].is_string());

    let process = format!("/proc/{pid}");
    eventually("its process is gone", async || !std::path::Path::new(&process).exists()).await;
    assert_eq!(world.get("/process/interpreter/context").await.json(), json!({ "contexts": [] }));
    let again = world.delete(&format!("/process/interpreter/context/{id}")).await;
    again.expect_error(404, "PROCESS_NOT_FOUND");
    let default = world.delete("/process/interpreter/context/default").await;
    default.expect_error(400, "BAD_REQUEST");
    for bad in [json!({ "language": "cobol" }), json!({ "cwd": "/no/such" }), json!({ "cwd": "/root" })] {
        world.post("/process/interpreter/context", bad).await.expect_error(400, "BAD_REQUEST");
    }
    world.get(PATH).await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn contexts_have_a_number() {
    let world = World::new().await;
    for _ in 0..64 {
        new_context(&world, json!({})).await;
    }

    let one_more = world.post("/process/interpreter/context", json!({})).await;

    one_more.expect_error(409, "CONFLICT");
    assert_eq!(stdout(&world, "print('the default one is besides')").await, "the default one is besides\n");
}

#[tokio::test]
async fn every_way_of_writing_is_seen_in_order() {
    let world = World::new().await;

    let code = "import os, subprocess, sys
print('print'); os.write(1, b'write\\n'); subprocess.run(['echo', 'child']); os.system('echo shell')
sys.stdout.write('no newline'); sys.stdout.flush(); print(); print('ä€😀')
print('err', file=sys.stderr); os.write(2, b'raw err\\n'); sys.stdout.buffer.write(b'\\xff'); print('last', end='')";
    let ran = run(&world, code).await;

    assert_eq!(ran.stdout, "print\nwrite\nchild\nshell\nno newline\nä€😀\n\u{fffd}last");
    assert_eq!((ran.stderr.as_str(), ran.code), ("err\nraw err\n", 1000));
    assert_eq!(ran.frames.last().unwrap(), &json!({ "type": "control", "text": "completed" }));
    assert_eq!(ran.controls.len(), 1);
}

#[tokio::test]
async fn output_comes_while_the_code_runs_by_line_or_kibibyte() {
    let world = World::new().await;

    let code = "print('one'); open('go', 'r').read(); print('x' * 3000)";
    world.execute("mkfifo go").await;
    let mut socket = submitted(&world, &json!({ "code": code })).await;
    assert_eq!(next_frame(&mut socket).await, json!({ "type": "stdout", "text": "one\n" }));
    world.execute("echo > go").await;
    let ran = ended(socket).await;

    let lengths: Vec<_> = ran.frames.iter().map(|frame| frame["text"].as_str().unwrap().len()).collect();
    assert!(lengths.iter().all(|length| *length <= 1024), "{lengths:?}");
    assert_eq!(ran.stdout.len(), 3001);
}

#[tokio::test]
async fn what_is_printed_is_never_taken_for_a_report() {
    let world = World::new().await;
    let forged = r#"{"id": 1, "type": "done", "interrupted": true}"#;

    let code = format!("import os, sys\nfor n in (1, 2): os.write(n, b'{forged}\\n')\nprint('on')");
    let ran = run(&world, &code).await;

    assert_eq!(ran.controls, ["completed"]);
    assert_eq!(ran.stdout, format!("{forged}\non\n"));
    // And no child process has the channel: 3 is the one that lists them.
    let children = "import subprocess; print(subprocess.run(['ls', '/proc/self/fd'], close_fds=False, capture_output=True, text=True).stdout.split())";
    assert_eq!(stdout(&world, children).await, "['0', '1', '2', '3']\n");
}

#[tokio::test]
async fn an_error_shows_the_users_frames_only() {
    let world = World::new().await;

    stdout(&world, "def fail(n):\n    return 1 / n").await;
    let ran = run(&world, "print('before')\n\nfail(0)").await;

    assert_eq!(ran.stdout, "before\n");
    assert_eq!(
        (&ran.error["name"], &ran.error["value"]),
        (&json!("ZeroDivisionError"), &json!("division by zero"))
    );
    assert_eq!(
        ran.error["traceback"],
        "Traceback (most recent call last):\n  File \"<stdin>\", line 3, in <module>\n  File \"<stdin>\", line 2, in fail\nZeroDivisionError: division by zero\n"
    );
    assert_eq!((ran.code, ran.controls), (1000, vec!["completed".to_owned()]));
    let syntax = run(&world, "x = (").await;
    assert_eq!(syntax.error["name"], "SyntaxError");
    let text = syntax.error["traceback"].as_str().unwrap();
    assert!(text.starts_with("  File \"<stdin>\", line 1\n"), "{text}");
    let odd = "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd";
    assert_eq!(run(&world, odd).await.error["name"], "Odd");
    let halves = run(&world, "raise Exception('\\ud800' + 'x' * 1_000_000)").await;
    let value = halves.error["value"].as_str().unwrap();
    assert!(value.starts_with(r"\ud800x") && value.len() < 100_000, "{}", value.len());
}

#[tokio::test]
async fn input_is_at_its_end_and_exits_are_normal() {
    let world = World::new().await;

    assert_eq!(run(&world, "input()").await.error["name"], "EOFError");
    for code in ["import sys; sys.exit(3)", "exit()", "raise SystemExit"] {
        let ran = run(&world, code).await;
        assert_eq!(
            (ran.code, &ran.error, ran.controls),
            (1000, &Value::Null, vec!["completed".to_owned()]),
            "{code}"
        );
    }
    assert_eq!(run(&world, "import sys; sys.exit('because')").await.stderr, "because\n");
    // Nothing of that stays.
    assert_eq!(run(&world, "input()").await.error["name"], "EOFError");
    run(&world, "import os, sys; sys.stdout.close(); sys.stderr.close(); os.close(0)").await;
    assert_eq!(stdout(&world, "print('still here')").await, "still here\n");
}

#[tokio::test]
async fn a_fork_that_returns_ends_there() {
    let world = World::new().await;

    let code = "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('parent' if pid else 'child')";
    let first = stdout(&world, code).await;

    assert_eq!(first, "child\nparent\n");
    assert_eq!(stdout(&world, "print(pid > 0)").await, "True\n");
}

#[tokio::test]
async fn variables_of_the_environment_are_for_one_run() {
    let world = World::new().await;

    let show = "import os; print(os.environ.get('A'), os.environ.get('FROM_CONFIG'), os.environ.get('B'))";
    let code = format!("{show}; os.environ['B'] = 'set'");
    let envs = json!({ "A": "1", "FROM_CONFIG": "no" });
    let ran = run_with(&world, json!({ "code": code, "envs": envs })).await;

    assert_eq!(ran.stdout, "1 no None\n");
    assert_eq!(stdout(&world, show).await, "None yes set\n");
    let bad = run_with(&world, json!({ "code": "", "envs": { "A-B": "1" } })).await;
    assert_eq!(bad.code, 1008);
}

#[tokio::test]
async fn runs_of_one_context_wait_for_each_other_in_order() {
    let world = World::new().await;
    let other = new_context(&world, json!({})).await;
    world.execute("mkfifo go").await;

    let code = "seen = [1]; print('runs'); open('go').read()";
    let mut first = submitted(&world, &json!({ "code": code })).await;
    next_frame(&mut first).await;
    let mut rest = Vec::new();
    for number in 2..6 {
        let code = format!("seen.append({number}); print(seen)");
        let mut socket = submitted(&world, &json!({ "code": code })).await;
        // The answer to a ping comes after what was sent before it has been read.
        socket.send(Message::Ping("p".into())).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("p".into()));
        rest.push(socket);
    }
    let beside = run_with(&world, json!({ "code": "print('beside')", "contextId": other })).await;
    assert_eq!(beside.stdout, "beside\n");
    world.execute("echo > go").await;

    assert_eq!(ended(first).await.code, 1000);
    let last = ended(rest.pop().unwrap()).await;
    assert_eq!(last.stdout, "[1, 2, 3, 4, 5]\n");
}

#[tokio::test]
async fn too_many_waiting_runs_are_refused() {
    let world = World::new().await;
    let mut held =
        vec![submitted(&world, &json!({ "code": "print('runs')\nimport time; time.sleep(300)" })).await];
    next_frame(&mut held[0]).await;

    let mut refused = None;
    for _ in 0..40 {
        let mut socket = submitted(&world, &json!({ "code": "pass" })).await;
        socket.send(Message::Ping("p".into())).await.unwrap();
        match socket.next().await.unwrap().unwrap() {
            Message::Pong(_) => held.push(socket),
            Message::Close(frame) => {
                refused = frame;
                break;
            }
            other => panic!("{other:?}"),
        }
    }

    let refused = refused.expect("one is refused");
    assert_eq!(u16::from(refused.code), 1008);
    assert!(refused.reason.contains("waits for"), "{}", refused.reason);
}

#[tokio::test]
async fn a_timeout_interrupts_and_the_context_goes_on() {
    let world = World::new().await;
    stdout(&world, "pass").await;

    for code in ["kept = 1\nwhile True: pass", "import time; time.sleep(300)"] {
        let ran = run_with(&world, json!({ "code": code, "timeout": 1 })).await;
        assert_eq!((ran.code, &ran.error["name"]), (4008, &json!("KeyboardInterrupt")), "{code}: {ran:?}");
        assert_eq!(ran.controls, ["interrupted"]);
    }
    // Its child is what the interruption ends, and the code is told of that.
    let shell = json!({ "code": "import os; print(os.system('exec sleep 300') & 127)", "timeout": 1 });
    let ran = run_with(&world, shell).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (4008, "2\n"));

    assert_eq!(stdout(&world, "print(kept)").await, "1\n");
}

#[tokio::test]
async fn who_ignores_the_interruption_is_killed_and_starts_anew() {
    let world = World::new().await;
    stdout(&world, "pass").await;
    let code = "import os, signal, subprocess, time
child = subprocess.Popen(['sleep', '300'])
kept = 1; print(child.pid, flush=True)
while True:
    try: time.sleep(300)
    except BaseException: pass";

    let ran = run_with(&world, json!({ "code": code, "timeout": 1 })).await;

    assert_eq!((ran.code, ran.controls), (4008, vec!["interrupted".to_owned()]));
    assert!(ran.reason.contains("variables are lost"), "{}", ran.reason);
    let child = format!("/proc/{}", ran.stdout.trim());
    eventually("its child is gone", async || !std::path::Path::new(&child).exists()).await;
    assert_eq!(run(&world, "print(kept)").await.error["name"], "NameError");

    let default = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\nwhile True: pass";
    let ran = run_with(&world, json!({ "code": default, "timeout": 1 })).await;
    assert_eq!((ran.code, ran.controls), (4008, vec!["interrupted".to_owned()]));
    assert!(ran.reason.contains("variables are lost"), "{}", ran.reason);
}

#[tokio::test]
async fn a_process_that_dies_says_so_and_the_next_run_has_another() {
    let world = World::new().await;
    let context = new_context(&world, json!({})).await;
    let run = async |code: &str| run_with(&world, json!({ "code": code, "contextId": context })).await;

    let exited = run("print('last words'); import os; os._exit(7)").await;
    let killed = run("import os; os.kill(os.getpid(), 9)").await;
    let silent =
        run("import os\nfor n in range(3, 50):\n    try: os.close(n)\n    except OSError: pass\nprint('on')")
            .await;

    assert_eq!((exited.code, exited.stdout.as_str()), (1011, "last words\n"));
    assert!(exited.reason.contains("code 7") && exited.controls.is_empty(), "{exited:?}");
    assert_eq!(killed.code, 1011);
    assert!(killed.reason.contains("signal 9"), "{}", killed.reason);
    assert_eq!(silent.code, 1011, "{silent:?}");
    assert_eq!(run("print('again')").await.stdout, "again\n");
    // Also when nobody runs anything.
    run("import os, threading, time; threading.Timer(0.05, lambda: os._exit(1)).start()").await;
    eventually("the list knows", async || {
        world.get("/process/interpreter/context").await.json()["contexts"][0]["active"] == false
    })
    .await;
    assert_eq!(run("print('and again')").await.stdout, "and again\n");
}

#[tokio::test]
async fn a_client_that_goes_stops_its_run() {
    let world = World::new().await;

    let code = "kept = 2\ntry:\n    print('runs')\n    while True: pass\nfinally: stopped = True";
    let mut socket = submitted(&world, &json!({ "code": code, "timeout": 0 })).await;
    next_frame(&mut socket).await;
    let waiting = submitted(&world, &json!({ "code": "never = True" })).await;
    drop(waiting);
    drop(socket);

    assert_eq!(stdout(&world, "print(kept, stopped, 'never' in globals())").await, "2 True False\n");
}

#[tokio::test]
async fn deleting_a_context_ends_its_runs() {
    let world = World::new().await;
    let context = new_context(&world, json!({})).await;
    let mut running =
        submitted(&world, &json!({ "code": "print('runs')\nwhile True: pass", "contextId": context })).await;
    next_frame(&mut running).await;
    let waiting = submitted(&world, &json!({ "code": "pass", "contextId": context })).await;

    world.delete(&format!("/process/interpreter/context/{context}")).await.expect(200);

    for socket in [running, waiting] {
        let ran = ended(socket).await;
        assert_eq!((ran.code, ran.reason.as_str()), (1008, "the context was deleted"));
    }
    let after = run_with(&world, json!({ "code": "pass", "contextId": context })).await;
    assert_eq!(after.code, 1008);
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let world = World::new().await;

    for (message, code) in [
        (Message::Text("{".into()), 1002),
        (Message::Text("{}".into()), 1002),
        (Message::Text(r#"{"code": 7}"#.into()), 1002),
        (Message::Binary(vec![0xff].into()), 1002),
        (Message::Text(r#"{"code": "", "contextId": "nobody"}"#.into()), 1008),
        (Message::Text(r#"{"code": "", "timeout": -1}"#.into()), 1008),
        (Message::Text(format!(r#"{{"code": "{}"}}"#, "x".repeat(5_000_000)).into()), 1009),
    ] {
        let shown: String = message.to_string().chars().take(40).collect();
        let (mut socket, _) = world.websocket(PATH, "").await;
        // One that is too long may be refused before it is sent.
        let _ = socket.send(message).await;
        assert_eq!(ended(socket).await.code, code, "{shown}");
    }
    let nul = run(&world, "print('a')\u{0}").await;
    assert_eq!(nul.code, 1000);
    assert!(nul.error["name"].is_string());
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_let_go_and_its_run_stopped() {
    let world = World::new().await;

    let code = "try:\n    while True: print('x' * 1000)\nfinally: stopped = True";
    let sleeper = submitted(&world, &json!({ "code": code })).await;
    // The next run's turn comes when the first has been stopped.
    let after = submitted(&world, &json!({ "code": "print(stopped)" })).await;

    assert_eq!(ended(after).await.stdout, "True\n");
    assert_eq!(ended(sleeper).await.code, 1008);
    let peak = crate::processes::status_kib(world.pid(), "VmHWM");
    assert!(peak < 40 * 1024, "the daemon took {peak} KiB for it");
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let world = World::new().await;

    let ran = run(&world, "for n in range(200_000): print(n)").await;

    let expected: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    assert!(ran.stdout == expected, "{} of {} bytes", ran.stdout.len(), expected.len());
    assert_eq!(ran.code, 1000);
}

#[tokio::test]
async fn what_runs_in_the_background_holds_nothing_up() {
    let world = World::new().await;

    let code = "import subprocess\nchild = subprocess.Popen('while :; do echo noise; done', shell=True)";
    assert_eq!(run(&world, code).await.code, 1000);
    let second = run(&world, "child.kill(); child.wait(); print('mine')").await;

    assert!(second.stdout.ends_with("mine\n"), "{}", second.stdout.len());
}

#[tokio::test]
async fn without_python_there_is_a_reason() {
    let world = World::new().await;
    world.post("/env", json!({ "set": { "PATH": "/no/such" } })).await.expect(200);

    world.post("/process/interpreter/context", json!({})).await.expect_error(400, "BAD_REQUEST");
    let ran = run(&world, "pass").await;

    assert_eq!((ran.code, ran.reason.as_str()), (1011, "none of python3, python is in the sandbox's PATH"));
}
