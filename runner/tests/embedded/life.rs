//! From create to nothing left.

use atoll_api::sandbox::Desired;

use crate::Rule;
use crate::host::{Host, IMAGE, run};
use crate::world::spec;

pub const RULES: &[Rule] = &[
    ("a_sandbox_runs_commands_as_its_user_and_leaves_nothing", runs_and_leaves_nothing),
    ("a_stopped_sandbox_keeps_its_disk_and_starts_again", keeps_its_disk),
];

fn runs_and_leaves_nothing(host: &Host) {
    host.tokio.block_on(async {
        let runtime = host.runtime();
        let mut world = host.world(runtime.clone()).await;
        world.place(1, spec(IMAGE));
        world.until_running(1).await;

        let done = run(&world.runner, 1, "id -u; echo $FROM_IMAGE; cat /etc/hostname; ls /.atoll").await;
        assert_eq!(done.exit_code, 0);
        assert!(done.output.starts_with("0\nyes\n"), "{}", done.output);
        println!("{:?}", runtime.start_timings());

        world.wish(1, Desired::Deleted);
        world.until_deleted(1).await;
        world.runner.destroy_all().await.unwrap();
    });
    assert_eq!(host.left(), Vec::<String>::new());
}

fn keeps_its_disk(host: &Host) {
    host.tokio.block_on(async {
        let mut world = host.world(host.runtime()).await;
        world.place(1, spec(IMAGE));
        world.until_running(1).await;
        run(&world.runner, 1, "echo kept > /root/note; rm /bin/ls; mkdir /var/new").await;

        world.wish(1, Desired::Stopped);
        world.until_stopped(1).await;
        world.wish(1, Desired::Running);
        world.until_running(1).await;

        let done = run(
            &world.runner,
            1,
            "cat /root/note; test -e /bin/ls || echo gone; test -d /var/new && echo new",
        )
        .await;
        assert_eq!(done.output, "kept\ngone\nnew\n");
    });
}
