//! One question to the nameservers: by UDP from a fresh port, by TCP when the answer was cut.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::UDP_BYTES_MAX;
use super::wire::Question;

const ROUNDS: usize = 2;
const ATTEMPT_DEADLINE: Duration = Duration::from_millis(1500);
/// Below the five seconds after which askers ask again.
const DEADLINE: Duration = Duration::from_millis(4500);

/// What the first nameserver says that says anything of use.
pub(super) async fn ask(nameservers: &[SocketAddr], question: &Question) -> io::Result<Message> {
    let asking = async {
        let mut last = io::Error::other("the host has no nameserver");
        for nameserver in nameservers.iter().cycle().take(ROUNDS * nameservers.len()) {
            let attempt = async {
                let message = by_udp(*nameserver, question).await?;
                match message.metadata.truncation {
                    true => by_tcp(*nameserver, question).await,
                    false => Ok(message),
                }
            };
            match timeout(ATTEMPT_DEADLINE, attempt)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            {
                Ok(message) => match message.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Ok(message),
                    code => last = io::Error::other(format!("{nameserver} answers {code}")),
                },
                Err(error) => last = io::Error::new(error.kind(), format!("{nameserver}: {error}")),
            }
        }
        Err(last)
    };
    timeout(DEADLINE, asking).await?
}

fn prepared(question: &Question) -> io::Result<(u16, Vec<u8>)> {
    // With a random id.
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(question.query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES_MAX as u16);
    message.set_edns(edns);
    Ok((message.metadata.id, message.to_vec().map_err(io::Error::other)?))
}

async fn by_udp(nameserver: SocketAddr, question: &Question) -> io::Result<Message> {
    let (id, bytes) = prepared(question)?;
    let any: SocketAddr = match nameserver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(nameserver).await?;
    socket.send(&bytes).await?;
    let mut answer = [0; 4096];
    loop {
        let length = socket.recv(&mut answer).await?;
        // What does not fit the question is somebody's guess.
        if let Some(message) = fitting(&answer[..length], id, question) {
            return Ok(message);
        }
    }
}

async fn by_tcp(nameserver: SocketAddr, question: &Question) -> io::Result<Message> {
    let (id, bytes) = prepared(question)?;
    let mut stream = TcpStream::connect(nameserver).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    fitting(&answer, id, question).ok_or_else(|| io::Error::other("it answers another question"))
}

fn fitting(bytes: &[u8], id: u16, question: &Question) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let fits = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && matches!(message.queries.as_slice(), [query]
            if query.query_type == question.query.query_type
                && query.query_class == question.query.query_class
                && query.name.to_lowercase() == question.query.name.to_lowercase());
    fits.then_some(message)
}
