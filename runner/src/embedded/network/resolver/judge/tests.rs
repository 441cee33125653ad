use hickory_proto::op::Query;
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, CNAME};

use super::*;
use crate::embedded::network::resolver::wire;

fn question(name: &str, of: RecordType) -> Question {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), of));
    wire::parse(&message.to_vec().unwrap()).ok().unwrap()
}

fn only(networks: &[&str], domains: &[&str]) -> Arc<Allowed> {
    Arc::new(Allowed::Only {
        networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        domains: domains.iter().map(|domain| domain.parse().unwrap()).collect(),
    })
}

fn answer(records: &[(&str, &str)]) -> Message {
    let mut message = Message::query();
    for (name, target) in records {
        let data = match target.parse::<Ipv4Addr>() {
            Ok(address) => RData::A(A(address)),
            Err(_) => RData::CNAME(CNAME(Name::from_ascii(target).unwrap())),
        };
        message.add_answer(Record::from_rdata(Name::from_ascii(name).unwrap(), 60, data));
    }
    message
}

fn addresses(message: &Message) -> Vec<String> {
    let found = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0.to_string()),
        _ => None,
    });
    found.collect()
}

#[test]
fn who_may_ask_what() {
    let told = |allowed| Some(Wish::Told(allowed));
    let verdict = |wish: &Option<Wish>, name, of| match judge(&question(name, of), wish.as_ref()) {
        Verdict::Refuse => "refuse",
        Verdict::Nothing => "nothing",
        Verdict::Ask(Purpose::Everything) => "everything",
        Verdict::Ask(Purpose::Open(_)) => "open",
        Verdict::Ask(Purpose::Within(_)) => "within",
    };
    let (names, networks) = (told(only(&["10.0.0.0/8"], &["*.a.org"])), told(only(&["10.0.0.0/8"], &[])));
    for (wish, name, of, expected) in [
        (&None, "b.org.", RecordType::A, "everything"),
        (&None, "b.org.", RecordType::AAAA, "nothing"),
        (&None, "b.org.", RecordType::HTTPS, "everything"),
        (&None, "b.org.", RecordType::ANY, "refuse"),
        (&told(Arc::new(Allowed::Nobody)), "a.org.", RecordType::A, "refuse"),
        (&Some(Wish::Untold), "a.org.", RecordType::A, "refuse"),
        (&names, "www.a.org.", RecordType::A, "open"),
        (&names, "WWW.A.org.", RecordType::TXT, "open"),
        (&names, "www.a.org.", RecordType::AAAA, "nothing"),
        (&names, "www.a.org.", RecordType::HTTPS, "nothing"),
        (&names, "a.org.", RecordType::A, "refuse"),
        (&names, "b.org.", RecordType::AAAA, "refuse"),
        (&networks, "b.org.", RecordType::A, "within"),
        (&networks, "b.org.", RecordType::TXT, "refuse"),
    ] {
        assert_eq!(verdict(wish, name, of), expected, "{name} {of}");
    }
}

#[test]
fn aliases_are_followed_and_strange_records_open_nothing() {
    let found = answer(&[
        ("www.a.org.", "edge.cdn.net."),
        ("edge.CDN.net.", "198.51.100.1"),
        ("evil.net.", "198.51.100.66"),
    ]);
    let purpose = Purpose::Open(only(&[], &["*.a.org"]));

    let sifted = sift(found, &question("WWW.a.org.", RecordType::A), &purpose).unwrap();

    assert_eq!(addresses(&sifted.message), ["198.51.100.1"]);
    assert_eq!(sifted.opens, [Ipv4Addr::new(198, 51, 100, 1)]);
}

#[test]
fn an_alias_that_leads_in_a_circle_ends() {
    let found = answer(&[("a.org.", "b.org."), ("b.org.", "a.org."), ("b.org.", "192.0.2.1")]);

    let sifted =
        sift(found, &question("a.org.", RecordType::A), &Purpose::Open(only(&[], &["a.org"]))).unwrap();

    assert_eq!(sifted.opens.len(), 1);
}

#[test]
fn an_allowed_name_opens_no_inner_address_unless_it_is_listed() {
    let found = || answer(&[("a.org.", "10.0.0.1"), ("a.org.", "127.0.0.1"), ("a.org.", "169.254.169.254")]);
    let ask = question("a.org.", RecordType::A);

    assert!(sift(found(), &ask, &Purpose::Open(only(&[], &["a.org"]))).is_none());
    let sifted = sift(found(), &ask, &Purpose::Open(only(&["10.0.0.0/8"], &["a.org"]))).unwrap();
    assert_eq!(addresses(&sifted.message), ["10.0.0.1"]);
    // It is open by the list.
    assert!(sifted.opens.is_empty());
}

#[test]
fn a_list_of_networks_lets_only_their_addresses_through() {
    let found = answer(&[("a.org.", "192.0.2.1"), ("a.org.", "198.51.100.1")]);
    let purpose = Purpose::Within(only(&["192.0.2.0/24"], &[]));

    let sifted = sift(found, &question("a.org.", RecordType::A), &purpose).unwrap();

    assert_eq!(addresses(&sifted.message), ["192.0.2.1"]);
    assert!(sifted.opens.is_empty());
}
