//! Lists of networks and the block of everything, before and while a sandbox runs.

use std::time::{Duration, Instant};

use atoll_runner::RuntimeError;
use atoll_runner::embedded::network::{Network, link};

use crate::world::*;

const SLOTS: u16 = 200;

async fn prepared() -> Network {
    let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
    network.prepare().await.unwrap();
    network
}

#[test]
fn a_list_opens_what_is_in_it_and_a_block_nothing() {
    with_world(|_world| async {
        let network = prepared().await;
        let overlapping = only(&["203.0.113.10/32", "203.0.113.8/30", "203.0.113.10/31"], &[]);
        let listed = Namespace::of_sandbox(&network, 0, &overlapping).await;
        let shut = Namespace::of_sandbox(&network, 1, &nobody()).await;

        assert!(listed.reaches(SITE).await && listed.reaches_by_udp(OTHER_SITE).await);
        assert!(!listed.reaches("203.0.113.12").await && !listed.reaches_by_udp("203.0.113.12").await);
        assert!(!shut.reaches(SITE).await && !shut.reaches_by_udp(SITE).await);
    });
}

#[test]
fn a_change_holds_at_once_for_connections_that_are_there() {
    with_world(|_world| async {
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &everybody()).await;
        let mut connection = sandbox.connect(&format!("{SITE}:7")).await.unwrap();
        let mut other = sandbox.connect(&format!("{OTHER_SITE}:7")).await.unwrap();
        assert!(still_echoes(&mut connection).await && still_echoes(&mut other).await);

        network.set_egress(0, &only(&["203.0.113.10/32"], &[])).await.unwrap();
        assert!(still_echoes(&mut connection).await && !still_echoes(&mut other).await);
        network.set_egress(0, &only(&["203.0.113.0/24"], &[])).await.unwrap();
        assert!(still_echoes(&mut connection).await && sandbox.reaches(OTHER_SITE).await);
        network.set_egress(0, &nobody()).await.unwrap();
        assert!(!still_echoes(&mut connection).await && !sandbox.reaches(SITE).await);
        network.set_egress(0, &everybody()).await.unwrap();
        assert!(sandbox.reaches(SITE).await && sandbox.reaches(OTHER_SITE).await);
    });
}

#[test]
fn who_is_blocked_hears_so_at_once() {
    with_world(|_world| async {
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &nobody()).await;

        let began = Instant::now();
        let refused = sandbox.connect(&format!("{SITE}:7")).await.unwrap_err();

        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    });
}

#[test]
fn nothing_arrives_any_more_from_whom_a_sandbox_may_no_longer_reach() {
    with_world(|world| async move {
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &everybody()).await;
        let inside = sandbox.run(|| std::net::UdpSocket::bind("0.0.0.0:9").unwrap());
        let outside = world.internet.run(|| std::net::UdpSocket::bind((SITE, 9)).unwrap());
        let patience = Some(Duration::from_secs(5));
        inside.set_read_timeout(patience).unwrap();
        outside.set_read_timeout(patience).unwrap();
        let mut bytes = [0; 16];
        inside.send_to(b"subscribe", (SITE, 9)).unwrap();
        let (_, subscriber) = outside.recv_from(&mut bytes).unwrap();
        outside.send_to(b"news", subscriber).unwrap();
        assert_eq!(inside.recv(&mut bytes).unwrap(), 4);

        network.set_egress(0, &nobody()).await.unwrap();

        outside.send_to(b"more", subscriber).unwrap();
        network.set_egress(0, &everybody()).await.unwrap();
        outside.send_to(b"after", subscriber).unwrap();
        let length = inside.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"after");
    });
}

#[test]
fn restrictions_outlive_the_process_that_made_them() {
    with_world(|_world| async {
        let crashed = prepared().await;
        let shut = Namespace::of_sandbox(&crashed, 0, &nobody()).await;
        let listed = Namespace::of_sandbox(&crashed, 1, &only(&["203.0.113.10/32"], &[])).await;
        let open = Namespace::of_sandbox(&crashed, 2, &everybody()).await;
        drop(crashed);

        let network = prepared().await;

        assert!(open.reaches(SITE).await && !shut.reaches(SITE).await);
        assert!(listed.reaches(SITE).await && !listed.reaches(OTHER_SITE).await);
        assert_eq!(link::attached(&network.layout()).unwrap(), [0, 1, 2]);
        network.set_egress(1, &only(&["203.0.113.11/32"], &[])).await.unwrap();
        assert!(!listed.reaches(SITE).await && listed.reaches(OTHER_SITE).await);
        network.detach(0).await.unwrap();
        let next = Namespace::of_sandbox(&network, 0, &everybody()).await;
        assert!(next.reaches(SITE).await);
    });
}

#[test]
fn what_cannot_be_held_is_refused_with_words_and_changes_nothing() {
    with_world(|_world| async {
        let network = prepared().await;
        let sandbox = Namespace::of_sandbox(&network, 0, &nobody()).await;

        for (egress, word) in
            [(only(&["10.0.0.0/33"], &[]), "10.0.0.0/33"), (only(&[], &["a b\"; flush"]), "a b")]
        {
            match network.set_egress(0, &egress).await {
                Err(RuntimeError::Spec(words)) => assert!(words.contains(word), "{words}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(!sandbox.reaches(SITE).await);
    });
}

#[test]
fn before_the_rules_are_there_nobody_can_be_restricted() {
    with_world(|_world| async {
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();

        assert!(matches!(network.set_egress(0, &nobody()).await, Err(RuntimeError::Host(_))));
    });
}

#[test]
fn a_range_that_others_use_is_refused_with_its_reason() {
    with_world(|_world| async {
        ip("link add podman0 type bridge");
        ip("address add 10.88.0.1/16 dev podman0");
        ip("link set podman0 up");

        let refused = Network::new(config(1, "10.88.0.0/16")).unwrap().prepare().await;

        let Err(RuntimeError::Host(words)) = refused else { panic!("{refused:?}") };
        assert!(words.contains("10.88.0.0/16 on podman0"), "{words}");
    });
}

#[test]
fn two_hundred_restricted_slots_leave_no_element() {
    with_world(|_world| async {
        let network = prepared().await;
        let before = command("nft", "list ruleset");
        let egress = only(&["203.0.113.10/32", "10.0.0.0/8"], &["*.a.org"]);

        let mut took = Vec::new();
        for slot in 0..SLOTS {
            let began = Instant::now();
            network.set_egress(slot, &egress).await.unwrap();
            took.push(began.elapsed());
        }
        took.sort();
        println!("restrict: median {:?}, p99 {:?}", took[took.len() / 2], took[took.len() * 99 / 100]);
        assert_ne!(command("nft", "list ruleset"), before);
        for slot in 0..SLOTS {
            network.detach(slot).await.unwrap();
        }

        assert_eq!(command("nft", "list ruleset"), before);
    });
}
