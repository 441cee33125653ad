//! The binary `atoll`: one program, every node the same.

mod activity;
mod admission;
mod boot;
mod cli;
mod client;
mod clock;
mod config;
mod control;
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
mod joining;
mod local;
mod make_config;
mod owner;
mod peers;
mod rest;
mod runtimes;
mod signals;
mod streams;
mod trust;
mod tunnel;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use cli::{Cli, ClusterCommand, Command, NodeCommand, TokenCommand};
use config::Config;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else has installed a provider");
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("start the threads")),
    };
    let outcome = runtime.block_on(run(cli.command));
    // A blocked thread (a stuck disk, say) must not keep a stopped node alive.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Node(NodeCommand::Start(arg)) => {
            boot::run(Config::load(&arg.config)?, signals::stop_requested()?).await?;
        }
        Command::Node(NodeCommand::Join(args)) => {
            let (config, path) =
                make_config::given_or_made(args.config.as_deref(), &args.make, &args.region)?;
            let token = args.token.parse().context("--token")?;
            let node_id = joining::join_cluster(&config, &args.peer, &token).await?;
            eprintln!(
                "node {node_id} joined; start it again with: atoll node start --config {}",
                path.display()
            );
            if !args.no_start {
                boot::run(config, signals::stop_requested()?).await?;
            }
        }
        Command::Cluster(ClusterCommand::Init { region, config, make }) => {
            let (config, path) = make_config::given_or_made(config.as_deref(), &make, &region)?;
            let founded = founding::found(&config)?;
            eprintln!("The cluster's first API key, shown only now:");
            println!("{}", founded.api_key.reveal());
            eprintln!("organization {}, node {}", founded.organization_id, founded.node_id);
            eprintln!("Next: atoll node start --config {}", path.display());
        }
        Command::Cluster(ClusterCommand::Token(TokenCommand::Create { ttl_s, uses, api })) => {
            client::Client::new(&api)?.create_token(ttl_s, uses).await?;
        }
        Command::Cluster(ClusterCommand::Status(api)) => client::Client::new(&api)?.cluster_status().await?,
        Command::Dev(args) => dev::run(args, signals::stop_requested()?).await?,
        Command::Doctor(args) => return doctor::run(args).await,
        Command::Sandbox(command) => return client::run(command).await,
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
