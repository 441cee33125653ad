//! Atoll's figures beside their references. Drives a cluster from outside, by the ready file of `atoll dev`; a figure and its
//! reference are taken in turn, in the same run, on the same machine.

mod background;
mod cluster;
mod commit;
mod create;
mod docker;
mod etcd;
mod exec;
mod measure;
mod ports;
mod preview;
mod report;
mod serve;
mod ssh;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use cluster::Cluster;
use report::Report;

#[derive(Debug, Parser)]
#[command(about = "Measures an Atoll cluster beside what its users would take instead")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures, and prints a Markdown table. Progress goes to stderr.
    Run(RunArgs),
    /// Answers every HTTP/1.1 request with the same small page: what both proxies of the preview measurement lead to.
    Serve {
        #[arg(long, default_value_t = preview::SERVER_PORT)]
        port: u16,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Written by `atoll dev --ready-file`.
    #[arg(long)]
    ready_file: PathBuf,
    /// Where the references keep their data: on the disk of the nodes, or the comparison is none. Default: beside it.
    #[arg(long)]
    work_dir: Option<PathBuf>,
    /// A tenth of the samples, to see whether everything works. Its figures are worth nothing.
    #[arg(long)]
    smoke: bool,
    /// What to measure; everything when left out.
    #[arg(value_enum)]
    what: Vec<Measurement>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    Create,
    Exec,
    Commit,
    Preview,
    Ssh,
}

/// How many samples each measurement takes.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    divisor: usize,
}

impl Effort {
    pub fn samples(self, whole: usize) -> usize {
        (whole / self.divisor).max(2)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else has installed a provider");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.context("start the threads").and_then(|runtime| {
        runtime.block_on(async {
            match cli.command {
                Command::Run(args) => run(args).await,
                Command::Serve { port } => serve::serve(port).await,
            }
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atoll-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: RunArgs) -> Result<()> {
    let cluster = Cluster::open(&args.ready_file)?;
    let work_dir = match args.work_dir {
        Some(dir) => dir,
        None => cluster.disk_dir()?,
    };
    let effort = Effort { divisor: if args.smoke { 10 } else { 1 } };
    let all = Measurement::value_variants();
    let wanted = all.iter().filter(|one| args.what.is_empty() || args.what.contains(one));
    let mut report = Report::new();
    let mut failed = Vec::new();
    for measurement in wanted {
        eprintln!("== {measurement:?}, load {}", report::load_average());
        report.begin();
        let measured = match measurement {
            Measurement::Create => create::measure(&cluster, effort, &mut report).await,
            Measurement::Exec => exec::measure(&cluster, effort, &mut report).await,
            Measurement::Commit => commit::measure(&cluster, &work_dir, effort, &mut report).await,
            Measurement::Preview => preview::measure(&cluster, &work_dir, effort, &mut report).await,
            Measurement::Ssh => ssh::measure(&cluster, &work_dir, effort, &mut report).await,
        };
        report.end();
        // The others are worth having all the same.
        if let Err(error) = measured {
            eprintln!("   failed: {error:#}");
            report.note(format!("{measurement:?} was not measured to its end: {error:#}"));
            failed.push(*measurement);
        }
    }
    print!("{report}");
    ensure!(failed.is_empty(), "not measured to the end: {failed:?}");
    Ok(())
}
