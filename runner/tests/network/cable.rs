//! A cable alone: what is inside afterwards, what is left, how long it takes.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use atoll_runner::embedded::network::link;

use crate::world::{Namespace, in_new_namespace, ip, layout};

const SLOTS: u16 = 200;

#[test]
fn a_sandbox_has_its_address_its_loopback_and_no_ipv6_outside() {
    in_new_namespace(|| {
        let (layout, sandbox) = (layout(1, "10.88.0.0/16"), Namespace::new());

        let lease = sandbox.attach(&layout, 7);

        assert_eq!(lease.address.to_string(), "10.88.0.9");
        sandbox.run(|| {
            let routes = ip("-4 route");
            assert_eq!(routes.trim(), "default via 10.88.0.1 dev eth0 proto static onlink");
            assert!(ip("-4 address show eth0").contains("inet 10.88.0.9/32"));
            assert!(!ip("-6 address show eth0").contains("inet6"));
            for loopback in ["127.0.0.1:80", "[::1]:81"] {
                let listener = TcpListener::bind(loopback).unwrap();
                TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            }
            let ping = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap();
            assert_eq!(ping.split_whitespace().collect::<Vec<_>>(), ["0", "2147483647"]);
            assert_eq!(
                fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap().trim(),
                "0"
            );
        });
    });
}

#[test]
fn the_first_packet_and_its_answer_go_through_at_once() {
    in_new_namespace(|| {
        let layout = layout(1, "10.88.0.0/16");
        ip("link add anchor type bridge");
        ip("address add 10.88.0.1/32 dev anchor");
        ip("link set anchor up");
        let host = UdpSocket::bind("10.88.0.1:53").unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut sandboxes = Vec::new();

        for slot in 0..SLOTS {
            let sandbox = Namespace::new();
            let lease = sandbox.attach(&layout, slot);
            sandbox.run(|| {
                let inside = UdpSocket::bind("0.0.0.0:0").unwrap();
                inside.send_to(b"hello", "10.88.0.1:53").unwrap();
                let (_, from) = host.recv_from(&mut [0; 16]).unwrap();
                assert_eq!(from.ip(), lease.address);
                // What is dropped never comes.
                host.send_to(b"welcome", from).unwrap();
                inside.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                inside.recv(&mut [0; 16]).unwrap_or_else(|error| panic!("slot {slot}: {error}"));
            });
            sandboxes.push(sandbox);
        }
    });
}

#[test]
fn a_slot_that_a_crash_left_is_taken_again() {
    in_new_namespace(|| {
        let layout = layout(1, "10.88.0.0/16");
        let (old, new) = (Namespace::new(), Namespace::new());
        old.attach(&layout, 3);

        let lease = new.attach(&layout, 3);

        assert!(new.run(|| ip("address show eth0")).contains(&lease.address.to_string()));
        assert!(!old.run(|| ip("link")).contains("eth0"));
        assert_eq!(link::attached(&layout).unwrap(), [3]);
    });
}

#[test]
fn two_hundred_cables_come_and_go_and_leave_nothing() {
    in_new_namespace(|| {
        let layout = layout(1, "10.88.0.0/16");
        let before = ip("link");
        let mut took = Vec::new();
        let mut sandboxes = Vec::new();

        for slot in 0..SLOTS {
            let sandbox = Namespace::new();
            let began = Instant::now();
            sandbox.attach(&layout, slot);
            took.push(began.elapsed());
            sandboxes.push(sandbox);
        }
        assert_eq!(link::attached(&layout).unwrap().len(), usize::from(SLOTS));
        let began = Instant::now();
        for slot in 0..SLOTS / 2 {
            link::detach(&layout, slot).unwrap();
            link::detach(&layout, slot).unwrap();
        }
        let detaching = began.elapsed() / u32::from(SLOTS / 2);
        // The other half goes with its namespaces.
        drop(sandboxes);
        let deadline = Instant::now() + Duration::from_secs(30);
        while ip("link") != before {
            assert!(Instant::now() < deadline, "{}", ip("link"));
            std::thread::yield_now();
        }

        took.sort();
        let (median, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
        println!("attach: median {median:?}, p99 {p99:?}; detach: mean {detaching:?}");
        assert_eq!(ip("route"), "");
        assert_eq!(ip("neighbour"), "");
    });
}

#[test]
fn a_slot_beyond_the_range_is_refused_with_words() {
    let (layout, sandbox) = (layout(1, "10.88.0.0/24"), File::open("/proc/self/ns/net").unwrap());

    let refused = link::attach(&layout, 253, sandbox.as_fd()).unwrap_err();

    assert_eq!(
        refused.to_string(),
        "the network range 10.88.0.0/24 has no slot 253: give the node a wider range"
    );
}
