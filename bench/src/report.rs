//! The table that is printed at the end: each figure beside its reference, both with the number of samples.

use std::fmt;

use crate::measure::{Samples, Unit};

pub struct Report {
    rows: Vec<Row>,
    figures: Vec<Figure>,
    breakdowns: Vec<Breakdown>,
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

/// One that stands beside what it is to be, and no reference.
struct Figure {
    what: String,
    samples: Samples,
    target: String,
}

/// The parts of something, each in several ways that it can go.
pub struct Breakdown {
    pub what: String,
    pub ways: Vec<String>,
    /// A part and its samples in each way.
    pub parts: Vec<(String, Vec<Samples>)>,
}

impl Report {
    pub fn new() -> Report {
        Report {
            rows: Vec::new(),
            figures: Vec::new(),
            breakdowns: Vec::new(),
            notes: Vec::new(),
            began_with_load: load_average(),
            loads: Vec::new(),
        }
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

    pub fn figure(&mut self, what: &str, samples: &Samples, target: &str) {
        let (median, p99) = (value(samples.median(), samples.unit()), value(samples.p99(), samples.unit()));
        eprintln!("   {what}: median {median}, p99 {p99}, {} samples; target {target}", samples.len());
        let (what, target) = (what.to_owned(), target.to_owned());
        self.figures.push(Figure { what, samples: samples.clone(), target });
    }

    pub fn break_down(&mut self, breakdown: Breakdown) {
        self.breakdowns.push(breakdown);
    }

    /// What a reader must know to judge the rows.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.rows.is_empty() {
            writeln!(
                f,
                "| what | Atoll: median | p99 | n | reference | median | p99 | n | Atoll ÷ reference |"
            )?;
            writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        }
        for Row { what, ours, reference_name, reference } in &self.rows {
            let (ours_cells, reference_cells) = (cells(ours), cells(reference));
            let ratio = ours.ratio_to(reference);
            writeln!(f, "| {what} | {ours_cells} | {reference_name} | {reference_cells} | {ratio:.2} |")?;
        }
        if !self.figures.is_empty() {
            writeln!(f, "\n| what | median | p99 | n | target |\n|---|---|---|---|---|")?;
        }
        for Figure { what, samples, target } in &self.figures {
            writeln!(f, "| {what} | {} | {target} |", cells(samples))?;
        }
        for breakdown in &self.breakdowns {
            write!(f, "\n{breakdown}")?;
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

impl fmt::Display for Breakdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} |", self.what)?;
        self.ways.iter().try_for_each(|way| write!(f, " {way}: median | p99 |"))?;
        writeln!(f, "\n|---|{}", "---|".repeat(2 * self.ways.len()))?;
        for (part, ways) in &self.parts {
            write!(f, "| {part} |")?;
            for samples in ways {
                let [median, p99] = [samples.median(), samples.p99()].map(|one| value(one, samples.unit()));
                write!(f, " {median} | {p99} |")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn cells(samples: &Samples) -> String {
    let p99 = match samples.unit() {
        Unit::Milliseconds | Unit::Mebibytes if samples.len() > 1 => value(samples.p99(), samples.unit()),
        // Each rate is a slice of the run, and there are few: a percentile would say nothing. Nor of a single one.
        _ => "–".to_owned(),
    };
    format!("{} | {p99} | {}", value(samples.median(), samples.unit()), samples.len())
}

fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Milliseconds if value < 10.0 => format!("{value:.2} ms"),
        Unit::Milliseconds => format!("{value:.1} ms"),
        Unit::PerSecond => format!("{value:.0}/s"),
        Unit::Mebibytes => format!("{value:.2} MiB"),
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
        assert!(table.contains("| create | 50.0 ms | – | 1 | docker | 100.0 ms | – | 1 | 0.50 |"), "{table}");
    }

    #[test]
    fn figures_and_parts_have_tables_of_their_own() {
        let mut report = Report::new();
        let latencies =
            |ms: &[u64]| Samples::of_latencies(ms.iter().map(|ms| Duration::from_millis(*ms))).unwrap();

        report.figure("memory", &Samples::of_mebibytes(vec![2.5]).unwrap(), "≤ 5 MB");
        report.break_down(Breakdown {
            what: "step".into(),
            ways: vec!["parked".into(), "in line".into()],
            parts: vec![("exec".into(), vec![latencies(&[1, 2, 3]), latencies(&[4])])],
        });

        let table = report.to_string();
        assert!(table.contains("\n| memory | 2.50 MiB | – | 1 | ≤ 5 MB |\n"), "{table}");
        let parts = "| step | parked: median | p99 | in line: median | p99 |\n|---|---|---|---|---|\n\
                     | exec | 2.00 ms | 3.00 ms | 4.00 ms | 4.00 ms |\n";
        assert!(table.contains(parts), "{table}");
    }

    #[test]
    fn rates_have_no_percentile() {
        assert_eq!(cells(&Samples::of_rates(vec![1200.4]).unwrap()), "1200/s | – | 1");
    }
}
