//! The runtime in this process.

use crate::seam::direct as through;

#[path = "with_docker.rs"]
mod with_docker;
#[path = "with_fake.rs"]
mod with_fake;
