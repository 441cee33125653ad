//! Computer use: the real programs on the real display `:1`, of which a machine has one. So these tests wait for each other.

use std::collections::BTreeMap;
use std::path::Path;

use axum::body::Body;
use base64::Engine;
use hyper::Method;
use image::{GenericImageView, RgbImage};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use crate::screen::{Canvas, Event};
use crate::world::{Setup, World, eventually, has_programs};

static DISPLAY: Mutex<()> = Mutex::const_new(());

/// The bus wants somebody whom the machine knows: every Debian has `games`.
const UID: u32 = 5;
const PROGRAMS: [&str; 5] = ["Xvfb", "dbus-daemon", "xfce4-session", "x11vnc", "websockify"];
const NAMES: [&str; 6] = ["xvfb", "dbus", "xfce4", "atspi", "x11vnc", "novnc"];

struct Desk {
    world: World,
    _alone: MutexGuard<'static, ()>,
}

impl std::ops::Deref for Desk {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Desk {
    async fn started() -> Option<Desk> {
        if !has_programs(&PROGRAMS) {
            return None;
        }
        let _alone = DISPLAY.lock().await;
        let desk = Desk { _alone, world: World::with(Setup { uid: UID, ..Setup::default() }).await };
        desk.tell("start", json!({})).await;
        // It is ready when windows can be managed; these come up a moment later, above whatever is there.
        eventually("the panel and the background are there", async || {
            let windows = desk.show("display/windows").await;
            let titles: Vec<_> =
                windows["windows"].as_array().unwrap().iter().map(|window| window["title"].clone()).collect();
            titles.contains(&json!("xfce4-panel")) && titles.contains(&json!("Desktop"))
        })
        .await;
        Some(desk)
    }

    async fn tell(&self, route: &str, body: Value) -> Value {
        self.post(&format!("/computeruse/{route}"), body).await.expect(200).json()
    }

    async fn show(&self, route: &str) -> Value {
        self.get(&format!("/computeruse/{route}")).await.expect(200).json()
    }

    async fn picture(&self, route: &str) -> (RgbImage, Value) {
        let answer = self.show(route).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(answer["screenshot"].as_str().unwrap());
        let bytes = bytes.unwrap();
        assert_eq!(answer["sizeBytes"], bytes.len());
        (image::load_from_memory(&bytes).unwrap().into_rgb8(), answer)
    }

    /// In the background, on the desktop.
    async fn open(&self, command: &str) {
        self.execute(&format!("setsid {command} >/dev/null 2>&1 </dev/null &")).await;
    }

    async fn window(&self, title: &str) -> Value {
        let mut found = Value::Null;
        eventually(&format!("a window {title:?}"), async || {
            let windows = self.show("display/windows").await;
            let with_title = |window: &&Value| window["title"].as_str().unwrap().contains(title);
            let windows = windows["windows"].as_array().unwrap();
            found = windows.iter().find(with_title).cloned().unwrap_or_default();
            !found.is_null() && found["isActive"] == true
        })
        .await;
        found
    }

    async fn pids(&self) -> BTreeMap<String, i64> {
        let answer = self.tell("start", json!({})).await;
        let status = answer["status"].as_object().unwrap();
        status.iter().map(|(name, status)| (name.clone(), status["pid"].as_i64().unwrap())).collect()
    }

    fn children(&self) -> String {
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap()
    }
}

#[tokio::test]
async fn the_desktop_starts_is_kept_alive_and_leaves_nothing_behind() {
    let Some(desk) = Desk::started().await else { return };

    let started = desk.tell("start", json!({})).await;
    for name in NAMES {
        let status = &started["status"][name];
        assert_eq!((&status["running"], &status["autoRestart"]), (&json!(true), &json!(true)), "{name}");
        let one = desk.show(&format!("process/{name}/status")).await;
        assert_eq!(one, json!({ "processName": name, "running": true }));
        assert!(desk.show(&format!("process/{name}/logs")).await["logs"].is_string());
        assert!(desk.show(&format!("process/{name}/errors")).await["errors"].is_string());
    }
    let before = desk.pids().await;
    assert_eq!(before, desk.pids().await, "a second start changes nothing");
    assert_eq!(desk.show("status").await, json!({ "status": "active" }));
    assert_eq!(desk.show("process-status").await, json!({ "status": "active" }));

    let mut banner = [0; 4];
    TcpStream::connect("127.0.0.1:5901").await.unwrap().read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"RFB ");
    assert!(desk.get("/proxy/6080/vnc.html").await.expect(200).text().contains("noVNC"));
    assert_eq!(desk.execute("echo $DISPLAY").await["result"], ":1\n");
    let owner = desk.execute(&format!("stat -c %U /proc/{}", before["xvfb"])).await;
    assert_ne!(owner["result"], "root\n");

    // One that is restarted, and one that ends by itself.
    let restarted = desk.tell("process/x11vnc/restart", json!({})).await;
    assert_eq!(restarted["processName"], "x11vnc");
    let pid = rustix::process::Pid::from_raw(before["novnc"] as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("its death is noticed", async || {
        desk.show("process/novnc/errors").await["errors"].as_str().unwrap().contains("exit code 137")
    })
    .await;
    eventually("novnc runs again", async || {
        desk.show("status").await["status"] == "active" && TcpStream::connect("127.0.0.1:6080").await.is_ok()
    })
    .await;
    let after = desk.pids().await;
    assert!(after["x11vnc"] != before["x11vnc"] && after["novnc"] != before["novnc"]);
    assert_eq!((after["xvfb"], after["xfce4"]), (before["xvfb"], before["xfce4"]));

    let stopped = desk.tell("stop", json!({})).await;
    for name in NAMES {
        assert_eq!(stopped["status"][name]["running"], false, "{name}");
    }
    assert_eq!(desk.show("status").await, json!({ "status": "inactive" }));
    assert_eq!(desk.execute("echo [$DISPLAY]").await["result"], "[]\n");
    eventually("no process is left", async || desk.children().trim().is_empty()).await;
    desk.tell("stop", json!({})).await;
    desk.tell("start", json!({})).await;
    assert_eq!(desk.show("status").await, json!({ "status": "active" }));
}

#[tokio::test]
async fn pictures_show_what_is_on_the_screen() {
    let Some(desk) = Desk::started().await else { return };
    let canvas = Canvas::open(0xcc3322);
    let is_red = |picture: &RgbImage| picture.pixels().all(|pixel| pixel.0 == [0xcc, 0x33, 0x22]);
    desk.tell("mouse/move", json!({ "x": 500, "y": 400 })).await;
    eventually("the screen is red", async || {
        canvas.raise();
        is_red(&desk.picture("screenshot").await.0)
    })
    .await;

    let display = desk.show("display/info").await["displays"][0].clone();
    let (width, height) =
        (display["width"].as_u64().unwrap() as u32, display["height"].as_u64().unwrap() as u32);
    assert_eq!((width, height), (1024, 768));
    assert_eq!((&display["isActive"], &display["id"]), (&json!(true), &json!(0)));

    let (whole, answer) = desk.picture("screenshot").await;
    assert_eq!(whole.dimensions(), (width, height));
    assert!(is_red(&whole));
    assert_eq!(answer["cursorPosition"], json!({ "x": 500, "y": 400 }));
    let (region, _) = desk.picture("screenshot/region?x=10&y=20&width=301&height=200").await;
    assert_eq!(region.dimensions(), (301, 200));
    assert!(is_red(&region));

    // Only near the pointer does it make a difference.
    let (with_cursor, _) = desk.picture("screenshot?showCursor=true").await;
    let differs = |x: u32, y: u32| with_cursor.get_pixel(x, y) != whole.get_pixel(x, y);
    let different: Vec<(u32, u32)> =
        whole.enumerate_pixels().map(|(x, y, _)| (x, y)).filter(|(x, y)| differs(*x, *y)).collect();
    assert!(!different.is_empty());
    assert!(different.iter().all(|(x, y)| x.abs_diff(500) < 64 && y.abs_diff(400) < 64));
    let (beside, _) = desk.picture("screenshot/region?x=500&y=400&width=1&height=1&showCursor=true").await;
    assert_eq!(beside.get_pixel(0, 0), with_cursor.get_pixel(500, 400));

    for (format, magic) in
        [("png", &b"\x89PNG"[..]), ("jpeg", b"\xff\xd8"), ("jpg", b"\xff\xd8"), ("webp", b"RIFF")]
    {
        let route = format!("screenshot/compressed?format={format}&quality=60&scale=0.5");
        let (picture, answer) = desk.picture(&route).await;
        assert_eq!(picture.dimensions(), (width / 2, height / 2), "{format}");
        let encoded = answer["screenshot"].as_str().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        assert!(bytes.starts_with(magic), "{format}");
        for (is, was) in picture.get_pixel(100, 100).0.iter().zip([0xcc_u8, 0x33, 0x22]) {
            assert!(is.abs_diff(was) < 10, "{format}");
        }
    }
    let route = "screenshot/region/compressed?x=0&y=0&width=100&height=50&format=png&scale=0.1";
    let (small, _) = desk.picture(route).await;
    assert_eq!(small.view(0, 0, 10, 5).dimensions(), small.dimensions());
    drop(canvas);
}

#[tokio::test]
async fn the_mouse_does_what_it_is_told() {
    let Some(desk) = Desk::started().await else { return };
    let mut canvas = Canvas::open(0);
    let here = |x: i32, y: i32| json!({ "x": x, "y": y });

    assert_eq!(desk.tell("mouse/move", here(300, 200)).await, here(300, 200));
    assert_eq!(desk.show("mouse/position").await, here(300, 200));
    canvas.forget();
    assert_eq!(desk.tell("mouse/click", here(310, 210)).await, here(310, 210));
    assert_eq!(canvas.clicks(), ["down 1 310,210", "up 1 310,210"]);
    desk.tell("mouse/click", json!({ "x": 20, "y": 30, "button": "right", "double": true })).await;
    assert_eq!(canvas.clicks(), ["down 3 20,30", "up 3 20,30", "down 3 20,30", "up 3 20,30"]);
    let three = json!({ "button": "middle", "clicks": 3, "double": true, "modifiers": ["ctrl", "Shift"] });
    desk.tell("mouse/click", three).await;
    let clicks = canvas.clicks();
    assert_eq!(clicks.len(), 6, "clicks wins over double: {clicks:?}");
    assert_eq!(clicks[0], "down 2 20,30 shift ctrl");
    desk.tell("mouse/click", json!({})).await;
    assert_eq!(canvas.clicks()[0], "down 1 20,30", "modifiers are released");

    desk.tell("mouse/down", here(100, 100)).await;
    desk.tell("mouse/move", here(120, 130)).await;
    desk.tell("mouse/up", json!({})).await;
    assert_eq!(canvas.clicks(), ["down 1 100,100", "up 1 120,130"]);

    let drag = json!({ "startX": 10, "startY": 20, "endX": 400, "endY": 300 });
    assert_eq!(desk.tell("mouse/drag", drag).await, here(400, 300));
    let events = canvas.events();
    let down = events.iter().position(|event| matches!(event, Event::Button { down: true, .. })).unwrap();
    let up = events.iter().position(|event| matches!(event, Event::Button { down: false, .. })).unwrap();
    let moves = events[down..up].iter().filter(|event| matches!(event, Event::Motion)).count();
    assert!(moves >= 5, "the way is seen: {moves}");
    assert_eq!(events[down].to_string(), "down 1 10,20");
    assert_eq!(events[up].to_string(), "up 1 400,300");

    for (direction, button) in [("up", 4), ("down", 5), ("left", 6), ("right", 7)] {
        let scroll = json!({ "x": 50, "y": 60, "direction": direction, "amount": 3 });
        assert_eq!(desk.tell("mouse/scroll", scroll).await, json!({ "success": true }));
        let clicks = canvas.clicks();
        assert_eq!(clicks.len(), 6);
        assert_eq!(clicks[0], format!("down {button} 50,60"));
    }
}

#[tokio::test]
async fn the_keyboard_does_what_it_is_told() {
    let Some(desk) = Desk::started().await else { return };
    let mut canvas = Canvas::open(0);

    desk.tell("keyboard/key", json!({ "key": "Return" })).await;
    assert_eq!(canvas.keys(), ["down Return", "up Return"]);
    desk.tell("keyboard/key", json!({ "key": "T", "modifiers": ["ctrl", "shift"] })).await;
    assert_eq!(canvas.pressed(), ["down Control_L", "down Shift_L+ctrl", "down t+ctrl+shift"]);
    desk.tell("keyboard/hotkey", json!({ "keys": "ctrl + c" })).await;
    assert_eq!(canvas.keys(), ["down Control_L", "down c+ctrl", "up c", "up Control_L"]);
    desk.tell("keyboard/hotkey", json!({ "keys": "cmd" })).await;
    assert_eq!(canvas.keys(), ["down Super_L", "up Super_L"]);
    desk.tell("keyboard/down", json!({ "key": "shift" })).await;
    desk.tell("keyboard/key", json!({ "key": "left" })).await;
    desk.tell("keyboard/up", json!({ "key": "shift" })).await;
    assert_eq!(canvas.keys(), ["down Shift_L", "down Left+shift", "up Left", "up Shift_L"]);
    for (key, name) in [("f5", "F5"), ("num_plus", "KP_Add"), ("pageup", "Prior"), ("esc", "Escape")] {
        desk.tell("keyboard/key", json!({ "key": key })).await;
        assert_eq!(canvas.keys()[0], format!("down {name}"), "{key}");
    }

    desk.tell("keyboard/type", json!({ "text": "aB!" })).await;
    assert_eq!(canvas.text(), "aB!");
    // Far more characters than there are keys without a meaning.
    let letters: String =
        ('\u{410}'..'\u{450}').chain('\u{4e00}'..'\u{4e60}').chain("é€ß😀".chars()).collect();
    desk.tell("keyboard/type", json!({ "text": letters })).await;
    assert_eq!(canvas.text(), letters);
    let begin = std::time::Instant::now();
    desk.tell("keyboard/type", json!({ "text": "slow", "delay": 50 })).await;
    assert!(begin.elapsed() >= std::time::Duration::from_millis(150));
    assert_eq!(canvas.text(), "slow");
}

#[tokio::test]
async fn a_terminal_gets_what_is_typed_and_windows_are_listed_and_moved() {
    let Some(desk) = Desk::started().await else { return };
    let file = desk.home().join("typed");

    desk.open(&format!("xfce4-terminal --disable-server --title=typing -x sh -c 'cat > {}'", file.display()))
        .await;
    let window = desk.window("typing").await;
    let text = "Grüße, мир! {}[]|\\~ \"x\" 日本\n";
    desk.tell("keyboard/type", json!({ "text": text })).await;
    desk.tell("keyboard/hotkey", json!({ "keys": "ctrl+d" })).await;
    eventually("it is in the file", async || std::fs::read_to_string(&file).is_ok_and(|is| is == text)).await;
    eventually("the terminal is closed", async || {
        let windows = desk.show("display/windows").await;
        windows["windows"].as_array().unwrap().iter().all(|other| other["id"] != window["id"])
    })
    .await;

    desk.open("mousepad").await;
    let before = desk.window("Mousepad").await;
    let of = |window: &Value, side: &str| window[side].as_i64().unwrap();
    assert!(of(&before, "width") > 100 && of(&before, "height") > 100);
    // By its title, which is above what belongs to the program.
    let (x, y) = (of(&before, "x") + of(&before, "width") / 2, of(&before, "y") - 8);
    let drag = json!({ "startX": x, "startY": y, "endX": x + 60, "endY": y + 40 });
    desk.tell("mouse/drag", drag).await;
    eventually("it is elsewhere", async || {
        let after = desk.window("Mousepad").await;
        of(&after, "x") - of(&before, "x") > 30 && of(&after, "y") - of(&before, "y") > 20
    })
    .await;
}

#[tokio::test]
async fn what_programs_show_can_be_read_and_changed() {
    let Some(desk) = Desk::started().await else { return };
    let file = desk.home().join("note.txt");
    std::fs::write(&file, "old").unwrap();
    std::os::unix::fs::chown(&file, Some(UID), Some(UID)).unwrap();
    desk.open(&format!("mousepad {}", file.display())).await;
    desk.window("note.txt").await;

    let find = async |query: Value| desk.tell("a11y/find", query).await["matches"].clone();
    let mut text = Value::Null;
    eventually("the editor describes itself", async || {
        let found =
            desk.post("/computeruse/a11y/find", json!({ "role": "text", "states": ["editable"] })).await;
        text = if found.status == 200 { found.json()["matches"][0].clone() } else { Value::Null };
        !text.is_null()
    })
    .await;
    assert!(text["bounds"]["width"].as_i64().unwrap() > 100, "{text}");
    let id = text["id"].as_str().unwrap();
    desk.tell("a11y/node/value", json!({ "id": id, "value": "new grüße" })).await;
    desk.tell("a11y/node/focus", json!({ "id": id })).await;
    desk.tell("keyboard/hotkey", json!({ "keys": "ctrl+s" })).await;
    eventually("it is saved", async || std::fs::read_to_string(&file).unwrap().trim() == "new grüße").await;

    let tree = desk.show("a11y/tree").await;
    assert_eq!((&tree["root"]["name"], &tree["root"]["role"]), (&json!("mousepad"), &json!("application")));
    assert!(tree["root"]["children"][0]["children"].is_array(), "{tree}");
    let flat = desk.show("a11y/tree?scope=all&maxDepth=0").await;
    assert!(flat["root"].get("children").is_none(), "{flat}");
    let all = desk.show("a11y/tree?scope=all&maxDepth=1").await;
    let names: Vec<_> = all["root"]["children"].as_array().unwrap().iter().map(|app| &app["name"]).collect();
    assert!(names.contains(&&json!("mousepad")), "{names:?}");
    let pid = desk.execute("pgrep -x mousepad").await["result"].as_str().unwrap().trim().to_owned();
    let by_pid = desk.show(&format!("a11y/tree?scope=pid&pid={pid}&maxDepth=0")).await;
    assert_eq!(by_pid["root"]["id"], tree["root"]["id"]);

    let quit = find(json!({ "name": "^Quit$", "nameMatch": "regex", "role": "menu item" })).await;
    assert!(quit[0]["actions"].as_array().is_some_and(|actions| !actions.is_empty()), "{quit}");
    assert_eq!(
        find(json!({ "name": "Quit", "nameMatch": "exact", "limit": 1 })).await.as_array().unwrap().len(),
        1
    );
    assert_eq!(find(json!({ "name": "no such thing" })).await, json!([]));
    let refused = async |route: &str, body: Value, status: u16, code: &str| {
        desk.post(&format!("/computeruse/a11y/{route}"), body).await.expect_error(status, code);
    };
    refused("node/invoke", json!({ "id": quit[0]["id"], "action": "nosuch" }), 400, "BAD_REQUEST").await;
    refused("node/value", json!({ "id": quit[0]["id"], "value": "x" }), 400, "BAD_REQUEST").await;
    refused("find", json!({ "name": "(", "nameMatch": "regex" }), 400, "BAD_REQUEST").await;
    refused("find", json!({ "nameMatch": "odd" }), 400, "BAD_REQUEST").await;
    refused("find", json!({ "states": ["odd"] }), 400, "BAD_REQUEST").await;
    refused("find", json!({ "limit": 0 }), 400, "BAD_REQUEST").await;
    refused("find", json!({ "scope": "odd" }), 400, "BAD_REQUEST").await;
    refused("find", json!({ "scope": "pid" }), 400, "BAD_REQUEST").await;
    refused("find", json!({ "scope": "pid", "pid": 1 }), 404, "NOT_FOUND").await;
    for route in ["node/focus", "node/invoke", "node/value"] {
        refused(route, json!({ "id": "odd" }), 400, "BAD_REQUEST").await;
        refused(route, json!({ "id": ":1.2:/a//b" }), 400, "BAD_REQUEST").await;
        refused(route, json!({ "id": ":9.99999:/org/a11y/atspi/accessible/1" }), 404, "NOT_FOUND").await;
        let gone = format!("{}999999", quit[0]["id"].as_str().unwrap());
        refused(route, json!({ "id": gone }), 404, "NOT_FOUND").await;
        refused(route, json!({}), 400, "INVALID_REQUEST_BODY").await;
    }
    desk.get("/computeruse/a11y/tree?maxDepth=-2").await.expect_error(400, "BAD_REQUEST");
    desk.get("/computeruse/a11y/tree?maxDepth=x").await.expect_error(400, "BAD_REQUEST");

    desk.tell("a11y/node/invoke", json!({ "id": quit[0]["id"] })).await;
    eventually("the editor has quit", async || desk.execute("pgrep -x mousepad").await["exitCode"] == 1)
        .await;
    desk.tell("stop", json!({})).await;
    desk.get("/computeruse/a11y/tree").await.expect_error(503, "A11Y_UNAVAILABLE");
}

#[tokio::test]
async fn a_recording_can_be_played() {
    if !has_programs(&["ffmpeg", "ffprobe"]) {
        return;
    }
    let Some(desk) = Desk::started().await else { return };
    let start = async |body: Value| desk.post("/computeruse/recordings/start", body).await;

    let recording = start(json!({ "label": "my demo" })).await.expect(201).json();
    let id = recording["id"].as_str().unwrap();
    let one = format!("/computeruse/recordings/{id}");
    assert_eq!(recording["status"], "active");
    assert!(recording["fileName"].as_str().unwrap().starts_with("my_demo_"), "{recording}");
    desk.delete(&one).await.expect_error(409, "RECORDING_STILL_ACTIVE");
    desk.get(&format!("{one}/download")).await.expect_error(409, "RECORDING_STILL_ACTIVE");
    let canvas = Canvas::open(0x2288cc);
    eventually("it has some length", async || {
        desk.get(&one).await.expect(200).json()["durationSeconds"].as_f64().unwrap() > 1.5
    })
    .await;
    drop(canvas);

    let stopped = desk.tell("recordings/stop", json!({ "id": id })).await;
    assert_eq!(stopped["status"], "completed", "{stopped}");
    assert!(stopped["sizeBytes"].as_u64().unwrap() > 1000 && stopped["endTime"].is_string());
    assert_eq!(desk.show("recordings").await["recordings"], json!([stopped]));
    desk.post("/computeruse/recordings/stop", json!({ "id": id })).await.expect_error(400, "BAD_REQUEST");
    let film = desk.get(&format!("{one}/download")).await.expect(200);
    let copy = desk.dir.path().join("film.mp4");
    std::fs::write(&copy, film.bytes()).unwrap();
    let probed = std::process::Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-show_entries",
            "stream=codec_name,width,height:format=duration",
            "-of",
            "json",
        ])
        .arg(&copy)
        .output()
        .unwrap();
    assert!(probed.status.success(), "{}", String::from_utf8_lossy(&probed.stderr));
    let probed: Value = serde_json::from_slice(&probed.stdout).unwrap();
    let stream = &probed["streams"][0];
    assert_eq!(
        (&stream["codec_name"], &stream["width"], &stream["height"]),
        (&json!("h264"), &json!(1024), &json!(768))
    );
    let seconds: f64 = probed["format"]["duration"].as_str().unwrap().parse().unwrap();
    assert!(seconds > 0.5, "{seconds}");

    desk.delete(&one).await.expect(204);
    assert!(!Path::new(stopped["filePath"].as_str().unwrap()).exists());
    for answer in [desk.delete(&one).await, desk.get(&one).await, desk.get(&format!("{one}/download")).await]
    {
        answer.expect_error(404, "NOT_FOUND");
    }
    desk.post("/computeruse/recordings/stop", json!({ "id": id })).await.expect_error(404, "NOT_FOUND");
    desk.post("/computeruse/recordings/stop", json!({})).await.expect_error(400, "INVALID_REQUEST_BODY");
    start(json!({ "label": "x".repeat(101) })).await.expect_error(400, "BAD_REQUEST");
    start(json!({ "label": "a\nb" })).await.expect_error(400, "BAD_REQUEST");

    start(json!({})).await.expect(201);
    start(json!({})).await.expect(201);
    start(json!({})).await.expect_error(409, "CONFLICT");
    desk.tell("stop", json!({})).await;
    let recordings = desk.show("recordings").await;
    let statuses: Vec<_> =
        recordings["recordings"].as_array().unwrap().iter().map(|one| &one["status"]).collect();
    assert_eq!(statuses, ["completed", "completed"], "a stop finishes them: {recordings}");
}

#[tokio::test]
async fn what_makes_no_sense_to_the_desktop_is_refused() {
    let Some(desk) = Desk::started().await else { return };
    let bad = async |route: &str, body: Value| {
        let answer = desk.post(&format!("/computeruse/{route}"), body.clone()).await;
        assert_eq!(answer.status, 400, "{route} {body}: {}", answer.text());
        assert!(answer.json()["message"].as_str().unwrap().len() > 10, "{route} {body}");
    };

    for body in [
        json!({}),
        json!({ "x": 1 }),
        json!({ "x": -1, "y": 0 }),
        json!({ "x": 5000, "y": 0 }),
        json!({ "x": 1.5, "y": 2 }),
        json!({ "x": "1", "y": 2 }),
        json!({ "x": 99999999999_u64, "y": 2 }),
    ] {
        bad("mouse/move", body).await;
    }
    for body in [
        json!({ "x": 1 }),
        json!({ "button": "odd" }),
        json!({ "clicks": 0 }),
        json!({ "clicks": 11 }),
        json!({ "modifiers": ["a"] }),
        json!({ "modifiers": ["odd"] }),
        json!({ "x": 1024, "y": 767 }),
    ] {
        bad("mouse/click", body).await;
    }
    bad("mouse/drag", json!({ "startX": 1, "startY": 1, "endX": 1 })).await;
    bad("mouse/drag", json!({ "startX": 1, "startY": 1, "endX": 1, "endY": 9999 })).await;
    bad("mouse/scroll", json!({ "x": 1, "y": 1 })).await;
    bad("mouse/scroll", json!({ "x": 1, "y": 1, "direction": "odd" })).await;
    bad("mouse/scroll", json!({ "x": 1, "y": 1, "direction": "up", "amount": -1 })).await;
    bad("mouse/scroll", json!({ "x": 1, "y": 1, "direction": "up", "amount": 101 })).await;
    bad("mouse/down", json!({ "button": 1 })).await;
    bad("mouse/up", json!({ "y": 1 })).await;
    bad("keyboard/type", json!({})).await;
    bad("keyboard/type", json!({ "text": "\u{0}" })).await;
    bad("keyboard/type", json!({ "text": "x".repeat(20_001) })).await;
    bad("keyboard/type", json!({ "text": "xyz", "delay": 4_000_000_000_u64 })).await;
    bad("keyboard/key", json!({})).await;
    bad("keyboard/key", json!({ "key": "odd" })).await;
    bad("keyboard/key", json!({ "key": "a", "modifiers": ["tab"] })).await;
    for keys in ["", "ctrl+", "ctrl+odd", "+c"] {
        bad("keyboard/hotkey", json!({ "keys": keys })).await;
    }
    bad("keyboard/hotkey", json!({})).await;
    bad("keyboard/down", json!({ "key": "" })).await;
    bad("keyboard/up", json!({})).await;
    for query in [
        "region",
        "region?x=0&y=0&width=0&height=5",
        "region?x=0&y=0&width=1025&height=5",
        "region?x=-1&y=0&width=5&height=5",
        "region?x=a&y=0&width=5&height=5",
        "region?x=2147483647&y=0&width=2147483647&height=5",
        "compressed?format=odd",
        "compressed?quality=101",
        "compressed?quality=-1",
        "compressed?scale=0",
        "compressed?scale=2",
        "compressed?scale=NaN",
        "region/compressed?x=0&y=0&width=5&height=5&scale=inf",
    ] {
        let answer = desk.get(&format!("/computeruse/screenshot/{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    }
    desk.get("/computeruse/screenshot?showCursor=odd").await.expect_error(400, "BAD_REQUEST");
    for what in ["status", "logs", "errors"] {
        desk.get(&format!("/computeruse/process/odd/{what}")).await.expect_error(404, "PROCESS_NOT_FOUND");
    }
    desk.post("/computeruse/process/odd/restart", json!({})).await.expect_error(404, "PROCESS_NOT_FOUND");
    desk.get("/computeruse/recordings/odd").await.expect_error(404, "NOT_FOUND");
    let raw = desk.call(Method::POST, "/computeruse/mouse/click", Body::from("{"), &[]).await;
    raw.expect_error(400, "INVALID_REQUEST_BODY");
    // And it goes on.
    desk.tell("mouse/move", json!({ "x": 1023, "y": 767 })).await;
    desk.picture("screenshot/region?x=1023&y=767&width=1&height=1").await;

    desk.tell("stop", json!({})).await;
    let answer = desk.get("/computeruse/screenshot").await;
    assert!(answer.text().contains("POST /computeruse/start"), "{}", answer.text());
    answer.expect_error(409, "CONFLICT");
    desk.post("/computeruse/process/xvfb/restart", json!({})).await.expect_error(409, "CONFLICT");
}

/// A server that is none, as a process of the sandbox may put one there, and one that has gone.
#[tokio::test]
async fn a_display_that_is_lost_is_said_and_comes_back() {
    let Some(desk) = Desk::started().await else { return };
    let pid = rustix::process::Pid::from_raw(desk.pids().await["xvfb"] as i32).unwrap();

    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    desk.get("/computeruse/screenshot").await.expect_error(503, "SERVICE_UNAVAILABLE");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();

    eventually("there is a picture again", async || desk.get("/computeruse/screenshot").await.status == 200)
        .await;
    eventually("all of it runs again", async || desk.show("status").await["status"] == "active").await;
}

#[tokio::test]
async fn a_sandbox_without_a_desktop_says_what_it_lacks_on_every_route() {
    let world = World::new().await;
    world.post("/env", json!({ "set": { "PATH": "/nowhere" } })).await.expect(200);
    let check = |answer: crate::world::Answer, code: &str| {
        let text = answer.text();
        assert!(text.contains("Xvfb") && text.contains("x11vnc") && text.contains("atoll-desktop"), "{text}");
        answer.expect_error(503, code);
    };

    for route in [
        "status",
        "process-status",
        "process/xvfb/status",
        "process/xvfb/logs",
        "process/xvfb/errors",
        "screenshot",
        "screenshot/region?x=0&y=0&width=5&height=5",
        "screenshot/compressed",
        "screenshot/region/compressed?x=0&y=0&width=5&height=5",
        "display/info",
        "display/windows",
        "mouse/position",
        "recordings",
        "recordings/x",
        "recordings/x/download",
    ] {
        check(world.get(&format!("/computeruse/{route}")).await, "SERVICE_UNAVAILABLE");
    }
    check(world.get("/computeruse/a11y/tree").await, "A11Y_UNAVAILABLE");
    check(world.delete("/computeruse/recordings/x").await, "SERVICE_UNAVAILABLE");
    for (route, body) in [
        ("start", json!({})),
        ("stop", json!({})),
        ("process/xvfb/restart", json!({})),
        ("mouse/move", json!({ "x": 1, "y": 1 })),
        ("mouse/click", json!({})),
        ("mouse/drag", json!({ "startX": 1, "startY": 1, "endX": 2, "endY": 2 })),
        ("mouse/scroll", json!({ "direction": "up" })),
        ("mouse/down", json!({})),
        ("mouse/up", json!({})),
        ("keyboard/type", json!({ "text": "" })),
        ("keyboard/key", json!({ "key": "a" })),
        ("keyboard/hotkey", json!({ "keys": "a" })),
        ("keyboard/down", json!({ "key": "a" })),
        ("keyboard/up", json!({ "key": "a" })),
        ("recordings/start", json!({})),
        ("recordings/stop", json!({ "id": "x" })),
    ] {
        check(world.post(&format!("/computeruse/{route}"), body).await, "SERVICE_UNAVAILABLE");
    }
    for (route, body) in [
        ("find", json!({})),
        ("node/focus", json!({ "id": "x" })),
        ("node/invoke", json!({ "id": "x" })),
        ("node/value", json!({ "id": "x" })),
    ] {
        check(world.post(&format!("/computeruse/a11y/{route}"), body).await, "A11Y_UNAVAILABLE");
    }
}
