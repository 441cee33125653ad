#!/usr/bin/env bash
# Runs every fuzz target for a bounded time: 20 s each, or as many as ATOLL_FUZZ_SECONDS says. Building comes before.
# Fails when a target finds something. Where nightly Rust or cargo-fuzz is missing it says so aloud and succeeds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"
PATH="$HOME/.cargo/bin:$PATH"

seconds=${ATOLL_FUZZ_SECONDS:-20}

skip() {
  printf '\n== SKIPPED: fuzzing. %s\n' "$1" >&2
  exit 0
}
rustc +nightly --version >/dev/null 2>&1 || skip 'No nightly Rust here: rustup toolchain install nightly --profile minimal'
cargo fuzz --version >/dev/null 2>&1 || skip 'No cargo-fuzz here: cargo install cargo-fuzz --version 0.13.2 --locked'

# The parsers are safe Rust: what can go wrong is a panic, an overflow, a hang or a greedy allocation. No sanitizer needed.
printf '\n== building the fuzz targets\n' >&2
cargo +nightly fuzz build --sanitizer none

for target in $(cargo +nightly fuzz list); do
  printf '\n== fuzzing %s for %s s\n' "$target" "$seconds" >&2
  mkdir -p "corpus/$target"
  # New finds go to the first folder; the seeds are read and never changed.
  cargo +nightly fuzz run --sanitizer none "$target" "corpus/$target" "seeds/$target" -- \
    -max_total_time="$seconds" -timeout=5 -max_len=2048 -rss_limit_mb=1024 -malloc_limit_mb=64 -print_final_stats=1
done
