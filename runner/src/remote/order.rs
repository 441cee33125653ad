//! One change of a sandbox at a time, also when the node has broken one off and asks for the next before the runner
//! has noticed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use crate::runtime::Incarnation;

type Turn = tokio::sync::Mutex<()>;

#[derive(Debug, Default)]
pub(super) struct Order {
    turns: Mutex<HashMap<Incarnation, Weak<Turn>>>,
}

impl Order {
    /// Ends when nobody else changes the sandbox; holds until the guard is dropped.
    pub(super) async fn turn(&self, incarnation: Incarnation) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            match turns.get(&incarnation).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    turns.retain(|_, turn| turn.strong_count() > 0);
                    let turn = Arc::new(Turn::default());
                    turns.insert(incarnation, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}
