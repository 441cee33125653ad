//! The cluster under test, the ways to talk to it, and the history of all that was said.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use atoll_chaos_tests::dev::DevCluster;
use atoll_chaos_tests::history::containers::{self, Started};
use atoll_chaos_tests::history::judge::judge;
use atoll_chaos_tests::history::{Answered, Asked, Recorder};
use atoll_chaos_tests::host_sandboxes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// No call may hang for longer, whatever happens to the nodes. Longer than a write over an election takes.
const CALL_DEADLINE: Duration = Duration::from_secs(12);
/// A create answers after 30 s, whether the sandbox has started or not.
const CREATE_DEADLINE: Duration = Duration::from_secs(40);
/// How long a cluster whose nodes are all up may take until nothing of a fault is left.
const HEALED_WITHIN: Duration = Duration::from_secs(45);
const LOOK_EVERY: Duration = Duration::from_millis(30);
pub const NODES: [usize; 3] = [0, 1, 2];
pub const REGION: &str = "region/eu";
pub const CLUSTER: &str = "cluster";

pub struct World {
    pub cluster: DevCluster,
    pub history: Recorder,
    http: reqwest::Client,
    scenario: String,
    /// Nodes that clients try.
    live: Mutex<[bool; 3]>,
    /// Every name that a create was asked for, and its id once it is known.
    names: Mutex<BTreeMap<String, Option<String>>>,
    next: AtomicU64,
    random: Mutex<StdRng>,
}

pub struct Answer {
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: Value,
}

/// A sandbox as a client sees it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub name: String,
    pub id: String,
    pub owner: usize,
    pub state: String,
}

impl World {
    pub fn new(cluster: DevCluster, scenario: &str, seed: u64) -> Result<Arc<World>> {
        // A connection to a killed node must not be what a later call waits for.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(2)).build()?;
        Ok(Arc::new(World {
            cluster,
            history: Recorder::default(),
            http,
            scenario: scenario.to_owned(),
            live: Mutex::new([true; 3]),
            names: Mutex::default(),
            next: AtomicU64::new(1),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
        }))
    }

    pub fn say(&self, what: &str) {
        eprintln!("{} at {:.1} s: {what}", self.scenario, self.history.now().as_secs_f64());
    }

    pub fn random<T>(&self, choose: impl FnOnce(&mut StdRng) -> T) -> T {
        choose(&mut locked(&self.random))
    }

    /// Randomness of its own for one client.
    pub fn client_random(&self) -> StdRng {
        StdRng::seed_from_u64(self.random(|random| random.random()))
    }

    pub fn set_live(&self, node: usize, live: bool) {
        locked(&self.live)[node] = live;
    }

    pub fn live(&self) -> Vec<usize> {
        let live = *locked(&self.live);
        NODES.into_iter().filter(|node| live[*node]).collect()
    }

    pub fn others(&self, than: usize) -> Vec<usize> {
        self.live().into_iter().filter(|node| *node != than).collect()
    }

    pub fn names(&self) -> Vec<String> {
        locked(&self.names).keys().cloned().collect()
    }

    /// A number that was not used before: for a label or a name.
    pub fn fresh(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Creates a sandbox. `None`: it may be there or not.
    pub async fn create(&self, node: usize) -> Result<Option<Sandbox>> {
        let label = self.fresh();
        let name = format!("s{label}");
        locked(&self.names).insert(name.clone(), None);
        let body = json!({ "name": name, "labels": { "w": label.to_string() } });
        let asked = Asked::Create { label };
        let answer = self.recorded(node, &name, asked, Method::POST, "/sandbox".to_owned(), Some(body)).await;
        answer.map(|answer| self.sandbox(&name, &answer.body)).transpose()
    }

    /// Creates a sandbox that must be there and started when it is answered.
    pub async fn create_started(&self, node: usize) -> Result<Sandbox> {
        let sandbox = self.create(node).await?.context("the create is acknowledged")?;
        ensure!(sandbox.state == "started", "{sandbox:?}");
        Ok(sandbox)
    }

    pub async fn label(&self, node: usize, name: &str) -> bool {
        let label = self.fresh();
        let path = format!("/sandbox/{}/labels", self.reference(name));
        let body = json!({ "labels": { "w": label.to_string() } });
        self.recorded(node, name, Asked::Label(label), Method::PUT, path, Some(body)).await.is_some()
    }

    /// `None`: it is not there, or there was no answer.
    pub async fn read(&self, node: usize, name: &str) -> Result<Option<Sandbox>> {
        let path = format!("/sandbox/{}", self.reference(name));
        let answer = self.recorded(node, name, Asked::Read, Method::GET, path, None).await;
        answer.map(|answer| self.sandbox(name, &answer.body)).transpose()
    }

    pub async fn delete(&self, node: usize, name: &str) -> bool {
        let path = format!("/sandbox/{}", self.reference(name));
        self.recorded(node, name, Asked::Delete, Method::DELETE, path, None).await.is_some()
    }

    /// A call about a sandbox, taken down with its answer. `Some`: it was answered well.
    async fn recorded(
        &self,
        node: usize,
        name: &str,
        asked: Asked,
        method: Method,
        path: String,
        body: Option<Value>,
    ) -> Option<Answer> {
        let began = self.history.now();
        let answer = match self.api(node, method, &path, body).await {
            Ok(answer) => answer,
            // Nobody was there to be asked.
            Err(error) if error.is_connect() => return None,
            Err(_) => {
                self.history.end(node, name, asked, began, Answered::Unknown);
                return None;
            }
        };
        let shown = self.shown(name, &answer.body);
        let answered = match (answer.status, asked, &shown) {
            (200..300, Asked::Read, Some(shown)) => shown.clone(),
            (200..300, Asked::Read, None) => Answered::Refused(format!("{} is no sandbox", answer.body)),
            (200..300, ..) => {
                // What a write is answered with was read after it, or just before a delete.
                if let Some(shown) = shown {
                    self.history.end(node, name, Asked::Read, began, shown);
                }
                Answered::Done
            }
            (404, ..) => Answered::Missing,
            // It is being deleted.
            (409, Asked::Label(_) | Asked::Delete, _) => Answered::Missing,
            (408 | 500.., ..) => Answered::Unknown,
            (status, ..) => Answered::Refused(format!("{status} {}", answer.body)),
        };
        if answer.status == 500 {
            self.say(&format!(
                "n{} answers {} to {asked:?} of {name}: {}",
                node + 1,
                answer.status,
                answer.body
            ));
        }
        self.history.end(node, name, asked, began, answered);
        (200..300).contains(&answer.status).then_some(answer)
    }

    /// What an answer shows of a sandbox. A change of labels is answered with the labels only.
    fn shown(&self, name: &str, body: &Value) -> Option<Answered> {
        let known = || locked(&self.names).get(name).cloned().flatten();
        let id = body["id"].as_str().map(str::to_owned).or_else(known)?;
        Some(Answered::Saw { id, label: body["labels"]["w"].as_str()?.parse().ok()? })
    }

    fn sandbox(&self, name: &str, body: &Value) -> Result<Sandbox> {
        let text = |field: &str| body[field].as_str().with_context(|| format!("{field} in {body}"));
        let owner = text("runnerId")?;
        let (owner, _) = self.cluster.node_by_id(owner).context("the owner is one of the nodes")?;
        let sandbox = Sandbox {
            name: name.to_owned(),
            id: text("id")?.to_owned(),
            owner,
            state: text("state")?.to_owned(),
        };
        locked(&self.names).insert(name.to_owned(), Some(sandbox.id.clone()));
        Ok(sandbox)
    }

    /// By its id or by its name: they are found in different ways.
    fn reference(&self, name: &str) -> String {
        let id = locked(&self.names).get(name).cloned().flatten();
        id.filter(|_| self.random(|random| random.random())).unwrap_or_else(|| name.to_owned())
    }

    /// A call that the history doesn't know.
    pub async fn api(
        &self,
        node: usize,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> reqwest::Result<Answer> {
        let deadline = if path == "/sandbox" { CREATE_DEADLINE } else { CALL_DEADLINE };
        let request =
            self.http.request(method, format!("{}{path}", self.cluster.api(node))).timeout(deadline);
        let request = request.bearer_auth(&self.cluster.ready.api_key);
        answer(body.iter().fold(request, |request, body| request.json(body))).await
    }

    /// Runs a command in the sandbox, through the given node; its output when it ended with 0.
    pub async fn exec(&self, node: usize, sandbox_id: &str, command: &str) -> Result<String> {
        match self.try_exec(node, sandbox_id, command).await? {
            Ok(output) => Ok(output),
            Err(try_again) => bail!(try_again),
        }
    }

    /// The same, but when the answer is to try again, it does.
    pub async fn exec_soon(&self, node: usize, sandbox_id: &str, command: &str) -> Result<String> {
        let (began, refused) = (Instant::now(), AtomicU64::new(0));
        let what = format!("n{} runs a command in {sandbox_id}", node + 1);
        let look = || async {
            match self.try_exec(node, sandbox_id, command).await {
                Ok(Ok(output)) => Some(Ok(output)),
                Ok(Err(_try_again)) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                    None
                }
                Err(error) => Some(Err(error)),
            }
        };
        let ran = eventually(HEALED_WITHIN, &what, look).await?;
        let refused = refused.into_inner();
        if refused > 0 {
            self.say(&format!("{what} only after {refused} × 503, {} ms", began.elapsed().as_millis()));
        }
        ran
    }

    /// The inner error: try again.
    async fn try_exec(&self, node: usize, sandbox_id: &str, command: &str) -> Result<Result<String, String>> {
        let url = format!("{}/toolbox/{sandbox_id}/process/execute", self.cluster.node(node).http);
        let request = self.http.post(url).bearer_auth(&self.cluster.ready.api_key).timeout(CALL_DEADLINE);
        let answer = answer(request.json(&json!({ "command": command }))).await.context("exec")?;
        let Answer { status, body, .. } = answer;
        if status == 503 {
            return Ok(Err(format!("exec through n{}: {status} {}", node + 1, body["message"])));
        }
        ensure!(status == 200 && body["exitCode"] == 0, "exec through n{}: {status} {body}", node + 1);
        Ok(Ok(body["result"].as_str().context("its output")?.to_owned()))
    }

    pub async fn serves(&self, node: usize) -> bool {
        let request = self.http.get(format!("{}/health/ready", self.cluster.api(node)));
        answer(request.timeout(CALL_DEADLINE)).await.is_ok_and(|answer| answer.status == 200)
    }

    /// Who leads a group, as a live node sees it.
    pub async fn leader(&self, group: &str) -> Result<usize> {
        let asked = self.live();
        let look = || async {
            let cluster = self.api(*asked.first()?, Method::GET, "/cluster", None).await.ok()?.body;
            let groups = cluster["groups"].as_array()?;
            let leader = groups.iter().find(|found| found["name"] == group)?["leader"].as_str()?;
            self.cluster.node_by_id(leader).map(|(index, _)| index)
        };
        eventually(Duration::from_secs(10), &format!("{group} has a leader"), look).await
    }

    pub async fn kill(self: &Arc<Self>, nodes: &[usize]) -> Result<Duration> {
        let (world, killed) = (Arc::clone(self), nodes.to_vec());
        let at = self.history.now();
        tokio::task::spawn_blocking(move || world.cluster.kill_all(&killed)).await??;
        for node in nodes {
            self.set_live(*node, false);
        }
        Ok(at)
    }

    /// Starts killed nodes again and waits until they serve.
    pub async fn restart(&self, nodes: &[usize]) -> Result<()> {
        let began = Instant::now();
        for node in nodes {
            self.cluster.restart(*node)?;
        }
        for node in nodes {
            let what = format!("n{} serves again", node + 1);
            eventually(HEALED_WITHIN, &what, || async { self.serves(*node).await.then_some(()) }).await?;
            self.set_live(*node, true);
        }
        self.say(&format!("the restart took {} ms", began.elapsed().as_millis()));
        Ok(())
    }

    /// Waits for a moment that the seed chooses, so that a fault meets whatever is going on.
    pub async fn some_moment(&self, at_most: Duration) {
        let part = self.random(|random| random.random_range(0.0..1.0));
        tokio::time::sleep(at_most.mul_f64(part)).await;
    }

    /// What must hold in the end, when all nodes are up: all nodes show the same and it agrees with the history; what is
    /// started runs once, where it should, and answers; of what was deleted nothing is left.
    pub async fn is_whole(self: &Arc<Self>) -> Result<()> {
        for node in NODES {
            ensure!(self.serves(node).await, "n{} doesn't serve", node + 1);
        }
        for node in NODES {
            for name in self.names() {
                self.read_surely(node, &name).await?;
            }
        }
        let violations = judge(&self.history.calls());
        let violations: Vec<String> = violations.iter().map(|violation| violation.to_string()).collect();
        ensure!(
            violations.is_empty(),
            "{} violations of the history:\n{}",
            violations.len(),
            violations.join("")
        );

        let started = self.all_started().await?;
        let mut execs = JoinSet::new();
        for sandbox in &started {
            for node in NODES {
                let (world, id) = (Arc::clone(self), sandbox.id.clone());
                execs.spawn(async move { world.exec_soon(node, &id, "echo well").await });
            }
        }
        while let Some(ran) = execs.join_next().await {
            let said = ran??;
            ensure!(said == "well\n", "an exec says {said:?}");
        }

        let wanted: Vec<Started> = started
            .iter()
            .map(|sandbox| Started {
                sandbox_id: sandbox.id.clone(),
                owner: self.cluster.node(sandbox.owner).id.clone(),
            })
            .collect();
        let wrong = Mutex::new(Vec::new());
        let look = || async {
            let found = containers::judge(&host_sandboxes::all(&self.cluster).ok()?, &wanted);
            let well = found.is_empty();
            *locked(&wrong) = found;
            well.then_some(())
        };
        let within = eventually(HEALED_WITHIN, "every sandbox has its one container", look).await;
        within.map_err(|error| anyhow!("{error}:\n{}", locked(&wrong).join("\n")))
    }

    /// Every sandbox there is, once all are started.
    async fn all_started(&self) -> Result<Vec<Sandbox>> {
        let last = Mutex::new(Vec::new());
        let look = || async {
            let mut found = Vec::new();
            for name in self.names() {
                found.extend(self.read_surely(0, &name).await.ok()?);
            }
            last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&found);
            found.iter().all(|sandbox| sandbox.state == "started").then_some(found)
        };
        let within = eventually(HEALED_WITHIN, "every sandbox is started", look).await;
        within.map_err(|error| anyhow!("{error}: {:?}", locked(&last)))
    }

    /// Reads until there is an answer. `None`: it is not there.
    async fn read_surely(&self, node: usize, name: &str) -> Result<Option<Sandbox>> {
        let what = format!("n{} answers a read", node + 1);
        let look = || async {
            let path = format!("/sandbox/{}", self.reference(name));
            let began = self.history.now();
            let answer = self.api(node, Method::GET, &path, None).await.ok()?;
            let (answered, found) = match answer.status {
                200 => (self.shown(name, &answer.body)?, Some(answer)),
                404 => (Answered::Missing, None),
                503 => return None,
                status => (Answered::Refused(format!("{status} {}", answer.body)), None),
            };
            self.history.end(node, name, Asked::Read, began, answered);
            Some(found)
        };
        let found = eventually(HEALED_WITHIN, &what, look).await?;
        found.map(|answer| self.sandbox(name, &answer.body)).transpose()
    }
}

async fn answer(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let retry_after =
        response.headers().get("retry-after").and_then(|value| value.to_str().ok().map(str::to_owned));
    let status = response.status().as_u16();
    let text = response.text().await?;
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok(Answer { status, retry_after, body })
}

/// Looks again until there is something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    within: Duration,
    what: &str,
    look: impl Fn() -> F,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("not within {within:?}: {what}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
