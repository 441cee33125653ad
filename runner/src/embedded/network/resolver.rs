//! Names for sandboxes: the gateway's port 53, UDP and TCP. Who asks is known by the address it asks from, which nobody
//! can forge here. A sandbox that may reach certain names only gets no other name answered, and before it gets an answer
//! the addresses in it are opened for it, for longer than the answer is valid.
//!
//! ```text
//!   question ─ who? ─ limits ─ judge ─▶ refused or nothing
//!                                └────▶ nameserver ─ sift ─ pin ─▶ answer
//! ```

mod judge;
mod limits;
pub(super) mod nameservers;
mod upstream;
mod wire;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use self::judge::{Sifted, Verdict};
use self::limits::Limits;
use self::wire::{Question, Unfit};
use super::restrictions::Restrictions;

const PORT: u16 = 53;
/// Ours and EDNS's usual: more goes by TCP.
const UDP_BYTES_MAX: usize = 1232;
const TCP_QUESTIONS_MAX: usize = 64;
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Serves until it is dropped.
pub(super) struct Resolver {
    serving: tokio::task::JoinHandle<()>,
}

impl Resolver {
    /// The gateway must be an address of the host.
    pub(super) async fn start(
        gateway: Ipv4Addr,
        nameservers: Arc<RwLock<Vec<SocketAddr>>>,
        restrictions: Arc<Restrictions>,
    ) -> io::Result<Resolver> {
        let at = SocketAddr::from((gateway, PORT));
        let udp = UdpSocket::bind(at).await?;
        let tcp = TcpListener::bind(at).await?;
        let desk = Arc::new(Desk { nameservers, restrictions, limits: Mutex::default() });
        Ok(Resolver { serving: tokio::spawn(serve(desk, udp, tcp)) })
    }

    pub(super) fn is_running(&self) -> bool {
        !self.serving.is_finished()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What every question needs.
struct Desk {
    nameservers: Arc<RwLock<Vec<SocketAddr>>>,
    restrictions: Arc<Restrictions>,
    limits: Mutex<Limits>,
}

impl Desk {
    fn admit(self: &Arc<Self>, sandbox: Ipv4Addr) -> Option<Admitted> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.admit(sandbox, Instant::now()).then(|| Admitted { desk: self.clone(), sandbox })
    }
}

/// A question that is being answered.
struct Admitted {
    desk: Arc<Desk>,
    sandbox: Ipv4Addr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.desk.limits.lock().unwrap_or_else(PoisonError::into_inner).leave(self.sandbox);
    }
}

/// All that it starts ends with it.
async fn serve(desk: Arc<Desk>, udp: UdpSocket, tcp: TcpListener) {
    let udp = Arc::new(udp);
    let mut answering = JoinSet::new();
    let mut bytes = [0; UDP_BYTES_MAX];
    loop {
        tokio::select! {
            received = udp.recv_from(&mut bytes) => match received {
                Ok((length, from)) => {
                    // Beyond its limits a sandbox hears nothing and asks again, as after any lost packet.
                    let Some(admitted) = sandbox_of(from).and_then(|sandbox| desk.admit(sandbox)) else { continue };
                    let (udp, question) = (udp.clone(), bytes[..length].to_vec());
                    answering.spawn(async move {
                        if let Some(answer) = answer(&admitted, &question, UDP_BYTES_MAX).await {
                            let _ = udp.send_to(&answer, from).await;
                        }
                    });
                }
                // An answer that could not be delivered comes back as the next error.
                Err(error) => tracing::debug!(%error, "a datagram for the resolver is lost"),
            },
            accepted = tcp.accept() => match accepted {
                Ok((stream, from)) => {
                    // Holds one place for as long as it is open.
                    let Some(admitted) = sandbox_of(from).and_then(|sandbox| desk.admit(sandbox)) else { continue };
                    answering.spawn(async move {
                        let _ = converse(&admitted, stream).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the sandboxes' resolver cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = answering.join_next() => {}
        }
    }
}

fn sandbox_of(from: SocketAddr) -> Option<Ipv4Addr> {
    match from.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

async fn converse(admitted: &Admitted, mut stream: TcpStream) -> io::Result<()> {
    for _ in 0..TCP_QUESTIONS_MAX {
        let read = async {
            let length = stream.read_u16().await?;
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await?;
            Ok::<_, io::Error>(question)
        };
        let question = tokio::time::timeout(TCP_IDLE, read).await??;
        // Each question counts, whichever way it came.
        let Some(place) = admitted.desk.admit(admitted.sandbox) else { return Ok(()) };
        let Some(answer) = answer(&place, &question, usize::from(u16::MAX)).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        tokio::time::timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// `None` for what does not even look like a question.
async fn answer(admitted: &Admitted, bytes: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let question = match wire::parse(bytes) {
        Ok(question) => question,
        Err(Unfit::Noise) => return None,
        Err(Unfit::Refuse { id, op_code, code }) => {
            return wire::encode(&Message::error_msg(id, op_code, code), UDP_BYTES_MAX);
        }
    };
    let message = match resolve(admitted, &question).await {
        Ok(found) => question.answered(found),
        Err(code) => question.refused(code),
    };
    wire::encode(&message, bytes_max.min(question.bytes_max(bytes_max)))
}

async fn resolve(admitted: &Admitted, question: &Question) -> Result<Message, ResponseCode> {
    let Desk { nameservers, restrictions, .. } = &*admitted.desk;
    let wish = restrictions.wish_of(admitted.sandbox);
    let purpose = match judge::judge(question, wish.as_ref()) {
        Verdict::Refuse => return Err(ResponseCode::Refused),
        Verdict::Nothing => return Ok(question.nothing()),
        Verdict::Ask(purpose) => purpose,
    };
    let nameservers = nameservers.read().unwrap_or_else(PoisonError::into_inner).clone();
    let found = upstream::ask(&nameservers, question).await.map_err(|error| {
        tracing::debug!(%error, "no nameserver answers a sandbox");
        ResponseCode::ServFail
    })?;
    let Sifted { message, opens } = judge::sift(found, question, &purpose).ok_or(ResponseCode::Refused)?;
    if !opens.is_empty() {
        // Never an address without its element: it would be refused, and remembered as unreachable.
        restrictions.pin(admitted.sandbox, &question.name, &opens).await.map_err(|error| {
            tracing::warn!(%error, sandbox = %admitted.sandbox, "cannot open the addresses of an allowed name");
            ResponseCode::ServFail
        })?;
    }
    Ok(message)
}
