//! The isolation floor: each rule looks or tries from inside, as the sandbox's root, and looks from outside. What the kernel refuses is
//! in `refused`, what lies in images in `images`, what sandboxes could do to each other in `neighbours` and `bombs`.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::path::Path;

use atoll_api::access::Target;
use atoll_api::channel::{CHANNEL_PATH, CHANNEL_UPGRADE, ChannelOpen, ChannelProgram, FrameKind};
use atoll_api::ids::Generation;
use atoll_api::sandbox::SandboxSpec;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use crate::Rule;
use crate::host::{Host, IMAGE, post, run, try_run};
use crate::world::{World, eventually, sandbox, spec};

pub const RULES: &[Rule] = &[
    ("root_inside_is_nobody_outside_and_another_one_in_each_sandbox", root_is_nobody),
    ("devices_are_those_of_every_sandbox", own_devices),
    ("kernel_settings_are_not_written", no_kernel_settings),
    ("only_its_own_processes_are_seen", own_processes),
    ("host_serial_numbers_and_kernel_logs_are_masked", masked),
    ("whatever_the_daemon_starts_is_filtered_and_holds_no_descriptor", filtered_whatever_starts_it),
    ("sudo_like_programs_gain_only_the_sandboxs_root", sudo_stays_inside),
    ("without_sudo_no_program_gains_anything", no_new_privileges),
    ("no_descriptor_leads_outside", no_leaked_descriptors),
    ("a_working_directory_cannot_lead_outside", no_way_by_working_directory),
    ("the_daemons_program_cannot_be_replaced", program_stays),
    ("killing_everything_leaves_the_daemon", daemon_survives_kills),
    ("the_hosts_files_and_sockets_are_out_of_reach", nothing_of_the_host),
];

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT and AUDIT_WRITE.
const CAPABILITIES: u64 = 0x2004_05fb;

pub async fn started(host: &Host, spec: SandboxSpec) -> World {
    let mut world = host.world(host.runtime()).await;
    world.place(1, spec);
    world.until_running(1).await;
    world
}

/// Runs in a sandbox of its own, as its root.
pub fn inside(host: &Host, script: &str) -> String {
    host.tokio.block_on(async {
        let world = started(host, spec(IMAGE)).await;
        run(&world.runner, 1, script).await.output
    })
}

fn root_is_nobody(host: &Host) {
    host.tokio.block_on(async {
        let mut world = started(host, spec(IMAGE)).await;
        world.place(2, spec(IMAGE));
        world.until_running(2).await;
        assert_eq!(run(&world.runner, 1, "id -u").await.output, "0\n");

        let mut ranges = Vec::new();
        for pid in host.first_processes() {
            for file in ["uid_map", "gid_map"] {
                let map = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
                let words: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
                assert_eq!((words[0], words[2], words.len()), (0, 65_536, 3), "{map}");
                assert!(words[1] >= host.config.uid_base, "{map}");
                ranges.push(words[1]);
            }
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let root = ranges.last().unwrap();
            for ids in ["Uid:", "Gid:"] {
                let line = status.lines().find(|line| line.starts_with(ids)).unwrap();
                assert_eq!(line.matches(&root.to_string()).count(), 4, "{line}");
            }
        }
        let distinct: BTreeSet<u32> = ranges.iter().copied().collect();
        assert_eq!((ranges.len(), distinct.len()), (4, 2), "each sandbox has a range of its own: {ranges:?}");
        // What a sandbox writes is nobody's outside either.
        run(&world.runner, 1, "touch /root/mine").await;
        for upper in host.uppers() {
            if let Ok(found) = std::fs::symlink_metadata(upper.join("root/mine")) {
                use std::os::unix::fs::MetadataExt;
                assert_eq!(found.uid(), 0, "on disk are the image's own ids, shifted only by the mount");
            }
        }
    });
}

fn own_devices(host: &Host) {
    let output = inside(
        host,
        "ls /dev | tr '\\n' ' '; touch /dev/x; chmod 777 /dev/null; rm /dev/null; : > /dev/null && echo fine",
    );
    assert!(
        output.starts_with("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "),
        "{output}"
    );
    assert!(output.matches("Read-only file system").count() == 3 && output.ends_with("fine\n"), "{output}");
}

fn no_kernel_settings(host: &Host) {
    const FILES: &str = "/proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/overcommit_memory \
        /proc/sys/kernel/hostname /proc/sys/kernel/random/boot_id /proc/sys/kernel/ns_last_pid /proc/sys/fs/binfmt_misc/register \
        /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/eth0/accept_local /proc/sys/net/ipv6/conf/eth0/disable_ipv6 \
        /proc/sysrq-trigger /proc/irq/0/smp_affinity /proc/bus/pci/00/00.0 /proc/fs/ext4/x /proc/mtrr /proc/timer_list /proc/acpi/wakeup \
        /sys/kernel/mm/transparent_hugepage/enabled /sys/power/state /sys/kernel/uevent_helper /sys/class/net/eth0/mtu \
        /sys/fs/cgroup/memory/release_agent /sys/fs/cgroup/memory/cgroup.procs /sys/module/x /sys/bus/pci/rescan \
        /sys/block/vda/queue/scheduler /sys/devices/system/cpu/cpu1/online";
    let settings = ["core_pattern", "modprobe", "ns_last_pid"].map(|name| format!("/proc/sys/kernel/{name}"));
    let read = || settings.clone().map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let before = read()[..2].to_vec();
    let output = inside(
        host,
        &format!(
            "for f in {FILES}; do echo x 2>/dev/null > $f; test -e $f -a $(cat $f 2>/dev/null | head -c1 | grep -c x) != 0 && echo WROTE $f; \
             touch $f && echo TOUCHED $f; done 2>/dev/null; find /proc/sys /sys -type f -perm -200 2>/dev/null | head -2000 | while read f; do \
             (: >> $f) 2>/dev/null && echo OPENED $f; done; grep -E ' /(proc/sys|sys) ' /proc/self/mountinfo | cut -d' ' -f5,6; echo end"
        ),
    );
    // The masks are /dev/null: they can be opened and swallow what is written.
    let lines: Vec<&str> = output.lines().collect();
    let opened: Vec<&&str> =
        lines.iter().filter(|line| line.starts_with("OPENED") || line.starts_with("WROTE")).collect();
    assert!(opened.is_empty(), "{opened:?}");
    let mounts: Vec<&&str> = lines.iter().filter(|line| line.starts_with('/')).collect();
    assert!(
        mounts.len() == 2 && mounts.iter().all(|line| line.split(' ').nth(1).unwrap().starts_with("ro,")),
        "{output}"
    );
    assert!(output.ends_with("end\n"), "{output}");
    assert_eq!(read()[..2], before);
}

fn own_processes(host: &Host) {
    let output = inside(
        host,
        "ls /proc | grep -c '^[0-9]*$'; cat /proc/1/comm; cat /proc/[0-9]*/comm | sort -u | tr '\\n' ' '",
    );
    let mut lines = output.lines();
    assert!(lines.next().unwrap().parse::<u32>().unwrap() <= 8, "{output}");
    assert_eq!(lines.next(), Some("atoll-daemon"));
    let programs: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert!(
        programs.iter().all(|name| ["atoll-daemon", "cat", "sh", "sort", "tr", "ls"].contains(name)),
        "{output}"
    );
}

fn masked(host: &Host) {
    let output = inside(
        host,
        "dmesg; cat /proc/kmsg /proc/kcore /proc/keys /proc/key-users /proc/timer_list /proc/sched_debug /proc/interrupts /proc/config.gz \
         /proc/kallsyms /proc/cmdline /proc/iomem 2>/dev/null | wc -c; \
         ls -A /sys/firmware /sys/devices/virtual/dmi /sys/kernel/debug /sys/kernel/security /sys/fs/cgroup /proc/acpi /proc/scsi \
         2>/dev/null | grep -v ':$' | grep -c .; \
         cat /sys/class/dmi/id/* /sys/firmware/dmi/tables/* /sys/devices/virtual/dmi/id/* 2>/dev/null | wc -c; \
         cat /proc/kpagecount /proc/kpageflags /proc/vmallocinfo /proc/slabinfo /proc/pagetypeinfo 2>/dev/null | head -c 10 | wc -c; \
         cat /proc/modules 2>/dev/null | grep -v 0x0000000000000000 | wc -l; echo end",
    );
    assert!(output.contains("Operation not permitted") || output.contains("klogctl"), "{output}");
    assert!(output.ends_with("\n0\n0\n0\n0\n0\nend\n"), "{output}");
}

/// Of whatever way the daemon starts something: its status, its descriptors, and who it is.
const STATUS: &str = "grep -E '^(Uid|Groups|Cap|NoNewPrivs|Seccomp)' /proc/self/status; for f in /proc/self/fd/*; do echo $f $(readlink $f); done";

fn filtered_whatever_starts_it(host: &Host) {
    host.tokio.block_on(async {
        let script = format!("#!/bin/sh\n{STATUS}\n");
        let image = host.images.with(host.folder.path(), "status", |root| {
            std::fs::write(root.join("bin/status"), script).unwrap();
            // What a terminal's shell, a login shell, reads.
            std::fs::write(root.join("etc/profile"), "test -t 0 && status > /tmp/terminal\n").unwrap();
            assert!(std::process::Command::new("chmod").arg("755").arg(root.join("bin/status")).status().unwrap().success());
        });
        let entrypoint = ["sh", "-c", "status > /tmp/entrypoint; sleep 1000"].map(str::to_owned).to_vec();
        let world = started(host, SandboxSpec { entrypoint, ..spec(&image) }).await;

        run(&world.runner, 1, "status > /tmp/exec").await;
        post(&world.runner, 1, "/process/session", serde_json::json!({ "sessionId": "s" })).await.unwrap();
        let command = serde_json::json!({ "command": "status > /tmp/session" });
        post(&world.runner, 1, "/process/session/s/exec", command).await.unwrap();
        post(&world.runner, 1, "/process/pty", serde_json::json!({ "id": "t" })).await.unwrap();
        let mut channel = world.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.unwrap();
        let program = ChannelProgram::Exec { command: "status > /tmp/channel; sleep 1000".into() };
        let open = ChannelOpen { program, env: Default::default(), pty: None };
        let open = serde_json::to_vec(&open).unwrap();
        let mut bytes = format!(
            "GET {CHANNEL_PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {CHANNEL_UPGRADE}\r\n\r\n"
        )
        .into_bytes();
        bytes.push(FrameKind::Open as u8);
        bytes.extend((open.len() as u32).to_be_bytes());
        bytes.extend(open);
        channel.write_all(&bytes).await.unwrap();

        for name in ["exec", "session", "terminal", "channel", "entrypoint"] {
            let look = format!("cat /tmp/{name}");
            eventually(name, async || {
                let said = run(&world.runner, 1, &look).await.output;
                said.contains("Seccomp_filters") && said.contains("/fd/2 ")
            })
            .await;
            let said = run(&world.runner, 1, &look).await.output;
            let field = |field: &str| {
                let line = said.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
                line.unwrap_or_else(|| panic!("{name}: {said}")).trim().to_owned()
            };
            let set = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
            assert_eq!(field("Seccomp"), "2", "{name}: {said}");
            assert_eq!(field("Seccomp_filters"), "2", "{name}: {said}");
            for kept in ["CapBnd", "CapEff", "CapPrm"] {
                assert_eq!(set(kept), CAPABILITIES, "{name}: {said}");
            }
            assert_eq!((set("CapAmb"), set("CapInh")), (0, 0), "{name}: {said}");
            // The image has sudo, and the sandbox may use it.
            assert_eq!(field("NoNewPrivs"), "0", "{name}: {said}");
            for line in said.lines().filter(|line| line.starts_with("/proc/self/fd/")) {
                let (at, target) = line.split_once(' ').unwrap_or((line, ""));
                let number: u32 = at.rsplit('/').next().unwrap().parse().unwrap_or(0);
                let ours = ["pipe:[", "/dev/null", "/dev/pts/", "/tmp/", "/run/atoll-daemon/", "socket:["].iter().any(|own| target.starts_with(own));
                // The shell itself holds its script, and the one that reads the profile.
                let shell = number >= 3 && (target.is_empty() || target.starts_with("/bin/status") || target.starts_with("/etc/profile"));
                assert!((number < 3 && ours) || shell || target.starts_with("/dev/tty"), "{name}: {said}");
            }
        }
    });
}

fn sudo_stays_inside(host: &Host) {
    host.tokio.block_on(async {
        let world = started(host, SandboxSpec { user: "user".into(), ..spec(IMAGE) }).await;
        // A setuid-root shell stands for sudo.
        let output = run(
            &world.runner,
            1,
            "id -u; grep -E 'Cap(Eff|Bnd)' /proc/self/status; busybox-suid su -c 'id -u; touch /root/made; mount -t tmpfs none /tmp; \
             grep CapEff /proc/self/status' root",
        )
        .await
        .output;
        let kept = format!("{CAPABILITIES:016x}");
        assert!(output.starts_with(&format!("1000\nCapEff:\t{:016x}\nCapBnd:\t{kept}\n0\n", 0)), "{output}");
        assert!(output.contains("ermi") && output.ends_with(&format!("CapEff:\t{kept}\n")), "{output}");
    });
}

fn no_new_privileges(host: &Host) {
    host.tokio.block_on(async {
        let strict = SandboxSpec { user: "user".into(), allow_sudo: false, ..spec(IMAGE) };
        let world = started(host, strict).await;
        let output = run(
            &world.runner,
            1,
            "grep NoNewPrivs /proc/self/status; busybox-suid id -u; busybox-suid su -c id root",
        )
        .await
        .output;
        assert!(output.starts_with("NoNewPrivs:\t1\n"), "{output}");
        assert!(!output.contains("uid=0"), "{output}");
    });
}

/// What CVE-2024-21626 was: a descriptor of the host's, left open. Looked at from outside, where all is seen.
fn no_leaked_descriptors(host: &Host) {
    host.tokio.block_on(async {
        let world = started(host, spec(IMAGE)).await;
        // The hello has been said, and whoever said it lets go.
        run(&world.runner, 1, "true").await;
        let pid = host.first_process();
        let of_host = |file: &str| std::fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
        let sockets_of_host = [of_host("unix"), of_host("tcp"), of_host("udp")].concat();
        let mut seen = 0;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let entry = entry.unwrap();
            let target = std::fs::read_link(entry.path()).unwrap().display().to_string();
            let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
            seen += 1;
            let own = match number {
                0 | 1 => target == "/dev/null",
                2 => target.starts_with("/memfd:atoll-daemon.log"),
                _ => ["anon_inode:", "socket:[", "pipe:["].iter().any(|kind| target.starts_with(kind)),
            };
            assert!(own, "descriptor {number} of the daemon is {target}");
            if let Some(inode) = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
                let known = sockets_of_host.split_whitespace().any(|word| word == inode);
                assert!(!known, "descriptor {number} of the daemon is a socket of the host's network");
            }
        }
        assert!(seen > 3);
        let root = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert_eq!(root, Path::new("/"));
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let state = host.folder.path().display().to_string();
        assert!(!mounts.lines().any(|line| line.split(' ').nth(4).unwrap().starts_with(&state)), "{mounts}");
        // Beside its own root there is no other: every mount hangs below the one at /.
        assert_eq!(mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count(), 1, "{mounts}");
        let output = run(
            &world.runner,
            1,
            "for f in /proc/self/fd/*; do t=$(readlink $f); case \"$t\" in /dev/null|pipe:*|socket:*|'') ;; *) echo LEAK $f $t;; esac; done; \
             pwd; readlink /proc/self/root",
        );
        let output = output.await.output;
        assert!(!output.contains("LEAK") && output.ends_with("\n/\n"), "{output}");
    });
}

/// The other half of CVE-2024-21626: a working directory, of an image or of a command, at a descriptor that is open outside.
fn no_way_by_working_directory(host: &Host) {
    let marker = host.folder.path().join("outside");
    std::fs::write(&marker, "secret").unwrap();
    let path = marker.display().to_string();
    let script = format!(
        "for n in $(seq 0 40); do for up in . .. ../.. ../../.. ../../../../../..; do for p in 1 self; do \
         cat /proc/$p/fd/$n/$up{path} /proc/$p/cwd/$up{path} /proc/$p/root/$up{path}; done; done; done 2>/dev/null; echo end"
    );
    // Held open as a careless runtime would: without close-on-exec.
    let leaking = std::fs::File::open("/etc").unwrap();
    rustix::io::fcntl_setfd(&leaking, rustix::io::FdFlags::empty()).unwrap();
    assert!(leaking.as_raw_fd() > 2);
    host.tokio.block_on(async {
        let world = started(host, spec(IMAGE)).await;
        assert_eq!(run(&world.runner, 1, &script).await.output, "end\n");
        for process in ["self", "1", "thread-self"] {
            for number in 0..40 {
                let cwd = format!("/proc/{process}/fd/{number}");
                let request = serde_json::json!({ "command": format!("cat ../..{path} ../../../..{path} ./hostname; pwd -P"), "cwd": cwd });
                let said = post(&world.runner, 1, "/process/execute", request).await.unwrap();
                let refused = said["result"].as_str().unwrap().starts_with("could not start");
                assert!(said["exitCode"] == -1 && refused, "{cwd}: {said}");
            }
        }
    });
}

/// What CVE-2019-5736 was: the program that starts things inside, overwritten through /proc.
fn program_stays(host: &Host) {
    let daemon = host.config.daemon_binary.clone();
    let output = inside(
        host,
        "id -u; echo x > /proc/1/exe; echo x > /.atoll/atoll-daemon; rm /.atoll/atoll-daemon; mv /.atoll /old; touch /.atoll/x; \
         chmod 777 /.atoll/atoll-daemon; cp /bin/busybox /.atoll/atoll-daemon; ls /.atoll",
    );
    assert!(output.starts_with("0\n") && output.ends_with("\natoll-daemon\n"), "{output}");
    let dirs: Vec<_> = std::fs::read_dir(host.config.state_dir.join("daemon")).unwrap().collect();
    for dir in dirs {
        let bytes = std::fs::read(dir.unwrap().path().join("atoll-daemon")).unwrap();
        assert_eq!(Sha256::digest(bytes), Sha256::digest(&daemon));
    }
}

fn daemon_survives_kills(host: &Host) {
    host.tokio.block_on(async {
        let world = started(host, spec(IMAGE)).await;
        for signal in
            ["9", "TERM", "STOP", "HUP", "INT", "QUIT", "SEGV", "ABRT", "BUS", "USR1", "USR2", "PIPE", "CHLD"]
        {
            let _ = try_run(&world.runner, 1, &format!("kill -{signal} 1; kill -{signal} -1")).await;
            assert_eq!(run(&world.runner, 1, "echo alive").await.output, "alive\n", "{signal}");
        }
        let _ = try_run(
            &world.runner,
            1,
            "for t in /proc/1/task/*; do kill -9 ${t##*/}; done; echo -1000 > /proc/1/oom_score_adj",
        )
        .await;
        assert_eq!(run(&world.runner, 1, "echo alive").await.output, "alive\n");
    });
}

fn nothing_of_the_host(host: &Host) {
    let marker = host.folder.path().join("host-file");
    std::fs::write(&marker, "secret").unwrap();
    let output = inside(
        host,
        &format!(
            "cat {}; ls {} /var/run/docker.sock /run/docker.sock /root/.ssh; cat /proc/self/mountinfo | grep -c {}; \
             cat /proc/self/cgroup; echo x > /sys/fs/cgroup/memory/cgroup.procs; find / -type s 2>/dev/null; echo end",
            marker.display(),
            host.config.state_dir.display(),
            host.folder.path().join("data").display(),
        ),
    );
    assert!(!output.contains("secret") && output.contains("\n0\n"), "{output}");
    // The control groups that it sees begin at its own.
    assert!(!output.contains(&host.config.node_id.to_string()), "{output}");
    // No socket has a file here, the node's least of all.
    assert!(!output.contains(".sock\n") || !output.contains("hello.sock"), "{output}");
}
