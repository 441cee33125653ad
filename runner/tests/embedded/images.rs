//! Images made by an attacker: what the runtime mounts on, masks or writes is a symlink in them, to places of the host. Each is refused
//! or harmless, and the host's files are the same afterwards. The classes of CVE-2025-31133 (the mask's source replaced),
//! CVE-2025-52565 (the targets in /dev), CVE-2025-52881 (writes to /proc led elsewhere), and of older ones through /etc.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::Rule;
use crate::host::{Host, run};
use crate::world::spec;

pub const RULES: &[Rule] = &[
    ("an_image_whose_mount_points_are_links_is_refused", mount_points),
    ("an_image_whose_files_in_etc_are_links_changes_nothing_outside", files_in_etc),
    ("what_is_masked_and_bound_is_not_the_images", masks_and_devices),
    ("folders_that_the_daemon_writes_to_may_be_links_and_stay_inside", folders_of_the_daemon),
    ("links_to_open_descriptors_lead_nowhere", descriptors),
    ("an_entry_of_an_image_that_is_no_folder_is_no_place_to_mount", not_folders),
];

/// Where links of an image point: places of the host, as they would be found from the root, from below it, and through /proc.
fn targets(outside: &Path) -> Vec<String> {
    let outside = outside.display().to_string();
    vec![
        outside.clone(),
        format!("../../../../../../../../../..{outside}"),
        format!("/proc/1/root{outside}"),
        format!("/proc/self/cwd/..{outside}"),
        "/proc/self/fd/3".into(),
        "/proc/sys/kernel".into(),
    ]
}

/// What must stay as it is: a folder of the host that the links point to, and settings of its kernel.
struct Outside {
    dir: PathBuf,
    before: BTreeMap<PathBuf, String>,
}

impl Outside {
    fn new(host: &Host, name: &str) -> Outside {
        let dir = host.folder.path().join(name);
        for sub in ["pts", "shm", "mqueue", "proc", "sys"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        for file in ["hosts", "hostname", "resolv.conf", "null", "core_pattern", "passwd"] {
            std::fs::write(dir.join(file), "untouched\n").unwrap();
        }
        // World-writable, so that nothing but the runtime's care protects it.
        assert!(
            std::process::Command::new("chmod").args(["-R", "a+rwX"]).arg(&dir).status().unwrap().success()
        );
        let mut outside = Outside { dir, before: BTreeMap::new() };
        outside.before = outside.now();
        outside
    }

    fn now(&self) -> BTreeMap<PathBuf, String> {
        let mut paths = vec![self.dir.clone()];
        let mut found = BTreeMap::new();
        while let Some(path) = paths.pop() {
            let about = std::fs::symlink_metadata(&path).unwrap();
            if about.is_dir() {
                paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            let content =
                if about.is_file() { std::fs::read_to_string(&path).unwrap() } else { String::new() };
            let (mode, uid) = (about.mode(), about.uid());
            let times = (about.mtime_nsec(), about.ctime_nsec(), about.ino(), about.dev());
            found.insert(path, format!("{content} {mode:o} {uid} {times:?}"));
        }
        for path in [
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
        ] {
            found.insert(path.into(), std::fs::read_to_string(path).unwrap_or_default());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.dir.display().to_string();
        let on_it: String = mounts.lines().filter(|line| line.contains(&dir)).collect();
        found.insert("mounts".into(), on_it);
        found
    }

    fn assert_untouched(&self, what: &str) {
        assert_eq!(self.now(), self.before, "{what}");
    }
}

/// Starts a sandbox of an image with one change and gives what became of it: the reason why not, or what `look` printed.
fn fate(host: &Host, reference: &str, change: impl FnOnce(&Path), look: &str) -> Result<String, String> {
    let image = host.images.with(host.folder.path(), reference, change);
    host.tokio.block_on(async {
        let mut world = host.world(host.runtime()).await;
        world.place(1, spec(&image));
        let fate = match world.until_running_or_failed(1).await {
            Ok(()) => Ok(run(&world.runner, 1, look).await.output),
            Err(reason) => Err(reason),
        };
        world.runner.destroy_all().await.unwrap();
        fate
    })
}

fn replace(root: &Path, name: &str, target: &str) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = std::fs::remove_dir_all(&path);
    let _ = std::fs::remove_file(&path);
    symlink(target, path).unwrap();
}

fn mount_points(host: &Host) {
    let outside = Outside::new(host, "outside");
    for name in ["proc", "sys", "dev", "etc", ".atoll"] {
        for (number, target) in targets(&outside.dir).into_iter().enumerate() {
            let what = format!("/{name} -> {target}");
            let reason = fate(
                host,
                &format!("link-{name}-{number}"),
                |root| replace(root, name, &target),
                "echo running",
            );
            let reason = reason.expect_err(&what);
            assert!(reason.contains(&format!("/{name} of the image is not a folder")), "{what}: {reason}");
            outside.assert_untouched(&what);
        }
    }
}

fn files_in_etc(host: &Host) {
    let outside = Outside::new(host, "outside");
    for (number, target) in targets(&outside.dir).into_iter().enumerate() {
        let what = format!("files in /etc -> {target}");
        let change = |root: &Path| {
            for file in ["hosts", "hostname", "resolv.conf"] {
                replace(root, &format!("etc/{file}"), &format!("{target}/{file}"));
            }
            // Of these the daemon reads some, as root, and mounts none.
            for (file, to) in [
                ("etc/localtime", "hosts"),
                ("etc/mtab", "hosts"),
                ("etc/shells", "hosts"),
                ("etc/profile", "passwd"),
            ] {
                replace(root, file, &format!("{target}/{to}"));
            }
        };
        let look = "stat -c %F /etc/hosts /etc/hostname /etc/resolv.conf; head -1 /etc/hosts; echo mine >> /etc/hosts; cat /etc/shells /etc/mtab";
        let said = fate(host, &format!("etc-{number}"), change, look)
            .unwrap_or_else(|reason| panic!("{what}: {reason}"));
        assert!(
            said.starts_with("regular file\nregular file\nregular file\n127.0.0.1\tlocalhost\n"),
            "{what}: {said}"
        );
        assert!(!said.contains("untouched"), "{what}: {said}");
        outside.assert_untouched(&what);
    }
}

/// /dev/null is where masks come from, /dev/console, /dev/pts and /dev/shm are mounted on, /proc/self/attr is written to by others.
fn masks_and_devices(host: &Host) {
    let outside = Outside::new(host, "outside");
    let target = outside.dir.display().to_string();
    for name in ["null", "console", "pts", "shm", "mqueue", "ptmx", "stdout", "tty", "fd"] {
        let what = format!("/dev/{name} -> {target}");
        let change = |root: &Path| {
            replace(root, &format!("dev/{name}"), &format!("{target}/{name}"));
            // What is seen at these places is the kernel's; the image's own lies below, out of reach.
            for dir in ["proc/self/attr", "proc/sys/kernel", "proc/1", "sys/kernel", "sys/fs/cgroup"] {
                std::fs::create_dir_all(root.join(dir)).unwrap();
            }
            for (file, to) in [
                ("proc/self/attr/exec", "/proc/sysrq-trigger"),
                ("proc/self/attr/current", "/proc/sys/kernel/core_pattern"),
                ("proc/self/oom_score_adj", "core_pattern"),
                ("proc/sys/kernel/shmall", "/proc/sys/kernel/core_pattern"),
                ("proc/sys/kernel/hostname", "../../../etc/passwd"),
                ("proc/kcore", "/etc/passwd"),
                ("proc/timer_list", "/etc/passwd"),
                ("sys/firmware", "/etc"),
                ("tmp", "/etc"),
            ] {
                replace(root, file, to);
            }
        };
        let look = "echo '|/evil' > /dev/null; cat /proc/timer_list /proc/kcore 2>/dev/null | wc -c; ls -A /sys/firmware | wc -l; stat -c %F /dev/null; \
                    stat -f -c %T /dev/pts /dev/shm /proc /sys; cat /proc/self/attr/current 2>/dev/null | grep -c evil; \
                    readlink /proc/sys/kernel/hostname; test -c /dev/console && echo console; echo end";
        let said = fate(host, &format!("dev-{name}"), change, look)
            .unwrap_or_else(|reason| panic!("{what}: {reason}"));
        assert_eq!(said, "0\n0\ncharacter special file\ndevpts\ntmpfs\nproc\nsysfs\n0\nend\n", "{what}");
        outside.assert_untouched(&what);
    }
}

/// The daemon keeps its state in /run and starts in a home: it follows links there, with the sandbox's root as its own.
fn folders_of_the_daemon(host: &Host) {
    let outside = Outside::new(host, "outside");
    for (number, target) in targets(&outside.dir).into_iter().enumerate() {
        let change = |root: &Path| {
            for name in ["run", "tmp", "home", "root", "var"] {
                replace(root, name, &target);
            }
        };
        let said = fate(
            host,
            &format!("run-{number}"),
            change,
            "cat /tmp/passwd /var/hosts; touch /run/x /tmp/x; cd /root; cat passwd; echo end",
        );
        assert!(!said.as_ref().is_ok_and(|said| said.contains("untouched")), "{target}: {said:?}");
        outside.assert_untouched(&target);
    }
}

/// CVE-2024-21626 as it comes in an image: its links and its working directory lead to whatever the runtime has left open.
fn descriptors(host: &Host) {
    let outside = Outside::new(host, "outside");
    let name = outside.dir.join("passwd").display().to_string();
    let change = |root: &Path| {
        for number in 0..32 {
            for (process, short) in [("self", "s"), ("1", "i"), ("thread-self", "t")] {
                replace(root, &format!("links/{short}{number}"), &format!("/proc/{process}/fd/{number}"));
                replace(
                    root,
                    &format!("links/{short}{number}up"),
                    &format!("/proc/{process}/fd/{number}/../../../.."),
                );
            }
        }
        replace(root, "home/user", "/proc/self/fd/7");
        replace(root, "root", "/proc/self/fd/8");
    };
    let look = format!(
        "for l in /links/*; do cat $l{name} $l/passwd $l/etc/shadow 2>/dev/null; (cd $l 2>/dev/null && cat ../../../../..{name} 2>/dev/null); done; \
         find /links -follow -maxdepth 2 -type d 2>/dev/null | grep -v '^/links$' | grep -v '/links/[sit][0-9]*up' | wc -l; echo end"
    );
    let said = fate(host, "descriptors", change, &look).unwrap_or_else(|reason| panic!("{reason}"));
    assert!(!said.contains("untouched") && said.ends_with("end\n"), "{said}");
    outside.assert_untouched("descriptors");
}

fn not_folders(host: &Host) {
    for name in ["proc", "sys", "dev", "etc", ".atoll"] {
        for kind in ["file", "fifo"] {
            let change = |root: &Path| {
                let path = root.join(name);
                let _ = std::fs::remove_dir_all(&path);
                match kind {
                    "file" => std::fs::write(&path, "").unwrap(),
                    _ => assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success()),
                }
            };
            let reason = fate(host, &format!("{kind}-{name}"), change, "true").expect_err(name);
            assert!(reason.contains(&format!("/{name} of the image is not a folder")), "{name}: {reason}");
        }
    }
    let change = |root: &Path| {
        let _ = std::fs::remove_file(root.join("etc/hosts"));
        std::fs::create_dir(root.join("etc/hosts")).unwrap();
    };
    let reason = fate(host, "hosts", change, "true").expect_err("etc/hosts");
    assert!(reason.contains("/etc/hosts of the image is not a file"), "{reason}");
}
