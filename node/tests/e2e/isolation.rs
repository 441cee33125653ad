//! What a sandbox must not be able to do, tried from inside it, as the user and as its root.

use std::time::Duration;

use atoll_chaos_tests::dev::Runtime;
use reqwest::Method;
use serde_json::json;

use crate::Rule;
use crate::world::{Made, World};

pub const RULES: &[Rule] = &[
    ("sudo_works_as_people_expect", sudo),
    ("a_sandbox_has_few_capabilities_and_a_seccomp_filter", capabilities),
    ("nothing_inside_can_kill_the_daemon", daemon_survives),
    ("the_daemons_port_answers_its_own_node_only", daemon_port),
    ("a_sandbox_reaches_neither_its_neighbours_nor_the_node", network),
    ("a_sandbox_without_network_still_has_its_doors", without_network),
    ("a_fork_bomb_and_a_memory_bomb_stay_inside", bombs),
    ("the_files_api_acts_as_the_user", files_as_user),
];

fn sudo(world: &World) {
    let sandbox = world.create(0);
    assert_eq!(
        world.exec(1, &sandbox, "sudo whoami && sudo touch /etc/made && ls /etc/made"),
        (0, "root\n/etc/made\n".into())
    );
}

fn capabilities(world: &World) {
    let sandbox = world.create(0);
    let status = |prefix: &str| {
        world.exec(1, &sandbox, &format!("sudo grep -h {prefix} /proc/self/status | cut -f2")).1
    };
    assert_eq!(status("Seccomp:"), "2\n");
    let bounding = u64::from_str_radix(status("CapBnd").trim(), 16).expect("a mask");
    // Of capabilities(7): DAC_READ_SEARCH, NET_ADMIN, NET_RAW, SYS_MODULE, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, MKNOD, SYSLOG, BPF.
    for dangerous in [2, 12, 13, 16, 19, 21, 22, 27, 34, 39] {
        assert_eq!(bounding & (1 << dangerous), 0, "capability {dangerous} of {bounding:x}");
    }
    for refused in [
        "mount -t tmpfs none /mnt",
        "mknod /tmp/disk b 8 0",
        "sh -c 'echo 1 > /proc/sys/kernel/sysrq'",
        "dmesg",
        "chroot /proc/1/root /bin/true && unshare -m true",
        "insmod /dev/null",
    ] {
        let (code, said) = world.exec(1, &sandbox, &format!("sudo {refused} 2>&1"));
        assert_ne!(code, 0, "{refused}: {said}");
    }
}

fn daemon_survives(world: &World) {
    let sandbox = world.create(0);
    world.exec(1, &sandbox, "sudo kill -9 1; sudo kill -TERM 1; kill -9 1");
    // Everything that can be seen is killed; the command that does it may go first.
    let all = world
        .toolbox(1, &sandbox, Method::POST, "/process/execute")
        .json(&json!({ "command": "sudo kill -9 -1" }));
    world.send(all);
    assert_eq!(world.exec(1, &sandbox, "echo alive"), (0, "alive\n".into()));
    assert_eq!(world.get(2, &format!("/sandbox/{}", sandbox.id)).expect(200).json()["state"], "started");
}

fn daemon_port(world: &World) {
    let sandbox = world.create(0);
    let ask = "curl -sS -m 5 http://127.0.0.1:2280/version; echo code $?";
    let (_, said) = world.exec(1, &sandbox, ask);
    assert!(!said.contains("version\"") && !said.contains("code 0"), "{said}");
    // The secret was there for the start only.
    let (_, left) = world.exec(
        1,
        &sandbox,
        "sudo ls -A /.atoll/run; sudo tr '\\0' '\\n' < /proc/1/environ; sudo cat /proc/1/cmdline",
    );
    assert!(!left.contains("config.json") && !left.to_lowercase().contains("secret"), "{left}");
}

fn address(world: &World, sandbox: &Made<'_>) -> String {
    world
        .exec(sandbox.owner, sandbox, "hostname -I")
        .1
        .split_whitespace()
        .next()
        .expect("an address")
        .to_owned()
}

fn network(world: &World) {
    let (one, two) = (world.create(0), world.create(0));
    for neighbour in [&one, &two] {
        world.serve(neighbour, 7000, "python3 -m http.server 7000");
    }
    let gateway = world.exec(0, &one, "ip route | awk '/default/ { print $3 }'").1.trim().to_owned();
    let http = world.cluster.node(0).http.rsplit(':').next().unwrap().to_owned();
    let refused = |target: &str| {
        let try_it =
            format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{}' 2>/dev/null; echo $?", target.replace(':', "/"));
        let (_, code) = world.exec(1, &one, &try_it);
        assert_ne!(code.trim(), "0", "{target} was reached");
    };
    refused(&format!("{}:7000", address(world, &two)));
    refused(&format!("{gateway}:{http}"));
    refused(&format!("{gateway}:22"));
    refused("169.254.169.254:80");
    // The same way works to itself, so that a refusal means the wall.
    let own = format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{}/7000'; echo $?", address(world, &one));
    assert_eq!(world.exec(1, &one, &own).1.trim(), "0");
}

fn without_network(world: &World) {
    let sandbox = world.create_with(0, json!({ "networkBlockAll": true }));
    world.serve(&sandbox, 7000, "python3 -m http.server 7000 --bind 127.0.0.1");
    let token = world.preview_token(&sandbox, 7000);
    let preview =
        world.preview(world.other_than(&sandbox), &format!("7000-{}", sandbox.id), Method::GET, "/");
    world.send(preview.header("x-daytona-preview-token", token)).expect(200);
    // The embedded runtime's has a cable that leads nowhere; its walls are tried in runner/tests/network.
    if world.cluster.runtime == Runtime::Docker {
        assert_eq!(world.exec(1, &sandbox, "ls /sys/class/net"), (0, "lo\n".into()));
    }
    let name = "getent hosts example.org; echo $?";
    assert_eq!(world.exec(1, &sandbox, name), (0, "2\n".into()));
}

fn bombs(world: &World) {
    let (bomb, neighbour) = (world.create(0), world.create(0));
    let fork = ":(){ :|:& };: ";
    let detached = |command: &str| {
        let body = json!({ "command": format!("bash -c '{command}' >/dev/null 2>&1 &"), "timeout": 10 });
        world.send(world.toolbox(0, &bomb, Method::POST, "/process/execute").json(&body));
    };
    detached(fork);
    detached("python3 -c \"a = []\nwhile True: a.append(bytearray(1 << 24))\"");
    assert_eq!(world.exec(1, &neighbour, "echo fine"), (0, "fine\n".into()));
    world.eventually(Duration::from_secs(20), || {
        let request = world.toolbox(1, &bomb, Method::GET, "/version");
        let status = world.send(request).status;
        (status == 200, status)
    });
    world.api(0, Method::DELETE, &format!("/sandbox/{}", bomb.id), None).expect(200);
}

fn files_as_user(world: &World) {
    let sandbox = world.create(0);
    world.exec(0, &sandbox, "ln -s /etc/shadow ~/innocent");
    let read = |path: &str| {
        world.send(world.toolbox(1, &sandbox, Method::GET, &format!("/files/download?path={path}"))).status
    };
    assert_eq!((read("/home/daytona/innocent"), read("/etc/shadow"), read("/etc/passwd")), (403, 403, 200));
    let write = world.toolbox(1, &sandbox, Method::POST, "/files/upload-v2?path=/etc/mine").body("x");
    assert_eq!(world.send(write).status, 403);
}
