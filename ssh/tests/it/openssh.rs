//! What users do, with the client that they have.

use std::fs::File;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atoll_api::access::Target;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::fake_daemon::{INNER_HOST, SFTP_SERVER};
use crate::world::{World, is_here, openssh_is_here, run, run_with_input, text, within_patience};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn exec_keeps_output_errors_and_exit_code_apart() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;

    let output = run(world.ssh(&[], "echo out; echo err >&2; exit 7")).await;

    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "out\n");
    assert_eq!(text(&output.stderr), "err\n");
    assert!(world.directory.touches.load(Ordering::Relaxed) >= 1, "bytes count as activity");
}

#[tokio::test]
async fn a_program_killed_by_a_signal_is_not_a_success() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;

    let output = run(world.ssh(&[], "kill -TERM $$")).await;

    assert_eq!(output.status.code(), Some(255));
}

#[tokio::test]
async fn the_environment_that_the_client_sends_arrives() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;

    let output = run(world.ssh(&["-o", "SetEnv=ATOLL_TEST=from-client"], "echo $ATOLL_TEST")).await;

    assert_eq!(text(&output.stdout), "from-client\n");
}

#[tokio::test]
async fn a_shell_without_a_terminal_reads_its_commands() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let mut command = world.tool("ssh");
    command.arg(world.destination());

    let output = run_with_input(command, b"echo hello; exit 3\n".to_vec()).await;

    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(3), "hello\n"));
}

#[tokio::test]
async fn sixteen_mib_pass_both_ways_at_once_and_intact() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let sent: Vec<u8> = (0..16 * MIB).map(|at| (at % 251) as u8 ^ (at >> 16) as u8).collect();

    let output = run_with_input(world.ssh(&[], "cat"), sent.clone()).await;

    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout == sent, "{} of {} bytes came back as sent", output.stdout.len(), sent.len());
}

#[tokio::test]
async fn output_flows_while_endless_input_is_not_read() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let mut command = world.ssh(&[], "head -c 16777216 /dev/zero");
    command.stdin(File::open("/dev/zero").unwrap());

    let output = run(command).await;

    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(output.stdout.len(), 16 * MIB);
}

#[tokio::test]
async fn a_terminal_has_the_clients_size_and_echoes() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let ssh = world.ssh(&["-tt"], "'stty size; echo TERM=$TERM; tty'");
    let words: Vec<_> = ssh.as_std().get_args().map(|arg| arg.to_str().unwrap()).collect();
    let mut script = tokio::process::Command::new("script");
    script.arg("-qec").arg(format!("stty rows 33 cols 91; exec ssh {}", words.join(" "))).arg("/dev/null");
    script.env("TERM", "vt220").stdin(Stdio::null());

    let output = run(script).await;

    let shown = text(&output.stdout);
    assert!(shown.contains("33 91"), "{shown}");
    assert!(shown.contains("TERM=vt220") && shown.contains("/dev/pts/"), "{shown}");
}

#[tokio::test]
async fn a_local_forward_reaches_a_port_of_the_sandbox() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let inside = echo_server().await;
    let local = free_port();
    let forward = format!("127.0.0.1:{local}:localhost:{inside}");
    let mut command = world.tool("ssh");
    command.args(["-N", "-L", &forward]).arg(world.destination());
    let _ssh = command.spawn().unwrap();

    let mut tcp = within_patience(connect_when_open(local)).await;
    let sent = vec![42; 3 * MIB];
    let (mut reader, mut writer) = tcp.split();
    let mut received = Vec::new();
    within_patience(async {
        let send = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        tokio::join!(send, reader.read_to_end(&mut received)).1.unwrap();
    })
    .await;

    assert!(received == sent, "{} bytes came back", received.len());
    assert_eq!(*world.sandbox.dialled.lock().unwrap(), [Target::Port(inside)]);
}

#[tokio::test]
async fn a_jump_reaches_hosts_that_only_the_sandbox_knows() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let inside = echo_server().await;
    let mut command = world.tool("ssh");
    command.args(["-W", &format!("{INNER_HOST}:{inside}")]).arg(world.destination());

    let output = run_with_input(command, b"over the hills".to_vec()).await;

    assert_eq!(text(&output.stdout), "over the hills");
    assert_eq!(*world.sandbox.dialled.lock().unwrap(), [Target::Daemon]);
}

#[tokio::test]
async fn the_daemons_port_cannot_be_forwarded() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let mut command = world.tool("ssh");
    command.args(["-W", "localhost:2280"]).arg(world.destination());

    let output = run(command).await;

    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("belongs to its daemon"), "{}", text(&output.stderr));
    assert!(world.sandbox.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_closed_port_is_named() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let port = free_port();
    let mut command = world.tool("ssh");
    command.args(["-W", &format!("localhost:{port}")]).arg(world.destination());

    let output = run(command).await;

    let error = text(&output.stderr);
    assert!(error.contains(&format!("nothing listens on port {port}")), "{error}");
}

#[tokio::test]
async fn remote_forwarding_is_refused_and_the_rest_goes_on() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;

    let output = run(world.ssh(&["-R", "0:localhost:1", "-A", "-X"], "echo still here")).await;

    assert_eq!(text(&output.stdout), "still here\n");
    assert!(text(&output.stderr).contains("remote port forwarding failed"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_wrong_token_is_refused_at_once_and_told_what_to_do() {
    if !openssh_is_here() {
        return;
    }
    let mut world = World::new().await;
    for wrong in ["05aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "root"] {
        world.token = wrong.into();
        let asked_at = Instant::now();

        let output = run(world.ssh(&[], "echo no")).await;

        assert!(asked_at.elapsed() < Duration::from_secs(5));
        assert_eq!(output.status.code(), Some(255));
        let error = text(&output.stderr);
        assert!(error.contains("ask for a new one"), "{error}");
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn revoking_the_token_cuts_a_live_session() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let mut ssh = world.ssh(&[], "echo ready; exec sleep 1000").spawn().unwrap();
    let mut shown = BufReader::new(ssh.stdout.take().unwrap());
    let mut line = String::new();
    within_patience(shown.read_line(&mut line)).await.unwrap();
    assert_eq!(line, "ready\n");

    world.directory.ended.cancel();

    let output = within_patience(ssh.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("was revoked"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_shutdown_tells_clients_to_go_elsewhere() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    let mut ssh = world.ssh(&[], "echo ready; exec sleep 1000").spawn().unwrap();
    let mut shown = BufReader::new(ssh.stdout.take().unwrap());
    let mut line = String::new();
    within_patience(shown.read_line(&mut line)).await.unwrap();

    within_patience(world.server.shutdown(Duration::from_secs(10))).await;

    let output = within_patience(ssh.wait_with_output()).await.unwrap();
    assert!(text(&output.stderr).contains("any other node"), "{}", text(&output.stderr));
    assert!(TcpStream::connect(world.server.local_addr()).await.is_err());
}

#[tokio::test]
async fn a_stopped_sandbox_says_so() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;
    *world.sandbox.not_running.lock().unwrap() = Some("stopped".into());

    let output = run(world.ssh(&[], "echo no")).await;

    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("Is the Sandbox started?"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn sftp_and_scp_carry_files_both_ways() {
    if !openssh_is_here() {
        return;
    }
    if !is_here(SFTP_SERVER, "openssh-sftp-server") {
        return;
    }
    let world = World::new().await;
    let content: Vec<u8> = (0..5 * MIB).map(|at| (at % 241) as u8).collect();
    let (local, remote, back) = (world.path("local"), world.path("remote"), world.path("back"));
    std::fs::write(&local, &content).unwrap();

    let mut sftp = world.tool("sftp");
    sftp.args(["-q", "-b", "-"]).arg(world.destination());
    let batch = format!("put {} {}\nls -l {}\n", local.display(), remote.display(), remote.display());
    let put = run_with_input(sftp, batch.into_bytes()).await;
    let mut scp = world.tool("scp");
    scp.arg(format!("{}:{}", world.destination(), remote.display())).arg(&back);
    let copied = run(scp).await;

    assert!(put.status.success(), "{}", text(&put.stderr));
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    assert!(std::fs::read(remote).unwrap() == content && std::fs::read(back).unwrap() == content);
}

#[tokio::test]
async fn fifty_clients_at_once_each_get_their_own_answer() {
    if !openssh_is_here() {
        return;
    }
    let world = World::new().await;

    let runs: Vec<_> =
        (0..50).map(|n| tokio::spawn(run(world.ssh(&[], &format!("echo {n}; exit {n}"))))).collect();

    for (n, running) in runs.into_iter().enumerate() {
        let output = running.await.unwrap();
        assert_eq!(text(&output.stdout), format!("{n}\n"), "{}", text(&output.stderr));
        assert_eq!(output.status.code(), i32::try_from(n).ok());
    }
}

async fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tcp.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    port
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn connect_when_open(port: u16) -> TcpStream {
    loop {
        if let Ok(tcp) = TcpStream::connect(("127.0.0.1", port)).await {
            return tcp;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
