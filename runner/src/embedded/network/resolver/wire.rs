//! Questions and answers as bytes. Pure.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// So short that a sandbox asks again long before what was opened for the answer closes.
const TTL_S_MAX: u32 = 300;
/// Of datagrams without EDNS.
const PLAIN_BYTES_MAX: usize = 512;

pub(super) struct Question {
    id: u16,
    recursion_desired: bool,
    /// What an asker with EDNS can take.
    datagram_bytes_max: Option<u16>,
    pub(super) query: Query,
    /// In lower case, without the last dot. Empty when it holds what no host name has.
    pub(super) name: String,
}

/// What does not ask a question that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Nobody waits for an answer.
    Noise,
    Refuse {
        id: u16,
        op_code: OpCode,
        code: ResponseCode,
    },
}

pub(super) fn parse(bytes: &[u8]) -> Result<Question, Unfit> {
    let message = Message::from_vec(bytes).map_err(|_| Unfit::Noise)?;
    let metadata = message.metadata;
    if metadata.message_type != MessageType::Query {
        return Err(Unfit::Noise);
    }
    let refusal = |code| Err(Unfit::Refuse { id: metadata.id, op_code: metadata.op_code, code });
    if metadata.op_code != OpCode::Query {
        return refusal(ResponseCode::NotImp);
    }
    let [query] = message.queries.as_slice() else { return refusal(ResponseCode::FormErr) };
    if query.query_class != DNSClass::IN {
        return refusal(ResponseCode::NotImp);
    }
    Ok(Question {
        id: metadata.id,
        recursion_desired: metadata.recursion_desired,
        datagram_bytes_max: message.edns.as_ref().map(Edns::max_payload),
        name: host_name(&query.name).unwrap_or_default(),
        query: query.clone(),
    })
}

/// A label may hold any byte, a dot too; what is compared with patterns and shown to `nft` may not.
fn host_name(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name {
        if label.is_empty() || !label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(std::str::from_utf8(label).ok()?);
    }
    text.make_ascii_lowercase();
    Some(text)
}

impl Question {
    pub(super) fn bytes_max(&self, transport_bytes_max: usize) -> usize {
        if transport_bytes_max == usize::from(u16::MAX) {
            return transport_bytes_max;
        }
        self.datagram_bytes_max.map_or(PLAIN_BYTES_MAX, |bytes| usize::from(bytes).max(PLAIN_BYTES_MAX))
    }

    pub(super) fn refused(&self, code: ResponseCode) -> Message {
        self.headed(Message::error_msg(self.id, OpCode::Query, code))
    }

    /// The name may exist and has nothing of this type.
    pub(super) fn nothing(&self) -> Message {
        Message::response(self.id, OpCode::Query)
    }

    /// With what a nameserver or [`Question::nothing`] says.
    pub(super) fn answered(&self, found: Message) -> Message {
        let mut message = Message::error_msg(self.id, OpCode::Query, found.metadata.response_code);
        message.answers = found.answers;
        message.authorities = found.authorities;
        for record in message.answers.iter_mut().chain(&mut message.authorities) {
            record.ttl = record.ttl.min(TTL_S_MAX);
        }
        self.headed(message)
    }

    fn headed(&self, mut message: Message) -> Message {
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if self.datagram_bytes_max.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(super::UDP_BYTES_MAX as u16);
            message.set_edns(edns);
        }
        message
    }
}

/// Says in its header when it had to leave something out.
pub(super) fn encode(message: &Message, bytes_max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PLAIN_BYTES_MAX);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::try_from(bytes_max).unwrap_or(u16::MAX));
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record, RecordType};

    use super::*;

    fn asked(name: &Name) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(name.clone(), RecordType::A));
        message.to_vec().unwrap()
    }

    #[test]
    fn a_name_is_compared_in_lower_case_and_only_if_it_could_be_a_hosts() {
        let name = |labels: &[&[u8]]| Name::from_labels(labels.iter().copied()).unwrap();
        let parsed = |labels: &[&[u8]]| parse(&asked(&name(labels))).ok().unwrap().name;

        assert_eq!(parsed(&[b"WWW", b"a-b", b"Example", b"org"]), "www.a-b.example.org");
        assert_eq!(parsed(&[b"a.example", b"org"]), "");
        assert_eq!(parsed(&[b"a\"\n", b"org"]), "");
    }

    #[test]
    fn what_is_no_question_is_answered_with_an_error_or_not_at_all() {
        assert_eq!(parse(b"").err(), Some(Unfit::Noise));
        assert_eq!(parse(&[0xff; 64]).err(), Some(Unfit::Noise));
        let mut two = Message::query();
        two.add_query(Query::query(Name::root(), RecordType::A));
        two.add_query(Query::query(Name::root(), RecordType::A));
        let refused = parse(&two.to_vec().unwrap()).err();
        assert!(matches!(refused, Some(Unfit::Refuse { code: ResponseCode::FormErr, .. })), "{refused:?}");
        let answer = Message::response(1, OpCode::Query).to_vec().unwrap();
        assert_eq!(parse(&answer).err(), Some(Unfit::Noise));
    }

    #[test]
    fn a_long_answer_is_cut_and_says_so_and_no_answer_is_valid_for_long() {
        let name = Name::from_ascii("a.org.").unwrap();
        let question = parse(&asked(&name)).ok().unwrap();
        let mut found = Message::query();
        for host in 0..100 {
            let address = RData::A(A(Ipv4Addr::new(192, 0, 2, host)));
            found.add_answer(Record::from_rdata(name.clone(), 86_400, address));
        }
        let message = question.answered(found);

        let short = encode(&message, question.bytes_max(super::super::UDP_BYTES_MAX)).unwrap();
        assert!(short.len() <= 512);
        let short = Message::from_vec(&short).unwrap();
        assert!(short.metadata.truncation && short.answers.len() < 100);
        let whole = encode(&message, question.bytes_max(usize::from(u16::MAX))).unwrap();
        let whole = Message::from_vec(&whole).unwrap();
        assert!(!whole.metadata.truncation && whole.answers.len() == 100);
        assert!(whole.answers.iter().all(|record| record.ttl == TTL_S_MAX));
    }
}
