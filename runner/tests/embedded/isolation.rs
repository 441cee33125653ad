//! The isolation floor: each rule tries to get out from inside, as the sandbox's root, and looks from outside.

use std::path::Path;
use std::time::{Duration, Instant};

use atoll_api::sandbox::{Resources, SandboxSpec};

use crate::Rule;
use crate::host::{Host, IMAGE, run, try_run};
use crate::world::{World, spec};

pub const RULES: &[Rule] = &[
    ("root_inside_is_nobody_outside", root_is_nobody),
    ("no_file_system_can_be_mounted", no_mounts),
    ("no_device_node_can_be_made", no_devices),
    ("the_kernel_cannot_be_changed", no_kernel_settings),
    ("only_its_own_processes_are_seen", own_processes),
    ("host_serial_numbers_and_kernel_logs_are_masked", masked),
    ("filters_and_capabilities_are_in_place", filtered),
    ("sudo_like_programs_gain_only_the_sandboxs_root", sudo_stays_inside),
    ("without_sudo_no_program_gains_anything", no_new_privileges),
    ("no_descriptor_leads_outside", no_leaked_descriptors),
    ("a_working_directory_cannot_lead_outside", no_way_by_working_directory),
    ("links_of_an_image_redirect_no_mount", links_redirect_nothing),
    ("killing_everything_leaves_the_daemon", daemon_survives_kills),
    ("the_hosts_files_and_sockets_are_out_of_reach", nothing_of_the_host),
    ("bombs_hurt_nobody_else", bombs),
];

async fn started(host: &Host, spec: SandboxSpec) -> World {
    let mut world = host.world(host.runtime()).await;
    world.place(1, spec);
    world.until_running(1).await;
    world
}

/// Runs in a sandbox of its own, as its root.
fn inside(host: &Host, script: &str) -> String {
    host.tokio.block_on(async {
        let world = started(host, spec(IMAGE)).await;
        run(&world.runner, 1, script).await.output
    })
}

fn root_is_nobody(host: &Host) {
    host.tokio.block_on(async {
        let world = started(host, spec(IMAGE)).await;
        assert_eq!(run(&world.runner, 1, "id -u").await.output, "0\n");

        let pid = host.first_process();
        let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
        let words: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!((words[0], words[2]), (0, 65_536), "{map}");
        assert!(words[1] >= host.config.uid_base, "{map}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert!(uids.contains(&words[1].to_string()), "{uids}");
    });
}

fn no_mounts(host: &Host) {
    let output = inside(
        host,
        "mkdir /m; mount -t tmpfs none /m; mount -t proc none /m; mount --bind / /m; umount /proc; \
         unshare -Urm true; grep -c ' /m ' /proc/self/mountinfo",
    );
    let refused =
        output.matches("Operation not permitted").count() + output.matches("permission denied").count();
    assert!(refused >= 5 && output.ends_with("0\n"), "{output}");
}

fn no_devices(host: &Host) {
    let output = inside(
        host,
        "mknod /d b 8 0; mknod /c c 1 1; mknod /dev/sda b 8 0; test -e /d -o -e /c -o -e /dev/sda && echo made; \
         ls /dev | tr '\\n' ' '",
    );
    assert!(!output.contains("made"), "{output}");
    assert!(
        output.ends_with("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "),
        "{output}"
    );
}

fn no_kernel_settings(host: &Host) {
    let output = inside(
        host,
        "for f in /proc/sys/kernel/core_pattern /proc/sys/vm/overcommit_memory /proc/sys/kernel/hostname \
         /proc/sysrq-trigger /sys/kernel/mm/transparent_hugepage/enabled; do echo x > $f && echo WROTE $f; done 2>/dev/null; \
         insmod /bin/busybox; hostname x; date -s 2001-01-01 2>&1; sysctl -w net.ipv4.ip_forward=1; echo end",
    );
    assert!(!output.contains("WROTE /sys") && !output.contains("WROTE /proc/sys/"), "{output}");
    assert!(output.ends_with("end\n"), "{output}");
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    assert_ne!(pattern.trim(), "x");
}

fn own_processes(host: &Host) {
    let output = inside(host, "ls /proc | grep -c '^[0-9]*$'; cat /proc/1/comm");
    let (count, first) = output.split_once('\n').unwrap();
    assert!(count.parse::<u32>().unwrap() <= 8, "{output}");
    assert_eq!(first.trim(), "atoll-daemon");
}

fn masked(host: &Host) {
    let output = inside(
        host,
        "dmesg; cat /proc/kmsg /proc/kcore /proc/keys /proc/timer_list | wc -c; \
         ls -A /sys/firmware /sys/devices/virtual/dmi /proc/acpi /proc/scsi 2>/dev/null | grep -v ':$' | grep -c .; \
         cat /sys/class/dmi/id/product_serial /sys/class/dmi/id/product_uuid; echo end",
    );
    assert!(output.contains("Operation not permitted") || output.contains("klogctl"), "{output}");
    assert!(output.contains("\n0\n0\n"), "{output}");
}

fn filtered(host: &Host) {
    let output = inside(host, "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapPrm)' /proc/self/status");
    assert!(output.contains("Seccomp:\t2\n"), "{output}");
    let bounding = output.lines().find(|line| line.starts_with("CapBnd")).unwrap();
    let bits = u64::from_str_radix(bounding.split_whitespace().nth(1).unwrap(), 16).unwrap();
    // NET_RAW 13, NET_ADMIN 12, SYS_MODULE 16, SYS_PTRACE 19, SYS_ADMIN 21, MKNOD 27.
    for forbidden in [12, 13, 16, 17, 19, 21, 22, 25, 27, 39] {
        assert_eq!(bits & (1 << forbidden), 0, "capability {forbidden}: {bounding}");
    }
}

fn sudo_stays_inside(host: &Host) {
    host.tokio.block_on(async {
        let world = started(host, SandboxSpec { user: "user".into(), ..spec(IMAGE) }).await;
        // A setuid-root shell stands for sudo.
        let output = run(
            &world.runner,
            1,
            "id -u; busybox-suid su -c 'id -u; touch /root/made; mount -t tmpfs none /tmp' root",
        )
        .await
        .output;
        assert!(output.starts_with("1000\n0\n"), "{output}");
        assert!(output.contains("ermi"), "{output}");
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

/// What CVE-2024-21626 was: a descriptor of the host's, left open.
fn no_leaked_descriptors(host: &Host) {
    let output = inside(
        host,
        "for p in 1 self; do for f in /proc/$p/fd/*; do t=$(readlink $f); case \"$t\" in \
         /dev/null|/dev/pts/*|pipe:*|socket:*|anon_inode:*|/memfd:*|/proc/*/fd|'') ;; *) echo LEAK $f $t;; esac; \
         test -d $f/ && case \"$t\" in /proc/*) ;; *) echo DIR $f $t;; esac; done; done; readlink /proc/1/cwd; readlink /proc/1/root; ls / | tr '\\n' ' '",
    );
    assert!(!output.contains("LEAK") && !output.contains("DIR"), "{output}");
    assert!(output.contains("\n/\n") || output.starts_with("/\n/\n"), "{output}");
}

fn no_way_by_working_directory(host: &Host) {
    let marker = host.folder.path().join("outside");
    std::fs::write(&marker, "secret").unwrap();
    let path = marker.display().to_string();
    let script = format!(
        "for n in $(seq 0 40); do for up in . .. ../.. ../../.. ../../../../../..; do for p in 1 self; do \
         cat /proc/$p/fd/$n/$up{path} /proc/$p/cwd/$up{path} /proc/$p/root/$up{path}; done; done; done 2>/dev/null; echo end"
    );
    assert_eq!(inside(host, &script), "end\n");
}

/// CVE-2025-31133, -52565 and -52881: mounts and masks of the runtime, led astray by what lies in the image.
fn links_redirect_nothing(host: &Host) {
    let core_pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for (name, target) in
        [("proc", "/tmp"), ("dev", "/proc"), ("sys", "/proc/sys"), ("etc", "/proc/self"), (".atoll", "/tmp")]
    {
        let image = host.images.with(host.folder.path(), &format!("link-{name}"), |root| {
            let _ = std::fs::remove_dir_all(root.join(name));
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        });
        host.tokio.block_on(async {
            let mut world = host.world(host.runtime()).await;
            world.place(1, spec(&image));
            let reason = world.until_failed(1).await;
            assert!(reason.contains(&format!("/{name} of the image is not a folder")), "{reason}");
            world.runner.destroy_all().await.unwrap();
        });
    }
    // Where masks come from is not the image's /dev/null, and what is masked is not the image's /proc.
    let image = host.images.with(host.folder.path(), "null", |root| {
        for dir in ["dev", "proc/self/attr", "proc/sys/kernel"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", root.join("dev/null")).unwrap();
        std::os::unix::fs::symlink("/proc/sysrq-trigger", root.join("proc/self/attr/current")).unwrap();
        std::fs::remove_file(root.join("etc/hostname")).ok();
        std::os::unix::fs::symlink("/proc/sys/kernel/hostname", root.join("etc/hostname")).unwrap();
    });
    host.tokio.block_on(async {
        let mut world = host.world(host.runtime()).await;
        world.place(1, spec(&image));
        world.until_running(1).await;
        let output = run(
            &world.runner,
            1,
            "echo '|/evil' > /dev/null; cat /proc/timer_list | wc -c; stat -c %F /dev/null",
        )
        .await;
        assert!(output.output.ends_with("0\ncharacter special file\n"), "{output:?}");
    });
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), core_pattern);
}

fn daemon_survives_kills(host: &Host) {
    host.tokio.block_on(async {
        let world = started(host, spec(IMAGE)).await;
        let _ = try_run(&world.runner, 1, "kill -9 1; kill -TERM 1; kill -STOP 1; kill -9 -1").await;
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
             cat /proc/self/cgroup; echo x > /sys/fs/cgroup/memory/cgroup.procs; echo end",
            marker.display(),
            host.config.state_dir.display(),
            host.folder.path().join("data").display(),
        ),
    );
    assert!(!output.contains("secret") && output.contains("\n0\n"), "{output}");
    // The control groups that it sees begin at its own.
    assert!(!output.contains(&host.config.node_id.to_string()), "{output}");
}

fn bombs(host: &Host) {
    const FORKS: &str = "f() { f | f & }; f";
    const MEMORY: &str = "tail /dev/zero";
    const SHARED_MEMORY: &str = "dd if=/dev/zero of=/dev/shm/big bs=1M";
    const DISK: &str = "dd if=/dev/zero of=/big bs=1M; stat -c %s /big";
    const FILES: &str = "ulimit -n 100000; i=0; while [ $i -lt 9 ]; do (n=3; while [ $n -lt 60000 ]; do eval \"exec $n</dev/null\" || break; n=$((n+1)); done) & i=$((i+1)); done; wait";
    host.tokio.block_on(async {
        let mut world = host.world(host.runtime()).await;
        let small =
            SandboxSpec { resources: Resources { cpu: 1, memory_gib: 1, disk_gib: 1 }, ..spec(IMAGE) };
        for number in [1, 2] {
            world.place(number, small.clone());
            world.until_running(number).await;
        }
        for (name, bomb) in [
            ("forks", FORKS),
            ("memory", MEMORY),
            ("shared memory", SHARED_MEMORY),
            ("files", FILES),
            ("disk", DISK),
        ] {
            let runner = world.runner.clone();
            let bursting = tokio::spawn(async move { try_run(&runner, 1, bomb).await });
            let mut took: Vec<Duration> = Vec::new();
            for _ in 0..20 {
                let began = Instant::now();
                assert_eq!(run(&world.runner, 2, "echo fine").await.output, "fine\n");
                took.push(began.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            took.sort();
            println!("{name}: a neighbour's exec takes {:?} (median), {:?} (slowest)", took[10], took[19]);
            let done = tokio::time::timeout(Duration::from_secs(90), bursting).await;
            println!(
                "{name}: {:?}",
                done.map(|joined| joined.map(|done| done
                    .map(|done| (done.exit_code, done.output.chars().take(200).collect::<String>()))))
            );
            assert!(took[10] < Duration::from_millis(50), "{name}: {took:?}");
            let _ = try_run(&world.runner, 1, "kill -9 -1").await;
            // The daemon itself has survived.
            assert_eq!(
                run(&world.runner, 1, "rm -f /dev/shm/big /big; echo alive").await.output,
                "alive\n",
                "{name}"
            );
        }
    });
    assert!(Path::new("/").exists());
}
