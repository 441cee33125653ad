//! The runner from outside: with a fake runtime, and on a real Docker engine where there is one.

mod with_docker;
mod with_fake;
mod world;
