//! The edge as its clients meet it: real sockets in front, programs and an API behind, a fake directory and dialer.

mod api;
mod doors;
mod drain;
mod hostile;
mod streaming;
mod tls;
mod world;
