//! Clients that write and read through whatever nodes are live, all the time, and never take a fault for an answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::world::{NODES, Sandbox, World, eventually};

const WRITERS: usize = 3;
const READERS: usize = 2;
/// That every writer and reader knows from the beginning.
const FIRST_SANDBOXES: usize = 2;
/// A maker has so many of its own at most; then it deletes the oldest.
const MADE_MAX: usize = 2;
const THINK_MS_MAX: u64 = 30;
const MAKER_THINK_MS_MAX: u64 = 1_500;

pub struct Load {
    world: Arc<World>,
    /// Started when the load began, and never deleted by it.
    pub first: Vec<Sandbox>,
    stop: CancellationToken,
    clients: JoinSet<Result<()>>,
}

impl Load {
    /// Returns when there are sandboxes and the clients are at work.
    pub async fn begin(world: &Arc<World>) -> Result<Load> {
        let mut creates = JoinSet::new();
        for node in NODES.into_iter().cycle().take(FIRST_SANDBOXES) {
            let world = Arc::clone(world);
            creates.spawn(async move { world.create_started(node).await });
        }
        let mut first = Vec::new();
        while let Some(made) = creates.join_next().await {
            first.push(made?.context("make the first sandboxes")?);
        }
        let (stop, mut clients) = (CancellationToken::new(), JoinSet::new());
        for client in 0..WRITERS + READERS + 1 {
            let (world, stop, random) = (Arc::clone(world), stop.clone(), world.client_random());
            match client {
                0..WRITERS => clients.spawn(write(world, stop, random)),
                WRITERS => clients.spawn(make(world, stop, random)),
                _ => clients.spawn(read(world, stop, random)),
            };
        }
        let load = Load { world: Arc::clone(world), first, stop, clients };
        load.until_acknowledged(30, Duration::ZERO).await?;
        Ok(load)
    }

    /// Waits for this many acknowledged writes that began after the given moment; when the last of them was acknowledged.
    pub async fn until_acknowledged(&self, count: usize, after: Duration) -> Result<Duration> {
        let what = format!("{count} more writes are acknowledged");
        eventually(Duration::from_secs(20), &what, || async {
            self.world.history.acknowledged_after(after, count)
        })
        .await
    }

    pub async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        Ok(())
    }
}

async fn write(world: Arc<World>, stop: CancellationToken, mut random: StdRng) -> Result<()> {
    while let Some(node) = next(&world, &stop, &mut random, THINK_MS_MAX).await {
        if let Some(name) = world.names().choose(&mut random) {
            world.label(node, name).await;
        }
    }
    Ok(())
}

async fn read(world: Arc<World>, stop: CancellationToken, mut random: StdRng) -> Result<()> {
    while let Some(node) = next(&world, &stop, &mut random, THINK_MS_MAX).await {
        if let Some(name) = world.names().choose(&mut random) {
            world.read(node, name).await?;
        }
    }
    Ok(())
}

async fn make(world: Arc<World>, stop: CancellationToken, mut random: StdRng) -> Result<()> {
    let mut made = VecDeque::<String>::new();
    while let Some(node) = next(&world, &stop, &mut random, MAKER_THINK_MS_MAX).await {
        if made.len() >= MADE_MAX
            && let Some(oldest) = made.pop_front()
        {
            world.delete(node, &oldest).await;
        }
        made.extend(world.create(node).await?.map(|sandbox| sandbox.name));
    }
    Ok(())
}

/// Thinks for a moment, then says which node to ask. `None`: it is over.
async fn next(
    world: &World,
    stop: &CancellationToken,
    random: &mut StdRng,
    think_ms_max: u64,
) -> Option<usize> {
    let think = Duration::from_millis(random.random_range(0..=think_ms_max));
    tokio::select! {
        () = stop.cancelled() => None,
        () = tokio::time::sleep(think) => world.live().choose(random).copied().or(Some(NODES[0])),
    }
}
