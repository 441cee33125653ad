//! Builds the in-sandbox daemon as a static binary and tells the compiler where it is, so that one `cargo build`
//! makes the whole product. It has a target folder of its own: cargo would wait for itself in a shared one.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=ATOLL_DAEMON_PREBUILT");
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let workspace = manifest_dir.parent().expect("node/ is in the workspace").to_owned();
    for input in ["daemon/src", "daemon/Cargo.toml", "api/src", "api/Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let binary = match env::var_os("ATOLL_DAEMON_PREBUILT") {
        Some(path) => PathBuf::from(path),
        None => build_daemon(&workspace),
    };
    println!("cargo::rustc-env=ATOLL_DAEMON_BINARY={}", binary.display());
}

fn build_daemon(workspace: &std::path::Path) -> PathBuf {
    // OUT_DIR is <target>/<profile>/build/<crate>/out: the folder is shared by all profiles, the daemon has one.
    let out_dir = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    let target_dir = out_dir.ancestors().nth(4).expect("OUT_DIR is four deep").join("daemon-static");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let triple = format!("{arch}-unknown-linux-gnu");
    let status = Command::new(env::var("CARGO").expect("cargo sets it"))
        .current_dir(workspace)
        .args([
            "build",
            "--locked",
            "-p",
            "atoll-daemon",
            "--profile",
            "daemon",
            "--target",
            &triple,
            "--target-dir",
        ])
        .arg(&target_dir)
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // Under clippy these would have the daemon linted instead of built.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "the in-sandbox daemon did not build");
    target_dir.join(&triple).join("daemon/atoll-daemon")
}
