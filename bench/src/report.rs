//! The table that is printed at the end: each figure beside its reference, both with the number of samples.

use std::fmt;

use crate::measure::{Samples, Unit};

pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    began_with_load: String,
    loads: Vec<String>,
}

struct Row {
    what: String,
    ours: Samples,
    reference_name: String,
    reference: Samples,
}

impl Report {
    pub fn new() -> Report {
        Report { rows: Vec::new(), notes: Vec::new(), began_with_load: load_average(), loads: Vec::new() }
    }

    pub fn begin(&mut self) {
        self.began_with_load = load_average();
    }

    pub fn end(&mut self) {
        self.loads.push(format!("{} → {}", self.began_with_load, load_average()));
    }

    pub fn compare(&mut self, what: &str, ours: &Samples, reference_name: &str, reference: &Samples) {
        eprintln!(
            "   {what}: {} against {} of {reference_name}",
            value(ours.median(), ours.unit()),
            value(reference.median(), reference.unit())
        );
        self.rows.push(Row {
            what: what.to_owned(),
            ours: ours.clone(),
            reference_name: reference_name.to_owned(),
            reference: reference.clone(),
        });
    }

    /// What a reader must know to judge the rows.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | Atoll: median | p99 | n | reference | median | p99 | n | Atoll ÷ reference |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for Row { what, ours, reference_name, reference } in &self.rows {
            let (ours_cells, reference_cells) = (cells(ours), cells(reference));
            let ratio = ours.ratio_to(reference);
            writeln!(f, "| {what} | {ours_cells} | {reference_name} | {reference_cells} | {ratio:.2} |")?;
        }
        writeln!(f)?;
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        writeln!(f, "- Machine: {cores} cores, {}.", cpu_model())?;
        writeln!(f, "- Load averages (1, 5, 15 minutes) around each part: {}.", self.loads.join("; "))
    }
}

fn cells(samples: &Samples) -> String {
    let p99 = match samples.unit() {
        Unit::Milliseconds => value(samples.p99(), samples.unit()),
        // Each sample is a slice of the run, and there are few: a percentile would say nothing.
        Unit::PerSecond => "–".to_owned(),
    };
    format!("{} | {p99} | {}", value(samples.median(), samples.unit()), samples.len())
}

fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Milliseconds if value < 10.0 => format!("{value:.2} ms"),
        Unit::Milliseconds => format!("{value:.1} ms"),
        Unit::PerSecond => format!("{value:.0}/s"),
    }
}

pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| "unknown CPU".to_owned(), |(_, model)| model.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_row_shows_both_sides_and_their_ratio() {
        let mut report = Report::new();
        let side = |ms| Samples::of_latencies([Duration::from_millis(ms)]).unwrap();

        report.compare("create", &side(50), "docker", &side(100));

        let table = report.to_string();
        assert!(
            table.contains("| create | 50.0 ms | 50.0 ms | 1 | docker | 100.0 ms | 100.0 ms | 1 | 0.50 |"),
            "{table}"
        );
    }

    #[test]
    fn rates_have_no_percentile() {
        assert_eq!(cells(&Samples::of_rates(vec![1200.4]).unwrap()), "1200/s | – | 1");
    }
}
