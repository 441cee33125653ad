//! What is said while it happens, through a node that does not own the sandbox: a command's log that is followed, and the echo
//! of a terminal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::Effort;
use crate::cluster::{Cluster, Sandbox, good, remove};
use crate::measure::Samples;
use crate::report::Report;

const LOGS: usize = 10;
const LOG_BYTES: usize = 100_000_000;
const KEYS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);
const MEGABYTE: f64 = 1e6;

type Socket = WebSocketStream<TcpStream>;

pub async fn measure(cluster: &Cluster, effort: Effort, report: &mut Report) -> Result<()> {
    let sandbox = cluster.create(0).await?;
    let measured = async {
        follow(cluster, &sandbox, effort, report).await?;
        echo(cluster, &sandbox, effort, report).await
    };
    let measured = measured.await;
    remove(cluster, &sandbox).await?;
    measured
}

async fn follow(cluster: &Cluster, sandbox: &Sandbox, effort: Effort, report: &mut Report) -> Result<()> {
    let node = cluster.another_than(sandbox.owner);
    let post = |path: &str, body: Value| cluster.toolbox(node, &sandbox.id, Method::POST, path).json(&body);
    good(post("/process/session", json!({ "sessionId": "bench" }))).await?;
    let mut rates = Vec::new();
    for _ in 0..effort.samples(LOGS) {
        let command = format!(
            "yes 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde | head -c {LOG_BYTES}"
        );
        let began = Instant::now();
        let asked = post("/process/session/bench/exec", json!({ "command": command, "runAsync": true }));
        let answer: Value = serde_json::from_str(&good(asked).await?)?;
        let id = answer["cmdId"].as_str().context("the command has no id")?;
        let path = format!("/process/session/bench/command/{id}/logs?follow=true");
        let mut socket = connect(cluster, node, sandbox, &path).await?;
        let mut bytes = 0;
        while let Some(message) = timeout(PATIENCE, socket.next()).await.context("the log stands still")? {
            match message? {
                Message::Binary(piece) => bytes += piece.len(),
                Message::Close(_) => break,
                _ => {}
            }
        }
        ensure!(bytes >= LOG_BYTES, "{bytes} bytes of the log came");
        rates.push(LOG_BYTES as f64 / MEGABYTE / began.elapsed().as_secs_f64());
    }
    report.figure("a log of 100 MB, followed, in MB", &Samples::of_rates(rates)?, "–");
    report.note("Followed log: from asking for the command (`yes | head`) to the end of its log by WebSocket, both sides at work.");
    Ok(())
}

async fn echo(cluster: &Cluster, sandbox: &Sandbox, effort: Effort, report: &mut Report) -> Result<()> {
    for (node, what) in
        [(sandbox.owner, "through the owner"), (cluster.another_than(sandbox.owner), "through another node")]
    {
        let path = format!("/process/pty/create-connect?id=bench-{node}&cols=80&rows=24");
        let mut socket = connect(cluster, node, sandbox, &path).await?;
        socket.send(Message::Text("stty -echoctl; PS1=; echo rea\"\"dy; cat\r".into())).await?;
        until(&mut socket, b"ready").await?;
        let mut latencies = Vec::new();
        for number in 0..effort.samples(KEYS) {
            let key = [b'a' + u8::try_from(number % 26)?];
            let began = Instant::now();
            socket.send(Message::Binary(key.to_vec().into())).await?;
            until(&mut socket, &key).await?;
            latencies.push(began.elapsed());
        }
        socket.close(None).await?;
        report.figure(
            &format!("a key's echo by a terminal, {what}"),
            &Samples::of_latencies(latencies)?,
            "–",
        );
    }
    Ok(())
}

async fn until(socket: &mut Socket, wanted: &[u8]) -> Result<()> {
    let mut heard = Vec::new();
    loop {
        match timeout(PATIENCE, socket.next()).await.context("the terminal is silent")? {
            Some(message) => {
                if let Message::Binary(output) = message? {
                    heard.extend_from_slice(&output);
                }
            }
            None => bail!("the terminal has ended"),
        }
        if heard.windows(wanted.len()).any(|window| window == wanted) {
            return Ok(());
        }
    }
}

async fn connect(cluster: &Cluster, node: usize, sandbox: &Sandbox, path: &str) -> Result<Socket> {
    let (address, key) = cluster.door(node)?;
    let mut request = format!("ws://{address}/toolbox/{}{path}", sandbox.id).into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse()?);
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (socket, _) = client_async(request, stream).await?;
    Ok(socket)
}
