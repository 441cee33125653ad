//! What is done to the cluster. That nothing acknowledged is lost, nothing stale is read, nothing deleted comes back and
//! every sandbox runs once is judged after each scenario, by [`World::is_whole`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use atoll_chaos_tests::host_sandboxes::{self, Run};
use rand::seq::IndexedRandom;
use reqwest::Method;
use serde_json::json;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::load::Load;
use crate::world::{CLUSTER, NODES, REGION, Sandbox, World, eventually};

pub type Scenario = fn(Arc<World>) -> Pin<Box<dyn Future<Output = Result<()>>>>;

pub const ALL: &[(&str, Scenario)] = &[
    ("writes_go_on_when_the_leader_of_the_region_is_killed", |world| Box::pin(region_leader(world))),
    ("tokens_are_made_when_the_leader_of_the_cluster_is_killed", |world| Box::pin(cluster_leader(world))),
    ("a_killed_follower_disturbs_nobody_and_catches_up", |world| Box::pin(follower(world))),
    ("sandboxes_outlive_the_process_of_their_node_and_are_adopted", |world| Box::pin(owner(world))),
    ("nothing_acknowledged_is_lost_when_all_nodes_are_killed_at_once", |world| Box::pin(all(world))),
    ("without_a_quorum_writes_are_refused_soon_and_sandboxes_work", |world| Box::pin(no_quorum(world))),
    ("a_leader_that_was_frozen_shows_nothing_old", |world| Box::pin(frozen_leader(world))),
];

/// A fault comes within this time of a few creates' beginning: about as long as a create takes.
const IN_THE_MIDDLE_OF_CREATES: Duration = Duration::from_millis(1_200);
/// How long a node may take to refuse what it can't decide.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// A node is Down after 6 s of silence, as the leader sees it on its next look.
const DOWN_WITHIN: Duration = Duration::from_secs(15);
/// By then a node without the others has noticed everything about it that it ever will.
const NOTICED_WITHIN: Duration = Duration::from_secs(8);
const FROZEN_FOR: Duration = Duration::from_secs(3);
const WRITES_BETWEEN: usize = 40;

async fn region_leader(world: Arc<World>) -> Result<()> {
    let load = Load::begin(&world).await?;
    world.say("the clients are at work");
    let leader = world.leader(REGION).await?;
    let creates = creates_on_all(&world);

    world.some_moment(IN_THE_MIDDLE_OF_CREATES).await;
    let killed_at = world.kill(&[leader]).await?;

    let next = load.until_acknowledged(1, killed_at).await?;
    world.say(&format!("{} ms from the kill to the next acknowledged write", (next - killed_at).as_millis()));
    load.until_acknowledged(WRITES_BETWEEN, killed_at).await?;
    world.restart(&[leader]).await?;
    // It serves, so it has caught up: what it shows now is judged with the rest.
    for name in world.names() {
        world.read(leader, &name).await?;
    }
    ended(creates).await?;
    load.end().await
}

async fn cluster_leader(world: Arc<World>) -> Result<()> {
    let load = Load::begin(&world).await?;
    world.say("the clients are at work");
    let leader = world.leader(CLUSTER).await?;
    let before = token(&world, leader).await?.context("a token of the leader")?;

    let killed_at = world.kill(&[leader]).await?;

    let others = world.live();
    let made = eventually(Duration::from_secs(20), "a token is made", || async {
        let node = world.random(|random| others.choose(random).copied())?;
        token(&world, node).await.transpose()
    });
    made.await??;
    let after = world.history.now() - killed_at;
    world.say(&format!("{} ms from the kill to the next token", after.as_millis()));
    admits(&world, others[0], &before).await?;
    load.until_acknowledged(WRITES_BETWEEN, killed_at).await?;
    world.restart(&[leader]).await?;
    load.end().await
}

async fn follower(world: Arc<World>) -> Result<()> {
    let load = Load::begin(&world).await?;
    world.say("the clients are at work");
    let leaders = [world.leader(REGION).await?, world.leader(CLUSTER).await?];
    let followers: Vec<usize> = NODES.into_iter().filter(|node| !leaders.contains(node)).collect();
    let follower =
        world.random(|random| followers.choose(random).copied()).context("three nodes, two leaders")?;
    let creates = creates_on_all(&world);

    world.some_moment(IN_THE_MIDDLE_OF_CREATES).await;
    let killed_at = world.kill(&[follower]).await?;

    let next = load.until_acknowledged(1, killed_at).await?;
    world.say(&format!("{} ms from the kill to the next acknowledged write", (next - killed_at).as_millis()));
    load.until_acknowledged(WRITES_BETWEEN, killed_at).await?;
    ensure!(world.leader(REGION).await? == leaders[0], "the region has another leader");
    world.restart(&[follower]).await?;
    for name in world.names() {
        world.read(follower, &name).await?;
    }
    ended(creates).await?;
    load.end().await
}

async fn owner(world: Arc<World>) -> Result<()> {
    let owner = world.random(|random| *NODES.choose(random).expect("three nodes"));
    let owned = owned_by(&world, owner).await?;
    for (sandbox, _) in &owned {
        world.exec(owner, &sandbox.id, "sh -c 'echo kept > ~/file'").await?;
    }
    let others = world.others(owner);

    world.kill(&[owner]).await?;

    let made = world.create_started(others[0]).await?;
    ensure!(made.owner != owner, "a sandbox was placed on a dead node");
    still_runs(&world, &owned).context("while the node is dead")?;
    let lost = || async {
        let mut states = Vec::new();
        for (sandbox, _) in &owned {
            states.push(world.read(others[1], &sandbox.name).await.ok()??.state);
        }
        states.iter().all(|state| state == "error").then_some(())
    };
    eventually(DOWN_WITHIN, "the sandboxes of a dead node are shown as lost", lost).await?;
    let asked = Instant::now();
    ensure!(world.exec(others[0], &owned[0].0.id, "true").await.is_err(), "a dead node answers");
    ensure!(asked.elapsed() < REFUSED_WITHIN, "it took {:?} to say that a node is dead", asked.elapsed());
    let made = world.create_started(others[1]).await?;
    ensure!(made.owner != owner, "a sandbox was placed on a node that is down");
    still_runs(&world, &owned).context("while the node is down")?;
    world.restart(&[owner]).await?;

    for (sandbox, _) in &owned {
        let works = || async { world.exec(others[0], &sandbox.id, "cat /home/daytona/file").await.ok() };
        let kept = eventually(DOWN_WITHIN, "a sandbox works again through another node", works).await?;
        ensure!(kept == "kept\n", "its file says {kept:?}");
    }
    still_runs(&world, &owned).context("after the restart")
}

async fn all(world: Arc<World>) -> Result<()> {
    let load = Load::begin(&world).await?;
    world.say("the clients are at work");
    let before = runs(&world, &load.first)?;
    load.until_acknowledged(WRITES_BETWEEN, world.history.now()).await?;
    let creates = creates_on_all(&world);

    world.some_moment(IN_THE_MIDDLE_OF_CREATES).await;
    let killed_at = world.kill(&NODES).await?;
    still_runs(&world, &before).context("while no node is up")?;
    world.restart(&NODES).await?;

    let next = load.until_acknowledged(WRITES_BETWEEN, killed_at).await?;
    world.say(&format!("{WRITES_BETWEEN} writes within {} ms of the kill", (next - killed_at).as_millis()));
    ended(creates).await?;
    load.end().await?;
    still_runs(&world, &before).context("after the restart")
}

async fn no_quorum(world: Arc<World>) -> Result<()> {
    let survivor = world.random(|random| *NODES.choose(random).expect("three nodes"));
    let owned = owned_by(&world, survivor).await?;
    let (sandbox, _) = &owned[0];
    let others = world.others(survivor);

    world.kill(&others).await?;

    let until = Instant::now() + NOTICED_WITHIN;
    while Instant::now() < until {
        let get = format!("/sandbox/{}", sandbox.id);
        let (labels, public) = (format!("{get}/labels"), format!("{get}/public/false"));
        tokio::try_join!(
            refused(&world, survivor, Method::PUT, &labels),
            // Not a create: one that is refused so may still be done when the others are back.
            refused(&world, survivor, Method::POST, &public),
            refused(&world, survivor, Method::GET, &get),
        )?;
        world.exec(survivor, &sandbox.id, "true").await.context("without a quorum")?;
    }
    world.restart(&others).await?;

    for node in NODES {
        let what = format!("n{} takes writes again", node + 1);
        eventually(DOWN_WITHIN, &what, || async { world.label(node, &sandbox.name).await.then_some(()) })
            .await?;
    }
    still_runs(&world, &owned).context("through it all")
}

async fn frozen_leader(world: Arc<World>) -> Result<()> {
    let load = Load::begin(&world).await?;
    world.say("the clients are at work");
    let leader = world.leader(REGION).await?;
    let names = world.names();

    world.cluster.freeze(leader)?;
    let (frozen_at, woken_at) = (world.history.now(), Instant::now() + FROZEN_FOR);
    world.set_live(leader, false);
    let next = load.until_acknowledged(1, frozen_at).await?;
    world.say(&format!(
        "{} ms from the freeze to the next acknowledged write",
        (next - frozen_at).as_millis()
    ));
    load.until_acknowledged(WRITES_BETWEEN, frozen_at).await?;
    // They wait at its door for the moment in which it wakes and still believes that it leads.
    let mut waiting = JoinSet::new();
    for name in names {
        let world = Arc::clone(&world);
        waiting.spawn(async move {
            world.read(leader, &name).await?;
            world.label(leader, &name).await;
            world.read(leader, &name).await.map(drop)
        });
    }
    tokio::time::sleep_until(woken_at.into()).await;
    world.cluster.thaw(leader)?;

    world.set_live(leader, true);
    ended(waiting).await?;
    load.until_acknowledged(WRITES_BETWEEN, world.history.now()).await?;
    load.end().await
}

/// Creates that are under way, one through each node.
fn creates_on_all(world: &Arc<World>) -> JoinSet<Result<()>> {
    let mut creates = JoinSet::new();
    for node in NODES {
        let world = Arc::clone(world);
        creates.spawn(async move { world.create(node).await.map(drop) });
    }
    creates
}

async fn ended(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Sandboxes of this node, with their containers as they are now.
async fn owned_by(world: &World, owner: usize) -> Result<Vec<(Sandbox, Run)>> {
    const WANTED: usize = 2;
    const CREATES_MAX: usize = 9;
    let mut owned = Vec::new();
    for _ in 0..CREATES_MAX {
        owned.extend(Some(world.create_started(owner).await?).filter(|sandbox| sandbox.owner == owner));
        if owned.len() == WANTED {
            return runs(world, &owned);
        }
    }
    bail!("of {CREATES_MAX} sandboxes n{} got {}", owner + 1, owned.len())
}

fn runs(world: &World, sandboxes: &[Sandbox]) -> Result<Vec<(Sandbox, Run)>> {
    let mut runs = Vec::new();
    for sandbox in sandboxes {
        runs.push((sandbox.clone(), host_sandboxes::run_of(&world.cluster, &sandbox.id)?));
    }
    Ok(runs)
}

/// The very same processes as before: not started again, not made anew.
fn still_runs(world: &World, owned: &[(Sandbox, Run)]) -> Result<()> {
    for (sandbox, before) in owned {
        let now = host_sandboxes::run_of(&world.cluster, &sandbox.id)?;
        ensure!(now == *before, "{} ran as {before:?}, now as {now:?}", sandbox.name);
    }
    Ok(())
}

async fn refused(world: &World, node: usize, method: Method, path: &str) -> Result<()> {
    let asked = Instant::now();
    let body = (method == Method::PUT).then(|| json!({ "labels": {} }));
    let answer = world.api(node, method.clone(), path, body).await?;
    let took = asked.elapsed();
    ensure!(answer.status == 503, "{method} {path} without a quorum: {} {}", answer.status, answer.body);
    ensure!(answer.retry_after.is_some(), "{method} {path} says not when to try again");
    ensure!(took < REFUSED_WITHIN, "{method} {path} without a quorum took {took:?}");
    Ok(())
}

/// A token that admits a node, if the cluster could decide it.
async fn token(world: &World, node: usize) -> Result<Option<String>> {
    let asked = json!({ "ttlSeconds": 600, "uses": 1 });
    match world.api(node, Method::POST, "/cluster/tokens", Some(asked)).await {
        Ok(answer) if answer.status == 201 => {
            Ok(Some(answer.body["token"].as_str().context("a token")?.to_owned()))
        }
        Ok(answer) if answer.status < 500 => bail!("{} {}", answer.status, answer.body),
        Ok(_) | Err(_) => Ok(None),
    }
}

/// An acknowledged token is good, whoever made it. The node that it admits never runs and is removed again.
async fn admits(world: &World, node: usize, token: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let joined = Command::new(&world.cluster.ready.join_command[0])
        .args(["node", "join", "--no-start", "--region", "eu", "--name", "guest", "--base-port", "9900"])
        .args(["--peer", &world.cluster.node(node).mesh, "--token", token, "--data-dir"])
        .arg(dir.path())
        .output()
        .await
        .context("run atoll")?;
    ensure!(joined.status.success(), "the token is refused: {}", String::from_utf8_lossy(&joined.stderr));
    let cluster = world.api(node, Method::GET, "/cluster", None).await?.body;
    let nodes = cluster["nodes"].as_array().context("nodes")?;
    let guest = nodes.iter().find(|node| node["name"] == "guest").context("the node is a member")?;
    let path = format!("/cluster/nodes/{}", guest["id"].as_str().context("an id")?);
    let removed = world.api(node, Method::DELETE, &path, None).await?;
    ensure!(removed.status < 300, "{} {}", removed.status, removed.body);
    Ok(())
}
