//! The process inside a sandbox: toolbox HTTP, sessions, terminals, files and SSH channels for its own node.
//!
//! It knows one sandbox, itself. Its runtime has one thread (see [`reaper`] for what rests on that); file work runs on a few
//! threads that act as the user (see [`files::workers`]).

mod boot;

mod accounts;
mod environment;
mod inherited;
mod launch;
mod polled;
mod processes;
mod programs;
mod reaper;
mod shells;
mod utf8;
mod write_signals;

mod errors;
mod gate;
mod identity;
mod linger;
mod routes;
mod websocket;

mod channel;
mod desktop;
mod files;
mod git;
mod guests;
mod info;
mod interleaved;
mod interpreter;
mod lsp;
mod metrics;
mod output;
mod ports;
mod process;
mod proxy;
mod pty;
mod session;
mod web_terminal;

use std::process::ExitCode;

const USAGE: &str = "usage: atoll-daemon [--config FILE|fd:N] [--hello SOCKET|fd:N] [--listen ADDRESS] [--accounts-dir DIR] [--state-dir DIR]
       atoll-daemon sftp-server      (SFTP version 3 on standard input and output)
       atoll-daemon desktop-agent    (answers questions about an X display, one JSON line each)
       atoll-daemon --version";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let outcome = match args.next().as_deref() {
        Some("sftp-server") => channel::sftp::serve_stdio(),
        Some("desktop-agent") => desktop::agent::serve_stdio(),
        Some("--version") => {
            println!("atoll-daemon {}", info::VERSION);
            Ok(())
        }
        Some("--help" | "-h") => {
            println!("{USAGE}");
            Ok(())
        }
        first => match boot::Options::parse(first.map(str::to_owned).into_iter().chain(args)) {
            Ok(options) => boot::run(options),
            Err(message) => {
                eprintln!("{message}\n{USAGE}");
                return ExitCode::from(2);
            }
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atoll-daemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}
