//! Figures of a Python program as `artifacts.charts`: the program runs below `charts.py`, which describes them on a descriptor of
//! its own, so that no output of the program can be taken for a chart and no chart stands in its output.

use serde::{Deserialize, Serialize};

use crate::output::Stream;

const WRAPPER: &str = include_str!("charts.py");
/// Only programs that name one of these are wrapped. A name in a comment does no harm.
const LIBRARIES: [&str; 3] = ["matplotlib", "seaborn", "pandas"];
/// Of one answer, pictures included. A chart that does not fit is left out, and what comes after it.
const CHARTS_BYTES_MAX: usize = 16 * 1024 * 1024;
const CHARTS_MAX: usize = 100;

pub fn may_draw(code: &str) -> bool {
    LIBRARIES.iter().any(|library| code.contains(library))
}

/// The program for the interpreter. JSON's way of writing a text is one of Python's.
pub fn wrapped(code: &str, descriptor: std::os::fd::RawFd) -> String {
    let literal = serde_json::to_string(code).expect("a text is always JSON");
    format!("{WRAPPER}run({descriptor}, {literal})\n")
}

/// Exactly what clients know. What the program adds is not passed on, and what has another type is no chart.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Chart {
    r#type: String,
    title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    png: Option<String>,
    elements: Vec<Element>,
    #[serde(flatten)]
    axes: Axes,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Axes {
    #[serde(skip_serializing_if = "Option::is_none")]
    x_label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y_label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_ticks: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y_ticks: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_tick_labels: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y_tick_labels: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_scale: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y_scale: Option<String>,
}

/// A line's points, a bar, a wedge, a box, or a whole chart within a composite one. Only what it has is said.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Element {
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    points: Option<Vec<Vec<f64>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    angle: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    radius: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_quartile: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    third_quartile: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outliers: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    png: Option<String>,
    /// Of a chart within a chart.
    #[serde(skip_serializing_if = "Option::is_none")]
    elements: Option<Vec<Element>>,
    #[serde(flatten)]
    axes: Axes,
}

/// One chart a line, until the program has ended. All is read, or the program would wait; what is too much is forgotten.
pub async fn read(mut stream: Stream) -> Vec<Chart> {
    let (mut charts, mut line, mut total_bytes) = (Vec::new(), Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            total_bytes += piece.len();
            if total_bytes > CHARTS_BYTES_MAX || charts.len() >= CHARTS_MAX {
                line = Vec::new();
                continue;
            }
            line.extend_from_slice(piece);
            if line.ends_with(b"\n") {
                charts.extend(serde_json::from_slice::<Chart>(&line).ok());
                line.clear();
            }
        }
    }
    charts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_only_what_clients_know() {
        let given = r#"{"type":"bar","title":"t","x_scale":"linear","evil":1,"elements":[{"label":"a","value":"1","more":{}}]}"#;

        let chart: Chart = serde_json::from_str(given).unwrap();

        assert_eq!(
            serde_json::to_value(&chart).unwrap(),
            serde_json::json!({
                "type": "bar", "title": "t", "x_scale": "linear", "elements": [{ "label": "a", "value": "1" }]
            })
        );
        assert!(serde_json::from_str::<Chart>(r#"{"elements":[{"value":1}]}"#).is_err());
    }

    #[test]
    fn a_program_is_a_text_of_the_wrapper() {
        let program = wrapped("print('\"\\')\n\u{1}", 7);

        assert!(program.ends_with("\nrun(7, \"print('\\\"\\\\')\\n\\u0001\")\n"), "{program}");
        assert!(may_draw("from  matplotlib import pyplot") && !may_draw("print(1)"));
    }
}
