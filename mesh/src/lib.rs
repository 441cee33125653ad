//! The one way between nodes: a QUIC endpoint with mutual TLS, typed streams over it, and the seams that the doors use.

pub mod dial;
pub mod link;
pub mod stream;
pub mod tunnel;

pub mod endpoint;
pub mod join;
pub mod memory;
pub mod sim;

mod quic;
