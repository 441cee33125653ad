//! A direct-tcpip channel (`-L`, `-W`, ProxyJump): to a port of the sandbox itself, or by its daemon to another host.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use atoll_api::access::{DAEMON_PORT, Target};
use atoll_api::channel::{ChannelOpen, ChannelProgram, FrameKind};
use atoll_mesh::dial::ByteStream;
use bytes::BytesMut;
use russh::ChannelOpenFailure;
use russh::server::ChannelOpenHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::debug;

use crate::access::{Access, new_request_id};
use crate::daemon_channel::{self, FrameReader, FrameWriter};
use crate::input::InputEvent;
use crate::program::{ClientEnd, pump_input};
use crate::refusal::Refusal;

const CHUNK_BYTES: usize = 64 * 1024;
const HOST_BYTES_MAX: usize = 255;

/// Where a client wants to be connected to, as it wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A port of the sandbox.
    Here { port: u16 },
    /// A host as seen from inside the sandbox.
    Elsewhere { host: String, port: u16 },
}

impl Destination {
    pub(crate) fn parse(host: &str, port: u32) -> Result<Destination, Refusal> {
        let number = u16::try_from(port).ok().filter(|port| *port != 0).ok_or(Refusal::BadPort(port))?;
        // By whatever name: the daemon takes orders from its node only.
        if number == DAEMON_PORT {
            return Err(Refusal::DaemonPort);
        }
        if is_loopback(host) {
            return Ok(Destination::Here { port: number });
        }
        if host.is_empty() || host.len() > HOST_BYTES_MAX || host.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(Refusal::Daemon("not a host name".into()));
        }
        Ok(Destination::Elsewhere { host: host.to_owned(), port: number })
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| {
            let address = address.to_canonical();
            address.is_loopback() || address.is_unspecified()
        })
}

/// Dials, answers the client's open request, and moves bytes until both directions have ended.
/// Cancelled by the caller when the client closes the channel.
pub(crate) async fn run(
    access: Arc<Access>,
    destination: Destination,
    reply: ChannelOpenHandle,
    client: ClientEnd,
) {
    match connect(&access, &destination).await {
        Ok(connection) => {
            reply.accept().await;
            match connection {
                Connection::Plain(stream) => pump_plain(&access, stream, &client).await,
                Connection::Framed(reader, writer) => pump_framed(&access, reader, writer, &client).await,
            }
            // It fails only when the session has ended.
            let _ = client.output.close().await;
        }
        Err(refusal) => {
            debug!(%refusal, ?destination, "forwarding refused");
            reply.reject(open_failure(&refusal)).await;
        }
    }
}

pub(crate) fn open_failure(refusal: &Refusal) -> ChannelOpenFailure {
    let kind = match refusal {
        Refusal::DaemonPort | Refusal::BadPort(_) => ChannelOpenFailure::AdministrativelyProhibited,
        _ => ChannelOpenFailure::ConnectFailed,
    };
    ChannelOpenFailure::Other { code: kind.code(), reason: refusal.to_string() }
}

enum Connection {
    Plain(ByteStream),
    Framed(FrameReader, FrameWriter),
}

async fn connect(access: &Access, destination: &Destination) -> Result<Connection, Refusal> {
    let request_id = new_request_id();
    match destination {
        Destination::Here { port } => {
            Ok(Connection::Plain(access.dial(Target::port(*port), &request_id).await?))
        }
        Destination::Elsewhere { host, port } => {
            let program = ChannelProgram::Connect { host: host.clone(), port: *port };
            let open = ChannelOpen { program, env: BTreeMap::new(), pty: None };
            let stream = access.dial(Target::Daemon, &request_id).await?;
            let (reader, writer) = daemon_channel::open(stream, &request_id, &open).await?;
            Ok(Connection::Framed(reader, writer))
        }
    }
}

/// Either side may end its direction first and go on reading.
async fn pump_plain(access: &Access, stream: ByteStream, client: &ClientEnd) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let upward = async {
        loop {
            match client.input.next(CHUNK_BYTES).await {
                InputEvent::Bytes(bytes) => {
                    writer.write_all(&bytes).await?;
                    writer.flush().await?;
                    access.activity().bytes_passed();
                    client.consumed(bytes.len());
                }
                InputEvent::Eof => return writer.shutdown().await,
                // Requests of a session channel mean nothing here.
                InputEvent::Resize(_) | InputEvent::Signal(_) => {}
            }
        }
    };
    let downward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            if reader.read_buf(&mut buffer).await? == 0 {
                return client.output.eof().await.map_err(std::io::Error::other);
            }
            access.activity().bytes_passed();
            client.output.data_bytes(buffer.split().freeze()).await.map_err(std::io::Error::other)?;
        }
    };
    tokio::pin!(upward, downward);
    // A broken connection ends both ways; an orderly end only its own.
    let ended = tokio::select! {
        // What the far side wrote before it stopped reading is still the client's.
        _sent = &mut upward => downward.await,
        received = &mut downward => match received {
            Ok(()) => upward.await,
            Err(error) => Err(error),
        },
    };
    if let Err(error) = ended {
        debug!(%error, "forwarded connection broke");
    }
}

async fn pump_framed(access: &Access, mut reader: FrameReader, writer: FrameWriter, client: &ClientEnd) {
    let downward = async {
        while let Ok(Some((FrameKind::Stdout, bytes))) = reader.next().await {
            access.activity().bytes_passed();
            if client.output.data_bytes(bytes).await.is_err() {
                return;
            }
        }
        let _ = client.output.eof().await;
    };
    tokio::pin!(downward);
    tokio::select! {
        () = &mut downward => {}
        _lost = pump_input(access, writer, client) => downward.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_itself_has_many_names() {
        for host in [
            "localhost",
            "LOCALHOST",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "0.0.0.0",
        ] {
            assert_eq!(Destination::parse(host, 80), Ok(Destination::Here { port: 80 }), "{host}");
        }
        let elsewhere = Destination::Elsewhere { host: "example.com".into(), port: 443 };
        assert_eq!(Destination::parse("example.com", 443), Ok(elsewhere));
    }

    #[test]
    fn the_daemons_port_is_closed_by_every_name() {
        for host in ["localhost", "::1", "10.0.0.5", "my-sandbox"] {
            assert_eq!(Destination::parse(host, 2280), Err(Refusal::DaemonPort), "{host}");
        }
    }

    #[test]
    fn what_is_no_port_or_host_is_refused() {
        assert_eq!(Destination::parse("localhost", 0), Err(Refusal::BadPort(0)));
        assert_eq!(Destination::parse("localhost", 65_536), Err(Refusal::BadPort(65_536)));
        assert_eq!(Destination::parse("localhost", 65_536 + 2280), Err(Refusal::BadPort(67_816)));
        for host in ["", "a b", "a\nb", &"x".repeat(256)] {
            assert!(Destination::parse(host, 80).is_err(), "{host:?}");
        }
    }
}
