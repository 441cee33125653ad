//! Connections that begin inside a sandbox's network namespace, so that they reach programs which listen on
//! localhost only, also in a sandbox that has no network.
//!
//! A socket belongs for ever to the namespace of the thread that made it. So a few threads of ours, which do nothing
//! else, enter the namespace, make the socket, go home and hand it over; connecting is tokio's business. A thread
//! never waits for a sandbox, and each dial enters its own namespace explicitly, so whatever state a failed one has left
//! cannot lead the next astray.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use crate::runtime::RuntimeError;

const THREADS: usize = 2;
/// Sockets that may be asked for and not made yet; each takes some ten microseconds.
const JOBS_MAX: usize = 1024;
/// A sandbox whose program does not accept fills its own backlog and then lets us wait.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The first process of a running sandbox and its network namespace, held open: whatever happens to the process id,
/// these are the sandbox's own.
#[derive(Debug)]
pub(crate) struct Live {
    process: OwnedFd,
    network: OwnedFd,
}

impl Live {
    /// `process` is a pidfd.
    pub(crate) fn new(process: OwnedFd, network: OwnedFd) -> Live {
        Live { process, network }
    }

    /// `NotRunning` when the process has ended meanwhile, also if its id is another one's by now.
    pub(crate) fn open(pid: i32, container_id: &str) -> Result<Live, RuntimeError> {
        let opened = Live::try_open(pid, container_id).map_err(|error| match error.kind() {
            // ESRCH too: what is opened below a process's folder fails with it once the process is gone.
            io::ErrorKind::NotFound => RuntimeError::NotRunning,
            _ if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => RuntimeError::NotRunning,
            _ => RuntimeError::Host(format!(
                "cannot enter a sandbox's network namespace: {error}; the runner must run as root in the host's \
                 process namespace"
            )),
        })?;
        opened.ok_or(RuntimeError::NotRunning)
    }

    fn try_open(pid: i32, container_id: &str) -> io::Result<Option<Live>> {
        let process = pidfd_open(Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?, PidfdFlags::NONBLOCK)?;
        // Everything below this folder is about one process, even if its id is given away again.
        let folder = openat(
            CWD,
            format!("/proc/{pid}"),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let cgroup =
            io::read_to_string(std::fs::File::from(openat(&folder, "cgroup", read, Mode::empty())?))?;
        // The engine names a container's control group after it, and no process of a sandbox can leave its own.
        if !cgroup.contains(container_id) {
            return Ok(None);
        }
        let network = openat(&folder, "ns/net", read, Mode::empty())?;
        Ok(Some(Live { process, network }))
    }

    /// Ends when the process has ended. Nothing is polled, and the engine is not asked.
    pub(crate) async fn ended(&self) -> Result<(), RuntimeError> {
        let watched = async {
            // Deprecated for types that may close or swap their descriptor while it is registered; this one cannot.
            #[expect(deprecated)]
            let process = AsyncFd::with_interest(self.process.try_clone()?, Interest::READABLE)?;
            process.readable().await.map(|_| ())
        };
        watched.await.map_err(|error: io::Error| {
            RuntimeError::Host(format!("cannot watch a sandbox's first process: {error}"))
        })
    }
}

/// The threads. They end when this is dropped.
pub(crate) struct Namespaces {
    jobs: SyncSender<Job>,
}

struct Job {
    live: Arc<Live>,
    family: AddressFamily,
    answer: oneshot::Sender<io::Result<OwnedFd>>,
}

impl Namespaces {
    pub(crate) fn spawn() -> io::Result<Namespaces> {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..THREADS {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("netns-{number}")).spawn(move || serve(&queue))?;
        }
        Ok(Namespaces { jobs })
    }

    /// To the port on the sandbox's 127.0.0.1, or on its ::1 if that refuses.
    pub(crate) async fn connect(&self, live: &Arc<Live>, port: u16) -> Result<TcpStream, RuntimeError> {
        let both = async {
            match self.connect_to(live, AddressFamily::INET, Ipv4Addr::LOCALHOST.into(), port).await {
                Err(RuntimeError::Refused) => {
                    self.connect_to(live, AddressFamily::INET6, Ipv6Addr::LOCALHOST.into(), port).await
                }
                other => other,
            }
        };
        tokio::time::timeout(CONNECT_DEADLINE, both).await.unwrap_or_else(|_| {
            Err(RuntimeError::TimedOut(format!("port {port} of the sandbox does not accept connections")))
        })
    }

    async fn connect_to(
        &self,
        live: &Arc<Live>,
        family: AddressFamily,
        address: IpAddr,
        port: u16,
    ) -> Result<TcpStream, RuntimeError> {
        let (answer, made) = oneshot::channel();
        self.jobs.try_send(Job { live: live.clone(), family, answer }).map_err(|error| match error {
            TrySendError::Full(_) => RuntimeError::Overloaded,
            TrySendError::Disconnected(_) => RuntimeError::Host("the dialling threads have ended".into()),
        })?;
        let made = made.await.map_err(|_| RuntimeError::Host("a dialling thread broke off".into()))?;
        let socket = match made {
            Ok(socket) => socket,
            // No IPv6 in this sandbox.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                return Err(RuntimeError::Refused);
            }
            Err(error) => {
                return Err(RuntimeError::Host(format!("cannot make a socket inside a sandbox: {error}")));
            }
        };
        let connected =
            TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::new(address, port)).await;
        let stream = connected.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => RuntimeError::Refused,
            io::ErrorKind::AddrNotAvailable if family == AddressFamily::INET6 => RuntimeError::Refused,
            // The sandbox has used up its own ephemeral ports.
            io::ErrorKind::AddrNotAvailable => RuntimeError::Overloaded,
            io::ErrorKind::TimedOut => RuntimeError::TimedOut(format!("port {port} of the sandbox")),
            _ => RuntimeError::Host(format!("cannot connect inside a sandbox: {error}")),
        })?;
        // Small writes of terminals and APIs must not wait for each other.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

fn serve(queue: &Mutex<Receiver<Job>>) {
    let home = openat(CWD, "/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { live, family, answer }) = job else { return };
        let made = socket_inside(&live, family);
        // At home, an idle thread keeps no dead sandbox's namespace alive.
        if let Ok(home) = &home
            && let Err(error) = move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network))
        {
            tracing::error!(%error, "a dialling thread cannot return to the host's network namespace");
        }
        // The asker may have gone; its socket closes then.
        let _ = answer.send(made);
    }
}

fn socket_inside(live: &Live, family: AddressFamily) -> io::Result<OwnedFd> {
    move_into_link_name_space(live.network.as_fd(), Some(LinkNameSpaceType::Network))?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}
