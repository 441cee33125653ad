//! Whom the sandbox is for. One that was started before anybody had asked for it learns that later, from its own node.
//!
//!   ATOLL/1 ─▶ the room of everybody: the toolbox, as the user of now
//!   OWNER/1 ─▶ the room of the owner: `POST /identity` ─▶ another toolbox takes the first one's place

use std::sync::{Arc, Mutex, PoisonError};

use atoll_api::daemon::{IDENTITY_PATH, Identity};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;

use crate::errors::JsonBody;
use crate::routes::{self, Daemon, IdentityError};

/// Which of them a connection has shown the preamble of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Everybody,
    Owner,
}

pub struct Rooms {
    toolbox: Arc<Mutex<Toolbox>>,
    owner: Router,
}

struct Toolbox {
    identity: Identity,
    daemon: Arc<Daemon>,
    router: Router,
}

impl Rooms {
    pub fn new(daemon: Arc<Daemon>, identity: Identity) -> Rooms {
        let router = routes::router(daemon.clone());
        let toolbox = Arc::new(Mutex::new(Toolbox { identity, daemon, router }));
        let owner = Router::new().route(IDENTITY_PATH, post(take_identity)).with_state(toolbox.clone());
        Rooms { toolbox, owner }
    }

    /// As it is for whom the sandbox is now.
    pub fn daemon(&self) -> Arc<Daemon> {
        self.toolbox.lock().unwrap_or_else(PoisonError::into_inner).daemon.clone()
    }

    /// Asked for each request: a connection that stays open does not keep the identity of its beginning.
    pub fn router(&self, room: Room) -> Router {
        match room {
            Room::Everybody => self.toolbox.lock().unwrap_or_else(PoisonError::into_inner).router.clone(),
            Room::Owner => self.owner.clone(),
        }
    }
}

/// Said again it changes nothing, so that what users have set meanwhile (`POST /env`) stays.
async fn take_identity(
    State(toolbox): State<Arc<Mutex<Toolbox>>>,
    JsonBody(identity): JsonBody<Identity>,
) -> (StatusCode, String) {
    let mut toolbox = toolbox.lock().unwrap_or_else(PoisonError::into_inner);
    if toolbox.identity == identity {
        return (StatusCode::OK, String::new());
    }
    match toolbox.daemon.become_another(&identity) {
        Ok(daemon) => {
            let daemon = Arc::new(daemon);
            tracing::info!(user = identity.user, "the sandbox has a new identity");
            *toolbox = Toolbox { router: routes::router(daemon.clone()), identity, daemon };
            (StatusCode::OK, String::new())
        }
        Err(error @ IdentityError::Account(_)) => (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
        Err(error @ IdentityError::Workers(_)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
