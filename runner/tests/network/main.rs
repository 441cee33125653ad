//! The network of the embedded runtime in a world of network namespaces of its own. Needs root.

mod cable;
mod walls;
mod world;
