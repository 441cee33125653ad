//! The SSH door between stock OpenSSH clients and a daemon that runs real processes. Cluster and sandbox are fakes.

mod fake_daemon;
mod hostile;
mod openssh;
mod protocol;
mod world;
