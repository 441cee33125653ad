//! Pushes changes of sandboxes and snapshots to SDKs that listen: Socket.IO 5 over Engine.IO 4, by WebSocket only.
//!
//!   client                       server
//!     │ ◀── 0{sid,pingInterval,…} ─ │   Engine.IO open
//!     │ ── 40{"token":"dtn_…"} ───▶ │   connect: the key is looked up
//!     │ ◀── 40{"sid":…} or 44{…} ── │
//!     │ ◀── 42["sandbox.…",{…}] ─── │   events of the key's organization
//!     │ ◀── 2 ──────────── 3 ─────▶ │   ping and pong

use std::sync::Arc;
use std::time::Duration;

use atoll_api::access::Caller;
use atoll_api::ids::OrganizationId;
use atoll_api::rest::{SandboxState, SnapshotState};
use atoll_api::tokens::ApiKey;
use atoll_consensus::state::cluster::SnapshotRecord;
use atoll_mesh::dial::DirectoryError;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::RestState;
use super::door::Door;
use super::errors::ApiError;
use super::input::Queries;
use super::present;
use super::visitor::{self, Through};
use crate::control::verb::SandboxView;

const PING_INTERVAL_MS: u64 = 25_000;
const PONG_DEADLINE_MS: u64 = 20_000;
const CONNECT_DEADLINE_MS: u64 = 10_000;
const SEND_DEADLINE_MS: u64 = 5_000;
/// Clients only ever send a token and pongs.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// What happened, for those who listen.
#[derive(Debug, Clone)]
pub enum Event {
    Sandbox(SandboxEvent),
    Snapshot(SnapshotEvent),
}

/// What happened to a snapshot. With its name.
#[derive(Debug, Clone)]
pub enum SnapshotEvent {
    Created(Arc<(String, SnapshotRecord)>),
    StateChanged { old: SnapshotState, snapshot: Arc<(String, SnapshotRecord)> },
    Removed(Arc<(String, SnapshotRecord)>),
}

#[derive(Debug, Clone)]
pub enum SandboxEvent {
    Created(Arc<SandboxView>),
    StateChanged { old: SandboxState, sandbox: Arc<SandboxView> },
}

impl Event {
    fn concerns(&self, organization_id: OrganizationId) -> bool {
        match self {
            Event::Sandbox(event) => event.view().record.organization_id == organization_id,
            // What is nobody's in particular is everybody's.
            Event::Snapshot(event) => {
                event.snapshot().1.organization_id.is_none_or(|owner| owner == organization_id)
            }
        }
    }
}

impl SnapshotEvent {
    fn snapshot(&self) -> &(String, SnapshotRecord) {
        match self {
            SnapshotEvent::Created(snapshot)
            | SnapshotEvent::StateChanged { snapshot, .. }
            | SnapshotEvent::Removed(snapshot) => snapshot,
        }
    }
}

impl SandboxEvent {
    fn view(&self) -> &SandboxView {
        match self {
            SandboxEvent::Created(view) | SandboxEvent::StateChanged { sandbox: view, .. } => view,
        }
    }
}

pub(super) async fn listen(
    State(state): State<RestState>,
    Through(door): Through,
    queries: Queries,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    if queries.text("EIO")? != Some("4") {
        return Err(ApiError::Invalid("only Engine.IO 4 is spoken here: EIO=4".to_owned()));
    }
    if queries.text("transport")? != Some("websocket") {
        return Err(ApiError::Invalid("only WebSocket is spoken here: transport=websocket".to_owned()));
    }
    let upgrade = upgrade.map_err(|rejection| ApiError::Invalid(rejection.body_text()))?;
    let permit = state
        .listeners
        .clone()
        .try_acquire_owned()
        .map_err(|_| ApiError::Unavailable("too many clients listen for events".to_owned()))?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| async move {
        let closing = state.closing.clone();
        let ended = tokio::select! {
            ended = (Listener { socket, state, door }).run() => ended,
            () = closing.cancelled() => Ended::Closing,
        };
        tracing::debug!(?ended, "a listener is gone");
        drop(permit);
    }))
}

/// Why a listener was let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The client left, or broke off.
    Left,
    /// It showed no valid key, or its key was deleted while it listened.
    Unauthorized,
    /// It took too long: to connect, to read, to answer a ping, or to keep up with the events.
    TooSlow,
    Closing,
}

struct Listener {
    socket: WebSocket,
    state: RestState,
    door: Door,
}

impl Listener {
    async fn run(mut self) -> Ended {
        match self.listen().await {
            Err(ended) => ended,
            Ok(never) => match never {},
        }
    }

    async fn listen(&mut self) -> Result<std::convert::Infallible, Ended> {
        self.send(open_packet()).await?;
        let deadline = Duration::from_millis(CONNECT_DEADLINE_MS);
        let (key, caller) = timeout(deadline, self.connect()).await.map_err(|_| Ended::TooSlow)??;
        // Subscribed before the answer, so that what happens once the client knows it listens is never missed.
        let mut events = self.state.events.subscribe();
        self.send(format!("40{}", json!({ "sid": session_id() }))).await?;

        let every = Duration::from_millis(PING_INTERVAL_MS);
        let mut ping = interval_at(Instant::now() + every, every);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pong_due: Option<Instant> = None;
        loop {
            let pong_late = async {
                match pong_due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => self.tell(&caller, event).await?,
                packet = receive(&mut self.socket) => match packet? {
                    Packet::Pong => pong_due = None,
                    Packet::Disconnect => return Err(Ended::Left),
                    Packet::Connect { .. } | Packet::ForeignNamespace(_) | Packet::Other => {}
                },
                _ = ping.tick() => {
                    self.still_valid(&key).await?;
                    self.send("2".to_owned()).await?;
                    pong_due.get_or_insert(Instant::now() + Duration::from_millis(PONG_DEADLINE_MS));
                }
                () = pong_late => return Err(Ended::TooSlow),
            }
        }
    }

    /// Waits for a connect packet that shows a key.
    async fn connect(&mut self) -> Result<(ApiKey, Caller), Ended> {
        loop {
            match receive(&mut self.socket).await? {
                Packet::Connect { token } => match visitor::api_key(&token) {
                    Ok(key) => match self.state.directory.api_key(&key).await {
                        Ok(caller) => return Ok((key, caller)),
                        Err(_) => return self.refuse("", "the API key is not known").await,
                    },
                    Err(error) => return self.refuse("", &error.to_string()).await,
                },
                Packet::ForeignNamespace(namespace) => {
                    return self.refuse(&format!("{namespace},"), "Invalid namespace").await;
                }
                Packet::Disconnect => return Err(Ended::Left),
                Packet::Pong | Packet::Other => {}
            }
        }
    }

    async fn refuse<T>(&mut self, namespace: &str, message: &str) -> Result<T, Ended> {
        self.send(format!("44{namespace}{}", json!({ "message": message }))).await?;
        Err(Ended::Unauthorized)
    }

    /// A key that was deleted must not go on hearing. An unreachable directory is no proof that it was.
    async fn still_valid(&mut self, key: &ApiKey) -> Result<(), Ended> {
        match self.state.directory.api_key(key).await {
            Err(DirectoryError::NotFound) => Err(Ended::Unauthorized),
            Ok(_) | Err(DirectoryError::Unreachable(_)) => Ok(()),
        }
    }

    async fn tell(&mut self, caller: &Caller, event: Result<Event, RecvError>) -> Result<(), Ended> {
        let event = match event {
            Ok(event) => event,
            // It would have a gap. Reconnecting, its SDK polls once and is up to date.
            Err(RecvError::Lagged(_)) => return Err(Ended::TooSlow),
            Err(RecvError::Closed) => return Err(Ended::Closing),
        };
        if !event.concerns(caller.organization_id) {
            return Ok(());
        }
        let packet = event_packet(event, &self.door);
        self.send(packet).await
    }

    async fn send(&mut self, text: String) -> Result<(), Ended> {
        let deadline = Duration::from_millis(SEND_DEADLINE_MS);
        match timeout(deadline, self.socket.send(Message::Text(text.into()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Left),
            Err(_) => Err(Ended::TooSlow),
        }
    }
}

async fn receive(socket: &mut WebSocket) -> Result<Packet, Ended> {
    match socket.recv().await {
        Some(Ok(Message::Text(text))) => Ok(Packet::parse(&text)),
        Some(Ok(Message::Close(_)) | Err(_)) | None => Err(Ended::Left),
        Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => Ok(Packet::Other),
    }
}

/// What a client may say. The first digit is Engine.IO's, the second Socket.IO's.
#[derive(Debug, PartialEq, Eq)]
enum Packet {
    /// An absent token is an empty one.
    Connect {
        token: String,
    },
    ForeignNamespace(String),
    Pong,
    Disconnect,
    Other,
}

impl Packet {
    fn parse(text: &str) -> Packet {
        if let Some(connect) = text.strip_prefix("40") {
            return match connect.split_once(',') {
                Some((namespace, _)) if namespace.starts_with('/') && namespace != "/" => {
                    Packet::ForeignNamespace(namespace.to_owned())
                }
                None if connect.starts_with('/') && connect != "/" => {
                    Packet::ForeignNamespace(connect.to_owned())
                }
                Some(("/", auth)) => Packet::connect(auth),
                _ => Packet::connect(connect),
            };
        }
        match text {
            "1" => Packet::Disconnect,
            text if text.starts_with("41") => Packet::Disconnect,
            "3" => Packet::Pong,
            _ => Packet::Other,
        }
    }

    fn connect(auth: &str) -> Packet {
        let auth: Value = serde_json::from_str(auth).unwrap_or_default();
        Packet::Connect { token: auth["token"].as_str().unwrap_or_default().to_owned() }
    }
}

fn open_packet() -> String {
    let open = json!({
        "sid": session_id(),
        "upgrades": [],
        "pingInterval": PING_INTERVAL_MS,
        "pingTimeout": PONG_DEADLINE_MS,
        "maxPayload": MESSAGE_BYTES_MAX,
    });
    format!("0{open}")
}

fn event_packet(event: Event, door: &Door) -> String {
    let packet = match event {
        Event::Sandbox(event) => sandbox_packet(event, door),
        Event::Snapshot(event) => snapshot_packet(event),
    };
    format!("42{packet}")
}

fn sandbox_packet(event: SandboxEvent, door: &Door) -> Value {
    let sandbox = present::sandbox(event.view().clone(), door);
    match event {
        SandboxEvent::Created(_) => json!(["sandbox.created", sandbox]),
        SandboxEvent::StateChanged { old, .. } => {
            json!(["sandbox.state.updated", { "oldState": old, "newState": sandbox.state, "sandbox": sandbox }])
        }
    }
}

fn snapshot_packet(event: SnapshotEvent) -> Value {
    let (name, record) = event.snapshot().clone();
    let snapshot = present::snapshot(name, record);
    match event {
        SnapshotEvent::Created(_) => json!(["snapshot.created", snapshot]),
        SnapshotEvent::StateChanged { old, .. } => {
            json!(["snapshot.state.updated", { "oldState": old, "newState": snapshot.state, "snapshot": snapshot }])
        }
        SnapshotEvent::Removed(_) => json!(["snapshot.removed", snapshot]),
    }
}

/// Names a session for the client's logs; nothing is ever looked up by it.
fn session_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_apart() {
        let connect = |token: &str| Packet::Connect { token: token.to_owned() };
        for (text, packet) in [
            (r#"40{"token":"dtn_x"}"#, connect("dtn_x")),
            (r#"40/,{"token":"dtn_x"}"#, connect("dtn_x")),
            ("40", connect("")),
            ("40{", connect("")),
            ("40[1,2]", connect("")),
            (r#"40{"token":5}"#, connect("")),
            (r#"40/admin,{"token":"a"}"#, Packet::ForeignNamespace("/admin".to_owned())),
            ("40/admin", Packet::ForeignNamespace("/admin".to_owned())),
            ("3", Packet::Pong),
            ("1", Packet::Disconnect),
            ("41", Packet::Disconnect),
            (r#"42["x"]"#, Packet::Other),
            ("", Packet::Other),
            ("é", Packet::Other),
        ] {
            assert_eq!(Packet::parse(text), packet, "{text}");
        }
    }
}
