//! The daemon's side of `atoll_api::channel`, with real processes and terminals of this machine.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;

use atoll_api::channel::{
    CHANNEL_PATH, ChannelExit, ChannelOpen, ChannelProgram, FRAME_BYTES_MAX, FrameKind, PtySize,
};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadHalf, WriteHalf,
};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Mutex;

type Reader = BufReader<ReadHalf<DuplexStream>>;
type Writer = Arc<Mutex<WriteHalf<DuplexStream>>>;
type Source = Box<dyn AsyncRead + Send + Unpin>;
type Sink = Box<dyn AsyncWrite + Send + Unpin>;

pub const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// A name that only this fake's own network knows.
pub const INNER_HOST: &str = "inner.test";

pub async fn serve(stream: DuplexStream) {
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, writer) = (BufReader::new(reader), Arc::new(Mutex::new(writer)));
    upgrade(&mut reader, &writer).await;
    let Some((FrameKind::Open, open)) = read_frame(&mut reader).await else { return };
    let open: ChannelOpen = serde_json::from_slice(&open).unwrap();
    match open.program.clone() {
        ChannelProgram::Connect { host, port } => {
            let host = if host == INNER_HOST { "127.0.0.1" } else { &host };
            match TcpStream::connect((host, port)).await {
                Ok(tcp) => {
                    write_frame(&writer, FrameKind::Opened, &[]).await;
                    let (source, sink) = tcp.into_split();
                    tokio::select! {
                        () = pump(Box::new(source), FrameKind::Stdout, &writer) => {}
                        () = feed(&mut reader, Box::new(sink), None, None) => {}
                    }
                    write_exit(&writer, ChannelExit::Code(0)).await;
                }
                Err(error) => write_frame(&writer, FrameKind::Refused, error.to_string().as_bytes()).await,
            }
        }
        ChannelProgram::Shell => run(open, &["sh"], reader, writer).await,
        ChannelProgram::Exec { command } => run(open, &["sh", "-c", &command], reader, writer).await,
        ChannelProgram::Run(_) => panic!("SSH asks for no build's step"),
        ChannelProgram::Sftp => run(open, &[SFTP_SERVER], reader, writer).await,
    }
}

async fn upgrade(reader: &mut Reader, writer: &Writer) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(reader.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with(&format!("GET {CHANNEL_PATH} HTTP/1.1\r\n")), "{head}");
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: atoll-channel\r\nConnection: Upgrade\r\n\r\n";
    writer.lock().await.write_all(answer).await.unwrap();
}

async fn run(open: ChannelOpen, program: &[&str], mut reader: Reader, writer: Writer) {
    let mut terminal = None;
    let mut command = match &open.pty {
        Some(pty) => {
            // A new session whose terminal is standard input.
            let mut command = Command::new("setsid");
            command.args(["--ctty", "--wait"]).args(program).env("TERM", &pty.term);
            let (master, slave) = open_terminal(pty.size);
            command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
            terminal = Some(master);
            command
        }
        None => {
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).process_group(0);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        }
    };
    let mut child = command.envs(&open.env).kill_on_drop(true).spawn().unwrap();
    drop(command); // the terminal's slave stays open in the child only
    let group = Pid::from_raw(child.id().unwrap().cast_signed());
    write_frame(&writer, FrameKind::Opened, &[]).await;
    let (sink, out, err): (Sink, Source, Option<Source>) = match &terminal {
        Some(master) => {
            let file = || tokio::fs::File::from_std(master.try_clone().unwrap().into());
            (Box::new(file()), Box::new(file()), None)
        }
        None => (
            Box::new(child.stdin.take().unwrap()),
            Box::new(child.stdout.take().unwrap()),
            child.stderr.take().map(|err| Box::new(err) as Source),
        ),
    };
    let output = async {
        tokio::join!(pump(out, FrameKind::Stdout, &writer), async {
            if let Some(err) = err {
                pump(err, FrameKind::Stderr, &writer).await;
            }
        });
        child.wait().await.unwrap()
    };
    tokio::select! {
        status = output => {
            let exit = match status.signal() {
                Some(signal) => ChannelExit::Signal(if signal == 15 { "TERM" } else { "KILL" }.into()),
                None => ChannelExit::Code(status.code().unwrap()),
            };
            write_exit(&writer, exit).await;
        }
        // The door has hung up.
        () = feed(&mut reader, sink, terminal.as_ref(), group) => {
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
    }
}

fn open_terminal(size: PtySize) -> (OwnedFd, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let slave = std::fs::OpenOptions::new().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    resize(&master, size);
    (master, slave.into())
}

fn resize(terminal: &OwnedFd, size: PtySize) {
    tcsetwinsize(terminal, Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 })
        .unwrap();
}

/// Input frames to the program, until the door closes.
async fn feed(reader: &mut Reader, sink: Sink, terminal: Option<&OwnedFd>, group: Option<Pid>) {
    let mut sink = Some(sink);
    while let Some((kind, payload)) = read_frame(reader).await {
        match kind {
            FrameKind::Stdin => {
                if let Some(open) = &mut sink
                    && (open.write_all(&payload).await.is_err() || open.flush().await.is_err())
                {
                    sink = None;
                }
            }
            FrameKind::StdinEof => {
                if let Some(mut open) = sink.take() {
                    let _ = open.shutdown().await;
                }
            }
            FrameKind::Resize => {
                resize(
                    terminal.expect("only terminals are resized"),
                    serde_json::from_slice(&payload).unwrap(),
                );
            }
            FrameKind::Signal => {
                let signal = match &payload[..] {
                    b"USR1" => Signal::USR1,
                    b"TERM" => Signal::TERM,
                    other => panic!("unexpected signal {other:?}"),
                };
                let _ = kill_process_group(group.unwrap(), signal);
            }
            other => panic!("unexpected frame {other:?}"),
        }
    }
}

async fn pump(mut source: Source, kind: FrameKind, writer: &Writer) {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    // A terminal whose last program has gone reads as an error.
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        write_frame(writer, kind, &buffer[..count]).await;
    }
}

async fn read_frame(reader: &mut Reader) -> Option<(FrameKind, Vec<u8>)> {
    let kind = FrameKind::from_byte(reader.read_u8().await.ok()?).unwrap();
    let length = reader.read_u32().await.ok()? as usize;
    assert!(length <= FRAME_BYTES_MAX);
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await.ok()?;
    Some((kind, payload))
}

async fn write_frame(writer: &Writer, kind: FrameKind, payload: &[u8]) {
    let mut frame = vec![kind as u8];
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(payload);
    let _ = writer.lock().await.write_all(&frame).await;
}

async fn write_exit(writer: &Writer, exit: ChannelExit) {
    write_frame(writer, FrameKind::Exit, &serde_json::to_vec(&exit).unwrap()).await;
    let _ = writer.lock().await.shutdown().await;
}
