//! Which TCP ports something in the sandbox listens on, from the kernel's own table.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::errors::ApiError;
use crate::routes::Daemon;

/// The only ones that may be asked about singly.
const ASKABLE: std::ops::RangeInclusive<u16> = 3000..=9999;
const LISTEN: &str = "0A";

pub async fn list(State(daemon): State<Arc<Daemon>>) -> Json<Value> {
    let mut ports = listening();
    // Ours are not programs of the user's.
    ports.remove(&daemon.own_port());
    ports.remove(&daemon.web_terminal_port());
    Json(json!({ "ports": ports }))
}

pub async fn is_in_use(Path(port): Path<String>) -> Result<Json<Value>, ApiError> {
    let port = port.parse().ok().filter(|port| ASKABLE.contains(port));
    let port = port.ok_or_else(|| ApiError::bad_request("port is a number from 3000 to 9999"))?;
    Ok(Json(json!({ "isInUse": listening().contains(&port) })))
}

fn listening() -> BTreeSet<u16> {
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        // Without IPv6 there is no such table.
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| parse(&table))
        .collect()
}

/// `sl local_address rem_address st …`, addresses as `hex:hexport`.
fn parse(table: &str) -> Vec<u16> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next()?;
        if fields.nth(1)? != LISTEN {
            return None;
        }
        u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
    };
    table.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue\n   0: 0100007F:0BB8 00000000:0000 0A 0:0\n   1: 0100007F:0BB9 0100007F:0001 01 0:0\n";

        assert_eq!(parse(table), [3000]);
    }
}
