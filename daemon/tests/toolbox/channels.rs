//! The framed channel that the SSH door uses.

use std::collections::BTreeMap;

use atoll_api::channel::{
    CHANNEL_PATH, CHANNEL_UPGRADE, ChannelExit, ChannelOpen, ChannelProgram, FRAME_BYTES_MAX, FrameKind,
    PtyRequest, PtySize, RunProgram,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{DEADLINE, SECOND_GROUP, UID, USER, World};

struct Channel(TcpStream);

fn exec(command: &str) -> ChannelOpen {
    ChannelOpen { program: ChannelProgram::Exec { command: command.into() }, env: BTreeMap::new(), pty: None }
}

impl Channel {
    async fn open(world: &World, open: &ChannelOpen) -> Channel {
        let mut channel = Channel::upgrade(world).await;
        channel.send(FrameKind::Open, &serde_json::to_vec(open).unwrap()).await;
        channel
    }

    async fn opened(world: &World, open: &ChannelOpen) -> Channel {
        let mut channel = Channel::open(world, open).await;
        assert_eq!(channel.next().await, Some((FrameKind::Opened, Vec::new())));
        channel
    }

    async fn upgrade(world: &World) -> Channel {
        let mut stream = world.connect().await;
        let head = format!(
            "GET {CHANNEL_PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {CHANNEL_UPGRADE}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
        Channel(stream)
    }

    async fn send(&mut self, kind: FrameKind, payload: &[u8]) {
        let mut frame = vec![kind as u8];
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).await.unwrap();
    }

    async fn next(&mut self) -> Option<(FrameKind, Vec<u8>)> {
        let reading = async {
            let kind = self.0.read_u8().await.ok()?;
            let mut payload = vec![0; self.0.read_u32().await.unwrap() as usize];
            self.0.read_exact(&mut payload).await.unwrap();
            Some((FrameKind::from_byte(kind).unwrap(), payload))
        };
        tokio::time::timeout(DEADLINE, reading).await.expect("a frame in time")
    }

    /// Stdout, stderr and how it ended; then the end of the connection.
    async fn finish(mut self) -> (String, String, ChannelExit) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().await.expect("an exit before the end") {
                (FrameKind::Stdout, bytes) => stdout.extend(bytes),
                (FrameKind::Stderr, bytes) => stderr.extend(bytes),
                (FrameKind::Exit, json) => {
                    assert_eq!(self.next().await, None);
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(stdout), text(stderr), serde_json::from_slice(&json).unwrap());
                }
                (kind, _) => panic!("{kind:?}"),
            }
        }
    }

    async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.next().await {
                Some((FrameKind::Stdout, bytes)) => seen += &String::from_utf8_lossy(&bytes),
                other => panic!("{other:?} after {seen:?}"),
            }
        }
        seen
    }
}

#[tokio::test]
async fn a_command_has_streams_input_and_an_exit_code() {
    let world = World::new().await;
    let mut channel = Channel::opened(&world, &exec("cat; echo err >&2; id -u; exit 4")).await;

    channel.send(FrameKind::Stdin, b"typed\n").await;
    channel.send(FrameKind::StdinEof, b"").await;

    let expected = (format!("typed\n{UID}\n"), "err\n".to_owned(), ChannelExit::Code(4));
    assert_eq!(channel.finish().await, expected);
}

fn run_as(user: &str, work_dir: &std::path::Path, argv: &[&str]) -> RunProgram {
    RunProgram {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("A".to_owned(), "b c".to_owned())].into(),
        user: user.into(),
        work_dir: work_dir.to_str().unwrap().into(),
    }
}

fn runs(run: RunProgram) -> ChannelOpen {
    ChannelOpen { program: ChannelProgram::Run(run), env: BTreeMap::new(), pty: None }
}

#[tokio::test]
async fn a_build_runs_a_program_as_it_stands_with_both_streams_in_order() {
    let world = World::new().await;
    let work_dir = world.dir.path().join("made/for it");
    let script = "echo 1; echo 2 >&2; echo 3; pwd; id -u; cat; env | sort; exit 7";
    let channel = Channel::opened(&world, &runs(run_as("root", &work_dir, &["sh", "-c", script]))).await;

    let env = format!("A=b c\nHOME=/root\nPATH=/usr/bin:/bin\nPWD={}\n", work_dir.display());
    let (output, errors, exit) = channel.finish().await;
    let output = output.replace("_=/usr/bin/env\n", "").replace("SHLVL=0\n", "").replace("SHLVL=1\n", "");
    assert_eq!(output, format!("1\n2\n3\n{}\n0\n{env}", work_dir.display()));
    assert_eq!((errors.as_str(), exit), ("", ChannelExit::Code(7)));

    let named = format!("{USER}:second");
    let channel = Channel::opened(&world, &runs(run_as(&named, "/".as_ref(), &["id", "-g"]))).await;
    assert_eq!(channel.finish().await.0, format!("{SECOND_GROUP}\n"));
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_refused_with_the_reason() {
    let world = World::new().await;
    let mut long = run_as("root", "/".as_ref(), &["true"]);
    long.env.insert("LONG".into(), "x".repeat(100_000));
    assert_eq!(Channel::opened(&world, &runs(long)).await.finish().await.2, ChannelExit::Code(0));

    for (run, reason) in [
        (run_as("root", "/".as_ref(), &["no-such-program"]), "no-such-program: No such file or directory"),
        (run_as("nobody-here", "/".as_ref(), &["true"]), "the image has no user \"nobody-here\""),
        (run_as("root", "/".as_ref(), &[]), "no program is named"),
    ] {
        let mut channel = Channel::open(&world, &runs(run)).await;
        let (kind, said) = channel.next().await.unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(kind == FrameKind::Refused && said.contains(reason), "{kind:?} {said}");
    }
}

#[tokio::test]
async fn a_signal_reaches_the_command_and_is_its_exit() {
    let world = World::new().await;
    let mut channel = Channel::opened(&world, &exec("echo ready; exec sleep 300")).await;
    channel.until("ready").await;

    channel.send(FrameKind::Signal, b"TERM").await;

    assert_eq!(channel.finish().await.2, ChannelExit::Signal("TERM".into()));
}

#[tokio::test]
async fn a_shell_on_a_terminal_resizes_and_ends() {
    let world = World::new().await;
    let open = ChannelOpen {
        program: ChannelProgram::Shell,
        env: [("LC_TEST".to_owned(), "wish".to_owned()), ("FROM_CONFIG".to_owned(), "no".to_owned())].into(),
        pty: Some(PtyRequest { term: "vt100".into(), size: PtySize { cols: 100, rows: 40 } }),
    };
    let mut channel = Channel::opened(&world, &open).await;

    channel.send(FrameKind::Stdin, b"stty size; echo [$TERM] [$LC_TEST] [$FROM_CONFIG]\n").await;
    let seen = channel.until("[yes]").await;
    assert!(seen.contains("40 100") && seen.contains("[vt100] [wish] [yes]"), "{seen}");
    channel.send(FrameKind::Resize, br#"{"cols":90,"rows":30}"#).await;
    channel.send(FrameKind::Stdin, b"stty size; exit 6\n").await;

    let (stdout, _, exit) = channel.finish().await;
    assert!(stdout.contains("30 90"), "{stdout}");
    assert_eq!(exit, ChannelExit::Code(6));
}

#[tokio::test]
async fn much_data_goes_both_ways_and_nobody_reads_ahead() {
    let world = World::new().await;
    const BYTES: usize = 50_000_000;
    let channel = Channel::opened(&world, &exec("cat")).await;
    let (mut reader, mut writer) = channel.0.into_split();

    let writing = tokio::spawn(async move {
        let mut frame = vec![FrameKind::Stdin as u8];
        frame.extend_from_slice(&(FRAME_BYTES_MAX as u32).to_be_bytes());
        frame.resize(5 + FRAME_BYTES_MAX, b'x');
        for _ in 0..BYTES / FRAME_BYTES_MAX {
            writer.write_all(&frame).await.unwrap();
        }
        writer.write_all(&[FrameKind::StdinEof as u8, 0, 0, 0, 0]).await.unwrap();
        writer
    });
    let mut received = 0;
    let exit = loop {
        let kind = reader.read_u8().await.unwrap();
        let mut payload = vec![0; reader.read_u32().await.unwrap() as usize];
        reader.read_exact(&mut payload).await.unwrap();
        if kind == FrameKind::Exit as u8 {
            break payload;
        }
        received += payload.len();
    };
    writing.await.unwrap();

    assert_eq!(received, BYTES / FRAME_BYTES_MAX * FRAME_BYTES_MAX);
    assert_eq!(serde_json::from_slice::<ChannelExit>(&exit).unwrap(), ChannelExit::Code(0));
    let peak = crate::processes::status_kib(world.pid(), "VmHWM");
    assert!(peak < 40 * 1024, "the daemon took {peak} KiB for it");
}

#[tokio::test]
async fn a_door_that_goes_hangs_up_the_terminal() {
    let world = World::new().await;
    let mut open = exec("echo $$; exec sleep 300");
    open.pty = Some(PtyRequest { term: "xterm".into(), size: PtySize { cols: 80, rows: 24 } });
    let mut channel = Channel::opened(&world, &open).await;
    let pid = channel.until("\n").await;

    drop(channel);

    let process = format!("/proc/{}", pid.trim());
    crate::world::eventually("it is gone", async || !std::path::Path::new(&process).exists()).await;
}

#[tokio::test]
async fn a_connection_is_made_from_inside_and_half_closed() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        stream.write_all(format!("heard {all}").as_bytes()).await.unwrap();
    });
    let open = |port| ChannelOpen {
        program: ChannelProgram::Connect { host: "localhost".into(), port },
        env: BTreeMap::new(),
        pty: None,
    };

    let mut channel = Channel::opened(&world, &open(port)).await;
    channel.send(FrameKind::Stdin, b"all").await;
    channel.send(FrameKind::StdinEof, b"").await;
    assert_eq!(channel.finish().await, ("heard all".to_owned(), String::new(), ChannelExit::Code(0)));

    let mut refused = Channel::open(&world, &open(port)).await;
    assert_eq!(refused.next().await.unwrap().0, FrameKind::Refused);
    assert_eq!(refused.next().await, None);
}

#[tokio::test]
async fn what_is_no_protocol_is_refused() {
    let world = World::new().await;

    for (kind, payload) in [(FrameKind::Stdin, &b"x"[..]), (FrameKind::Open, b"{"), (FrameKind::Exit, b"")] {
        let mut channel = Channel::upgrade(&world).await;
        channel.send(kind, payload).await;
        assert_eq!(channel.next().await.unwrap().0, FrameKind::Refused);
    }
    let mut channel = Channel::upgrade(&world).await;
    channel.0.write_all(&[FrameKind::Open as u8, 255, 255, 255, 255]).await.unwrap();
    assert_eq!(channel.next().await.unwrap().0, FrameKind::Refused);
}

/// A request or an answer of SFTP: length, type, body.
fn sftp(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = (body.len() as u32 + 1).to_be_bytes().to_vec();
    packet.push(kind);
    packet.extend_from_slice(body);
    packet
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

struct Sftp {
    channel: Channel,
    buffer: Vec<u8>,
}

impl Sftp {
    async fn call(&mut self, kind: u8, body: &[u8]) -> (u8, Vec<u8>) {
        self.channel.send(FrameKind::Stdin, &sftp(kind, body)).await;
        loop {
            if let Some((length, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if rest.len() >= length {
                    let packet = rest[..length].to_vec();
                    self.buffer.drain(..4 + length);
                    return (packet[0], packet[1..].to_vec());
                }
            }
            match self.channel.next().await.unwrap() {
                (FrameKind::Stdout, bytes) => self.buffer.extend(bytes),
                (kind, bytes) => panic!("{kind:?} {}", String::from_utf8_lossy(&bytes)),
            }
        }
    }
}

#[tokio::test]
async fn sftp_acts_as_the_user_in_the_home() {
    const INIT: u8 = 1;
    const VERSION: u8 = 2;
    const OPEN: u8 = 3;
    const CLOSE: u8 = 4;
    const READ: u8 = 5;
    const WRITE: u8 = 6;
    const REALPATH: u8 = 16;
    const STATUS: u8 = 101;
    const HANDLE: u8 = 102;
    const DATA: u8 = 103;
    const NAME: u8 = 104;
    const PERMISSION_DENIED: [u8; 4] = [0, 0, 0, 3];
    let world = World::new().await;
    let open = ChannelOpen { program: ChannelProgram::Sftp, env: BTreeMap::new(), pty: None };
    let mut sftp = Sftp { channel: Channel::opened(&world, &open).await, buffer: Vec::new() };
    let id = [0, 0, 0, 9];

    assert_eq!(sftp.call(INIT, &[0, 0, 0, 3]).await.0, VERSION);
    let (kind, name) = sftp.call(REALPATH, &[&id[..], &string(".")].concat()).await;
    assert!(kind == NAME && String::from_utf8_lossy(&name).contains(world.home().to_str().unwrap()));
    let create = [&id[..], &string("f"), &[0, 0, 0, 0x1b], &[0; 4]].concat();
    let (kind, handle) = sftp.call(OPEN, &create).await;
    assert_eq!(kind, HANDLE);
    let handle = &handle[4..];
    sftp.call(WRITE, &[&id[..], handle, &[0; 8], &string("content")].concat()).await;
    let (kind, data) = sftp.call(READ, &[&id[..], handle, &[0; 8], &[0, 0, 1, 0]].concat()).await;
    assert_eq!((kind, &data[8..]), (DATA, &b"content"[..]));
    assert_eq!(sftp.call(CLOSE, &[&id[..], handle].concat()).await.0, STATUS);
    let forbidden = [&id[..], &string("/etc/shadow"), &[0, 0, 0, 1], &[0; 4]].concat();
    let (kind, status) = sftp.call(OPEN, &forbidden).await;
    assert_eq!((kind, &status[4..8]), (STATUS, &PERMISSION_DENIED[..]));

    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(world.home().join("f")).unwrap().uid(), UID);
    sftp.channel.send(FrameKind::StdinEof, b"").await;
    assert_eq!(sftp.channel.finish().await.2, ChannelExit::Code(0));
}
