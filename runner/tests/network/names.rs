//! Names, and what is open because of them.

use atoll_runner::embedded::network::{Network, NetworkConfig};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::dns::*;
use crate::world::*;

const ZONE: &[(&str, &[&str])] = &[
    ("www.a.org", &[SITE]),
    ("other.org", &[OTHER_SITE]),
    ("inner.a.org", &["10.1.2.3"]),
    ("metadata.a.org", &["169.254.169.254"]),
];

async fn prepared() -> Network {
    let nameservers = vec![NAMESERVER.parse().unwrap()];
    let network = Network::new(NetworkConfig { nameservers, ..config(1, "10.88.0.0/16") }).unwrap();
    network.prepare().await.unwrap();
    network
}

#[test]
fn a_sandbox_without_restrictions_gets_every_name_answered() {
    with_world(|world| async move {
        let asked = serve(&world.internet, ZONE);
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &everybody()).await;
        assert_eq!(network.resolv_conf(), "nameserver 10.88.0.1\n");

        assert_eq!(look_up(&sandbox, "www.a.org.").await, Ok(vec![SITE.into()]));
        assert_eq!(look_up_by_tcp(&sandbox, "Other.ORG.").await, Ok(vec![OTHER_SITE.into()]));
        assert_eq!(look_up(&sandbox, "none.org.").await, Err(ResponseCode::NXDomain));
        assert_eq!(asked.take(), ["www.a.org.", "other.org.", "none.org."]);
        let six = ask(&sandbox, "www.a.org.", RecordType::AAAA).await;
        assert!(six.metadata.response_code == ResponseCode::NoError && six.answers.is_empty());
        assert!(asked.take().is_empty());
    });
}

#[test]
fn an_allowed_name_opens_its_address_and_nothing_else_does() {
    with_world(|world| async move {
        let asked = serve(&world.internet, ZONE);
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &only(&[], &["*.a.org"])).await;
        let neighbour = Namespace::of_sandbox(&network, 1, &only(&[], &["*.a.org"])).await;

        // Nobody asked for its name yet.
        assert!(!sandbox.reaches(SITE).await);
        assert_eq!(look_up(&sandbox, "www.a.org.").await, Ok(vec![SITE.into()]));
        assert!(sandbox.reaches(SITE).await && sandbox.reaches_by_udp(SITE).await);
        assert!(!neighbour.reaches(SITE).await);
        asked.take();

        assert_eq!(look_up(&sandbox, "other.org.").await, Err(ResponseCode::Refused));
        assert_eq!(look_up(&sandbox, "a.org.").await, Err(ResponseCode::Refused));
        // Not even told to anybody.
        assert!(asked.take().is_empty());
        assert!(!sandbox.reaches(OTHER_SITE).await);
    });
}

#[test]
fn a_name_that_is_no_longer_allowed_is_cut_at_once() {
    with_world(|world| async move {
        serve(&world.internet, ZONE);
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &only(&[], &["www.a.org", "other.org"])).await;
        for name in ["www.a.org.", "other.org."] {
            look_up(&sandbox, name).await.unwrap();
        }
        let mut cut = sandbox.connect(&format!("{SITE}:7")).await.unwrap();
        let mut kept = sandbox.connect(&format!("{OTHER_SITE}:7")).await.unwrap();
        assert!(still_echoes(&mut cut).await && still_echoes(&mut kept).await);

        network.set_egress(0, &only(&[], &["other.org"])).await.unwrap();

        assert!(!still_echoes(&mut cut).await && !sandbox.reaches(SITE).await);
        assert!(still_echoes(&mut kept).await && sandbox.reaches(OTHER_SITE).await);
        assert_eq!(look_up(&sandbox, "www.a.org.").await, Err(ResponseCode::Refused));
    });
}

#[test]
fn an_allowed_name_leads_into_no_inner_network() {
    with_world(|world| async move {
        serve(&world.internet, ZONE);
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &only(&[], &["*.a.org"])).await;

        assert_eq!(look_up(&sandbox, "inner.a.org.").await, Err(ResponseCode::Refused));
        assert_eq!(look_up(&sandbox, "metadata.a.org.").await, Err(ResponseCode::Refused));
        assert!(!command("nft", "list ruleset").contains("10.1.2.3"));
    });
}

#[test]
fn who_may_reach_nobody_is_answered_nothing() {
    with_world(|world| async move {
        let asked = serve(&world.internet, ZONE);
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &nobody()).await;

        assert_eq!(look_up(&sandbox, "www.a.org.").await, Err(ResponseCode::Refused));
        assert_eq!(look_up_by_tcp(&sandbox, "www.a.org.").await, Err(ResponseCode::Refused));
        assert!(asked.take().is_empty());
        // And no other nameserver is in reach.
        assert!(!sandbox.reaches_port(NAMESERVER).await);
    });
}

#[test]
fn with_a_list_of_networks_only_their_addresses_are_told() {
    with_world(|world| async move {
        serve(&world.internet, ZONE);
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &only(&["203.0.113.10/32"], &[])).await;

        assert_eq!(look_up(&sandbox, "www.a.org.").await, Ok(vec![SITE.into()]));
        assert_eq!(look_up(&sandbox, "other.org.").await, Err(ResponseCode::Refused));
    });
}

#[test]
fn an_answer_too_long_for_a_datagram_comes_whole_by_tcp_and_all_of_it_is_open() {
    with_world(|world| async move {
        let mut many: Vec<String> = (1..=150).map(|host| format!("192.0.2.{host}")).collect();
        many.push(SITE.into());
        let addresses: Vec<&str> = many.iter().map(String::as_str).collect();
        serve(&world.internet, &[("many.org", &addresses)]);
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &only(&[], &["many.org"])).await;

        assert!(ask(&sandbox, "many.org.", RecordType::A).await.metadata.truncation);
        assert_eq!(look_up_by_tcp(&sandbox, "many.org.").await, Ok(many));
        assert!(sandbox.reaches(SITE).await);
    });
}

#[test]
fn a_new_process_keeps_what_names_have_opened_and_takes_it_back_when_told_so() {
    with_world(|world| async move {
        serve(&world.internet, ZONE);
        let egress = only(&["203.0.113.12/32"], &["*.a.org"]);
        let crashed = prepared().await;
        let sandbox = Namespace::of_sandbox(&crashed, 0, &egress).await;
        look_up(&sandbox, "www.a.org.").await.unwrap();
        let mut connection = sandbox.connect(&format!("{SITE}:7")).await.unwrap();
        drop(crashed);

        let network = prepared().await;
        // Nobody has said yet what it may: what is open is open, and no more.
        assert_eq!(look_up(&sandbox, "www.a.org.").await, Err(ResponseCode::Refused));
        assert!(still_echoes(&mut connection).await && !sandbox.reaches(OTHER_SITE).await);
        network.set_egress(0, &egress).await.unwrap();
        assert!(still_echoes(&mut connection).await && sandbox.reaches("203.0.113.12").await);
        assert_eq!(look_up(&sandbox, "www.a.org.").await, Ok(vec![SITE.into()]));

        network.set_egress(0, &only(&["203.0.113.12/32"], &["b.org"])).await.unwrap();
        assert!(!still_echoes(&mut connection).await && sandbox.reaches("203.0.113.12").await);
    });
}

#[test]
fn a_flood_of_questions_slows_only_who_asks() {
    with_world(|world| async move {
        serve(&world.internet, ZONE);
        let network = prepared().await;
        let flooding = Namespace::of_sandbox(&network, 0, &everybody()).await;
        let other = Namespace::of_sandbox(&network, 1, &everybody()).await;

        let socket = flooding.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        for _ in 0..20_000 {
            socket.send_to(b"no question at all, and there are many of it", "10.88.0.1:53").unwrap();
        }

        assert_eq!(look_up_by_tcp(&other, "www.a.org.").await, Ok(vec![SITE.into()]));
    });
}
