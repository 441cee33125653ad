//! A host, an internet and sandboxes, each a network namespace that goes when its descriptor does. The host's is the
//! test's own too: nothing of the machine that the tests run on is touched.
//!
//! ```text
//!   sandboxes ── host 198.51.100.2 ── 198.51.100.1 internet: 203.0.113.10 to .13, 169.254.169.254
//! ```
//! The internet knows no way to the sandboxes' addresses, so what arrives there was translated. Port 7 echoes.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_api::sandbox::Egress;
use atoll_runner::embedded::network::{Layout, Network, NetworkConfig, link};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

/// What is let through arrives in microseconds, on a busy machine in milliseconds.
const REACHED_WITHIN: Duration = Duration::from_secs(5);
pub const ECHO: u16 = 7;
pub const HOST: &str = "198.51.100.2";
pub const SITE: &str = "203.0.113.10";
pub const OTHER_SITE: &str = "203.0.113.11";

pub fn layout(node: u64, range: &str) -> Layout {
    Layout::new(node_id(node), range.parse().unwrap()).unwrap()
}

fn node_id(node: u64) -> NodeId {
    NodeId(node << 32 | node)
}

pub fn config(node: u64, range: &str) -> NetworkConfig {
    NetworkConfig { range: range.parse().unwrap(), ..NetworkConfig::new(node_id(node)) }
}

/// Runs `body` on a thread in a new network namespace; threads and processes that it starts are in there too.
pub fn in_new_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        body()
    })
}

/// `body` on the host, beside an internet that echoes.
pub fn with_world<F: Future<Output = ()>>(body: impl FnOnce(World) -> F + Send) {
    in_new_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            body(world).await;
        });
    });
}

pub struct World {
    pub internet: Namespace,
}

impl World {
    async fn new() -> World {
        let internet = Namespace::new();
        // Else as on the machine that the tests run on.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        ip("link set lo up");
        ip("link add up0 type veth peer name down0");
        internet.adopt("down0");
        ip("address add 198.51.100.2/24 dev up0");
        ip("link set up0 up");
        internet.run(|| {
            ip("link set lo up");
            ip("address add 198.51.100.1/24 dev down0");
            ip("link set down0 up");
            for site in 10..=13 {
                ip(&format!("address add 203.0.113.{site}/32 dev lo"));
            }
            ip("address add 169.254.169.254/32 dev lo");
        });
        ip("route add default via 198.51.100.1");
        // Each on its own, or UDP would answer from another address than it was asked at.
        for address in [SITE, OTHER_SITE, "203.0.113.12", "203.0.113.13", "169.254.169.254", "198.51.100.1"] {
            internet.echo(address);
        }
        World { internet }
    }
}

pub struct Namespace(OwnedFd);

impl Namespace {
    pub fn new() -> Namespace {
        in_new_namespace(|| Namespace(File::open("/proc/thread-self/ns/net").unwrap().into()))
    }

    pub fn of_this_thread() -> Namespace {
        Namespace(File::open("/proc/thread-self/ns/net").unwrap().into())
    }

    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }

    /// Takes a device of the namespace that the test is in.
    pub fn adopt(&self, device: &str) {
        use std::os::fd::AsRawFd;
        ip(&format!("link set {device} netns /proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()));
    }

    pub fn attach(&self, layout: &Layout, slot: u16) -> link::Lease {
        link::attach(layout, slot, self.0.as_fd()).unwrap()
    }

    /// A new sandbox in this slot, told what it may.
    pub async fn of_sandbox(network: &Network, slot: u16, egress: &Egress) -> Namespace {
        let namespace = Namespace::new();
        network.set_egress(slot, egress).await.unwrap();
        network.attach(slot, namespace.0.try_clone().unwrap()).await.unwrap();
        namespace
    }

    /// Echoes on port 7, TCP and UDP, until the test ends.
    pub fn echo(&self, address: &str) {
        self.echo_on(&format!("{address}:{ECHO}"));
    }

    pub fn echo_on(&self, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let (tcp, udp) = self.run(|| {
            (std::net::TcpListener::bind(address).unwrap(), std::net::UdpSocket::bind(address).unwrap())
        });
        echo(tcp, udp);
    }

    pub async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let address: SocketAddr = address.parse().unwrap();
        let socket = self.run(TcpSocket::new_v4)?;
        timeout(REACHED_WITHIN, socket.connect(address)).await?
    }

    /// Whether a line comes back over TCP from port 7.
    pub async fn reaches(&self, address: &str) -> bool {
        self.reaches_port(&format!("{address}:{ECHO}")).await
    }

    pub async fn reaches_port(&self, address: &str) -> bool {
        match self.connect(address).await {
            Ok(mut stream) => still_echoes(&mut stream).await,
            Err(_) => false,
        }
    }

    pub async fn reaches_by_udp(&self, address: &str) -> bool {
        let socket = self.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        udp_echoes(socket, &format!("{address}:{ECHO}")).await
    }
}

pub fn echo(tcp: std::net::TcpListener, udp: std::net::UdpSocket) {
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    let (tcp, udp) = (TcpListener::from_std(tcp).unwrap(), UdpSocket::from_std(udp).unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    tokio::spawn(async move {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut bytes).await {
            let _ = udp.send_to(&bytes[..length], from).await;
        }
    });
}

/// Whether this connection still carries bytes both ways.
pub async fn still_echoes(stream: &mut TcpStream) -> bool {
    let there_and_back = async {
        stream.write_all(b"line\n").await?;
        let mut back = [0; 5];
        stream.read_exact(&mut back).await?;
        Ok::<_, io::Error>(back == *b"line\n")
    };
    matches!(timeout(REACHED_WITHIN, there_and_back).await, Ok(Ok(true)))
}

async fn udp_echoes(socket: std::net::UdpSocket, address: &str) -> bool {
    socket.set_nonblocking(true).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    let there_and_back = async {
        socket.connect(address).await?;
        socket.send(b"line\n").await?;
        let mut back = [0; 16];
        let length = socket.recv(&mut back).await?;
        Ok::<_, io::Error>(back[..length] == *b"line\n")
    };
    matches!(timeout(REACHED_WITHIN, there_and_back).await, Ok(Ok(true)))
}

pub fn everybody() -> Egress {
    Egress::default()
}

pub fn nobody() -> Egress {
    Egress { block_all: true, ..Egress::default() }
}

pub fn only(cidrs: &[&str], domains: &[&str]) -> Egress {
    let owned = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
    Egress { block_all: false, cidrs: owned(cidrs), domains: owned(domains) }
}

fn on_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` and fails with its words.
pub fn ip(arguments: &str) -> String {
    command("ip", arguments)
}

pub fn command(program: &str, arguments: &str) -> String {
    let output = std::process::Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {words}");
    String::from_utf8(output.stdout).unwrap()
}
