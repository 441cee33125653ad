//! Atoll's figures beside their references. Drives a cluster from outside, by the ready file of `atoll dev`; a figure and its
//! reference are taken in turn, in the same run, on the same machine.

mod cluster;
mod measure;
mod report;

mod background;
mod docker;
mod etcd;
mod ports;
mod process;
mod serve;
mod traces;

mod alone;

mod burst;
mod commit;
mod create;
mod delete;
mod exec;
mod files;
mod idle;
mod live;
mod preview;
mod ssh;
mod starts;
mod warm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use alone::Parts;
use cluster::Cluster;
use docker::Engine;
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
    /// Measures the embedded runtime alone, without any cluster and without Docker.
    Starts(StartsArgs),
    /// Answers every HTTP/1.1 request with the same small page: what both proxies of the preview measurement lead to.
    Serve {
        #[arg(long, default_value_t = preview::SERVER_PORT)]
        port: u16,
    },
    /// What a runtime that is measured alone starts by itself.
    #[command(name = alone::ZYGOTE, hide = true)]
    Zygote { state_dir: PathBuf },
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
    #[command(flatten)]
    base: BaseArgs,
    /// Idle sandboxes that are kept at once. The nodes must promise enough for them (`atoll dev --sandboxes-max`).
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    many: usize,
    /// What to measure; everything when left out.
    #[arg(value_enum)]
    what: Vec<Measurement>,
}

#[derive(Debug, Args)]
struct StartsArgs {
    /// The daemon's static binary: `target/daemon-static/<target>/daemon/atoll-daemon` after a build of the node.
    #[arg(long)]
    daemon: PathBuf,
    /// A folder on the disk that is to be measured.
    #[arg(long)]
    work_dir: PathBuf,
    /// A tenth of the samples.
    #[arg(long)]
    smoke: bool,
    #[command(flatten)]
    base: BaseArgs,
}

/// The base snapshot, as `deploy/base/build.sh` leaves it.
#[derive(Debug, Args)]
struct BaseArgs {
    /// Its name, both in Docker and in the OCI layout.
    #[arg(long, default_value = "atoll-base:latest")]
    image: String,
    #[arg(long, value_name = "DIR", default_value = "/var/cache/atoll/base/atoll-base.oci")]
    seed: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    Create,
    /// The embedded runtime alone.
    Starts,
    Warm,
    Burst,
    Delete,
    Exec,
    /// Into a sandbox and out of it.
    Files,
    /// A followed log, and the echo of a terminal.
    Live,
    Idle,
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
    if let Command::Zygote { state_dir } = &cli.command {
        // Before there is a second thread: it makes processes by copying itself.
        return exit_code(atoll_runner::embedded::zygote::run(state_dir).context("make inits"));
    }
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else has installed a provider");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    exit_code(runtime.context("start the threads").and_then(|runtime| {
        runtime.block_on(async {
            match cli.command {
                Command::Run(args) => run(args).await,
                Command::Starts(args) => starts_alone(args).await,
                Command::Serve { port } => serve::serve(port).await,
                Command::Zygote { .. } => unreachable!("has had its turn"),
            }
        })
    }))
}

fn exit_code(ended: Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atoll-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Effort {
    fn of(smoke: bool) -> Effort {
        Effort { divisor: if smoke { 10 } else { 1 } }
    }
}

async fn starts_alone(args: StartsArgs) -> Result<()> {
    let parts = Parts {
        daemon: args.daemon,
        seed: args.base.seed,
        image: args.base.image,
        work_dir: std::path::absolute(args.work_dir).context("make --work-dir absolute")?,
    };
    let mut report = Report::new();
    report.begin();
    starts::measure(&parts, None, Effort::of(args.smoke), &mut report).await?;
    report.end();
    print!("{report}");
    Ok(())
}

async fn run(args: RunArgs) -> Result<()> {
    let cluster = Cluster::open(&args.ready_file)?;
    let work_dir = match args.work_dir {
        Some(dir) => dir,
        None => cluster.disk_dir()?,
    };
    let effort = Effort::of(args.smoke);
    let image = args.base.image.as_str();
    let all = Measurement::value_variants();
    let wanted = all.iter().filter(|one| args.what.is_empty() || args.what.contains(one));
    let mut report = Report::new();
    let mut failed = Vec::new();
    for measurement in wanted {
        eprintln!("== {measurement:?}, load {}", report::load_average());
        report.begin();
        let measured = match measurement {
            Measurement::Create => create::measure(&cluster, image, effort, &mut report).await,
            Measurement::Starts => match parts_of(&cluster, &args.base, &work_dir) {
                Ok(parts) => starts::measure(&parts, Some(&Engine::open()?), effort, &mut report).await,
                Err(error) => Err(error),
            },
            Measurement::Warm => warm::measure(&cluster, effort, &mut report).await,
            Measurement::Burst => burst::measure(&cluster, effort, &mut report).await,
            Measurement::Delete => delete::measure(&cluster, image, effort, &mut report).await,
            Measurement::Exec => match parts_of(&cluster, &args.base, &work_dir) {
                Ok(parts) => exec::measure(&cluster, &parts, effort, &mut report).await,
                Err(error) => Err(error),
            },
            Measurement::Files => files::measure(&cluster, image, &work_dir, effort, &mut report).await,
            Measurement::Live => live::measure(&cluster, effort, &mut report).await,
            Measurement::Idle => idle::measure(&cluster, args.many, effort, &mut report).await,
            Measurement::Commit => commit::measure(&cluster, &work_dir, effort, &mut report).await,
            Measurement::Preview => preview::measure(&cluster, image, &work_dir, effort, &mut report).await,
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

/// With the daemon that the nodes put into their sandboxes.
fn parts_of(cluster: &Cluster, base: &BaseArgs, work_dir: &Path) -> Result<Parts> {
    let (image, seed, work_dir) = (base.image.clone(), base.seed.clone(), work_dir.to_owned());
    Ok(Parts { daemon: cluster.nodes()[0].daemon()?, seed, image, work_dir })
}
