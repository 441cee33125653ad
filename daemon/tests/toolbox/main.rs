//! Drives the real daemon over its real socket, as the node does. Needs root, as the daemon in a sandbox has it.

mod abuse;
mod channels;
mod charts;
mod desktop;
mod files;
mod git;
mod identity;
mod interpreter;
mod lsp;
mod processes;
mod protection;
mod screen;
mod sessions;
mod terminals;
mod web_terminal;
mod world;
