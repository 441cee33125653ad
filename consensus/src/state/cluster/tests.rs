//! The cluster's rules.
