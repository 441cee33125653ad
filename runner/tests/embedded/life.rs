//! From create to nothing left.

use std::io::{Seek, Write};
use std::time::Duration;

use atoll_api::sandbox::{Desired, Phase};
use atoll_runner::image::{Compression, Digest, Layer};
use atoll_runner::{FoundState, ReportKind, Runtime, RuntimeError};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;

use crate::Rule;
use crate::host::{Host, IMAGE, run};
use crate::world::{World, incarnation, spec};

pub const RULES: &[Rule] = &[
    ("a_sandbox_runs_commands_as_its_user_and_leaves_nothing", runs_and_leaves_nothing),
    ("a_stopped_sandbox_keeps_its_disk_and_starts_again", keeps_its_disk),
    ("a_sandbox_deleted_at_any_moment_of_its_start_leaves_nothing", deleted_while_it_starts),
    ("a_paused_sandbox_does_nothing_until_it_is_resumed", pauses),
    ("a_later_process_adopts_what_runs", is_adopted),
    ("what_runs_is_known_also_where_the_network_cannot_be_prepared", is_known_without_network),
    ("a_committed_layer_makes_the_same_files", commits),
    ("layers_are_stacked_on_older_kernels_too", older_kernels),
    ("five_hundred_sandboxes_leave_nothing", five_hundred),
];

async fn started(host: &Host) -> World {
    let mut world = host.world(host.runtime()).await;
    world.place(1, spec(IMAGE));
    world.until_running(1).await;
    world
}

fn runs_and_leaves_nothing(host: &Host) {
    host.tokio.block_on(async {
        let mut world = started(host).await;

        let done = run(&world.runner, 1, "id -u; echo $FROM_IMAGE; cat /etc/hostname; ls /.atoll").await;
        assert_eq!(done.exit_code, 0);
        assert!(done.output.starts_with("0\nyes\n"), "{}", done.output);

        world.wish(1, Desired::Deleted);
        world.until_deleted(1).await;
        world.runner.destroy_all().await.unwrap();
    });
    assert_eq!(host.left(), Vec::<String>::new());
}

fn keeps_its_disk(host: &Host) {
    host.tokio.block_on(async {
        let mut world = started(host).await;
        run(&world.runner, 1, "echo kept > /root/note; rm /bin/ls; mkdir /var/new").await;

        world.wish(1, Desired::Stopped);
        world.until_stopped(1).await;
        world.wish(1, Desired::Running);
        world.until_running(1).await;

        let look = "cat /root/note; test -e /bin/ls || echo gone; test -d /var/new && echo new";
        assert_eq!(run(&world.runner, 1, look).await.output, "kept\ngone\nnew\n");
    });
}

fn deleted_while_it_starts(host: &Host) {
    host.tokio.block_on(async {
        let mut world = host.world(host.runtime()).await;
        for (number, ms) in (1..).zip([0, 1, 2, 3, 4, 6, 8, 10, 12, 15, 20, 30, 50]) {
            world.place(number, spec(IMAGE));
            tokio::time::sleep(Duration::from_millis(ms)).await;
            world.wish(number, Desired::Deleted);
            world.until_deleted(number).await;
        }
        assert_eq!(std::fs::read_dir(host.config.state_dir.join("sandboxes")).unwrap().count(), 0);
        world.runner.destroy_all().await.unwrap();
    });
    assert_eq!(host.left(), Vec::<String>::new());
}

fn pauses(host: &Host) {
    host.tokio.block_on(async {
        let mut world = started(host).await;
        run(&world.runner, 1, "(while true; do echo >> /tmp/ticks; done) >/dev/null 2>&1 & echo").await;

        world.wish(1, Desired::Paused);
        world.until(1, |kind| *kind == ReportKind::Phase(Phase::Paused)).await;
        let upper = host.upper();
        let count = || std::fs::metadata(upper.join("tmp/ticks")).unwrap().len();
        let before = count();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(count(), before);

        world.wish(1, Desired::Running);
        world.until_running(1).await;
        run(&world.runner, 1, "sleep 0.2").await;
        assert!(count() > before);
    });
}

fn is_adopted(host: &Host) {
    let first = tokio::runtime::Runtime::new().unwrap();
    first.block_on(async {
        let world = started(host).await;
        run(&world.runner, 1, "echo before > /root/note").await;
        world.runner.shutdown().await;
    });
    let pid = host.first_process();
    // With it goes all that watched the sandbox.
    drop(first);

    host.tokio.block_on(async {
        let runtime = host.runtime();
        let mut world = host.world(runtime.clone()).await;
        assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Running);
        world.place(1, spec(IMAGE));
        world.until_running(1).await;

        assert_eq!(host.first_process(), pid);
        assert_eq!(run(&world.runner, 1, "cat /root/note").await.output, "before\n");
        world.wish(1, Desired::Stopped);
        world.until_stopped(1).await;
        world.runner.destroy_all().await.unwrap();
    });
    assert_eq!(host.left(), Vec::<String>::new());
}

fn is_known_without_network(host: &Host) {
    host.tokio.block_on(async {
        let world = started(host).await;
        world.runner.shutdown().await;

        // As after a crash, on a host that cannot say yet what sandboxes may reach.
        let runtime = host.runtime();
        let found = runtime.list().await.unwrap();
        assert_eq!(found[0].state, FoundState::Running);
        runtime.stop(incarnation(1, 1), 0).await.unwrap();
        let refused = runtime.start(incarnation(1, 1)).await.unwrap_err();
        assert!(matches!(&refused, RuntimeError::Host(said) if said.contains("network")), "{refused}");
        runtime.teardown().await.unwrap();
    });
    assert_eq!(host.left(), Vec::<String>::new());
}

fn commits(host: &Host) {
    host.tokio.block_on(async {
        let runtime = host.runtime();
        let mut world = host.world(runtime.clone()).await;
        world.place(1, spec(IMAGE));
        world.until_running(1).await;
        let change = "echo new > /root/new; rm -r /home/user; ln /root/new /root/hard; mkdir /srv; chown 1000:1000 /srv; \
                      dd if=/dev/zero of=/root/sparse bs=1 count=1 seek=100000000 2>/dev/null; rm /bin/ls";
        run(&world.runner, 1, change).await;
        assert!(runtime.commit(incarnation(1, 1)).await.is_err(), "it runs");
        world.wish(1, Desired::Stopped);
        world.until_stopped(1).await;

        let mut tar = Vec::new();
        runtime.commit(incarnation(1, 1)).await.unwrap().read_to_end(&mut tar).await.unwrap();
        assert!(tar.len() < 1 << 20, "a sparse file has become {} bytes", tar.len());
        let digest = Digest::new(Sha256::digest(&tar).into());
        let mut blob = tempfile::tempfile().unwrap();
        blob.write_all(&tar).unwrap();
        blob.rewind().unwrap();
        let image = host.images.extend(IMAGE, "committed", Layer {
            diff_id: digest,
            blob: digest,
            blob_bytes: tar.len() as u64,
            compression: Compression::None,
        });
        runtime.import(&image, vec![(digest, blob)]).await.unwrap();

        world.place(2, spec("committed"));
        world.until_running(2).await;
        let look = "cat /root/new; test -e /home/user || echo gone; stat -c '%u %h' /srv /root/hard; test -e /bin/ls || \
                    echo no ls; stat -c %s /root/sparse; ls -d /.atoll /proc/self >/dev/null 2>&1; echo end";
        let output = run(&world.runner, 2, look).await.output;
        assert_eq!(output, "new\ngone\n1000 2\n0 2\nno ls\n100000001\nend\n");
    });
}

fn older_kernels(host: &Host) {
    host.tokio.block_on(async {
        let older = atoll_runner::embedded::EmbeddedConfig { attach_layers: true, ..host.config.clone() };
        let runtime = atoll_runner::embedded::EmbeddedRuntime::open(older).unwrap();
        let mut world = host.world(std::sync::Arc::new(runtime)).await;
        world.place(1, spec(IMAGE));
        world.until_running(1).await;
        assert_eq!(run(&world.runner, 1, "touch /root/a && stat -c %u /root/a").await.output, "0\n");
        world.runner.destroy_all().await.unwrap();
    });
    assert_eq!(host.left(), Vec::<String>::new());
}

fn five_hundred(host: &Host) {
    const ROUNDS: u32 = 10;
    const AT_ONCE: u8 = 50;
    host.tokio.block_on(async {
        let mut world = host.world(host.runtime()).await;
        for _ in 0..ROUNDS {
            for number in 1..=AT_ONCE {
                world.place(number, spec(IMAGE));
            }
            world.until_all(AT_ONCE, |kind| *kind == ReportKind::Phase(Phase::Running)).await;
            for number in 1..=AT_ONCE {
                world.wish(number, Desired::Deleted);
            }
            world.until_all(AT_ONCE, |kind| *kind == ReportKind::Deleted).await;
            world.wanted.clear();
            world.tell();
        }
        world.runner.destroy_all().await.unwrap();
    });
    assert_eq!(host.left(), Vec::<String>::new());
}
