//! The region's rules: each test is named after one. `World` is the only thing that knows how commands look.

mod builds;
mod captures;
mod lifecycle;
mod listing;
mod nodes;
mod placing;
mod properties;
mod tokens;
mod warm;
pub(crate) mod world;
