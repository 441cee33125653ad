//! The network of the embedded runtime in a world of network namespaces of its own. Needs root.

mod cable;
mod dns;
mod lists;
mod names;
mod walls;
mod world;
