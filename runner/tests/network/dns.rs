//! A nameserver of the internet, and questions from a sandbox.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::world::Namespace;

pub const NAMESERVER: &str = "203.0.113.13:53";
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const DATAGRAM_BYTES_MAX: usize = 1232;

/// What it has been asked for, in order.
#[derive(Clone, Default)]
pub struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Serves these addresses at [`NAMESERVER`] until the test ends; other names do not exist.
pub fn serve(internet: &Namespace, zone: &[(&str, &[&str])]) -> Asked {
    let zone: BTreeMap<String, Vec<Ipv4Addr>> = zone
        .iter()
        .map(|(name, addresses)| {
            (format!("{name}."), addresses.iter().map(|address| address.parse().unwrap()).collect())
        })
        .collect();
    let (zone, asked) = (Arc::new(zone), Asked::default());
    let (udp, tcp) = internet.run(|| {
        (std::net::UdpSocket::bind(NAMESERVER).unwrap(), std::net::TcpListener::bind(NAMESERVER).unwrap())
    });
    udp.set_nonblocking(true).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let (udp, tcp) = (UdpSocket::from_std(udp).unwrap(), TcpListener::from_std(tcp).unwrap());
    let (by_udp, by_tcp) = ((zone.clone(), asked.clone()), (zone, asked.clone()));
    tokio::spawn(async move {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut bytes).await {
            let mut answer = answered(&by_udp.0, &by_udp.1, &bytes[..length]);
            if answer.to_vec().unwrap().len() > DATAGRAM_BYTES_MAX {
                answer = answer.truncate();
            }
            udp.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut bytes).await.unwrap();
            write_framed(&mut stream, &answered(&by_tcp.0, &by_tcp.1, &bytes)).await;
        }
    });
    asked
}

fn answered(zone: &BTreeMap<String, Vec<Ipv4Addr>>, asked: &Asked, question: &[u8]) -> Message {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let name = query.name.to_lowercase().to_ascii();
    asked.0.lock().unwrap().push(name.clone());
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    match zone.get(&name) {
        Some(addresses) => {
            let records =
                addresses.iter().map(|to| Record::from_rdata(query.name.clone(), 60, RData::A(A(*to))));
            answer.add_answers(records);
        }
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.add_query(query);
    answer
}

fn question(name: &str, of: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), of));
    message
}

/// The addresses, or the code that it was refused with.
pub type Looked = Result<Vec<String>, ResponseCode>;

pub async fn look_up(sandbox: &Namespace, name: &str) -> Looked {
    looked(&ask(sandbox, name, RecordType::A).await)
}

pub async fn ask(sandbox: &Namespace, name: &str, of: RecordType) -> Message {
    let message = question(name, of);
    let socket = sandbox.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_nonblocking(true).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    let gateway: SocketAddr = "10.88.0.1:53".parse().unwrap();
    socket.send_to(&message.to_vec().unwrap(), gateway).await.unwrap();
    let mut bytes = [0; 4096];
    let (length, from) =
        tokio::time::timeout(ANSWERED_WITHIN, socket.recv_from(&mut bytes)).await.unwrap().unwrap();
    let answer = Message::from_vec(&bytes[..length]).unwrap();
    assert_eq!((from, answer.metadata.id, &answer.queries), (gateway, message.metadata.id, &message.queries));
    answer
}

pub async fn look_up_by_tcp(sandbox: &Namespace, name: &str) -> Looked {
    let mut stream = sandbox.connect("10.88.0.1:53").await.unwrap();
    write_framed(&mut stream, &question(name, RecordType::A)).await;
    let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut bytes).await.unwrap();
    looked(&Message::from_vec(&bytes).unwrap())
}

fn looked(answer: &Message) -> Looked {
    if answer.metadata.response_code != ResponseCode::NoError {
        return Err(answer.metadata.response_code);
    }
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0.to_string()),
        _ => None,
    });
    Ok(addresses.collect())
}

async fn write_framed(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
}
