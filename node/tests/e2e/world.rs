//! The cluster under test and the few ways to talk to it. Every method says which node's door it uses.

use std::time::{Duration, Instant};

use atoll_chaos_tests::dev::DevCluster;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

/// Indices of the cluster's nodes: three of `eu`, one of `us`.
pub const EU: [usize; 3] = [0, 1, 2];
pub const US: usize = 3;

pub struct World {
    pub cluster: DevCluster,
    pub http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in answer {}: {}", self.status, self.body))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }
}

/// A sandbox that is deleted when the trial ends, however it ends.
pub struct Made<'w> {
    world: &'w World,
    pub id: String,
    pub owner: usize,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let _ = self.world.api(self.owner, Method::DELETE, &format!("/sandbox/{}", self.id), None);
    }
}

impl World {
    pub fn new(cluster: DevCluster) -> World {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads start");
        let http =
            reqwest::Client::builder().timeout(Duration::from_secs(60)).no_proxy().build().expect("a client");
        World { cluster, http, runtime }
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The REST API through one node, as the cluster's first key.
    pub fn api(&self, node: usize, method: Method, path: &str, body: Option<Value>) -> Answer {
        let url = format!("{}{path}", self.cluster.api(node));
        let mut request = self.http.request(method, url).bearer_auth(&self.cluster.ready.api_key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.send(request)
    }

    pub fn get(&self, node: usize, path: &str) -> Answer {
        self.api(node, Method::GET, path, None)
    }

    pub fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        self.block_on(async {
            let answer = request.send().await.unwrap_or_else(|error| panic!("no answer: {error:?}"));
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            Answer { status, headers, body: answer.text().await.expect("a whole body") }
        })
    }

    pub fn create_with(&self, node: usize, body: Value) -> Made<'_> {
        let made = self.api(node, Method::POST, "/sandbox", Some(body)).expect(200).json();
        assert_eq!(made["state"], "started", "{made}");
        self.made(&made)
    }

    /// Of an image that may have to be brought to the node first: the create answers after 30 s whatever the state is by then.
    pub fn create_of_large(&self, node: usize, body: Value) -> Made<'_> {
        let made = self.api(node, Method::POST, "/sandbox", Some(body)).expect(200).json();
        let path = format!("/sandbox/{}", made["id"].as_str().expect("an id"));
        let made = self.eventually(Duration::from_secs(240), || {
            let shown = self.get(node, &path).expect(200).json();
            assert_ne!(shown["state"], "error", "{shown}");
            (shown["state"] == "started", shown)
        });
        self.made(&made)
    }

    /// A sandbox as an answer shows it.
    pub fn made(&self, made: &Value) -> Made<'_> {
        let owner = made["runnerId"].as_str().expect("runnerId is the owner");
        let (owner, _) = self.cluster.node_by_id(owner).expect("the owner is one of the nodes");
        Made { world: self, id: made["id"].as_str().expect("an id").to_owned(), owner }
    }

    pub fn create(&self, node: usize) -> Made<'_> {
        self.create_with(node, json!({}))
    }

    /// A node of the sandbox's region that does not own it.
    pub fn other_than(&self, sandbox: &Made<'_>) -> usize {
        EU.into_iter().find(|node| *node != sandbox.owner).expect("three nodes, one owner")
    }

    pub fn toolbox(
        &self,
        node: usize,
        sandbox: &Made<'_>,
        method: Method,
        path: &str,
    ) -> reqwest::RequestBuilder {
        let url = format!("{}/toolbox/{}{path}", self.cluster.node(node).http, sandbox.id);
        self.http.request(method, url).bearer_auth(&self.cluster.ready.api_key)
    }

    /// Runs a command to its end, through the given node.
    #[track_caller]
    pub fn exec(&self, node: usize, sandbox: &Made<'_>, command: &str) -> (i64, String) {
        let request = self
            .toolbox(node, sandbox, Method::POST, "/process/execute")
            .json(&json!({ "command": command }));
        let answer = self.send(request).expect(200).json();
        let result = answer["result"].as_str().expect("a result").to_owned();
        (answer["exitCode"].as_i64().expect("an exit code"), result)
    }

    /// A request for the sandbox's port by its preview host, through the given node. Carries no credential.
    pub fn preview(
        &self,
        node: usize,
        host_label: &str,
        method: Method,
        path: &str,
    ) -> reqwest::RequestBuilder {
        let base = &self.cluster.node(node).http;
        let port = base.rsplit(':').next().expect("a port");
        let host = format!("{host_label}.{}:{port}", self.cluster.ready.preview_domain);
        self.http.request(method, format!("{base}{path}")).header("host", host)
    }

    pub fn preview_token(&self, sandbox: &Made<'_>, port: u16) -> String {
        let link =
            self.get(0, &format!("/sandbox/{}/ports/{port}/preview-url", sandbox.id)).expect(200).json();
        link["token"].as_str().expect("a token").to_owned()
    }

    /// Starts a command that goes on, and waits until something listens on the port.
    pub fn serve(&self, sandbox: &Made<'_>, port: u16, command: &str) {
        let session = format!("serve-{port}");
        let post =
            |path: &str, body: Value| self.send(self.toolbox(0, sandbox, Method::POST, path).json(&body));
        post("/process/session", json!({ "sessionId": session })).expect(201);
        let started = post(
            &format!("/process/session/{session}/exec"),
            json!({ "command": command, "runAsync": true }),
        );
        started.expect(202);
        let probe = format!(
            "for i in $(seq 200); do (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && exit 0; sleep 0.05; done; exit 1"
        );
        assert_eq!(self.exec(0, sandbox, &format!("bash -c '{probe}'")).0, 0, "nothing listens on {port}");
    }

    /// Looks again until the condition holds; panics with what was seen last.
    #[track_caller]
    pub fn eventually<T: std::fmt::Debug>(&self, within: Duration, look: impl Fn() -> (bool, T)) -> T {
        let deadline = Instant::now() + within;
        loop {
            let (holds, seen) = look();
            if holds {
                return seen;
            }
            assert!(Instant::now() < deadline, "not within {within:?}; seen last: {seen:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
