#!/usr/bin/env bash
# Installs what the tests need and runs every check and every test. Fails when one fails, and when none ran.
# With ATOLL_TESTS_REQUIRE_ALL=1 (set here) a test that would be skipped for want of something fails instead.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

# What the unmodified clients are. Change one here and in README.md.
PYTHON_SDK=daytona==0.226.1
NODE_SDK=@daytonaio/sdk@0.218.0
# What runs TypeScript in the daemon's tests.
TS_NODE=(ts-node@10.9.2 typescript@5.9.3)
CARGO_DENY=0.20.2
cache=$(cache_dir)

check_format() { say "cargo fmt --check" && cargo fmt --all --check; }
check_lints() { say "cargo clippy" && cargo clippy --workspace --all-targets --locked -- -D warnings; }
check_tree() {
  say "cargo deny"
  command -v cargo-deny >/dev/null || cargo install --locked "cargo-deny@$CARGO_DENY"
  # Advisories need their database from outside; where it cannot be had, the rest is checked all the same.
  cargo deny --locked check bans licenses sources
}

install_sdks() {
  local key
  key=$(printf '%s' "$PYTHON_SDK $NODE_SDK ${TS_NODE[*]} $(python3 --version) $(node --version)" | sha256sum | cut -c1-12)
  sdks=$cache/sdks-$key
  [ -e "$sdks/complete" ] && return
  say "installing $PYTHON_SDK, $NODE_SDK and ${TS_NODE[*]}"
  rm -rf "$sdks" && mkdir -p "$sdks/node"
  python3 -m venv "$sdks/python"
  "$sdks/python/bin/pip" install --quiet --disable-pip-version-check "$PYTHON_SDK"
  (cd "$sdks/node" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund "$NODE_SDK" "${TS_NODE[@]}")
  touch "$sdks/complete"
}

# Where the base snapshot has it, too.
install_typescript_server() { command -v typescript-language-server >/dev/null || deploy/base/typescript-server.sh /; }

run_tests() {
  say "cargo test"
  # The daemon as it ships, built by node/build.rs.
  export ATOLL_DAEMON_BINARY=$CARGO_TARGET_DIR/daemon-static/$(uname -m)-unknown-linux-gnu/daemon/atoll-daemon
  export ATOLL_BINARY=$CARGO_TARGET_DIR/debug/atoll
  export ATOLL_TESTS_REQUIRE_ALL=1 ATOLL_PYTHON=$sdks/python/bin/python ATOLL_NODE_MODULES=$sdks/node/node_modules
  cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"
}

count_tests() {
  local passed
  passed=$(awk '/^test result:/ { sum += $4 } END { print sum + 0 }' "$log")
  [ "$passed" -gt 0 ] || die "no test ran"
  say "$passed tests passed"
}

need_root
log=$(mktemp)
trap 'rm -f "$log"' EXIT
timed packages install_packages "${BUILD_PACKAGES[@]}" "${BASE_PACKAGES[@]}" "${RUNTIME_PACKAGES[@]}" jq openssh-client openssh-sftp-server busybox-static python3-venv python3-matplotlib fuse3 \
  skopeo docker-registry apache2-utils python3-pylsp node-typescript procps
command -v node >/dev/null || install_packages nodejs npm
install_npm
timed "desktop packages" install_packages $(cat deploy/base/desktop.txt)
timed "typescript-language-server" install_typescript_server
install_rust
timed docker start_docker
timed format check_format
timed "base snapshot" "$root/deploy/base/build.sh" >/dev/null
timed SDKs install_sdks
timed lints check_lints
timed build cargo build --workspace --locked
timed tests run_tests
timed deny check_tree
if [ -x deploy/fuzz.sh ]; then timed fuzz deploy/fuzz.sh; fi
count_tests
print_timings
