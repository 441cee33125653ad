//! Language servers: the real ones, over real projects.

use std::path::Path;

use axum::body::Body;
use hyper::Method;
use serde_json::{Value, json};

use crate::world::{Answer, World, encoded, eventually, has_programs};

const PYTHON: &str = "class Turtle:\n    def swim(self):\n        return 1\n\n\ndef dive(depth):\n    return Turtle().swim() * depth\n\nTurtle().sw\n";
const TYPESCRIPT: &str = "export class Turtle {\n  swim(): number { return 1; }\n}\nexport function dive(depth: number): number {\n  return new Turtle().swim() * depth;\n}\nnew Turtle().sw;\n";

struct Project<'a> {
    world: &'a World,
    language: &'static str,
    path: String,
}

impl<'a> Project<'a> {
    fn of(world: &'a World, language: &'static str, files: &[(&str, &str)]) -> Project<'a> {
        let path = world.home().join("project");
        std::fs::create_dir_all(&path).unwrap();
        for (name, text) in files {
            std::fs::write(path.join(name), text).unwrap();
        }
        Project { world, language, path: path.to_str().unwrap().to_owned() }
    }

    async fn post(&self, route: &str, mut extra: Value) -> Answer {
        extra["languageId"] = self.language.into();
        extra["pathToProject"] = self.path.clone().into();
        self.world.post(&format!("/lsp/{route}"), extra).await
    }

    fn uri(&self, name: &str) -> String {
        format!("file://{}/{name}", self.path)
    }

    async fn document_symbols(&self, uri: &str) -> Answer {
        let path = format!(
            "/lsp/document-symbols?languageId={}&pathToProject={}&uri={}",
            self.language,
            encoded(Path::new(&self.path)),
            encoded(Path::new(uri))
        );
        self.world.get(&path).await
    }

    async fn workspace_symbols(&self, query: &str) -> Answer {
        let (language, project) = (self.language, encoded(Path::new(&self.path)));
        let path =
            format!("/lsp/workspacesymbols?query={query}&languageId={language}&pathToProject={project}");
        self.world.get(&path).await
    }

    async fn completions(&self, name: &str, line: u32, character: u32) -> Answer {
        let position = json!({ "line": line, "character": character });
        self.post("completions", json!({ "uri": self.uri(name), "position": position })).await
    }
}

fn names(symbols: &Value) -> Vec<&str> {
    symbols.as_array().unwrap().iter().map(|symbol| symbol["name"].as_str().unwrap()).collect()
}

/// What every server is expected to do.
async fn check(project: &Project<'_>, file: &str, broken_line: u32, column: u32) {
    project.post("start", json!({})).await.expect(200);
    project.post("start", json!({})).await.expect(200);
    project.post("did-open", json!({ "uri": project.uri(file) })).await.expect(200);

    let symbols = project.document_symbols(&project.uri(file)).await.expect(200).json();
    let found = names(&symbols);
    for name in ["Turtle", "swim", "dive"] {
        assert!(found.contains(&name), "{name}: {symbols}");
    }
    for symbol in symbols.as_array().unwrap() {
        assert!(symbol["kind"].as_u64().unwrap() > 0);
        assert_eq!(symbol["location"]["uri"], project.uri(file));
        assert!(symbol["location"]["range"]["end"]["line"].is_u64());
    }

    let completions = project.completions(file, broken_line, column).await.expect(200).json();
    assert!(completions["isIncomplete"].is_boolean(), "{completions}");
    let items = completions["items"].as_array().unwrap();
    let swim = items.iter().find(|item| item["label"].as_str().unwrap().starts_with("swim"));
    let swim = swim.unwrap_or_else(|| panic!("swim is among {completions}"));
    assert!(swim["kind"].is_u64());
    for item in items {
        assert!(item.get("documentation").is_none_or(Value::is_object), "{item}");
    }

    let found = project.workspace_symbols("turtl").await.expect(200).json();
    assert!(names(&found).contains(&"Turtle"), "{found}");
    assert_eq!(project.workspace_symbols("nosuchthing").await.expect(200).json(), json!([]));

    project.post("did-close", json!({ "uri": project.uri(file) })).await.expect(200);
    project.post("did-close", json!({ "uri": project.uri(file) })).await.expect(200);
    project.post("stop", json!({})).await.expect(200);
    project.post("stop", json!({})).await.expect_error(400, "LSP_SERVER_NOT_INITIALIZED");
    let children = format!("/proc/{0}/task/{0}/children", project.world.pid());
    eventually("no process is left", async || std::fs::read_to_string(&children).unwrap().trim().is_empty())
        .await;
}

#[tokio::test]
async fn python_is_understood() {
    if !has_programs(&["pylsp"]) {
        return;
    }
    let world = World::new().await;
    let project = Project::of(&world, "python", &[("turtle.py", PYTHON)]);

    check(&project, "turtle.py", 8, 11).await;
}

#[tokio::test]
async fn typescript_is_understood() {
    if !has_programs(&["typescript-language-server"]) {
        return;
    }
    let world = World::new().await;
    let project = Project::of(&world, "typescript", &[("turtle.ts", TYPESCRIPT), ("tsconfig.json", "{}")]);

    check(&project, "turtle.ts", 6, 15).await;
}

#[tokio::test]
async fn javascript_has_a_server_of_its_own() {
    if !has_programs(&["typescript-language-server"]) {
        return;
    }
    let world = World::new().await;
    let source = "class Turtle {\n  swim() { return 1; }\n}\nfunction dive() {}\nnew Turtle().sw;\n";
    let project = Project::of(&world, "javascript", &[("turtle.js", source)]);

    check(&project, "turtle.js", 4, 15).await;
}

#[tokio::test]
async fn what_is_on_disk_counts_also_when_it_changed_or_was_never_opened() {
    if !has_programs(&["pylsp"]) {
        return;
    }
    let world = World::new().await;
    let project = Project::of(&world, "python", &[("a b.py", "first = 1\n"), ("100%.py", "odd = 1\n")]);
    project.post("start", json!({})).await.expect(200);

    // As the clients write it: nothing encoded, and relative to the project.
    let symbols = project.document_symbols("file://a b.py").await.expect(200).json();
    assert_eq!(names(&symbols), ["first"]);
    let odd = project.document_symbols("file://100%.py").await.expect(200).json();
    assert_eq!(names(&odd), ["odd"]);
    std::fs::write(world.home().join("project/a b.py"), "second = 2\nthird = 3\n").unwrap();
    let symbols = project.document_symbols(&project.uri("a%20b.py")).await.expect(200).json();
    assert_eq!(names(&symbols), ["second", "third"]);
}

#[tokio::test]
async fn a_server_that_died_is_reported_once_and_can_be_started_again() {
    if !has_programs(&["pylsp"]) {
        return;
    }
    let world = World::new().await;
    let project = Project::of(&world, "python", &[("turtle.py", PYTHON)]);
    project.post("start", json!({})).await.expect(200);
    let children = format!("/proc/{0}/task/{0}/children", world.pid());
    let pid = std::fs::read_to_string(&children).unwrap().trim().parse().unwrap();

    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();

    eventually("it is gone", async || std::fs::read_to_string(&children).unwrap().trim().is_empty()).await;
    let answer = project.document_symbols(&project.uri("turtle.py")).await;
    assert!(answer.text().contains("killed by signal 9"), "{}", answer.text());
    answer.expect_error(400, "LSP_SERVER_NOT_INITIALIZED");
    let answer = project.document_symbols(&project.uri("turtle.py")).await;
    assert!(answer.text().contains("POST /lsp/start"), "{}", answer.text());
    project.post("start", json!({})).await.expect(200);
    project.document_symbols(&project.uri("turtle.py")).await.expect(200);
}

/// Programs that stand in for a server and are none.
#[tokio::test]
async fn a_program_that_is_missing_or_no_server_is_named_and_leaves_nothing_behind() {
    let world = World::new().await;
    let project = Project::of(&world, "python", &[]);
    let bin = world.home().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let path = json!({ "set": { "PATH": format!("{}:/usr/bin:/bin", bin.display()) } });
    let pretend = |script: &str| {
        use std::os::unix::fs::PermissionsExt;
        let file = bin.join("pylsp");
        // Not written in place: the former one may still be running.
        let _ = std::fs::remove_file(&file);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    };

    world.post("/env", json!({ "set": { "PATH": "/nowhere" } })).await.expect(200);
    let answer = project.post("start", json!({})).await;
    assert!(answer.text().contains("pip install python-lsp-server"), "{}", answer.text());
    answer.expect_error(422, "UNPROCESSABLE_ENTITY");

    world.post("/env", path).await.expect(200);
    for (script, said) in [
        ("echo sorry >&2; exit 3", "exit code 3; its last words: sorry"),
        ("kill -KILL $$", "killed by signal 9"),
        ("echo hello; exec >&-; sleep 300 & wait", "does not speak the protocol"),
        ("printf 'Content-Length: 99999999\\r\\n\\r\\n'; exec sleep 300", "does not speak the protocol"),
        ("printf 'Content-Length: 3\\r\\n\\r\\n{x}'; exec sleep 300", "does not speak the protocol"),
    ] {
        pretend(script);
        let answer = project.post("start", json!({})).await;
        assert!(answer.text().contains(said), "{script}: {}", answer.text());
        answer.expect_error(422, "UNPROCESSABLE_ENTITY");
    }
    let children = format!("/proc/{0}/task/{0}/children", world.pid());
    eventually("no process is left", async || std::fs::read_to_string(&children).unwrap().trim().is_empty())
        .await;
}

#[tokio::test]
async fn what_makes_no_sense_to_a_language_server_is_refused() {
    let world = World::new().await;
    let project = Project::of(&world, "python", &[("a.py", "")]);
    let refused = async |route: &str, body: Value, status: u16, code: &str| {
        world.post(&format!("/lsp/{route}"), body).await.expect_error(status, code);
    };
    let path = project.path.as_str();

    for route in ["start", "stop", "did-open", "did-close", "completions"] {
        refused(route, json!({}), 400, "INVALID_REQUEST_BODY").await;
        let raw = world.call(Method::POST, &format!("/lsp/{route}"), Body::from("{"), &[]).await;
        raw.expect_error(400, "INVALID_REQUEST_BODY");
    }
    refused("start", json!({ "languageId": "cobol", "pathToProject": path }), 400, "BAD_REQUEST").await;
    refused("start", json!({ "languageId": "python", "pathToProject": "" }), 400, "INVALID_FILE_PATH").await;
    refused("start", json!({ "languageId": "python", "pathToProject": "\u{0}" }), 400, "INVALID_FILE_PATH")
        .await;
    refused("start", json!({ "languageId": "python", "pathToProject": "/no/such" }), 404, "FILE_NOT_FOUND")
        .await;
    refused(
        "start",
        json!({ "languageId": "python", "pathToProject": "/etc/passwd" }),
        400,
        "INVALID_FILE_PATH",
    )
    .await;
    refused(
        "start",
        json!({ "languageId": "python", "pathToProject": "/root/x" }),
        403,
        "FILE_ACCESS_DENIED",
    )
    .await;
    project.post("stop", json!({})).await.expect_error(400, "LSP_SERVER_NOT_INITIALIZED");
    let uri = project.uri("a.py");
    project.post("did-open", json!({ "uri": uri })).await.expect_error(400, "LSP_SERVER_NOT_INITIALIZED");
    project.post("did-open", json!({ "uri": "http://x/a.py" })).await.expect_error(400, "BAD_REQUEST");
    project.document_symbols("file://").await.expect_error(400, "INVALID_FILE_PATH");
    project.workspace_symbols("x").await.expect_error(400, "LSP_SERVER_NOT_INITIALIZED");
    world.get("/lsp/document-symbols").await.expect_error(400, "BAD_REQUEST");
    world.get("/lsp/workspacesymbols?query=x").await.expect_error(400, "BAD_REQUEST");
    world.get("/lsp/start").await.expect_error(405, "BAD_REQUEST");
    let position = json!({ "uri": uri, "position": { "line": -1, "character": 0 } });
    project.post("completions", position).await.expect_error(400, "INVALID_REQUEST_BODY");
    let context =
        json!({ "uri": uri, "position": { "line": 0, "character": 0 }, "context": { "triggerKind": 9 } });
    project.post("completions", context).await.expect_error(400, "BAD_REQUEST");

    if has_programs(&["pylsp"]) {
        project.post("start", json!({})).await.expect(200);
        let nothing = json!({ "uri": project.uri("none.py") });
        project.post("did-open", nothing).await.expect_error(404, "FILE_NOT_FOUND");
        project.post("did-open", json!({ "uri": "file:///" })).await.expect_error(400, "INVALID_FILE_PATH");
        let beyond = project.completions("a.py", 4_000_000_000, 7).await;
        assert!(beyond.status.as_u16() < 500, "{}", beyond.text());
        project.document_symbols(&uri).await.expect(200);
    }
}
