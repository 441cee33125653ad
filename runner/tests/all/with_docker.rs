//! On a real engine: limits, walls, dialling, adoption, and that nothing is left behind. Skipped loudly without one.
//! The image is a busybox, imported, so no registry is needed; the daemon is `stand_in_daemon.rs`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use atoll_api::access::Target;
use atoll_api::ids::{Generation, NodeId};
use atoll_api::sandbox::{Desired, Egress, Phase, SandboxSpec};
use atoll_runner::store::{Reference, Registries, Store, StoreConfig};
use atoll_runner::{
    DockerConfig, DockerRuntime, EngineImages, Finding, RunnerDialError, Runtime, RuntimeError,
};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::through;
use crate::world::{Folder, World, eventually, incarnation, next_number, sandbox, spec};

const IMAGE: &str = "atoll-runner-test:busybox";

/// One test's node. Whatever happens, its containers, network and rules go with it.
struct Host {
    folder: Folder,
    config: DockerConfig,
    daemon: Bytes,
}

impl Host {
    /// `None` where nothing can be tested, with the reason on stderr.
    fn new() -> Option<Host> {
        let engine = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
        if !engine.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: no Docker engine answers here");
            return None;
        }
        if !PathBuf::from("/bin/busybox").exists() {
            eprintln!("SKIPPED: /bin/busybox is missing (apt-get install busybox-static)");
            return None;
        }
        let folder = Folder::new();
        import_image(&folder);
        let daemon = build_stand_in(&folder);
        let node_id = NodeId((u64::from(next_number()) << 56) | (u64::from(std::process::id()) << 24));
        Some(Host { folder, config: DockerConfig::for_node(node_id), daemon })
    }

    async fn world(&self) -> World {
        World::start(self.folder.config(self.daemon.clone()), self.runtime()).await.unwrap()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime_with(self.config.clone())
    }

    fn runtime_with(&self, config: DockerConfig) -> Arc<dyn Runtime> {
        through(Arc::new(DockerRuntime::new(config).unwrap()), &self.folder)
    }

    fn container(&self, number: u8, generation: u64) -> String {
        let node = self.config.node_id.to_string();
        format!("atoll-{}-{}-g{generation}", &node[..8], sandbox(number))
    }

    /// Output of a command inside, as root; what fails is part of the output.
    fn run(&self, number: u8, script: &str) -> String {
        docker(&["exec", &self.container(number, 1), "sh", "-c", script])
    }

    fn what_is_left(&self) -> Vec<String> {
        let node = format!("label=atoll.node={}", self.config.node_id);
        let mut left = vec![
            docker(&["ps", "-aq", "--filter", &node]),
            docker(&["network", "ls", "-q", "--filter", &node]),
        ];
        for table in ["raw", "mangle"] {
            let rules = Command::new("iptables").args(["-w", "10", "-t", table, "-S"]).output().unwrap();
            let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
            left.extend(rules.lines().filter(|rule| rule.contains(&self.config.bridge)).map(str::to_owned));
        }
        left.retain(|line| !line.is_empty());
        left
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let runtime = DockerRuntime::new(self.config.clone()).unwrap();
        let torn_down = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(runtime.teardown())
        });
        let torn_down = torn_down.join();
        if !std::thread::panicking() {
            torn_down.unwrap().unwrap();
        }
    }
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

fn import_image(folder: &Folder) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if !docker(&["image", "ls", "-q", IMAGE]).is_empty() {
            return;
        }
        let root = folder.path().join("root");
        for name in ["bin", "tmp", "etc", "proc", "sys"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "nc", "cat", "wget", "grep", "mknod", "id", "ip", "ls", "hostname", "ping", "sleep"]
        {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        let mut tar = Command::new("tar")
            .args(["-C", root.to_str().unwrap(), "-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let tarball = tar.stdout.take().unwrap();
        let imported = Command::new("docker")
            .args(["import", "-", IMAGE])
            .stdin(tarball)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(imported.success() && tar.wait().unwrap().success());
    });
}

/// `ATOLL_TEST_DAEMON=<path>` puts the real daemon in its place (adoption and lifecycle hold with either).
fn build_stand_in(folder: &Folder) -> Bytes {
    if let Some(real) = std::env::var_os("ATOLL_TEST_DAEMON") {
        return Bytes::from(std::fs::read(real).unwrap());
    }
    static BINARY: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    let build = || {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/all/stand_in_daemon.rs");
        let binary = folder.path().join("stand-in");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        let built = Command::new(rustc)
            .args(["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=1", "-o"])
            .args([binary.as_os_str(), source.as_ref()])
            .status()
            .unwrap();
        assert!(built.success());
        Bytes::from(std::fs::read(binary).unwrap())
    };
    BINARY.get_or_init(build).clone()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_its_limits_and_no_privileges() {
    let Some(host) = Host::new() else { return };
    let mut world = host.world().await;
    world.place(1, spec(IMAGE));
    world.place(2, SandboxSpec { allow_sudo: false, ..spec(IMAGE) });
    world.until_running(1).await;
    eventually("both run", async || world.runner.status().counts.serving == 2).await;

    let status = host.run(1, "cat /proc/1/status");
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "NoNewPrivs"), "0");
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT AUDIT_WRITE
    assert_eq!(u64::from_str_radix(field(&status, "CapBnd"), 16).unwrap(), 0x2004_05fb);
    assert_eq!(field(&host.run(2, "cat /proc/1/status"), "NoNewPrivs"), "1");

    let inspected = docker(&[
        "inspect",
        "-f",
        "{{with .HostConfig}}{{.PidsLimit}} {{.Memory}} {{.MemorySwap}} {{.NanoCpus}} {{.Privileged}}{{end}}",
        &host.container(1, 1),
    ]);
    assert_eq!(inspected, "2048 1073741824 1073741824 1000000000 false");
    let groups = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max; \
                  cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max";
    let groups = host.run(1, groups);
    assert!(groups.contains("2048") && groups.contains("1073741824"), "the kernel's own words: {groups}");

    assert!(host.run(1, "mknod /tmp/disk b 254 0").contains("not permitted"));
    assert!(host.run(1, "echo > /.atoll/x").contains("Read-only"));
    assert_eq!(host.run(1, "ls /.atoll/run"), "", "no secret stays inside");
    assert_eq!(host.run(1, "hostname"), sandbox(1).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_reaches_neither_the_host_nor_its_neighbours_nor_the_metadata_service() {
    let (Some(host), Some(other)) = (Host::new(), Host::new()) else { return };
    let (mut world, mut other_world) = (host.world().await, other.world().await);
    // On every address inside, so that only the walls can refuse.
    let web = || SandboxSpec { env: [("PUBLIC_PORT".into(), "81".into())].into(), ..spec(IMAGE) };
    for number in [1, 2] {
        world.place(number, web());
    }
    other_world.place(3, web());
    eventually("two run", async || world.runner.status().counts.serving == 2).await;
    other_world.until_running(3).await;
    // On every address of the host, as the node's own ports are.
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicU32::new(0));
    let count = accepted.clone();
    let accepting = tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let gateway = host.run(1, "ip route | grep default").split(' ').nth(2).unwrap().to_owned();
    let outside = host_address();
    let address = |host: &Host, number| {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        docker(&["inspect", "-f", format, &host.container(number, 1)])
    };
    for (host, number) in [(&host, 2), (&other, 3)] {
        assert_eq!(host.run(number, &format!("nc -w 5 {} 81 < /dev/null", address(host, number))), "inside");
    }

    // The same try from a container without walls comes through, so a refusal below means something.
    let attempt = |address: &str, port| format!("nc -w 2 {address} {port} < /dev/null && echo reached");
    let control = docker(&["run", "--rm", IMAGE, "/bin/sh", "-c", &attempt(&outside, port)]);
    assert_eq!((control.as_str(), accepted.swap(0, Ordering::Relaxed)), ("reached", 1));

    let tries = [
        (gateway, port),
        (outside, port),
        ("169.254.169.254".to_owned(), 80),
        (address(&host, 2), 81),
        (address(&other, 3), 81),
    ];
    for (address, port) in tries {
        let said = host.run(1, &attempt(&address, port));
        assert!(said.contains("timed out") && !said.contains("reached"), "{address}:{port}: {said}");
    }
    assert_eq!(accepted.load(Ordering::Relaxed), 0, "somebody has come through");
    accepting.abort();
}

/// An address of the host that is not a bridge of ours.
fn host_address() -> String {
    let addresses = Command::new("hostname").arg("-I").output().unwrap();
    let addresses = String::from_utf8_lossy(&addresses.stdout).into_owned();
    addresses.split_whitespace().next().unwrap_or("127.0.0.1").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_reaches_programs_on_localhost_with_and_without_a_network() {
    let Some(host) = Host::new() else { return };
    let mut world = host.world().await;
    let listening = || SandboxSpec { env: [("LOCALHOST_PORT".into(), "3000".into())].into(), ..spec(IMAGE) };
    world.place(1, listening());
    world.place(2, SandboxSpec { egress: Egress { block_all: true, ..Egress::default() }, ..listening() });
    eventually("both run", async || world.runner.status().counts.serving == 2).await;
    world.tell();

    for number in [1, 2] {
        let mut stream = world.runner.dial(sandbox(number), Generation(1), Target::Port(3000)).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "inside");
        let closed = world.runner.dial(sandbox(number), Generation(1), Target::Port(3001)).await.map(drop);
        assert_eq!(closed, Err(RunnerDialError::PortClosed));
    }
    let interfaces = host.run(2, "ls /sys/class/net");
    assert_eq!(interfaces, "lo");
    // Dialling has left nobody in a sandbox's namespace: this process still sees the host's interfaces.
    assert!(std::fs::read_dir("/sys/class/net").unwrap().count() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_runner_adopts_what_runs_and_fences_what_is_old() {
    let Some(host) = Host::new() else { return };
    let mut first = host.world().await;
    first.place(1, spec(IMAGE));
    first.place(2, spec(IMAGE));
    eventually("both run", async || first.runner.status().counts.serving == 2).await;
    first.runner.shutdown().await;
    let started_at = |number| {
        docker(&["inspect", "-f", "{{.State.StartedAt}} {{.State.Running}}", &host.container(number, 1)])
    };
    let before = started_at(1);

    let mut second = host.world().await;
    second.place_as(1, 1, spec(IMAGE), Desired::Running, Phase::Running);
    second.place_as(2, 2, spec(IMAGE), Desired::Running, Phase::Pending);

    second.until_running(2).await;
    eventually("the adopted one answers", async || {
        second.runner.dial(sandbox(1), Generation(1), Target::Daemon).await.is_ok()
    })
    .await;
    assert_eq!(started_at(1), before);
    assert!(started_at(2).contains("No such"), "the older generation is gone");
    let stale = second.runner.dial(sandbox(2), Generation(1), Target::Daemon).await.map(drop);
    assert_eq!(stale, Err(RunnerDialError::Stale { current: Generation(2) }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_dies_is_reported_with_the_reason() {
    let Some(host) = Host::new() else { return };
    let mut world = host.world().await;
    world.place(1, SandboxSpec { env: [("QUIT".into(), "yes".into())].into(), ..spec(IMAGE) });
    let reason = world.until_failed(1).await;
    assert!(reason.contains("exit code 3"), "{reason}");

    world.place(2, spec(IMAGE));
    world.until_running(2).await;
    docker(&["kill", &host.container(2, 1)]);
    let reason = world.until_failed(2).await;
    assert!(reason.contains("killed"), "{reason}");

    world.place(3, spec("atoll-runner-no-such-image:1"));
    let reason = world.until_failed(3).await;
    assert!(reason.contains("atoll-runner-no-such-image:1"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_start_and_delete_work_and_destroy_all_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let mut world = host.world().await;
    for number in 1..=3 {
        world.place(number, spec(IMAGE));
    }
    eventually("all run", async || world.runner.status().counts.serving == 3).await;
    host.run(1, "echo kept > /tmp/file");

    world.wish(1, Desired::Stopped);
    world.until_stopped(1).await;
    world.wish(1, Desired::Running);
    world.until_running(1).await;
    assert_eq!(host.run(1, "cat /tmp/file"), "kept");
    world.wish(2, Desired::Deleted);
    world.until_deleted(2).await;
    assert!(!host.what_is_left().is_empty());

    world.runner.destroy_all().await.unwrap();

    assert_eq!(host.what_is_left(), Vec::<String>::new());
    assert_eq!(host.folder.sandbox_folders(), 0);
}

/// The disk of such a sandbox, too, as the engine keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_the_nodes_store_is_given_to_the_engine_and_goes_with_the_node() {
    let Some(host) = Host::new() else { return };
    let store = host.folder.path().join("store");
    let store = StoreConfig { dir: store, seeds: vec![], registries: Registries::default() };
    let store = Store::open(store).unwrap();
    let mut save = Command::new("docker").args(["save", IMAGE]).stdout(Stdio::piped()).spawn().unwrap();
    let saved = tokio::process::ChildStdout::from_std(save.stdout.take().unwrap()).unwrap();
    let imported = store.import_archive(saved).await.unwrap();
    assert!(save.wait().unwrap().success());
    let name: Reference = "atoll.internal/test/box:1".parse().unwrap();
    let pinned = name.pinned(imported[0].digest).to_string();
    let given = format!("atoll.internal/image:{}", store.resolve(&pinned).await.unwrap().id.unwrap().hex());
    let runtime = host.runtime();
    let images = Arc::new(EngineImages { store: Some(store) });
    let mut world =
        World::start_with(host.folder.config(host.daemon.clone()), runtime.clone(), images).await.unwrap();
    world.runner.provide(&pinned).await.unwrap();

    world.place(1, spec(&pinned));
    world.until_running(1).await;

    assert_eq!(docker(&["inspect", "--format", "{{.Config.Image}}", &host.container(1, 1)]), given);
    runtime.pause(incarnation(1, 1)).await.unwrap();
    let disk = runtime.commit_image(incarnation(1, 1), "atoll.internal/test/disk").await.unwrap().unwrap();
    runtime.resume(incarnation(1, 1)).await.unwrap();
    let is_there = |image: &str| !docker(&["image", "ls", "-q", "--no-trunc", image]).is_empty();
    let ids = || docker(&["image", "ls", "-aq", "--no-trunc"]);
    assert!(is_there(&given) && ids().contains(&disk.reference));
    let again = tokio::join!(world.runner.provide(&pinned), world.runner.provide(&pinned));
    assert_eq!(again, (Ok(()), Ok(())));

    // As after a restart: nothing is remembered.
    world.runner.shutdown().await;
    host.runtime().teardown().await.unwrap();

    assert_eq!(host.what_is_left(), Vec::<String>::new());
    assert!(!is_there(&given) && !ids().contains(&disk.reference));
    assert!(is_there(IMAGE), "it is the operator's");
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_rules_come_back_and_are_never_doubled() {
    let Some(host) = Host::new() else { return };
    let runtime = host.runtime();
    let rules = || host.what_is_left().iter().filter(|line| line.starts_with("-A")).count();
    runtime.prepare().await.unwrap();
    let complete = rules();
    let matching = ["-t", "mangle", "-D", "INPUT", "-i", &host.config.bridge];
    let tail = ["-m", "comment", "--comment", &host.config.network, "-j", "DROP"];
    assert!(Command::new("iptables").arg("-w").args(matching).args(tail).status().unwrap().success());
    assert_eq!(rules(), complete - 1);

    host.runtime().prepare().await.unwrap();
    runtime.prepare().await.unwrap();

    assert_eq!(rules(), complete);
    assert_eq!(complete, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_a_missing_image_and_a_foreign_network_stops_the_start() {
    let Some(host) = Host::new() else { return };
    let images = vec![IMAGE.to_owned(), "atoll-runner-no-such-image:1".to_owned()];
    let runtime = host.runtime_with(DockerConfig { images, ..host.config.clone() });

    let faults = runtime.check().await.unwrap().into_iter().filter_map(|finding| match finding {
        Finding::Fault(line) => Some(line),
        Finding::Limitation(_) => None,
    });
    let lines: Vec<String> = faults.collect();

    assert_eq!(lines.iter().filter(|line| line.contains("is not on this node")).count(), 1, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("atoll-runner-no-such-image:1")), "{lines:?}");
    let name = host.config.network.as_str();
    docker(&["network", "create", name]);
    let refused = runtime.prepare().await;
    docker(&["network", "rm", name]);
    assert!(
        matches!(&refused, Err(RuntimeError::Host(text)) if text.contains("docker network rm")),
        "{refused:?}"
    );
    assert!(runtime.start(incarnation(1, 1)).await.is_err(), "nothing starts without walls or container");
}
