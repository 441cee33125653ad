//! What lies between sandboxes, and between a sandbox and its node: files, networks, and what the kernel counts for several at once.

use std::net::{TcpListener, UdpSocket};

use crate::Rule;
use crate::host::{Host, IMAGE, run};
use crate::isolation::started;
use crate::world::{World, spec};

pub const RULES: &[Rule] = &[
    ("no_file_of_another_sandbox_is_seen", other_files),
    ("no_socket_of_another_sandbox_or_of_the_node_is_reached", other_sockets),
    ("there_is_no_ipv6_and_no_frame_of_ones_own", own_frames),
    ("what_the_kernel_counts_per_user_is_counted_per_sandbox", own_counts),
];

async fn two(host: &Host) -> World {
    let mut world = started(host, spec(IMAGE)).await;
    world.place(2, spec(IMAGE));
    world.until_running(2).await;
    world
}

fn other_files(host: &Host) {
    host.tokio.block_on(async {
        let world = two(host).await;
        run(&world.runner, 2, "echo theirs > /root/of-the-neighbour; echo theirs > /dev/shm/of-the-neighbour").await;
        run(&world.runner, 2, "probe -hold queues 1 > /dev/null & ipcs -m; echo x > /tmp/of-the-neighbour").await;

        let found = run(&world.runner, 1, "find / -name '*of-the-neighbour*' 2>/dev/null; ls /dev/mqueue /dev/shm /tmp; ipcs -m | grep -c 0x; echo end").await;
        assert!(!found.output.contains("of-the-neighbour") && !found.output.contains("q0"), "{found:?}");
        // Nor through what the image shares: what one changes, the other does not see.
        run(&world.runner, 1, "echo changed > /etc/group; rm /bin/vi").await;
        let theirs = run(&world.runner, 2, "head -1 /etc/group; test -e /bin/vi && echo there").await.output;
        assert_eq!(theirs, "root:x:0:\nthere\n");
    });
}

/// Whether anything takes the connection; a refusal and silence are both no.
async fn reaches(world: &World, number: u8, address: &str, port: u16) -> bool {
    run(&world.runner, number, &format!("probe -connect {address} {port}")).await.output == "OK\n"
}

fn other_sockets(host: &Host) {
    host.tokio.block_on(async {
        let world = two(host).await;
        let address = |number: u8| {
            let runner = world.runner.clone();
            async move {
                let said = run(&runner, number, "ip -4 -o address show eth0").await.output;
                said.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned()
            }
        };
        let (one, two) = (address(1).await, address(2).await);
        run(&world.runner, 2, "probe -listen 0.0.0.0 7000 > /dev/null 2>&1 & sleep 0.2").await;
        run(&world.runner, 2, "probe -listen of-the-neighbour > /dev/null 2>&1 & sleep 0.2").await;
        // It listens, and there is nothing wrong with how we ask.
        assert!(reaches(&world, 2, &two, 7000).await && reaches(&world, 2, "127.0.0.1", 7000).await);
        assert_eq!(run(&world.runner, 2, "probe -connect of-the-neighbour").await.output, "OK\n");

        assert!(!reaches(&world, 1, &two, 7000).await);
        assert_eq!(run(&world.runner, 1, "probe -connect of-the-neighbour").await.output, "ECONNREFUSED\n");

        // The node's ports: on every address, also on those that only loopback has.
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
        let gateway = run(&world.runner, 1, "ip route | grep default | cut -d' ' -f3").await.output;
        let gateway = gateway.trim();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        assert!(std::net::TcpStream::connect((gateway, port(&everywhere))).is_ok());
        let outward = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Asks for a route and sends nothing.
        let own = outward
            .connect("192.0.2.1:9")
            .and_then(|()| outward.local_addr())
            .map(|own| own.ip().to_string());
        let mut addresses = vec![
            gateway.to_owned(),
            "127.0.0.1".into(),
            "0.0.0.0".into(),
            one.clone(),
            "169.254.169.254".into(),
        ];
        addresses.extend(own);
        for address in &addresses {
            for port in [port(&everywhere), port(&loopback), 80] {
                assert!(!reaches(&world, 1, address, port).await, "{address} {port}");
            }
        }
        // Abstract Unix sockets of the host, the node's among them, belong to its network namespace.
        let listed =
            run(&world.runner, 1, "wc -l < /proc/net/unix; cat /proc/net/tcp /proc/net/udp").await.output;
        let (unix, ports) = listed.split_once('\n').unwrap();
        assert!(unix.parse::<u32>().unwrap() <= 8, "{listed}");
        for port in [port(&everywhere), port(&loopback), outward.local_addr().unwrap().port()] {
            assert!(!ports.contains(&format!(":{port:04X} 00000000:0000")), "{listed}");
        }
    });
}

/// IPv6, raw and packet sockets, ARP: other ways than those that the rules of the host look at.
fn own_frames(host: &Host) {
    host.tokio.block_on(async {
        let world = two(host).await;
        let said = run(
            &world.runner,
            1,
            "grep -v ' lo$' /proc/net/if_inet6; cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip -6 neigh; ip -6 route; \
             ping -6 -c1 -W1 -I eth0 ff02::1 2>&1 | grep -c 'bytes from'; arping -c1 -w1 -I eth0 10.200.0.3 2>&1 | grep -c 'Received 1'; \
             ip link set eth0 address 02:00:00:00:00:01 2>&1; ip address add 10.0.0.9/8 dev eth0 2>&1; ip link add d0 type dummy 2>&1; \
             ip route add 169.254.0.0/16 dev eth0 2>&1; ip rule add from all table 7 2>&1; \
             ip link | grep -c '^[0-9]'; echo end",
        )
        .await
        .output;
        assert!(said.starts_with("1\n0\n0\n"), "{said}");
        assert_eq!(said.matches("Operation not permitted").count(), 5, "{said}");
        // `lo` and `eth0`.
        assert!(said.contains("\n2\n"), "{said}");
    });
}

/// Inotify instances, pending signals, message queues and locked memory are counted for the owner of a user namespace too, and
/// terminals for the whole host. One sandbox takes all it gets; the other still gets some, and so does the host's own root.
fn own_counts(host: &Host) {
    host.tokio.block_on(async {
        let world = two(host).await;
        for (kind, count) in [("inotify", 1000), ("queues", 1000), ("signals", 1_000_000), ("locked", 1000), ("terminals", 5000)] {
            let all = format!("touch /tmp/{kind}; (ulimit -n $(ulimit -Hn); probe -hold {kind} {count}) > /tmp/{kind} 2>&1 & for i in $(seq 300); do \
                               grep -q held /tmp/{kind} && break; sleep 0.1; done; cat /tmp/{kind}");
            let greedy = run(&world.runner, 1, &all).await.output;
            println!("{kind}: {}", greedy.trim());
            let held: u64 = greedy.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{greedy}"));
            assert!(held < count, "{kind} has no limit: {greedy}");

            let some = format!("touch /tmp/{kind}; probe -hold {kind} 3 > /tmp/{kind} 2>&1 & for i in $(seq 100); do grep -q held /tmp/{kind} && break; \
                                sleep 0.1; done; cat /tmp/{kind}");
            assert_eq!(run(&world.runner, 2, &some).await.output, "held 3 all\n", "{kind}");
            if kind == "inotify" {
                rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
            }
            run(&world.runner, 1, "kill -9 -1").await;
        }
    });
}
