//! The runner from outside: with a fake runtime, and on a real Docker engine where there is one; each in this process
//! and behind the socket of another.

// One suite, two ways to the runtime.
#[allow(clippy::duplicate_mod)]
mod direct;
#[allow(clippy::duplicate_mod)]
mod remote;

mod seam;
mod security_page;
#[allow(dead_code, reason = "the embedded runtime's tests use the rest")]
mod world;
