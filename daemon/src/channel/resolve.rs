//! Names to addresses without libc, whose resolver needs files that a static binary in a foreign image doesn't find:
//! numbers, `localhost`, `/etc/hosts`, then the name servers of `/etc/resolv.conf` by UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

const ATTEMPT_DEADLINE: Duration = Duration::from_secs(2);
const SERVERS_MAX: usize = 3;
const ANSWER_BYTES_MAX: usize = 4096;
const DNS_PORT: u16 = 53;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// Never empty.
pub async fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let found = in_hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
    if !found.is_empty() {
        return Ok(found);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let config = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for server in servers(&config) {
        let (v4, v6) = tokio::join!(ask(server, host, TYPE_A), ask(server, host, TYPE_AAAA));
        let found: Vec<IpAddr> = v4.into_iter().chain(v6).flatten().collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(format!("no address for {host:?}"))
}

fn in_hosts(hosts: &str, host: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    hosts.lines().filter_map(line).collect()
}

fn servers(config: &str) -> Vec<SocketAddr> {
    let addresses = config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    addresses.take(SERVERS_MAX).map(|address| (address, DNS_PORT).into()).collect()
}

async fn ask(server: SocketAddr, host: &str, record_type: u16) -> Option<Vec<IpAddr>> {
    // Unpredictable, with the kernel's random source port, against forged answers.
    let id = uuid::Uuid::new_v4().as_u128() as u16;
    let question = question(id, host, record_type)?;
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let asked = async {
        let socket = UdpSocket::bind(any).await.ok()?;
        socket.connect(server).await.ok()?;
        socket.send(&question).await.ok()?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let length = socket.recv(&mut answer).await.ok()?;
            if let Some(addresses) = parse_answer(&answer[..length], &question, record_type) {
                return Some(addresses);
            }
        }
    };
    tokio::time::timeout(ATTEMPT_DEADLINE, asked).await.ok()?
}

fn question(id: u16, host: &str, record_type: u16) -> Option<Vec<u8>> {
    const RECURSE: u16 = 0x0100;
    let mut message = Vec::new();
    for word in [id, RECURSE, 1, 0, 0, 0] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    for label in host.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&record_type.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    Some(message)
}

/// `None` for what is no answer to `question`.
fn parse_answer(answer: &[u8], question: &[u8], record_type: u16) -> Option<Vec<IpAddr>> {
    const HEADER_BYTES: usize = 12;
    let is_ours = answer.get(..2)? == &question[..2]
        && answer.get(2)? & 0x80 != 0
        && answer.get(HEADER_BYTES..question.len())?.eq_ignore_ascii_case(&question[HEADER_BYTES..]);
    if !is_ours {
        return None;
    }
    let records = u16::from_be_bytes([answer[6], answer[7]]);
    let mut rest = &answer[question.len()..];
    let mut addresses = Vec::new();
    for _ in 0..records {
        rest = skip_name(rest)?;
        let (fixed, after) = rest.split_at_checked(10)?;
        let (data, next) = after.split_at_checked(u16::from_be_bytes([fixed[8], fixed[9]]).into())?;
        if u16::from_be_bytes([fixed[0], fixed[1]]) == record_type {
            match data.len() {
                4 => addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
                16 => addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
                _ => return None,
            }
        }
        rest = next;
    }
    Some(addresses)
}

/// Names need not be read: an alias's address stands in the same answer.
fn skip_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        match *bytes.first()? {
            0 => return bytes.get(1..),
            length if length & 0xc0 == 0xc0 => return bytes.get(2..),
            length => bytes = bytes.get(1 + usize::from(length)..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numbers_and_localhost_need_no_server() {
        assert_eq!(resolve("127.0.0.1").await.unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolve("[::1]").await.unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        assert!(resolve("localhost").await.unwrap().iter().all(IpAddr::is_loopback));
    }

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        let hosts = "127.0.0.1 localhost\n10.0.0.7 db Database # comment db2\n";

        assert_eq!(in_hosts(hosts, "database"), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert!(in_hosts(hosts, "db2").is_empty());
    }

    #[test]
    fn an_answer_is_read_through_aliases() {
        let question = question(7, "a.b", TYPE_A).unwrap();
        let mut answer = question.clone();
        (answer[2], answer[7]) = (0x81, 2);
        answer.extend_from_slice(b"\xc0\x0c\0\x05\0\x01\0\0\0\0\0\x02\xc0\x0e");
        answer.extend_from_slice(b"\x01x\0\0\x01\0\x01\0\0\0\0\0\x04\x01\x02\x03\x04");

        assert_eq!(parse_answer(&answer, &question, TYPE_A), Some(vec![Ipv4Addr::new(1, 2, 3, 4).into()]));
    }

    #[test]
    fn nothing_that_is_cut_or_foreign_is_an_answer() {
        let question = question(7, "a.b", TYPE_A).unwrap();
        let mut answer = question.clone();
        (answer[2], answer[7]) = (0x81, 1);
        answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\x01\x02\x03\x04");

        for length in 0..answer.len() {
            assert_eq!(parse_answer(&answer[..length], &question, TYPE_A), None, "{length}");
        }
        answer[0] ^= 1;
        assert_eq!(parse_answer(&answer, &question, TYPE_A), None);
    }
}
