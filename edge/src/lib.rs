//! The HTTP door: Pingora in, a Dial out. The only crate that knows Pingora.
//!
//! A request is checked (`head`), routed by host and path (`route`, `target`), let in (`credentials`, `cookie`), dialed
//! and sent on with the headers its reader may see (`headers`, `upstream`). What is refused is answered by `answer`, the
//! one file that knows statuses. All of that is pure except `proxy`, which Pingora calls, and `server`, which listens.

mod head;
mod target;

mod route;

mod cookie;
mod credentials;
mod file_link;

mod headers;

mod answer;
mod refusal;

mod head_clock;
mod proxy;
mod upstream;

mod listen;
mod server;

pub use cookie::CookieKey;
pub use server::{Edge, EdgeConfig, EdgeHandle, EdgeLimits, LocalAddrs};
