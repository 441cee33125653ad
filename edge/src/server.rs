//! The edge's threads: each has a runtime, its listeners and its proxy, and shares nothing on the way of a request.
//!
//!   accept ──permit──▶ TLS handshake ──▶ requests … ──▶ closed
//!      └─ stop: take what the kernel has queued, close the listeners, let requests finish, cut the rest at the deadline

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use atoll_api::file_link::SigningSecret;
use atoll_mesh::dial::{Dial, Directory};
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{GetProxyDigest, GetSocketDigest, SocketDigest, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use std::os::fd::AsRawFd;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::cookie::CookieKey;
use crate::head_clock::HeadClock;
use crate::listen;
use crate::proxy::{Doors, EdgeProxy};

/// Linux's `sun_path` holds 108 bytes, the last a NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long to let others close files before accepting again.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(50);
/// API connections that each thread keeps open.
const API_CONNECTIONS_KEPT: usize = 64;
/// Twice, because a kept API connection may have been closed by the other side meanwhile.
const API_TRIES: usize = 2;

#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Where plain HTTP is served. Port 0 picks one.
    pub http: SocketAddr,
    /// Where HTTPS is served; needs a TLS configuration.
    pub https: Option<SocketAddr>,
    /// Hosts below it are previews, e.g. `preview.localhost`. Without a port.
    pub preview_domain: String,
    /// The Unix socket of this node's API, which gets everything that is for no sandbox.
    pub api_socket: PathBuf,
    /// Signs preview cookies; the same on every node, so that a browser may come back to another one.
    pub cookie_key: CookieKey,
    /// What links to files are verified with; the same on every node.
    pub signing_secret: SigningSecret,
    /// `None`: one per core.
    pub threads: Option<usize>,
    pub limits: EdgeLimits,
}

#[derive(Debug, Clone)]
pub struct EdgeLimits {
    /// Open client connections, over all threads. More wait in the kernel's queue until one closes.
    pub connections_max: usize,
    /// A TLS handshake that takes longer is cut.
    pub handshake_timeout: Duration,
    /// A new connection whose first request's head is not whole after this is cut, however its bytes drip in.
    pub head_timeout: Duration,
    /// An HTTP/1 connection whose next request's head is not whole this long after the last answer is cut.
    pub idle_timeout: Duration,
    /// Requests at the same time on one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// An HTTP/2 connection without a request is closed after this.
    pub h2_idle_timeout: Duration,
}

impl Default for EdgeLimits {
    fn default() -> EdgeLimits {
        EdgeLimits {
            connections_max: 16_384,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            h2_streams_max: 256,
            h2_idle_timeout: Duration::from_secs(120),
        }
    }
}

/// The HTTP door. Only [`Edge::start`].
pub struct Edge;

/// A running edge. Dropping it without [`EdgeHandle::shutdown`] stops it at once.
#[derive(Debug)]
pub struct EdgeHandle {
    local_addrs: LocalAddrs,
    stop: watch::Sender<bool>,
    deadline: watch::Sender<Option<Instant>>,
    threads: Vec<(oneshot::Receiver<()>, thread::JoinHandle<()>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddrs {
    pub http: SocketAddr,
    pub https: Option<SocketAddr>,
}

impl Edge {
    /// Binds the ports and starts the threads; when it returns, connections are taken.
    ///
    /// `directory` and `dial` are called on the edge's own runtimes, which are current-thread and have timers and I/O.
    /// They may await channels and streams of any runtime and open sockets of their own; they must not block, must not
    /// use `block_in_place`, and must spawn what shall outlive a request on a runtime that outlives the edge.
    ///
    /// Pingora makes ring the process's default rustls provider if there is none yet.
    ///
    /// # Errors
    /// A port is taken or may not be bound; `https` and `tls` are not both given or both absent; the API socket's path
    /// is too long; the preview domain is no host name.
    pub fn start(
        config: EdgeConfig,
        tls: Option<Arc<rustls::ServerConfig>>,
        directory: Arc<dyn Directory>,
        dial: Arc<dyn Dial>,
    ) -> anyhow::Result<EdgeHandle> {
        let EdgeConfig {
            http,
            https,
            preview_domain,
            api_socket,
            cookie_key,
            signing_secret,
            threads,
            limits,
        } = config;
        anyhow::ensure!(
            https.is_some() == tls.is_some(),
            "an HTTPS address needs a TLS configuration, and the reverse"
        );
        anyhow::ensure!(
            crate::head::parse_host(&preview_domain).is_some_and(|host| host.name == preview_domain),
            "the preview domain must be a host name in lower case, without a port"
        );
        let path_fits = api_socket.to_str().is_some_and(|path| path.len() <= SOCKET_PATH_BYTES_MAX);
        anyhow::ensure!(
            path_fits,
            "the path of the API socket must be UTF-8 of at most {SOCKET_PATH_BYTES_MAX} bytes"
        );

        let count = match threads {
            Some(threads) => threads.max(1),
            None => thread::available_parallelism().map_or(1, |cores| cores.get()),
        };
        let http_listeners = listen::listeners(http, count)?;
        let https_listeners = https.map(|address| listen::listeners(address, count)).transpose()?;
        let local_addrs = LocalAddrs {
            http: local_address(&http_listeners)?,
            https: https_listeners.as_deref().map(local_address).transpose()?,
        };

        let doors =
            Arc::new(Doors { preview_domain, api_socket, cookie_key, signing_secret, directory, dial });
        let acceptor = tls.map(|tls| Arc::new(Acceptor::from_server_config(with_protocols(tls))));
        let permits = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
        let (stop, stopping) = watch::channel(false);
        let (deadline, cut_at) = watch::channel(None);

        let mut https_listeners = https_listeners.into_iter().flatten();
        let mut handle = EdgeHandle { local_addrs, stop, deadline, threads: Vec::with_capacity(count) };
        for (index, http) in http_listeners.into_iter().enumerate() {
            let listeners = Listeners { http, https: https_listeners.next().zip(acceptor.clone()) };
            let lane = Lane {
                doors: doors.clone(),
                permits: permits.clone(),
                limits: limits.clone(),
                stopping: stopping.clone(),
                cut_at: cut_at.clone(),
            };
            let (started, begun) = std::sync::mpsc::sync_channel(1);
            let (ended, end) = oneshot::channel();
            let thread = thread::Builder::new()
                .name(format!("atoll-edge-{index}"))
                .spawn(move || {
                    match lane.runtime() {
                        Ok(runtime) => runtime.block_on(lane.run(listeners, started)),
                        Err(error) => drop(started.send(Err(error))),
                    }
                    let _ = ended.send(());
                })
                .context("start an edge thread")?;
            handle.threads.push((end, thread));
            begun.recv().context("an edge thread ended while starting")??;
        }
        tracing::info!(http = %local_addrs.http, https = ?local_addrs.https, threads = count, "edge serves");
        Ok(handle)
    }
}

impl EdgeHandle {
    pub fn local_addrs(&self) -> LocalAddrs {
        self.local_addrs
    }

    /// Takes no more connections, lets requests finish for as long as `deadline`, cuts what is left, and returns when
    /// every thread has ended.
    pub async fn shutdown(mut self, deadline: Duration) {
        self.deadline.send_replace(Some(Instant::now() + deadline));
        self.stop.send_replace(true);
        for (ended, thread) in self.threads.drain(..) {
            // An error means the thread panicked, which also ends it; the join is then immediate.
            let _ = ended.await;
            if thread.join().is_err() {
                tracing::error!("an edge thread panicked");
            }
        }
    }
}

fn local_address(listeners: &[std::net::TcpListener]) -> anyhow::Result<SocketAddr> {
    listeners.first().context("no listener")?.local_addr().context("read the listening address")
}

/// HTTP/2 and HTTP/1.1, unless the caller has chosen.
fn with_protocols(tls: Arc<rustls::ServerConfig>) -> Arc<rustls::ServerConfig> {
    if !tls.alpn_protocols.is_empty() {
        return tls;
    }
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(tls)
}

/// Bound, but not yet on a runtime.
struct Listeners {
    http: std::net::TcpListener,
    https: Option<(std::net::TcpListener, Arc<Acceptor>)>,
}

impl Listeners {
    fn open(self) -> anyhow::Result<(Port, Option<Port>)> {
        let open = |listener, tls| -> anyhow::Result<Port> {
            Ok(Port { listener: TcpListener::from_std(listener).context("register a listener")?, tls })
        };
        let https = self.https.map(|(listener, acceptor)| open(listener, Some(acceptor))).transpose()?;
        Ok((open(self.http, None)?, https))
    }
}

struct Port {
    listener: TcpListener,
    tls: Option<Arc<Acceptor>>,
}

/// What one thread does.
struct Lane {
    doors: Arc<Doors>,
    permits: Arc<Semaphore>,
    limits: EdgeLimits,
    stopping: watch::Receiver<bool>,
    cut_at: watch::Receiver<Option<Instant>>,
}

impl Lane {
    fn runtime(&self) -> anyhow::Result<tokio::runtime::Runtime> {
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("build an edge runtime")
    }

    async fn run(self, listeners: Listeners, started: std::sync::mpsc::SyncSender<anyhow::Result<()>>) {
        let proxy = Arc::new(self.proxy());
        let (http, https) = match listeners.open() {
            Ok(ports) => {
                let _ = started.send(Ok(()));
                ports
            }
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };

        let connections = TaskTracker::new();
        match https {
            Some(https) => {
                tokio::join!(
                    self.accept(http, &proxy, &connections),
                    self.accept(https, &proxy, &connections)
                );
            }
            None => self.accept(http, &proxy, &connections).await,
        }

        // Wakes connections that wait for their next request; those in a request go on until the deadline.
        proxy.http_cleanup().await;
        connections.close();
        let deadline = self.cut_at.borrow().unwrap_or_else(Instant::now);
        if timeout_at(deadline, connections.wait()).await.is_err() {
            tracing::warn!(left = connections.len(), "cutting connections that outlived the drain");
        }
        // Dropping the runtime ends what is left.
    }

    fn proxy(&self) -> HttpProxy<EdgeProxy> {
        let conf = ServerConf {
            threads: 1,
            work_stealing: false,
            upstream_keepalive_pool_size: API_CONNECTIONS_KEPT,
            max_retries: API_TRIES,
            // No upstream is reached by TLS. Without a file Pingora loads the host's roots for every thread, twice, and
            // panics where one of them is unreadable.
            ca_file: Some("/dev/null".to_owned()),
            ..ServerConf::default()
        };
        let mut proxy = HttpProxy::new(EdgeProxy { doors: self.doors.clone() }, Arc::new(conf));
        let mut h2 = pingora::protocols::http::v2::server::default_h2_options();
        h2.max_concurrent_streams(self.limits.h2_streams_max);
        proxy.h2_options = Some(h2);
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(self.limits.h2_idle_timeout);
        proxy.server_options = Some(options);
        proxy.handle_init_modules();
        proxy
    }

    /// Closes the port when it returns.
    async fn accept(&self, port: Port, proxy: &Arc<HttpProxy<EdgeProxy>>, connections: &TaskTracker) {
        let mut stopping = self.stopping.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => break,
                accepted = port.listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, from)) => {
                    // The cap is back pressure: who is above it waits here or in the kernel's queue and is not dropped.
                    // While stopping it no longer holds: what was taken is served.
                    let permit = tokio::select! {
                        biased;
                        permit = self.permits.clone().acquire_owned() => permit.ok(),
                        _ = stopping.wait_for(|stop| *stop) => None,
                    };
                    self.serve(tcp, from, &port, permit, proxy, connections);
                }
                Err(error) => accept_failed(&error).await,
            }
        }
        // What the kernel has already taken for us would be reset when the listener closes.
        while let Ok(Ok((tcp, from))) = timeout(Duration::ZERO, port.listener.accept()).await {
            self.serve(tcp, from, &port, None, proxy, connections);
        }
    }

    fn serve(
        &self,
        tcp: TcpStream,
        from: SocketAddr,
        port: &Port,
        permit: Option<OwnedSemaphorePermit>,
        proxy: &Arc<HttpProxy<EdgeProxy>>,
        connections: &TaskTracker,
    ) {
        let _ = tcp.set_nodelay(true);
        let tls = port.tls.clone();
        let proxy = proxy.clone();
        let stopping = self.stopping.clone();
        let handshake_timeout = self.limits.handshake_timeout;
        let clock = Arc::new(HeadClock::new(self.limits.head_timeout, self.limits.idle_timeout));
        connections.spawn(async move {
            let _permit = permit;
            let stream = described(tcp, from, clock.clone());
            let mut stream: Stream = match tls {
                None => Box::new(stream),
                Some(acceptor) => match timeout(handshake_timeout, acceptor.tls_handshake(stream)).await {
                    Ok(Ok(stream)) => Box::new(stream),
                    Ok(Err(error)) => return tracing::debug!(%from, %error, "TLS handshake failed"),
                    Err(_) => return tracing::debug!(%from, "TLS handshake timed out"),
                },
            };
            clock.connected();
            let requests = async {
                while let Some(reusable) = proxy.process_new(stream, &stopping).await {
                    stream = reusable;
                }
            };
            tokio::select! {
                () = requests => {}
                () = clock.run_out() => tracing::debug!(%from, "no whole request came in time"),
            }
        });
    }
}

/// Without a digest Pingora doesn't know the client's address. The clock travels with the connection, so that each
/// request finds it.
fn described(tcp: TcpStream, from: SocketAddr, clock: Arc<HeadClock>) -> L4Stream {
    let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
    let _ = digest.peer_addr.set(Some(from.into()));
    let mut stream: L4Stream = tcp.into();
    stream.set_socket_digest(digest);
    stream.set_proxy_digest(clock.into_digest());
    stream
}

async fn accept_failed(error: &io::Error) {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    match errno {
        // The client gave up while it was queued.
        Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
        _ => {
            tracing::warn!(%error, "cannot accept connections, pausing");
            sleep(OUT_OF_FILES_PAUSE).await;
        }
    }
}
