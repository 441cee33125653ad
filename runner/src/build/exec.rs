//! Runs one program through a sandbox's daemon to its end, its output into a channel. The client side of
//! [`atoll_api::channel`], as far as a build needs it.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use atoll_api::channel::{
    CHANNEL_PATH, CHANNEL_UPGRADE, ChannelExit, ChannelOpen, ChannelProgram, FrameKind, OPEN_BYTES_MAX,
    RunProgram,
};
use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use crate::runtime::ByteStream;

/// From a connected stream to a started program.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
const RESPONSE_HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADER_BYTES: usize = 5;
/// As shells say that a command was not found, or could not be run.
const NOT_STARTED: i64 = 127;
const SIGNALLED: i64 = 128;

/// `stream` was dialled to the daemon. Gives the exit code as a shell says it; a program that could not be started says
/// why in its output. An error means that nobody knows how the program ended.
pub async fn run_program(
    stream: ByteStream,
    run: RunProgram,
    output: &mpsc::Sender<Bytes>,
) -> io::Result<i64> {
    let mut stream = BufReader::new(stream);
    let opened = tokio::time::timeout(OPEN_DEADLINE, open(&mut stream, run)).await;
    let refused = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    if let Some(reason) = refused {
        say(output, format!("{reason}\n").into()).await?;
        return Ok(NOT_STARTED);
    }
    loop {
        let (kind, payload) = read_frame(&mut stream).await?;
        match kind {
            FrameKind::Stdout | FrameKind::Stderr => say(output, payload).await?,
            FrameKind::Exit => return exit_code(&payload),
            other => return Err(unexpected(&format!("the daemon sent {other:?}"))),
        }
    }
}

/// `Some` is why nothing was started.
async fn open(stream: &mut BufReader<ByteStream>, run: RunProgram) -> io::Result<Option<String>> {
    let open = ChannelOpen { program: ChannelProgram::Run(run), env: Default::default(), pty: None };
    let json = serde_json::to_vec(&open).map_err(io::Error::other)?;
    if json.len() > OPEN_BYTES_MAX {
        return Ok(Some(format!("the command and its environment are larger than {OPEN_BYTES_MAX} bytes")));
    }
    let request = format!(
        "GET {CHANNEL_PATH} HTTP/1.1\r\nHost: daemon\r\nConnection: Upgrade\r\nUpgrade: {CHANNEL_UPGRADE}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    read_switching_protocols(stream).await?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + json.len());
    frame.push(FrameKind::Open as u8);
    frame.extend_from_slice(&u32::try_from(json.len()).map_err(io::Error::other)?.to_be_bytes());
    frame.extend_from_slice(&json);
    stream.write_all(&frame).await?;
    stream.flush().await?;
    match read_frame(stream).await? {
        (FrameKind::Opened, _) => Ok(None),
        (FrameKind::Refused, reason) => Ok(Some(String::from_utf8_lossy(&reason).into_owned())),
        (other, _) => Err(unexpected(&format!("the daemon sent {other:?} first"))),
    }
}

async fn read_switching_protocols(stream: &mut BufReader<ByteStream>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= RESPONSE_HEAD_BYTES_MAX {
            return Err(unexpected("the daemon's answer has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    match head.starts_with(b"HTTP/1.1 101 ") {
        true => Ok(()),
        false => Err(unexpected("the daemon does not run programs")),
    }
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(FrameKind, Bytes)> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let [kind, length @ ..] = header;
    let kind =
        FrameKind::from_byte(kind).ok_or_else(|| unexpected("the daemon sent an unknown kind of frame"))?;
    let length = u32::from_be_bytes(length) as usize;
    if length > kind.bytes_max() {
        return Err(unexpected("the daemon sent a frame that is too long"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok((kind, payload.into()))
}

/// Waits while the reader is behind.
async fn say(output: &mpsc::Sender<Bytes>, bytes: Bytes) -> io::Result<()> {
    output.send(bytes).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

fn exit_code(json: &[u8]) -> io::Result<i64> {
    match serde_json::from_slice(json)? {
        ChannelExit::Code(code) => Ok(code.into()),
        ChannelExit::Signal(name) => {
            let number = Signal::from_str(&format!("SIG{name}")).map_or(0, |signal| signal as i64);
            Ok(SIGNALLED + number)
        }
    }
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// What the program's run comes to when the daemon says this, and what it said.
    async fn against(daemon: &[u8]) -> (Result<i64, String>, String) {
        let (ours, mut theirs) = duplex(1 << 20);
        theirs.write_all(daemon).await.unwrap();
        theirs.shutdown().await.unwrap();
        let (output, mut heard) = mpsc::channel(16);
        let run = RunProgram {
            argv: vec!["x".into()],
            env: Default::default(),
            user: "root".into(),
            work_dir: "/".into(),
        };
        let ended = run_program(Box::new(ours), run, &output).await.map_err(|error| error.to_string());
        drop(output);
        let mut said = String::new();
        while let Some(bytes) = heard.recv().await {
            said += &String::from_utf8_lossy(&bytes);
        }
        (ended, said)
    }

    fn frames(frames: &[(u8, &str)]) -> Vec<u8> {
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        for (kind, payload) in frames {
            bytes.push(*kind);
            bytes.extend((payload.len() as u32).to_be_bytes());
            bytes.extend(payload.as_bytes());
        }
        bytes
    }

    #[tokio::test]
    async fn a_program_has_output_and_an_exit() {
        let done = frames(&[(2, ""), (6, "a"), (7, "b"), (10, r#"{"code":3}"#)]);
        assert_eq!(against(&done).await, (Ok(3), "ab".into()));
        let killed = frames(&[(2, ""), (10, r#"{"signal":"KILL"}"#)]);
        assert_eq!(against(&killed).await, (Ok(137), String::new()));
        let refused = frames(&[(3, "no such user")]);
        assert_eq!(against(&refused).await, (Ok(127), "no such user\n".into()));
    }

    #[tokio::test]
    async fn a_daemon_that_breaks_off_or_talks_nonsense_is_an_error() {
        for wrong in [
            &b""[..],
            b"HTTP/1.1 404 Not Found\r\n\r\n",
            &frames(&[(2, ""), (6, "a")]),
            &frames(&[(6, "a")]),
            &frames(&[(2, ""), (99, "")]),
            &frames(&[(2, ""), (10, "no JSON")]),
            &[frames(&[(2, "")]), vec![6, 0xff, 0xff, 0xff, 0xff]].concat(),
            &vec![b'x'; 100_000],
        ] {
            assert!(against(wrong).await.0.is_err(), "{}", wrong.escape_ascii());
        }
    }
}
