//! Builds an image from a Dockerfile without Docker: text → program → plan of a stage → layers.
//!
//! ```text
//! lines     continuation lines joined, here-documents lifted out        ┐
//! words     $X, ${X:-d}, quotes, escapes                                │ pure
//! program   the whole Dockerfile, checked before anything runs          │
//! plan      one stage on its base's configuration: steps to take        ┘
//! tree      what a stack of tars shows, without unpacking it; copy makes a COPY's layer from it
//! executor  takes the steps over a `BuildHost`, skipping what the cache knows
//! log       a build's output, followed by whoever wants
//! builds    the builds of a node: bounded, cancellable, with a deadline
//! ```

mod error;
mod lines;
pub mod plan;
pub mod program;
mod words;

pub use error::BuildError;
