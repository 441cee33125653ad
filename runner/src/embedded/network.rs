//! The network of this node's sandboxes.

mod inside;
mod layout;
pub mod link;
mod netlink;

pub use layout::{Layout, LayoutError};
