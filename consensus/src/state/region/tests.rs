//! The region's rules.
