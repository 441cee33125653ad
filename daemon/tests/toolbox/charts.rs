//! Figures of Python programs, drawn by the real matplotlib.

use base64::Engine;
use serde_json::{Value, json};

use crate::world::{World, has};

async fn world() -> Option<World> {
    let world = World::new().await;
    has(&world, "python3-matplotlib", "python3 -c 'import matplotlib'").await.then_some(world)
}

async fn run_with(world: &World, mut request: Value) -> Value {
    request["language"] = json!("python");
    world.post("/process/code-run", request).await.expect(200).json()
}

async fn run(world: &World, code: &str) -> Value {
    run_with(world, json!({ "code": format!("import matplotlib.pyplot as plt\n{code}") })).await
}

/// The only chart of a program that went well and wrote nothing.
#[track_caller]
fn only_chart(ended: &Value) -> &Value {
    assert_eq!((&ended["exitCode"], &ended["result"]), (&json!(0), &json!("")), "{ended}");
    let charts = ended["artifacts"]["charts"].as_array().expect("charts");
    assert_eq!(charts.len(), 1);
    assert_is_png(&charts[0]["png"]);
    &charts[0]
}

#[track_caller]
fn assert_is_png(png: &Value) {
    let bytes = base64::engine::general_purpose::STANDARD.decode(png.as_str().expect("a picture")).unwrap();
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.len() > 500, "{} bytes", bytes.len());
}

#[tokio::test]
async fn lines_have_points_labels_ticks_and_scales() {
    let Some(world) = world().await else { return };

    let ended = run(
        &world,
        "plt.plot([1, 2, 3], [10, 100, 1000], label='up')
plt.plot([1, 2, 3], [5, float('nan'), 7])
plt.axhline(50)
plt.yscale('log'); plt.title('T'); plt.xlabel('X'); plt.ylabel('Y'); plt.xticks([1, 2, 3], ['a', 'b', 'c'])
plt.show()",
    )
    .await;

    let chart = only_chart(&ended);
    assert_eq!(
        chart["elements"],
        json!([
            { "label": "up", "points": [[1.0, 10.0], [2.0, 100.0], [3.0, 1000.0]] },
            { "label": "", "points": [[1.0, 5.0], [3.0, 7.0]] }
        ])
    );
    for (field, value) in [
        ("type", json!("line")),
        ("title", json!("T")),
        ("x_label", json!("X")),
        ("y_label", json!("Y")),
        ("x_ticks", json!([1.0, 2.0, 3.0])),
        ("x_tick_labels", json!(["a", "b", "c"])),
        ("x_scale", json!("linear")),
        ("y_scale", json!("log")),
    ] {
        assert_eq!(chart[field], value, "{field}");
    }
    let ticks = chart["y_ticks"].as_array().unwrap();
    assert!(!ticks.is_empty() && ticks.len() == chart["y_tick_labels"].as_array().unwrap().len(), "{chart}");
}

#[tokio::test]
async fn every_kind_has_its_own_elements() {
    let Some(world) = world().await else { return };

    for (code, kind, elements) in [
        (
            "plt.scatter([1, 2], [3, 4], label='s')",
            "scatter",
            json!([{ "label": "s", "points": [[1.0, 3.0], [2.0, 4.0]] }]),
        ),
        (
            "plt.bar(['a', 'b'], [1, 2.5], label='g')",
            "bar",
            json!([{ "label": "a", "value": "1", "group": "g" }, { "label": "b", "value": "2.5", "group": "g" }]),
        ),
        ("plt.barh(['a'], [7])", "bar", json!([{ "label": "a", "value": "7", "group": "" }])),
        ("plt.bar([3], [7])", "bar", json!([{ "label": "3", "value": "7", "group": "" }])),
        (
            "plt.pie([1, 3], labels=['q', 'r'])",
            "pie",
            json!([{ "label": "q", "angle": 90.0, "radius": 1.0 }, { "label": "r", "angle": 270.0, "radius": 1.0 }]),
        ),
        (
            "plt.boxplot([[1, 2, 3, 4, 5, 30]], labels=['b'])",
            "box_and_whisker",
            json!([{
                "label": "b", "min": 1.0, "first_quartile": 2.25, "median": 3.5, "third_quartile": 4.75, "max": 5.0,
                "outliers": [30.0]
            }]),
        ),
        (
            "plt.boxplot([1, 2]); plt.cla(); plt.plot([0, 1])",
            "line",
            json!([{ "label": "", "points": [[0.0, 0.0], [1.0, 1.0]] }]),
        ),
        ("plt.imshow([[1, 2], [3, 4]]); plt.colorbar()", "unknown", json!([])),
        ("plt.contourf([[1, 2], [3, 4]])", "unknown", json!([])),
        ("plt.figure().add_subplot(projection='3d').plot([1], [2], [3])", "unknown", json!([])),
    ] {
        let ended = run(&world, &format!("{code}\nplt.show()")).await;
        let chart = only_chart(&ended);
        assert_eq!((&chart["type"], &chart["elements"]), (&json!(kind), &elements), "{code}");
    }
    let grouped = run(&world, "plt.bar([-0.2, 0.8], [1, 2], 0.4, label='x'); plt.bar([0.2, 1.2], [3, 4], 0.4, label='y')\nplt.xticks([0, 1], ['m', 'n'])").await;
    let names: Vec<_> = only_chart(&grouped)["elements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bar| format!("{}{}", bar["group"], bar["label"]))
        .collect();
    assert_eq!(names, [r#""x""m""#, r#""x""n""#, r#""y""m""#, r#""y""n""#]);
    let dates = run(
        &world,
        "import datetime\nplt.plot([datetime.date(2024, 1, day) for day in (1, 2, 3)], [1, 2, 3])",
    )
    .await;
    let chart = only_chart(&dates);
    assert_eq!(
        (&chart["x_scale"], &chart["elements"][0]["points"][0]),
        (&json!("datetime"), &json!([19723.0, 1.0]))
    );
}

#[tokio::test]
async fn several_axes_are_a_composite_of_charts() {
    let Some(world) = world().await else { return };

    let code = "figure, (one, two) = plt.subplots(1, 2); figure.suptitle('both')\none.plot([1, 2], [3, 4]); one.set_title('left'); two.pie([1])\nplt.show()";
    let ended = run(&world, code).await;

    let chart = only_chart(&ended);
    assert_eq!((&chart["type"], &chart["title"]), (&json!("composite_chart"), &json!("both")));
    let parts = chart["elements"].as_array().unwrap();
    assert_eq!(
        (&parts[0]["type"], &parts[0]["title"], &parts[1]["type"]),
        (&json!("line"), &json!("left"), &json!("pie"))
    );
    assert_eq!(parts[0]["elements"][0]["points"], json!([[1.0, 3.0], [2.0, 4.0]]));
    assert_ne!(parts[0]["png"], chart["png"]);
    for part in parts {
        assert_is_png(&part["png"]);
    }
}

#[tokio::test]
async fn each_figure_is_taken_once_when_shown_or_at_the_end() {
    let Some(world) = world().await else { return };
    let titles = |ended: &Value| -> Vec<String> {
        let charts = ended["artifacts"]["charts"].as_array().cloned().unwrap_or_default();
        charts.iter().map(|chart| chart["title"].as_str().unwrap().to_owned()).collect()
    };
    let draw = |title: &str| format!("plt.figure(); plt.plot([1]); plt.title('{title}')\n");

    let shown =
        draw("a") + &draw("b") + "plt.show()\n" + &draw("c") + "plt.show()\nplt.show()\n" + &draw("open");
    assert_eq!(titles(&run(&world, &shown).await), ["a", "b", "c", "open"]);
    let single = "figure, axes = plt.subplots(); axes.set_title('single'); figure.show()";
    assert_eq!(titles(&run(&world, single).await), ["single"]);
    let closed = draw("closed") + "plt.savefig('saved.png'); plt.close()\nplt.figure()\nprint('on')";
    let ended = run(&world, &closed).await;
    assert_eq!((&ended["result"], ended.get("artifacts")), (&json!("on\n"), None));
    assert!(world.home().join("saved.png").exists());
    let failed = run(&world, &(draw("before") + "raise SystemExit(3)")).await;
    assert_eq!((&failed["exitCode"], titles(&failed)), (&json!(3), vec!["before".to_owned()]));
    let star = json!({ "code": "from pylab import *\nplot([1, 2])\ntitle('star')\nshow() # matplotlib" });
    assert_eq!(titles(&run_with(&world, star).await), ["star"]);
}

#[tokio::test]
async fn a_program_that_draws_is_otherwise_as_any_other() {
    let Some(world) = world().await else { return };

    let code = "# matplotlib
import importlib.util, os, subprocess, sys
print(sys.argv[1:], os.environ['V'], __name__, importlib.util.find_spec('matplotlib') is not None)
subprocess.run([sys.executable, '-c', 'import matplotlib.pyplot as plt; plt.plot([1]); plt.show()'], stderr=subprocess.DEVNULL)
print(subprocess.run(['ls', '/proc/self/fd'], close_fds=False, capture_output=True, text=True).stdout.split())
try: input()
except EOFError: print('end of input')
def fail():
    raise ValueError('ä')
fail()";
    let request = json!({ "code": code, "argv": ["a b", "$c"], "envs": { "V": "v" } });
    let ended = run_with(&world, request).await;

    assert_eq!(
        (&ended["exitCode"], &ended["result"], ended.get("artifacts")),
        (
            &json!(1),
            &json!(
                "['a b', '$c'] v __main__ True\n['0', '1', '2', '3']\nend of input\nTraceback (most recent call last):\n  File \"<stdin>\", line 10, in <module>\n  File \"<stdin>\", line 9, in fail\nValueError: ä\n"
            ),
            None
        ),
    );
    let syntax = run_with(&world, json!({ "code": "# matplotlib\nx = (" })).await;
    assert!(syntax["result"].as_str().unwrap().starts_with("  File \"<stdin>\", line 2\n"), "{syntax}");
    let slow =
        json!({ "code": "# matplotlib\nimport time; time.sleep(300)", "language": "python", "timeout": 1 });
    world.post("/process/code-run", slow).await.expect_error(408, "PROCESS_EXECUTION_TIMEOUT");
}

#[tokio::test]
async fn charts_are_bounded_and_what_is_none_is_left_out() {
    let Some(world) = world().await else { return };

    let many = run(&world, "plt.plot(range(1_000_000), range(1_000_000))").await;
    let points = only_chart(&many)["elements"][0]["points"].as_array().unwrap();
    assert_eq!((points.len(), &points[19_999]), (20_000, &json!([999_999.0, 999_999.0])));
    // A program may find the descriptor and write what it likes: that is at most no chart, and never an endless one.
    let forged = "import os, stat
for n in range(3, 20):
    try:
        if n > 2 and stat.S_ISFIFO(os.fstat(n).st_mode):
            os.write(n, b'nonsense\\n{\"type\": 7}\\n{\"type\": \"line\", \"title\": \"own\", \"more\": 1}\\n')
            for _ in range(400): os.write(n, b'x' * 100_000)
    except OSError: pass
print('done')";
    let ended = run(&world, forged).await;
    assert_eq!(ended["result"], "done\n");
    assert_eq!(ended["artifacts"]["charts"], json!([{ "type": "line", "title": "own", "elements": [] }]));
    let peak = crate::processes::status_kib(world.pid(), "VmHWM");
    assert!(peak < 100 * 1024, "the daemon took {peak} KiB for it");
}

/// Reads answers as the unmodified client does, and says which classes it made of them.
const CLIENT: &str = "
import json, sys
from daytona.common.charts import parse_chart
from daytona_toolbox_api_client import CodeRunResponse
for answer in json.load(sys.stdin):
    for chart in CodeRunResponse.from_dict(answer).artifacts.charts:
        parsed = parse_chart(chart)
        assert len(parsed.elements) == len(chart.elements)
        print(type(parsed).__name__, parsed.title)
";

#[tokio::test]
async fn the_client_makes_its_own_classes_of_them() {
    let Some(world) = world().await else { return };
    let Ok(python) = std::env::var("ATOLL_PYTHON") else {
        assert!(
            std::env::var("ATOLL_TESTS_REQUIRE_ALL").is_err(),
            "ATOLL_PYTHON does not name the client's python"
        );
        println!("skipped: ATOLL_PYTHON does not name the client's python");
        return;
    };
    let mut answers = Vec::new();
    for draw in [
        "plt.plot([1, 2])",
        "plt.scatter([1], [2])",
        "plt.bar(['a'], [1])",
        "plt.pie([1])",
        "plt.boxplot([1, 2, 9])",
        "plt.subplots(1, 2)",
        "plt.imshow([[1]])",
    ] {
        answers.push(run(&world, &format!("{draw}\nplt.gcf().suptitle('t')\nplt.show()")).await);
    }

    let answers = serde_json::to_vec(&answers).unwrap();
    let parsed = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut client = Command::new(python)
            .args(["-c", CLIENT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        client.stdin.take().unwrap().write_all(&answers).unwrap();
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    });

    assert_eq!(
        parsed.await.unwrap().lines().collect::<Vec<_>>(),
        [
            "LineChart t",
            "ScatterChart t",
            "BarChart t",
            "PieChart t",
            "BoxAndWhiskerChart t",
            "CompositeChart t",
            "Chart t"
        ]
    );
}
