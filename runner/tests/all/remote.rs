//! The runtime behind a Unix socket, as `atoll runner` has it; and what only the socket itself can do wrong.

use crate::seam::remote as through;

mod fence;
mod layers;
mod restart;
#[path = "with_docker.rs"]
mod with_docker;
#[path = "with_fake.rs"]
mod with_fake;
