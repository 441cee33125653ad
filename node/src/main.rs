//! The binary `atoll`: one program, every node the same.

mod account;
mod activity;
mod admission;
mod blobs;
mod boot;
mod build_logs;
mod captures;
mod catalogue;
mod claims;
mod cli;
mod client;
mod clock;
mod config;
mod control;
mod copies;
mod credentials;
mod cursor;
mod dev;
mod dialer;
mod directory;
mod doctor;
mod duties;
mod events;
mod files;
mod founding;
mod heartbeat;
mod idle;
mod image_names;
mod images;
mod joining;
mod local;
mod make_config;
mod objects;
mod owner;
mod parent;
mod peers;
mod place;
mod privileges;
mod refill;
mod registry;
mod rest;
mod runner;
mod runtimes;
mod service_manager;
mod signals;
mod streams;
mod trust;
mod tunnel;
mod unbuilt;
mod upkeep;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use cli::{Cli, ClusterCommand, Command, JoinArgs, LifeArgs, NodeCommand, TokenCommand};
use config::Config;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else has installed a provider");
    match begin(cli.command) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// What is done as the only thread: a process that is to be another user becomes it here.
fn begin(command: Command) -> Result<ExitCode> {
    match command {
        Command::Node(NodeCommand::Start(args)) => {
            let config = node_process(Config::load(&args.config)?, &args.config, &args.life)?;
            on_threads(Threads::OnePerCore, start_node(config, args.life))
        }
        Command::Node(NodeCommand::Join(args)) => {
            let made = make_config::given_or_made(args.config.as_deref(), &args.make, &args.region)?;
            let config = node_process(made.0, &made.1, &args.life)?;
            on_threads(Threads::OnePerCore, join(config, made.1, *args))
        }
        Command::Cluster(ClusterCommand::Init { region, config, make }) => {
            let (mut config, path) = make_config::given_or_made(config.as_deref(), &make, &region)?;
            privileges::take_on_node_user(&mut config)?;
            let founded = founding::found(&config)?;
            eprintln!("The cluster's first API key, shown only now:");
            println!("{}", founded.api_key.reveal());
            eprintln!("organization {}, node {}", founded.organization_id, founded.node_id);
            let path = path.display();
            eprintln!(
                "Next, as root: atoll runner --config {path}\nand beside it: atoll node start --config {path}"
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Zygote { state_dir } => {
            atoll_runner::embedded::zygote::run(&state_dir).context("make sandboxes' first processes")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Runner(args) => on_threads(Threads::Two, async {
            runner::run(args, signals::stop_requested()?).await?;
            Ok(ExitCode::SUCCESS)
        }),
        command => on_threads(Threads::OnePerCore, run(command)),
    }
}

enum Threads {
    OnePerCore,
    /// For a process that mostly waits for the kernel.
    Two,
}

fn on_threads(threads: Threads, work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Threads::Two = threads {
        builder.worker_threads(2);
    }
    let runtime = builder.enable_all().build().context("start the threads")?;
    let outcome = runtime.block_on(work);
    // A blocked thread (a stuck disk, say) must not keep a stopped process alive.
    runtime.shutdown_background();
    outcome
}

/// Starts the runner where that is wanted, and gives root's rights up.
fn node_process(mut config: Config, path: &Path, life: &LifeArgs) -> Result<Config> {
    if life.with_runner {
        runner::spawn_child(path)?;
    }
    privileges::take_on_node_user(&mut config)?;
    Ok(config)
}

async fn start_node(config: Config, life: LifeArgs) -> Result<ExitCode> {
    let stop = signals::stop_requested()?;
    parent::follow(life.parent, &stop)?;
    boot::run(config, stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn join(config: Config, path: PathBuf, args: JoinArgs) -> Result<ExitCode> {
    let token = args.token.parse().context("--token")?;
    let node_id = joining::join_cluster(&config, &args.peer, &token).await?;
    eprintln!("node {node_id} joined; start it again with: atoll node start --config {}", path.display());
    match args.no_start {
        true => Ok(ExitCode::SUCCESS),
        false => start_node(config, args.life).await,
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Cluster(ClusterCommand::Token(TokenCommand::Create { ttl_s, uses, api })) => {
            client::Client::new(&api)?.create_token(ttl_s, uses).await?;
        }
        Command::Cluster(ClusterCommand::Status(api)) => client::Client::new(&api)?.cluster_status().await?,
        Command::Dev(args) => dev::run(args, signals::stop_requested()?).await?,
        Command::Doctor(args) => return doctor::run(args).await,
        Command::Sandbox(command) => return client::run(command).await,
        Command::Node(_)
        | Command::Runner(_)
        | Command::Zygote { .. }
        | Command::Cluster(ClusterCommand::Init { .. }) => {
            unreachable!("begun above")
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    // Pingora logs each virtual socket that is not pooled as an error; here that is the design. openraft logs every
    // heartbeat that a dead peer does not answer; what follows from it our own crates say once.
    let filter = EnvFilter::try_from_env("ATOLL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=off,pingora_core=off,pingora_proxy=off,sled=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("ATOLL_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.with_ansi(false).init();
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("atoll: {error:#}");
    ExitCode::FAILURE
}
