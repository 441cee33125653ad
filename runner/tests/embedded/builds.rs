//! Dockerfiles on this runtime, as a node builds them: over the runner's socket, while the node's own sandboxes run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Seek;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_runner::build::{
    AnonymousAccess, BuildLimits, BuildRequest, BuildState, Builds, SandboxBuildConfig, SandboxBuildHost,
    read_config,
};
use atoll_runner::embedded::EmbeddedRuntime;
use atoll_runner::image::Image;
use atoll_runner::store::{Origin, Reference, Store, StoreConfig};
use atoll_runner::{RemoteRuntime, Runtime};

use crate::Rule;
use crate::host::{Host, IMAGE, run};
use crate::seam::Server;
use crate::world::{PATIENCE, World, eventually, spec};

pub const RULES: &[Rule] = &[
    ("a_dockerfile_becomes_an_image_that_sandboxes_start_from", becomes_an_image),
    ("a_second_build_takes_everything_from_the_cache", is_cached),
    ("a_step_sees_what_the_step_before_it_changed", layers_are_whole),
    ("what_sdks_write_builds_on_the_base_snapshot", builds_on_debian),
    ("a_failing_step_says_why", failures_are_explained),
    ("output_of_any_size_and_kind_is_logged_as_text", any_output),
    ("a_cancelled_build_leaves_nothing", cancelled),
    ("a_later_process_removes_what_an_earlier_one_was_building", broken_off),
];

/// Where deploy/base/build.sh leaves the default snapshot.
const DEBIAN: &str = "/var/cache/atoll/base/atoll-base.oci";
const BASE: &str = "atoll.internal/tests/busybox:1";

/// The parts of a node that build.
struct Site {
    embedded: Arc<EmbeddedRuntime>,
    runtime: Arc<dyn Runtime>,
    store: Store,
    build_host: SandboxBuildHost,
    builds: Builds,
    /// It looks after sandboxes all the time, and must leave builds alone.
    world: World,
    steps_dir: PathBuf,
    _server: Server,
}

impl Site {
    async fn start(host: &Host) -> Site {
        let embedded = host.runtime();
        let data_dir = host.folder.path().join("data");
        std::fs::create_dir_all(&data_dir).unwrap();
        let server = Server::start(embedded.clone(), &host.folder);
        let runtime: Arc<dyn Runtime> = Arc::new(RemoteRuntime::new(server.client()));
        let dir = host.folder.path().join("store");
        let store =
            Store::open(StoreConfig { dir, seeds: vec![DEBIAN.into()], ..StoreConfig::default() }).unwrap();
        add_base(&store, host).await;

        let world = World::start_with(
            host.folder.config(host.daemon.clone()),
            runtime.clone(),
            Arc::new(store.clone()),
        );
        let world = world.await.unwrap();
        world.tell();
        let steps_dir = data_dir.join("build-steps");
        let mut config = SandboxBuildConfig::new(steps_dir.clone(), host.daemon.clone());
        config.resources.memory_gib = 1;
        config.resources.disk_gib = 1;
        let build_host = SandboxBuildHost::open(runtime.clone(), store.clone(), config).await.unwrap();
        let builds =
            Builds::open(Arc::new(build_host.clone()), data_dir.join("builds"), BuildLimits::default());
        let builds = builds.unwrap();
        Site { embedded, runtime, store, build_host, builds, world, steps_dir, _server: server }
    }

    async fn build(&self, id: &str, dockerfile: &str, context: &[(&str, &str)]) -> (BuildState, String) {
        let mut states = self.builds.start(id, request(dockerfile, context)).unwrap();
        let state = tokio::time::timeout(PATIENCE, states.wait_for(BuildState::is_final)).await;
        let state = state.expect("the build ends").unwrap().clone();
        (state, self.log(id))
    }

    async fn built(&self, id: &str, dockerfile: &str, context: &[(&str, &str)]) -> (Image, String) {
        match self.build(id, dockerfile, context).await {
            (BuildState::Built(image), log) => ((*image).clone(), log),
            (other, log) => panic!("{other:?}\n{log}"),
        }
    }

    async fn failed(&self, id: &str, dockerfile: &str) -> String {
        match self.build(id, dockerfile, &[]).await {
            (BuildState::Failed(reason), _) => reason,
            (other, log) => panic!("{other:?}\n{log}"),
        }
    }

    /// As it is on disk; it must be text.
    fn log(&self, id: &str) -> String {
        let path = self.steps_dir.parent().unwrap().join(format!("builds/{id}.log"));
        String::from_utf8(std::fs::read(path).unwrap()).unwrap()
    }

    /// Whatever steps have on this host, beside the cache and the daemon's binary.
    async fn of_steps(&self, host: &Host) -> Vec<String> {
        let mut left: Vec<String> =
            self.runtime.list().await.unwrap().iter().map(|found| format!("{found:?}")).collect();
        for dir in [
            self.steps_dir.join("sandboxes"),
            host.config.state_dir.join("sandboxes"),
            host.config.state_dir.join("trash"),
            self.store_dir(host).join("ingest"),
        ] {
            left.extend(
                std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path().display().to_string()),
            );
        }
        left
    }

    fn store_dir(&self, host: &Host) -> PathBuf {
        host.folder.path().join("store")
    }

    /// Every path that the image's layers above the base have, in order.
    fn paths(&self, image: &Image) -> Vec<String> {
        let mut paths = Vec::new();
        for layer in &image.layers[1..] {
            let mut tar = tar::Archive::new(self.store.open_here(&layer.blob).unwrap().0);
            for entry in tar.entries().unwrap() {
                let entry = entry.unwrap();
                paths.push(String::from_utf8(entry.path_bytes().into_owned()).unwrap());
            }
        }
        paths
    }

    async fn destroy(self, host: &Host) {
        self.builds.shutdown().await;
        self.build_host.close().await;
        self.world.runner.destroy_all().await.unwrap();
        assert_eq!(host.left(), Vec::<String>::new());
    }
}

async fn add_base(store: &Store, host: &Host) {
    let mut writer = store.writer().unwrap();
    let tar = tokio::fs::File::open(host.folder.path().join(format!("{IMAGE}.tar"))).await.unwrap();
    writer.copy_from(tar).await.unwrap();
    let layer = store.finish_layer(writer).await.unwrap();
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "Labels": {"base": "busybox"}},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
    });
    let (digest, _) = store.put_image(config.to_string().as_bytes(), &[layer]).await.unwrap();
    store.set_name(&BASE.parse::<Reference>().unwrap(), digest, Origin::Given).unwrap();
}

fn request(dockerfile: &str, context: &[(&str, &str)]) -> BuildRequest {
    let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
    for (path, text) in context {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    let mut context: File = tar.into_inner().unwrap();
    context.rewind().unwrap();
    BuildRequest {
        dockerfile: match dockerfile.starts_with("AS ") {
            true => format!("FROM {BASE} {dockerfile}"),
            false => format!("FROM {BASE}\n{dockerfile}"),
        },
        build_args: BTreeMap::from([("GIVEN".to_owned(), "from outside".to_owned())]),
        contexts: vec![context],
        access: Arc::new(AnonymousAccess),
    }
}

/// What a sandbox of the image answers.
async fn ask(site: &mut Site, image: &Image, command: &str) -> String {
    site.world.place(1, spec(&image.reference));
    site.world.until_running(1).await;
    let done = run(&site.world.runner, 1, command).await;
    site.world.wish(1, atoll_api::sandbox::Desired::Deleted);
    site.world.until_deleted(1).await;
    done.output
}

fn becomes_an_image(host: &Host) {
    let dockerfile = format!(
        r#"AS tools
RUN mkdir -p /out/bin && printf '#!/bin/sh\necho tool "$@"\n' > /out/bin/tool && chmod 755 /out/bin/tool
FROM {BASE}
ARG GIVEN=default
ARG VERSION=1.2
ENV APP_HOME=/srv/app APP_VERSION=$VERSION
LABEL who="a test" version=$VERSION
WORKDIR $APP_HOME
COPY --from=tools /out/bin/tool /bin/tool
COPY --chown=user:user main.txt conf/ ./
RUN env | sort > env.txt && pwd > pwd.txt && id -u > id.txt && tool used
USER user
RUN <<EOF
id -un > /tmp/me
echo "home is $HOME" >> /tmp/me
cat main.txt >> /tmp/me
EOF
RUN ["sh", "-c", "echo \"$0 $1\" > /tmp/exec", "a b", "c"]
SHELL ["/bin/sh", "-e", "-c"]
RUN false || true; echo "$GIVEN" > /tmp/given
EXPOSE 8080
ENTRYPOINT ["/bin/tool", "serve"]
CMD ["--port", "8080"]
"#
    );
    host.tokio.block_on(async {
        let mut site = Site::start(host).await;
        let context = [("main.txt", "the main\n"), ("conf/a.conf", "A"), ("other", "")];

        let (image, log) = site.built("all", &dockerfile, &context).await;

        assert!(log.contains("Step 5/19 : ARG VERSION=1.2\n"), "{log}");
        assert!(log.contains("\ntool used\n") && log.ends_with("\nBuilt\n"), "{log}");
        let config = read_config(&site.store.config_json(&image.id.unwrap()).await.unwrap()).unwrap();
        assert_eq!(config.image, image.config);
        assert_eq!(image.config.entrypoint, ["/bin/tool", "serve"]);
        assert_eq!(image.config.cmd, ["--port", "8080"]);
        assert_eq!(image.config.user.as_deref(), Some("user"));
        assert_eq!(image.config.work_dir.as_deref(), Some("/srv/app"));
        assert_eq!(
            image.config.env,
            ["PATH=/bin", "FROM_IMAGE=yes", "APP_HOME=/srv/app", "APP_VERSION=1.2"]
        );
        assert_eq!(config.exposed_ports, BTreeSet::from(["8080/tcp".to_owned()]));
        assert_eq!(config.image.labels["who"], "a test");
        assert_eq!(config.shell, ["/bin/sh", "-e", "-c"]);

        let answer = ask(&mut site, &image, "cd /srv/app; cat env.txt pwd.txt id.txt /tmp/me /tmp/exec /tmp/given; stat -c %u *.txt a.conf; \
            ls /out other 2>&1; tool x").await;
        let expected = "APP_HOME=/srv/app\nAPP_VERSION=1.2\nFROM_IMAGE=yes\nGIVEN=from outside\nHOME=/root\nPATH=/bin\nPWD=/srv/app\n\
            SHLVL=1\nVERSION=1.2\n/srv/app\n0\nuser\nhome is /home/user\nthe main\na b c\n\
            from outside\n0\n0\n1000\n0\n1000\nls: /out: No such file or directory\nls: other: No such file or directory\ntool x\n";
        assert_eq!(answer, expected);

        let ours = [".atoll", "etc/hosts", "etc/hostname", "etc/resolv.conf", "run/atoll-daemon", "dev/null"];
        let paths = site.paths(&image);
        assert!(!paths.iter().any(|path| ours.iter().any(|ours| path.contains(ours))), "{paths:?}");

        // What was built is something to begin with.
        let name: Reference = "atoll.internal/tests/app:1".parse().unwrap();
        site.store.set_name(&name, image.reference.parse().unwrap(), Origin::Given).unwrap();
        let text = format!("AS unused\nFROM {name}\nRUN pwd; id -un; echo $APP_VERSION");
        let (_, log) = site.built("next", &text, &[]).await;
        assert!(log.contains("\n/srv/app\nuser\n1.2\n"), "{log}");
        site.destroy(host).await;
    });
}

fn is_cached(host: &Host) {
    host.tokio.block_on(async {
        let site = Site::start(host).await;
        let text = "WORKDIR /w\nCOPY a b/\nRUN head -c 1000 /dev/urandom > random\nRUN --network=none rm b/a\nENV X=1";
        let (first, log) = site.built("first", text, &[("a", "1")]).await;
        assert!(!log.contains("Using cache"), "{log}");
        let starts = site.embedded.start_timings().len();
        assert_eq!(starts, 2);

        let (second, log) = site.built("second", text, &[("a", "1")]).await;
        assert_eq!(second, first);
        assert_eq!(log.matches(" ---> Using cache\n").count(), 4, "{log}");
        assert_eq!(site.embedded.start_timings().len(), starts);
        let more = format!("{text}\nRUN true");
        site.built("longer", &more, &[("a", "1")]).await;
        assert_eq!(site.embedded.start_timings().len(), starts + 1);

        // Another context is another copy, and other layers on top.
        let (changed, log) = site.built("changed", text, &[("a", "2")]).await;
        assert_eq!(log.matches("Using cache").count(), 1, "{log}");
        assert_ne!(changed.layers[2..], first.layers[2..]);
        assert!(site.build_host.cached_blobs().is_superset(&first.layers[1..].iter().map(|l| l.blob).collect()));

        // What the store no longer has is made again.
        let random = first.layers[3].blob;
        std::fs::remove_file(site.store_dir(host).join("blobs/sha256").join(random.hex())).unwrap();
        let (again, log) = site.built("again", text, &[("a", "1")]).await;
        assert_eq!(log.matches("Using cache").count(), 2, "{log}");
        assert_ne!(again.layers[3], first.layers[3]);
        site.destroy(host).await;
    });
}

fn layers_are_whole(host: &Host) {
    // Attributes are seen by what stores them, as busybox has no program for them.
    let dockerfile = r"RUN mkdir -p /d/sub /gone/sub && echo 1 > /d/one && echo 2 > /d/sub/two && echo 3 > /gone/sub/three
RUN rm /d/one && rm -r /gone && ln /d/sub/two /d/hard && ln -s sub/two /d/soft && mkfifo /d/fifo && chmod 4711 /d/hard && \
    chown -h 1000:1000 /d/soft && rm -r /home/user && mkdir /home/user && rm /bin/ls && truncate -s 100000000 /d/sparse && \
    touch -d '2001-02-03 04:05:06' /d/old && mkdir -m 1777 '/d/sticky ü'
RUN test ! -e /d/one && test ! -e /gone && test ! -e /bin/ls && stat -c '%n %F %a %u %h %s' /d/* /d/sub/two && readlink /d/soft && \
    stat -c %Y /d/old && find /home && mv /d /e && find /e | sort
RUN find /d 2>&1; cat /e/hard && rm -r /e
RUN test ! -e /e && echo at the end
";
    host.tokio.block_on(async {
        let site = Site::start(host).await;

        let (image, log) = site.built("layers", dockerfile, &[]).await;

        for expected in [
            "/d/fifo fifo 644 0 1 0\n/d/hard regular file 4711 0 2 2\n/d/old regular empty file 644 0 1 0\n/d/soft symbolic link 777 1000 1 7\n\
             /d/sparse regular file 644 0 1 100000000\n/d/sticky ü directory 1777 0 2 4096\n/d/sub directory 755 0 1 4096\n\
             /d/sub/two regular file 4711 0 2 2\nsub/two\n981173106\n/home\n/home/user\n/e\n/e/fifo\n/e/hard\n",
            "find: /d: No such file or directory\n2\n",
            "\nat the end\n",
        ] {
            assert!(log.contains(expected), "{expected}\n---\n{log}");
        }
        // Of those before it was copied.
        let bytes: u64 = image.layers[1..3].iter().map(|layer| layer.blob_bytes).sum();
        assert!(bytes < 1 << 20, "a sparse file has become {bytes} bytes");
        site.destroy(host).await;
    });
}

fn builds_on_debian(host: &Host) {
    if !std::path::Path::new(DEBIAN).exists() {
        assert!(std::env::var_os("ATOLL_TESTS_REQUIRE_ALL").is_none(), "{DEBIAN} is missing");
        return eprintln!("SKIPPED: this needs {DEBIAN}, which deploy/base/build.sh makes");
    }
    let dockerfile = r#"AS unused
FROM atoll-base
RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections
RUN useradd -m -s /bin/bash dev && echo 'dev ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/dev
RUN <<EOF
mkdir -p /tmp/p/DEBIAN /tmp/p/usr/share/hi
printf 'Package: hi\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n' > /tmp/p/DEBIAN/control
echo hi from a package > /tmp/p/usr/share/hi/text
dpkg-deb --build /tmp/p /tmp/hi.deb && dpkg -i /tmp/hi.deb && rm -r /tmp/p /tmp/hi.deb
EOF
COPY project /.project
RUN python3 -m venv --without-pip /opt/venv && cp /.project/hello.py /opt/venv/lib/python3*/site-packages/
ENV PATH=/opt/venv/bin:$PATH GREETING='it'"'"'s here'
WORKDIR '/home/dev/my work'
USER dev
RUN sudo -n sh -c 'id -u > /root-was-here' && git init -q "$HOME/repo" && node -e 'console.log("node " + 6 * 7)'
RUN python -c 'import hello, os; hello.hello(); print(os.environ["GREETING"], os.getcwd())'
ENTRYPOINT ["python", "-m", "hello"]
"#;
    host.tokio.block_on(async {
        let mut site = Site::start(host).await;
        let context = [("project/hello.py", "def hello(): print('hello from python')\n")];

        let (image, log) = site.built("sdk", dockerfile, &context).await;

        assert!(log.contains("\nnode 42\n"), "{log}");
        assert!(log.contains("\nhello from python\nit's here /home/dev/my work\n"), "{log}");
        assert_eq!(image.config.entrypoint, ["python", "-m", "hello"]);
        let look =
            "cat /root-was-here /usr/share/hi/text; stat -c %U /home/dev/repo/.git; dpkg -s hi | grep Status";
        let expected = "0\nhi from a package\ndev\nStatus: install ok installed\n";
        assert_eq!(ask(&mut site, &image, look).await, expected);
        site.destroy(host).await;
    });
}

fn failures_are_explained(host: &Host) {
    host.tokio.block_on(async {
        let site = Site::start(host).await;

        let reason = site.failed("exit", "RUN echo out; echo why >&2; exit 3").await;
        assert!(
            reason.starts_with(
                "Dockerfile line 2: RUN echo out; echo why >&2; exit 3 ended with exit code 3\n"
            ),
            "{reason}"
        );
        assert!(reason.ends_with("\nout\nwhy"), "{reason}");
        for (id, dockerfile, words) in [
            ("program", "RUN [\"no-such-program\"]", "no-such-program: No such file or directory"),
            ("user", "USER nobody-here\nRUN true", "the image has no user \"nobody-here\""),
            ("signal", "RUN kill -9 $$", "ended with exit code 137"),
            ("late", "RUN (sleep 0.05; echo late) & exit 4", "late"),
            (
                "base",
                "FROM atoll.internal/tests/none:1",
                "line 2: atoll.internal/tests/none:1: no node knows",
            ),
            ("scratch", "FROM scratch\nRUN true", "line 3: scratch has no program to run"),
        ] {
            let reason = site.failed(id, dockerfile).await;
            assert!(reason.contains(words), "{id}: {reason}");
        }
        // The daemon is no process of the step's to end.
        let reason = site.failed("pid-1", "RUN kill -9 1; kill -9 -1; exit 5").await;
        assert!(reason.contains("exit code"), "{reason}");
        eventually("nothing is left of failed steps", async || site.of_steps(host).await.is_empty()).await;
        site.destroy(host).await;
    });
}

fn any_output(host: &Host) {
    host.tokio.block_on(async {
        let site = Site::start(host).await;
        let dockerfile = "RUN yes 0123456789abcde | head -c 1048576\nRUN head -c 100000 /dev/urandom\n\
                          RUN head -c 300000 /dev/zero | tr '\\0' x\nRUN printf '\\303'; sleep 0.1; printf '\\251'; echo; echo the end";

        let (_, log) = site.built("output", dockerfile, &[]).await;

        assert_eq!(log.matches("0123456789abcde\n").count(), 1048576 / 16);
        assert!(log.contains(&format!("\n{}\nStep 5/5", "x".repeat(300_000))), "the long line");
        assert!(log.contains("\u{fffd}"), "bytes that are no text");
        assert!(log.ends_with("\né\nthe end\nBuilt\n"), "{}", &log[log.len() - 200..]);
        site.destroy(host).await;
    });
}

fn cancelled(host: &Host) {
    host.tokio.block_on(async {
        let site = Site::start(host).await;
        let text = "RUN echo first > /first\nRUN echo begun; touch /x; while true; do sleep 1; done";
        let mut states = site.builds.start("c", request(text, &[])).unwrap();
        eventually("the step runs", async || site.log("c").contains("\nbegun\n")).await;
        assert_eq!(site.runtime.list().await.unwrap().len(), 1);
        // Long enough for the node's own look at what runs here to have seen it and left it alone.
        assert!(site.world.runner.status().counts.operations_running == 0);

        site.builds.cancel("c");

        let state = states.wait_for(BuildState::is_final).await.unwrap().clone();
        assert_eq!(state, BuildState::Failed("the build was cancelled".into()));
        eventually("nothing is left", async || site.of_steps(host).await.is_empty()).await;
        // It can be built after all, from where it came to.
        let (_, log) = site.built("c2", "RUN echo first > /first\nRUN cat /first", &[]).await;
        assert!(log.contains("Using cache\n") && log.contains("\nfirst\n"), "{log}");

        // Cancelled at any moment of a step's life.
        for ms in [0, 5, 10, 20, 40, 80] {
            let id = format!("at-{ms}");
            let mut states =
                site.builds.start(&id, request(&format!("RUN sleep 60; echo {ms}"), &[])).unwrap();
            tokio::time::sleep(Duration::from_millis(ms)).await;
            site.builds.cancel(&id);
            states.wait_for(BuildState::is_final).await.unwrap();
        }
        eventually("nothing is left", async || site.of_steps(host).await.is_empty()).await;
        site.destroy(host).await;
    });
}

fn broken_off(host: &Host) {
    let first = tokio::runtime::Runtime::new().unwrap();
    first.block_on(async {
        let site = Site::start(host).await;
        site.builds.start("b", request("RUN echo begun; sleep 600", &[])).unwrap();
        eventually("the step runs", async || site.log("b").contains("\nbegun\n")).await;
        site.world.runner.shutdown().await;
    });
    // As when the process is killed: nobody tidies up.
    first.shutdown_timeout(Duration::from_secs(5));

    host.tokio.block_on(async {
        let site = Site::start(host).await;
        eventually("nothing is left", async || site.of_steps(host).await.is_empty()).await;
        let (_, log) = site.built("b", "RUN echo again", &[]).await;
        assert!(log.contains("\nagain\n"), "{log}");
        site.destroy(host).await;
    });
}
