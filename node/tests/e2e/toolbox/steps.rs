//! Every operation, each with a request that means something, in an order in which it can. One function per group of the facts.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::walk::{Outcome, Walk, call};
use crate::doors::ECHO;

const HOME: &str = "/home/daytona";
/// A shell's own line, in a terminal.
const LEAVE_WITH_5: &str = "echo shell-$((40+2)); exit 5\n";
const EDITOR_DEADLINE: Duration = Duration::from_secs(30);
const PORT_SCAN_DEADLINE: Duration = Duration::from_secs(20);

pub fn info(walk: &mut Walk) {
    let version = walk.call("get_version", call());
    walk.check("get_version", version["version"].is_string(), &version);
    let home = walk.call("get_user_home_dir", call());
    walk.expect_text("get_user_home_dir", &home, "dir", HOME);
    let work = walk.call("get_work_dir", call());
    walk.expect_text("get_work_dir", &work, "dir", HOME);
    walk.call("initialize", call().json(json!({ "token": "a token" })));
    walk.call("update_env", call().json(json!({ "set": { "WALKED": "yes" }, "unset": ["NOT_THERE"] })));
    let said = walk.run("echo $WALKED");
    walk.check("update_env", said == "yes\n", said);
    let metrics = walk.call("get_system_metrics", call());
    walk.check("get_system_metrics", metrics["memTotal"].as_u64() > Some(0), &metrics);
}

pub fn files(walk: &mut Walk) {
    let at = |path: &str| call().query("path", format!("{HOME}/walk{path}"));
    walk.call("create_folder", at("/a/b").query("mode", "0750"));
    let uploaded = walk
        .call("upload_file", at("/a/one.txt").form(&[("\"file\"; filename=\"one.txt\"", "one needle\n")]));
    walk.expect_text("upload_file", &uploaded, "path", &format!("{HOME}/walk/a/one.txt"));
    let bulk = [
        ("\"files[0].path\"", &*format!("{HOME}/walk/a/two.txt")),
        ("\"files[0].file\"; filename=\"two.txt\"", "two needle\n"),
        ("\"files[1].path\"", &*format!("{HOME}/walk/a/b/three.md")),
        ("\"files[1].file\"; filename=\"three.md\"", ""),
    ];
    let uploaded = walk.call("upload_files", call().form(&bulk));
    walk.check("upload_files", uploaded["files"][0]["bytes"] == 11, &uploaded);
    let listed = walk.call("list_files", at("").query("depth", 3));
    walk.check("list_files", listed.as_array().is_some_and(|listed| listed.len() == 5), &listed);
    walk.call(
        "set_file_permissions",
        at("/a/one.txt").query("mode", "0640").query("owner", "daytona").query("group", "daytona"),
    );
    let shown = walk.call("get_file_info", at("/a/one.txt"));
    walk.expect_text("get_file_info", &shown, "permissions", "0640");
    walk.expect_text("set_file_permissions", &shown, "mode", "-rw-r-----");
    let found = walk.call("find_in_files", at("/a").query("pattern", "needle"));
    walk.check("find_in_files", found.as_array().is_some_and(|found| found.len() == 2), &found);
    let found = walk.call("search_files", at("").query("pattern", "*.md"));
    walk.check("search_files", found["files"] == json!([format!("{HOME}/walk/a/b/three.md")]), &found);
    let replaced =
        json!({ "files": [format!("{HOME}/walk/a/one.txt")], "pattern": "needle", "newValue": "pin" });
    let replaced = walk.call("replace_in_files", call().json(replaced));
    walk.check("replace_in_files", replaced[0]["success"] == true, &replaced);
    let (from, to) = (format!("{HOME}/walk/a/one.txt"), format!("{HOME}/walk/moved.txt"));
    walk.call("move_file", call().query("source", from).query("destination", to));
    let got = walk.answer("download_file", at("/moved.txt"));
    walk.check("download_file", got.body == "one pin\n", &got.body);
    let paths = json!({ "paths": [format!("{HOME}/walk/moved.txt"), "/no/such/file"] });
    let got = walk.answer("download_files", call().json(paths));
    let whole = got.body.contains("one pin")
        && got.body.contains("FILE_NOT_FOUND")
        && got.body.trim_end().ends_with("--");
    walk.check("download_files", whole, &got.body);
    walk.call("delete_file", at("").query("recursive", true));
    let left = walk.run("ls ~/walk 2>/dev/null || echo gone");
    walk.check("delete_file", left == "gone\n", left);
}

pub fn commands(walk: &mut Walk) {
    let wish =
        json!({ "command": "echo $A; pwd >&2; exit 3", "cwd": "/tmp", "envs": { "A": "b" }, "timeout": 20 });
    let ran = walk.call("execute_command", call().json(wish));
    let expected = json!({ "exitCode": 3, "result": "b\n/tmp\n", "stdout": "b\n", "stderr": "/tmp\n" });
    walk.check("execute_command", ran == expected, &ran);
    let wish =
        json!({ "code": "import sys; print(6 * 7, sys.argv[1])", "language": "python", "argv": ["x"] });
    let ran = walk.call("code_run", call().json(wish));
    walk.check("code_run", ran["result"] == "42 x\n", &ran);
}

pub fn sessions(walk: &mut Walk) {
    let session = || call().at("sessionId", "walk");
    walk.call("create_session", call().json(json!({ "sessionId": "walk" })));
    let ran =
        walk.call("session_execute_command", session().json(json!({ "command": "echo out; echo err >&2" })));
    walk.expect_text("session_execute_command", &ran, "stdout", "out\n");
    let reading = json!({ "command": "read word; echo got $word", "runAsync": true });
    let started = walk.call("session_execute_command", session().json(reading));
    let id = started["cmdId"].as_str().unwrap_or("none").to_owned();
    let command = || session().at("commandId", &id);
    let shown = walk.call("get_session_command", command());
    walk.check("get_session_command", shown.get("exitCode").is_none(), &shown);
    walk.call("send_input", command().json(json!({ "data": "word" })));
    let followed = walk.socket(
        "GET /process/session/{sessionId}/command/{commandId}/logs?follow=true",
        &format!("/process/session/walk/command/{id}/logs?follow=true"),
        vec![],
    );
    let well =
        followed.text.contains("got word") && followed.close.as_ref().is_some_and(|(code, _)| *code == 1000);
    walk.check("GET /process/session/{sessionId}/command/{commandId}/logs?follow=true", well, &followed);
    let logs = walk.call("get_session_command_logs", command());
    walk.check(
        "get_session_command_logs",
        logs["stdout"].as_str().is_some_and(|out| out.contains("got word")),
        &logs,
    );
    let shown = walk.call("get_session", session());
    walk.check("get_session", shown["commands"][1]["exitCode"] == 0, &shown);
    let listed = walk.call("list_sessions", call());
    walk.check("list_sessions", listed.to_string().contains("\"walk\""), &listed);
    walk.call("delete_session", session());

    let shown = walk.call("get_entrypoint_session", call());
    walk.expect_text("get_entrypoint_session", &shown, "sessionId", "entrypoint");
    let logs = walk.call("get_entrypoint_logs", call());
    walk.check("get_entrypoint_logs", logs["stdout"] == "the entrypoint runs\n", &logs);
    let name = "GET /process/session/entrypoint/logs?follow=true";
    let request = walk.request("/process/session/entrypoint/logs?follow=true");
    let followed = walk.converse(name, request, vec![], |text| text.contains("the entrypoint runs"));
    walk.check(name, followed.text.contains("the entrypoint runs"), &followed);
}

pub fn terminals(walk: &mut Walk) {
    let terminal = || call().at("sessionId", "t1");
    let made = walk.call(
        "create_pty_session",
        call().json(json!({ "id": "t1", "cwd": "/tmp", "envs": { "A": "b" }, "cols": 90, "rows": 20 })),
    );
    walk.expect_text("create_pty_session", &made, "sessionId", "t1");
    let resized = walk.call("resize_pty_session", terminal().json(json!({ "cols": 91, "rows": 21 })));
    walk.check("resize_pty_session", resized["cols"] == 91, &resized);
    let shown = walk.call("get_pty_session", terminal());
    walk.expect_text("get_pty_session", &shown, "cwd", "/tmp");
    let listed = walk.call("list_pty_sessions", call());
    walk.check("list_pty_sessions", listed["sessions"][0]["id"] == "t1", &listed);
    left(walk, "connect_pty_session", "/process/pty/t1/connect");
    walk.call("create_pty_session", call().json(json!({ "id": "t2", "lazyStart": true })));
    walk.call("delete_pty_session", call().at("sessionId", "t2"));
    left(walk, "GET /process/pty/create-connect", "/process/pty/create-connect?id=t3&cols=80&rows=24");
}

fn left(walk: &mut Walk, name: &str, target: &str) {
    let heard = walk.socket(name, target, vec![Message::binary(LEAVE_WITH_5.as_bytes().to_vec())]);
    let well = heard.text.contains("shell-42")
        && heard
            .close
            .as_ref()
            .is_some_and(|(code, reason)| *code == 1011 && reason.contains("\"exitCode\":5"));
    walk.check(name, well, &heard);
}

pub fn interpreters(walk: &mut Walk) {
    let made =
        walk.call("create_interpreter_context", call().json(json!({ "cwd": "/tmp", "language": "python" })));
    let id = made["id"].as_str().unwrap_or("none").to_owned();
    let listed = walk.call("list_interpreter_contexts", call());
    walk.check("list_interpreter_contexts", listed["contexts"][0]["id"] == *id, &listed);
    for (code, expected) in [("answer = 6 * 7", "completed"), ("print(answer)", "42\\n")] {
        let wish = json!({ "code": code, "contextId": id, "timeout": 30 });
        let heard = walk.socket(
            "execute_interpreter_code",
            "/process/interpreter/execute",
            vec![Message::text(wish.to_string())],
        );
        let well =
            heard.text.contains(expected) && heard.close.as_ref().is_some_and(|(code, _)| *code == 1000);
        walk.check("execute_interpreter_code", well, &heard);
    }
    walk.call("delete_interpreter_context", call().at("id", &id));
}

pub fn ports(walk: &mut Walk) {
    walk.run("mkdir -p ~/served && echo served > ~/served/page");
    let session = json!({ "sessionId": "server" });
    walk.send(Method::POST, "/process/session", call().json(session));
    let serve =
        json!({ "command": "cd ~/served && python3 -m http.server 8000 --bind 127.0.0.1", "runAsync": true });
    walk.send(Method::POST, "/process/session/server/exec", call().json(serve));
    // It is looked for once a second.
    let deadline = Instant::now() + PORT_SCAN_DEADLINE;
    let mut listed = walk.call("get_ports", call());
    while !listed.to_string().contains("8000") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        listed = walk.call("get_ports", call());
    }
    walk.check("get_ports", listed.to_string().contains("8000"), &listed);
    let shown = walk.call("is_port_in_use", call().at("port", 8000));
    walk.check("is_port_in_use", shown["isInUse"] == true, &shown);
    let name = "ANY /proxy/{port}/{path}";
    let page = walk.extra(name, Method::GET, "/proxy/8000/page", call(), 200, "bytes");
    walk.check(name, page.body == "served\n", &page.body);
    // A server that knows no such method says so itself.
    walk.extra(name, Method::PUT, "/proxy/8000/page", call().json(json!({})), 501, "bytes");
    let name = "GET /proxy/{port}/{path} as a WebSocket";
    walk.send(Method::PUT, &format!("/files{HOME}/echo.py"), call().text(ECHO));
    walk.world.serve(walk.sandbox, 8001, "python3 ~/echo.py");
    let request = walk.request("/proxy/8001/ws");
    let heard = walk.converse(name, request, vec![Message::text("hello")], |text| text == "hello");
    walk.check(name, heard.text == "hello", &heard);
    for session in ["server", "serve-8001"] {
        walk.send(Method::DELETE, &format!("/process/session/{session}"), call());
    }
}

pub fn git(walk: &mut Walk) {
    let (repo, bare, copy) = (format!("{HOME}/repo"), format!("{HOME}/remote.git"), format!("{HOME}/copy"));
    let of = |path: &str, more: Value| {
        let mut body = json!({ "path": path });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        call().json(body)
    };
    walk.run("rm -rf ~/repo ~/remote.git ~/copy ~/.gitconfig ~/.git-credentials");
    walk.call("init_repository", of(&bare, json!({ "bare": true, "initial_branch": "main" })));
    walk.call("init_repository", of(&repo, json!({ "initial_branch": "main" })));
    walk.call(
        "configure_user",
        call().json(json!({ "name": "Walker", "email": "walker@example.com", "scope": "global" })),
    );
    walk.call(
        "set_git_config",
        of(&repo, json!({ "key": "pull.rebase", "value": "false", "scope": "local" })),
    );
    let value = walk.call(
        "get_git_config",
        call().query("key", "pull.rebase").query("scope", "local").query("path", &repo),
    );
    walk.expect_text("get_git_config", &value, "value", "false");
    let none = walk.call("get_git_config", call().query("key", "no.such").query("scope", "global"));
    walk.check("get_git_config", none["value"].is_null(), &none);
    let credentials = json!({ "username": "u", "password": "p", "host": "example.com", "protocol": "https" });
    walk.call("authenticate", call().json(credentials));

    walk.run("echo one > ~/repo/file && echo two > ~/repo/other");
    let status = walk.call("get_status", call().query("path", &repo));
    walk.check("get_status", status["fileStatus"].as_array().is_some_and(|files| files.len() == 2), &status);
    walk.call("add_files", of(&repo, json!({ "files": ["file", "other"] })));
    let commit = json!({ "message": "first", "author": "Walker", "email": "walker@example.com" });
    let made = walk.call("commit_changes", of(&repo, commit));
    let history = walk.call("get_commit_history", call().query("path", &repo));
    walk.check("get_commit_history", history[0]["hash"] == made["hash"], &history);
    walk.call("add_remote", of(&repo, json!({ "name": "origin", "url": bare })));
    let remotes = walk.call("list_remotes", call().query("path", &repo));
    walk.check("list_remotes", remotes["remotes"] == json!([{ "name": "origin", "url": bare }]), &remotes);
    walk.call(
        "push_changes",
        of(&repo, json!({ "remote": "origin", "branch": "main", "set_upstream": true })),
    );

    walk.call("create_branch", of(&repo, json!({ "name": "side" })));
    walk.call("checkout_branch", of(&repo, json!({ "branch": "side" })));
    let branches = walk.call("list_branches", call().query("path", &repo));
    walk.check("list_branches", branches["current"] == "side", &branches);
    walk.call("checkout_branch", of(&repo, json!({ "branch": "main" })));
    walk.call("delete_branch", of(&repo, json!({ "name": "side" })));

    walk.call("clone_repository", call().json(json!({ "url": bare, "path": copy, "branch": "main" })));
    walk.run("cd ~/repo && echo more >> file && git commit -qam second && git push -q");
    walk.call("pull_changes", of(&copy, json!({})));
    let pulled = walk.run("cat ~/copy/file");
    walk.check("pull_changes", pulled == "one\nmore\n", pulled);
    walk.run("echo changed > ~/repo/file");
    walk.call("restore_files", of(&repo, json!({ "files": ["file"] })));
    walk.call("reset_changes", of(&repo, json!({ "mode": "hard", "target": "HEAD~1" })));
    let reset = walk.run("cat ~/repo/file");
    walk.check("reset_changes", reset == "one\n", reset);
}

pub fn language_servers(walk: &mut Walk) {
    walk.run("mkdir -p ~/project && printf 'def greet(name):\\n    return name\\n\\ngreet(\"x\").up\\n' > ~/project/main.py");
    let project = json!({ "languageId": "python", "pathToProject": format!("{HOME}/project") });
    let uri = format!("file://{HOME}/project/main.py");
    let document = || {
        let mut body = project.clone();
        body["uri"] = json!(uri);
        body
    };
    let queried = || call().query("languageId", "python").query("pathToProject", format!("{HOME}/project"));
    walk.call("start", call().json(project.clone()));
    walk.call("did_open", call().json(document()));
    let mut asked = document();
    asked["position"] = json!({ "line": 3, "character": 13 });
    asked["context"] = json!({ "triggerKind": 1 });
    walk.call("completions", call().json(asked));
    let symbols = walk.call("document_symbols", queried().query("uri", &uri));
    walk.check("document_symbols", symbols.to_string().contains("greet"), &symbols);
    walk.call("workspace_symbols", queried().query("query", "greet"));
    walk.extra(
        "GET /lsp/workspace-symbols",
        Method::GET,
        &format!("/lsp/workspace-symbols?query=greet&languageId=python&pathToProject={HOME}/project"),
        call(),
        200,
        "[LspSymbol]",
    );
    walk.call("did_close", call().json(document()));
    walk.call("stop", call().json(project.clone()));
}

pub fn computer_use(walk: &mut Walk) {
    let post = |body: Value| call().json(body);
    walk.call("start_computer_use", call());
    walk.call("get_computer_use_status", call());
    walk.call("get_computer_use_system_status", call());
    for name in ["get_process_status", "get_process_logs", "get_process_errors"] {
        walk.call(name, call().at("processName", "xvfb"));
    }
    walk.call("get_display_info", call());
    for (name, region) in [("take_screenshot", false), ("take_region_screenshot", true)] {
        walk.call(name, region_of(region).query("showCursor", true));
    }
    for (name, region) in [("take_compressed_screenshot", false), ("take_compressed_region_screenshot", true)]
    {
        let wish = region_of(region).query("format", "jpeg").query("quality", 60).query("scale", 0.5);
        walk.call(name, wish);
    }
    let made = walk.call("start_recording", post(json!({ "label": "walk" })));
    let moved = walk.call("move_mouse", post(json!({ "x": 120, "y": 130 })));
    let position = walk.call("get_mouse_position", call());
    walk.check("get_mouse_position", moved["x"] == position["x"], &position);
    walk.call("click", post(json!({ "x": 121, "y": 131, "button": "left" })));
    walk.call("mouse_down", post(json!({ "x": 122, "y": 132, "button": "left" })));
    walk.call("mouse_up", post(json!({ "x": 123, "y": 133, "button": "left" })));
    walk.call(
        "drag",
        post(json!({ "startX": 120, "startY": 120, "endX": 200, "endY": 200, "button": "left" })),
    );
    walk.call("scroll", post(json!({ "x": 120, "y": 130, "direction": "down", "amount": 2 })));
    walk.call("type_text", post(json!({ "text": "hello", "delay": 1 })));
    walk.call("press_key", post(json!({ "key": "a", "modifiers": ["shift"] })));
    walk.call("press_hotkey", post(json!({ "keys": "ctrl+c" })));
    walk.call("key_down", post(json!({ "key": "shift" })));
    walk.call("key_up", post(json!({ "key": "shift" })));
    windows_and_nodes(walk);
    let recorded = |made: &Value| made["id"].as_str().unwrap_or("none").to_owned();
    walk.call("list_recordings", call());
    let id = recorded(&made);
    let stopped = walk.call("stop_recording", post(json!({ "id": id })));
    walk.check("stop_recording", stopped["id"] == made["id"], &stopped);
    walk.call("get_recording", call().at("id", &id));
    walk.answer("download_recording", call().at("id", &id));
    walk.call("delete_recording", call().at("id", &id));
    walk.call("restart_process", call().at("processName", "x11vnc"));
    walk.call("stop_computer_use", call());
}

fn region_of(region: bool) -> super::walk::Call {
    if region {
        call().query("x", 10).query("y", 20).query("width", 200).query("height", 100)
    } else {
        call()
    }
}

/// An editor, whose nodes can be focused, given a value and invoked.
fn windows_and_nodes(walk: &mut Walk) {
    let has_desktop = walk.outcomes.get("start_computer_use") == Some(&Outcome::Served);
    if has_desktop {
        walk.run("setsid mousepad >/dev/null 2>&1 </dev/null &");
    }
    let mut find = |wish: Value| {
        let deadline = Instant::now() + EDITOR_DEADLINE;
        loop {
            let found = walk.call("find_accessibility_nodes", call().json(wish.clone()));
            match found["matches"][0]["id"].as_str() {
                Some(id) => break id.to_owned(),
                None if has_desktop && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100))
                }
                None => break "none".to_owned(),
            }
        }
    };
    let text = find(json!({ "scope": "all", "role": "text", "states": ["editable"], "limit": 5 }));
    let quit = find(json!({ "scope": "all", "role": "menu item", "name": "Quit", "nameMatch": "exact" }));
    walk.call("get_windows", call());
    walk.call("get_accessibility_tree", call().query("scope", "all").query("maxDepth", 4));
    walk.call("focus_accessibility_node", call().json(json!({ "id": text })));
    walk.call("set_accessibility_node_value", call().json(json!({ "id": text, "value": "by the tree" })));
    walk.call("invoke_accessibility_node", call().json(json!({ "id": quit })));
}

/// What is served and in no list of the client.
pub fn extras(walk: &mut Walk) {
    let home =
        walk.extra("GET /project-dir", Method::GET, "/project-dir", call(), 200, "UserHomeDirResponse");
    walk.check("GET /project-dir", home.body.contains(HOME), &home.body);
    let name = "POST /files/upload";
    let form = call().form(&[("\"file\"; filename=\"old.txt\"", "old\n")]);
    walk.extra(name, Method::POST, &format!("/files/upload?path={HOME}/old.txt"), form, 200, "empty");
    let said = walk.run("cat ~/old.txt");
    walk.check(name, said == "old\n", said);
    let path = format!("/files{HOME}/tail.txt");
    walk.extra("PUT /files/{path}", Method::PUT, &path, call().json(json!("tail")), 200, "empty");
    let got = walk.extra("GET /files/{path}", Method::GET, &path, call(), 200, "bytes");
    walk.check("GET /files/{path}", got.body == "\"tail\"", &got.body);
    walk.extra("DELETE /files/{path}", Method::DELETE, &path, call(), 204, "empty");
    let run = call().json(json!({ "code": "print(1 + 1)", "language": "python" }));
    let ran = walk.extra("POST /process/code", Method::POST, "/process/code", run, 200, "CodeRunResponse");
    walk.check("POST /process/code", ran.body.contains("2\\n"), &ran.body);
}

pub fn web_terminal(walk: &mut Walk) {
    let (page, socket) = ("GET / on the preview of port 22222", "GET /ws on the preview of port 22222");
    let token = walk.world.preview_token(walk.sandbox, 22222);
    let label = format!("22222-{}", walk.sandbox.id);
    let request = walk.world.preview(walk.node, &label, Method::GET, "/");
    let shown = walk.world.send(request.header("x-daytona-preview-token", &token));
    walk.record_status(page, 200, &shown);
    walk.check(page, shown.body.contains("<html"), &shown.body);
    let refused = walk.world.send(walk.world.preview(walk.node, &label, Method::GET, "/"));
    walk.check(page, refused.status == 401, refused.status);

    let request = walk.preview_request(&label, &token, "/ws");
    let say = [r#"{"rows":30,"cols":99}"#, "stty size; exit 5\n"].map(Message::text).to_vec();
    let heard = walk.converse(socket, request, say, |_| false);
    walk.check(socket, heard.text.contains("30 99"), &heard);
}
