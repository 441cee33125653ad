//! Trust: who may call itself a node of this cluster, and how that is shown. No network I/O; the clock is passed in.

pub mod ca;
pub mod identity;
pub mod join_token;
pub mod seal;
pub mod ssh_host_key;

pub mod public_tls;
pub mod tls;

mod pem;
mod private_file;
