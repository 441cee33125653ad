//! A session channel with a program behind it: the client's input to the daemon, its output back, its exit reported.

use std::sync::Arc;

use atoll_api::access::Target;
use atoll_api::channel::{ChannelExit, ChannelOpen, FRAME_BYTES_MAX, FrameKind};
use bytes::Bytes;
use russh::server::{Handle, Msg};
use russh::{ChannelWriteHalf, Sig};
use tracing::debug;

use crate::access::{Access, new_request_id};
use crate::daemon_channel::{self, FrameReader, FrameWriter};
use crate::input::{Input, InputEvent};
use crate::refusal::{EXIT_NOT_RUN, Refusal};

/// Extended data of this type is standard error (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// The client's end of an open channel.
pub(crate) struct ClientEnd {
    pub(crate) input: Arc<Input>,
    pub(crate) output: ChannelWriteHalf<Msg>,
    pub(crate) session: Handle,
}

impl ClientEnd {
    /// Says that input has reached the far side, and lets the client send as much again.
    pub(crate) fn consumed(&self, bytes: usize) {
        if let Some(grant) = self.input.consumed(bytes) {
            // It fails only when the session has ended, which cancels this task too.
            let _ = self.session.grant_window(self.output.id(), grant);
        }
    }
}

/// Runs one program to its end. What goes wrong before its exit is told on standard error and exits with 255.
/// Cancelled by the caller when the client closes the channel.
pub(crate) async fn run(access: Arc<Access>, open: ChannelOpen, client: ClientEnd) {
    let outcome = match start(&access, &open).await {
        Ok((reader, writer)) => serve(&access, reader, writer, &client).await,
        Err(refusal) => Err(refusal),
    };
    if let Err(error) = report(outcome, &client).await {
        debug!(%error, "the client left before the exit was reported");
    }
}

async fn start(access: &Access, open: &ChannelOpen) -> Result<(FrameReader, FrameWriter), Refusal> {
    let request_id = new_request_id();
    let stream = access.dial(Target::Daemon, &request_id).await?;
    daemon_channel::open(stream, &request_id, open).await
}

async fn serve(
    access: &Access,
    reader: FrameReader,
    writer: FrameWriter,
    client: &ClientEnd,
) -> Result<ChannelExit, Refusal> {
    let output = pump_output(access, reader, client);
    tokio::pin!(output);
    tokio::select! {
        exit = &mut output => exit,
        // The daemon takes no more input; its last output and exit may still be under way.
        _lost = pump_input(access, writer, client) => output.await,
    }
}

/// Ends only when the daemon no longer takes input: after the end of file there may still come signals and sizes.
pub(crate) async fn pump_input(access: &Access, mut writer: FrameWriter, client: &ClientEnd) -> Refusal {
    loop {
        let event = client.input.next(FRAME_BYTES_MAX).await;
        let written = match &event {
            InputEvent::Bytes(bytes) => writer.write(FrameKind::Stdin, bytes).await,
            InputEvent::Eof => writer.write(FrameKind::StdinEof, &[]).await,
            InputEvent::Signal(name) => writer.write(FrameKind::Signal, name.as_bytes()).await,
            InputEvent::Resize(size) => {
                let size = serde_json::to_vec(size).expect("two numbers are JSON");
                writer.write(FrameKind::Resize, &size).await
            }
        };
        if let Err(refusal) = written {
            return refusal;
        }
        if let InputEvent::Bytes(bytes) = event {
            access.activity().bytes_passed();
            client.consumed(bytes.len());
        }
    }
}

async fn pump_output(
    access: &Access,
    mut reader: FrameReader,
    client: &ClientEnd,
) -> Result<ChannelExit, Refusal> {
    loop {
        match reader.next().await? {
            Some((FrameKind::Stdout, bytes)) => {
                access.activity().bytes_passed();
                client.output.data_bytes(bytes).await.map_err(|_| Refusal::Lost)?;
            }
            Some((FrameKind::Stderr, bytes)) => {
                access.activity().bytes_passed();
                client.output.extended_data_bytes(STDERR, bytes).await.map_err(|_| Refusal::Lost)?;
            }
            Some((FrameKind::Exit, exit)) => {
                return serde_json::from_slice(&exit).map_err(|error| Refusal::Protocol(error.to_string()));
            }
            Some((kind, _)) => return Err(Refusal::Protocol(format!("unexpected {kind:?}"))),
            None => return Err(Refusal::Lost),
        }
    }
}

async fn report(outcome: Result<ChannelExit, Refusal>, client: &ClientEnd) -> anyhow::Result<()> {
    match outcome {
        // Exit codes are 0 to 255 wherever SSH is spoken; a negative one keeps its bits.
        Ok(ChannelExit::Code(code)) => client.output.exit_status(code.cast_unsigned()).await?,
        Ok(ChannelExit::Signal(name)) => {
            let signal = signal_of(&name);
            let told = client.session.exit_signal_request(
                client.output.id(),
                signal,
                false,
                String::new(),
                String::new(),
            );
            told.await.map_err(|()| russh::Error::SendError)?;
        }
        Err(refusal) => {
            debug!(%refusal, "channel refused");
            let text = Bytes::from(format!("{refusal}\r\n"));
            client.output.extended_data_bytes(STDERR, text).await?;
            client.output.exit_status(EXIT_NOT_RUN).await?;
        }
    }
    client.output.eof().await?;
    client.output.close().await?;
    Ok(())
}

fn signal_of(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}

/// The name without `SIG`, as the daemon wants it. `None` for a name that no system has.
pub(crate) fn signal_name(signal: Sig) -> Option<String> {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => {
            let named = (1..=16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
            return named.then_some(name);
        }
    };
    Some(name.to_owned())
}
