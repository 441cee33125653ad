//! What every sandbox may reach and what none may.

use atoll_runner::Finding;
use atoll_runner::embedded::network::{Network, NetworkConfig};

use crate::world::*;

#[test]
fn a_sandbox_reaches_the_internet_through_address_translation() {
    with_world(|_world| async {
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();

        let sandbox = Namespace::of_sandbox(&network, 0, &everybody()).await;

        assert!(sandbox.reaches(SITE).await);
        assert!(sandbox.reaches_by_udp(SITE).await);
    });
}

#[test]
fn a_sandbox_reaches_no_other_of_this_node_nor_of_another() {
    with_world(|_world| async {
        let (here, there) = (
            Network::new(config(1, "10.88.0.0/16")).unwrap(),
            Network::new(config(2, "10.89.0.0/16")).unwrap(),
        );
        here.prepare().await.unwrap();
        there.prepare().await.unwrap();
        let first = Namespace::of_sandbox(&here, 0, &everybody()).await;
        let second = Namespace::of_sandbox(&here, 1, &everybody()).await;
        let foreign = Namespace::of_sandbox(&there, 0, &only(&["0.0.0.0/0"], &[])).await;
        for sandbox in [&first, &second, &foreign] {
            sandbox.echo("0.0.0.0");
            assert!(sandbox.reaches(SITE).await);
        }

        for (from, to) in
            [(&first, "10.88.0.3"), (&second, "10.88.0.2"), (&first, "10.89.0.2"), (&foreign, "10.88.0.2")]
        {
            assert!(!from.reaches(to).await, "{to}");
            assert!(!from.reaches_by_udp(to).await, "{to}");
        }
    });
}

#[test]
fn a_sandbox_reaches_no_address_of_the_host() {
    with_world(|_world| async {
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();
        ip("link set lo up");
        let (host, addresses) = (Namespace::of_this_thread(), [HOST, "10.88.0.1", "127.0.0.1"]);
        for address in addresses {
            host.echo(address);
            assert!(host.reaches(address).await && host.reaches_by_udp(address).await, "{address}");
        }

        for egress in [everybody(), only(&["0.0.0.0/0"], &[])] {
            let sandbox = Namespace::of_sandbox(&network, 0, &egress).await;
            assert!(sandbox.reaches(SITE).await);
            for address in addresses {
                assert!(!sandbox.reaches(address).await, "{address}");
                assert!(!sandbox.reaches_by_udp(address).await, "{address}");
            }
        }
    });
}

#[test]
fn a_sandbox_reaches_no_metadata_service_nor_what_is_denied() {
    with_world(|world| async move {
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();
        let sandbox = Namespace::of_sandbox(&network, 0, &only(&["0.0.0.0/0"], &[])).await;
        // It is there, and the host itself gets to it.
        let host = Namespace::of_this_thread();
        assert!(host.reaches("169.254.169.254").await);
        drop(world);

        assert!(!sandbox.reaches("169.254.169.254").await);
        assert!(sandbox.reaches(SITE).await);
        network.set_denied(vec![format!("{SITE}/32").parse().unwrap()]).await.unwrap();
        assert!(!sandbox.reaches(SITE).await);
        assert!(sandbox.reaches(OTHER_SITE).await);
        network.set_denied(Vec::new()).await.unwrap();
        assert!(sandbox.reaches(SITE).await);
    });
}

#[test]
fn a_forged_source_gets_nowhere() {
    with_world(|world| async move {
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();
        let shut = Namespace::of_sandbox(&network, 0, &nobody()).await;
        let open = Namespace::of_sandbox(&network, 1, &everybody()).await;
        let forged = ["10.88.0.3", "10.88.99.99", HOST, "192.0.2.8"];
        for forger in [&shut, &open] {
            forger.run(|| forged.map(|address| ip(&format!("address replace {address}/32 dev eth0"))));
        }
        let arrived = world.internet.run(|| std::net::UdpSocket::bind((SITE, 9)).unwrap());

        for (forger, sources) in [(&shut, &forged[..]), (&open, &forged[1..])] {
            for source in sources {
                let socket = forger.run(|| std::net::UdpSocket::bind((*source, 0)).unwrap());
                socket.send_to(source.as_bytes(), (SITE, 9)).unwrap();
            }
        }
        let honest = open.run(|| std::net::UdpSocket::bind("10.88.0.3:0").unwrap());
        honest.send_to(b"honest", (SITE, 9)).unwrap();

        let mut bytes = [0; 64];
        arrived.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let (length, _) = arrived.recv_from(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes[..length]), "honest");
    });
}

#[test]
fn other_containers_of_the_host_are_out_of_reach_and_a_bridged_uplink_is_not() {
    with_world(|_world| async {
        let container = Namespace::new();
        ip("link add docker0 type bridge");
        ip("address add 172.17.0.1/16 dev docker0");
        ip("link set docker0 up");
        ip("link add port0 master docker0 type veth peer name ct0");
        ip("link set port0 up");
        container.adopt("ct0");
        container.run(|| {
            ip("address add 172.17.0.2/16 dev ct0");
            ip("link set ct0 up");
            ip("route add default via 172.17.0.1");
        });
        container.echo("0.0.0.0");
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();
        let sandbox = Namespace::of_sandbox(&network, 0, &everybody()).await;
        assert!(Namespace::of_this_thread().reaches("172.17.0.2").await);

        assert!(!sandbox.reaches("172.17.0.2").await);
        // With a way beyond the host over it, the same bridge is an uplink.
        ip("route add 192.0.2.0/24 via 172.17.0.2");
        network.prepare().await.unwrap();
        assert!(sandbox.reaches("172.17.0.2").await);
    });
}

#[test]
fn nobody_outside_opens_a_connection_into_a_sandbox() {
    with_world(|world| async move {
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();
        let sandbox = Namespace::of_sandbox(&network, 0, &everybody()).await;
        sandbox.echo("0.0.0.0");
        world.internet.run(|| ip("route add 10.88.0.0/16 via 198.51.100.2"));

        assert!(!world.internet.reaches("10.88.0.2").await);
        assert!(!world.internet.reaches_by_udp("10.88.0.2").await);
        assert!(sandbox.reaches(SITE).await);
    });
}

#[test]
fn a_firewall_that_drops_what_it_does_not_know_lets_sandboxes_through_and_gets_its_rules_back() {
    with_world(|_world| async {
        command("iptables", "-P FORWARD DROP");
        command("iptables", "-P INPUT DROP");
        let before = command("iptables", "-S");
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();

        network.prepare().await.unwrap();
        network.prepare().await.unwrap();

        assert_eq!(command("iptables", "-S").lines().count(), before.lines().count() + 4);
        let sandbox = Namespace::of_sandbox(&network, 0, &everybody()).await;
        assert!(sandbox.reaches(SITE).await);
        network.teardown().await.unwrap();
        assert_eq!(command("iptables", "-S"), before);
    });
}

#[test]
fn everything_comes_back_when_somebody_flushed_it_and_nothing_stays_at_the_end() {
    with_world(|_world| async {
        let before = left();
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();
        let open = Namespace::of_sandbox(&network, 0, &everybody()).await;
        let shut = Namespace::of_sandbox(&network, 1, &nobody()).await;
        let listed = Namespace::of_sandbox(&network, 2, &only(&["203.0.113.10/32"], &[])).await;

        command("nft", "flush ruleset");
        assert!(!open.reaches(SITE).await);
        network.prepare().await.unwrap();

        assert!(open.reaches(SITE).await && !shut.reaches(SITE).await);
        assert!(listed.reaches(SITE).await && !listed.reaches(OTHER_SITE).await);
        network.teardown().await.unwrap();
        network.teardown().await.unwrap();
        assert_eq!(left(), before);
    });
}

#[test]
fn a_sandbox_puts_nothing_into_the_hosts_table_of_neighbours() {
    with_world(|_world| async {
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();
        let sandbox = Namespace::of_sandbox(&network, 0, &everybody()).await;
        assert!(sandbox.reaches(SITE).await);
        let known = || ip("neighbour show dev atl000000010000");
        let before = known();
        assert!(before.contains("10.88.0.2") && before.contains("PERMANENT"), "{before}");

        // Without what it was given, it must ask who the gateway is, and would be remembered as whom it says it is.
        sandbox.run(|| {
            ip("address add 10.88.7.7/32 dev eth0");
            ip("neighbour delete 10.88.0.1 dev eth0");
            let socket = std::net::UdpSocket::bind("10.88.7.7:0").unwrap();
            socket.send_to(b"who are you?", (SITE, ECHO)).unwrap();
        });

        assert!(!sandbox.reaches_by_udp(SITE).await);
        assert_eq!(known(), before);
    });
}

#[test]
fn a_sandbox_cannot_fill_the_hosts_table_of_connections() {
    with_world(|_world| async {
        let network = Network::new(config(1, "10.88.0.0/16")).unwrap();
        network.prepare().await.unwrap();
        let greedy = Namespace::of_sandbox(&network, 0, &everybody()).await;
        let neighbour = Namespace::of_sandbox(&network, 1, &everybody()).await;
        let followed = || {
            let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
            count.trim().parse::<u32>().unwrap()
        };

        let outward = greedy.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        for port in 1000..21_000 {
            let _ = outward.send_to(b"one more", (SITE, port));
        }
        assert!((7000..9000).contains(&followed()), "{} outward", followed());
        // The resolver has one port, so here each of the asker's counts.
        let asking = Namespace::of_sandbox(&network, 2, &everybody()).await;
        asking.run(|| {
            for _ in 0..12_000 {
                let asker = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                let _ = asker.send_to(b"one more", ("10.88.0.1", 53));
            }
        });
        assert!((14_000..18_000).contains(&followed()), "{} outward and asking", followed());

        assert!(!greedy.reaches(OTHER_SITE).await);
        assert!(neighbour.reaches(SITE).await && neighbour.reaches_by_udp(SITE).await);
    });
}

#[test]
fn a_check_says_what_is_missing_and_changes_nothing() {
    with_world(|_world| async {
        let network = Network::new(NetworkConfig {
            nameservers: vec!["203.0.113.13:53".parse().unwrap()],
            ..config(1, "10.88.0.0/16")
        });
        let network = network.unwrap();
        let before = left();
        let said = |findings: Vec<Finding>| {
            findings.into_iter().map(|finding| format!("{finding:?}")).collect::<Vec<_>>().join("\n")
        };

        let fresh = said(network.check().await.unwrap());
        assert!(fresh.contains("does not forward") && !fresh.contains("Fault"), "{fresh}");
        assert_eq!(left(), before);
        network.prepare().await.unwrap();
        assert_eq!(said(network.check().await.unwrap()), "");
        command("nft", "add table inet site");
        command("nft", "add chain inet site passing { type filter hook forward priority 0 ; policy drop ; }");
        ip("route delete default");
        let broken = said(network.check().await.unwrap());
        assert!(broken.contains("inet site") && broken.contains("default route"), "{broken}");
    });
}

fn left() -> [String; 4] {
    [ip("-brief link"), ip("route"), ip("neighbour"), command("nft", "list ruleset")].map(|words| {
        words.lines().filter(|line| !line.contains("198.51.100.")).map(|line| format!("{line}\n")).collect()
    })
}
