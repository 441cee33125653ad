#!/usr/bin/env bash
# Installs what the tests need and runs every check and every test. Fails when one fails, and when none ran.
# With ATOLL_TESTS_REQUIRE_ALL=1 (set here) a test that would be skipped for want of something fails instead.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

# What the unmodified clients are. Change one here and in docs/COMPATIBILITY.md.
PYTHON_SDK=daytona==0.226.1
# One from the middle, the first years' last, and the last that uses the API's own toolbox routes.
OLDER_PYTHON_SDKS=(daytona==0.150.0 daytona==0.115.2 daytona==0.110.2)
NODE_SDK=@daytonaio/sdk@0.218.0
# What runs TypeScript in the daemon's tests, and what leads a browser in the nodes'.
NODE_TOOLS=(ts-node@10.9.2 typescript@5.9.3 puppeteer-core@24.10.0)
SCHEMATHESIS=schemathesis==4.32.5
CARGO_DENY=0.20.2
cache=$(cache_dir)
# A first build gains nothing by it, and what an earlier commit has left makes rustc 1.95 fail now and then.
export CARGO_INCREMENTAL=0

check_format() { say "cargo fmt --check" && cargo fmt --all --check; }
check_lints() { say "cargo clippy" && cargo clippy --workspace --all-targets --locked -- -D warnings; }
check_tree() {
  say "cargo deny"
  command -v cargo-deny >/dev/null || cargo install --locked "cargo-deny@$CARGO_DENY"
  # Advisories need their database from outside: run `cargo deny check advisories` where it can be had.
  cargo deny --locked check bans licenses sources
}

# kept NAME WHAT…: a folder below the cache, keyed by what is in it.
kept() { echo "$cache/$1-$(printf '%s' "${*:2} $(python3 --version) $(node --version)" | sha256sum | cut -c1-12)"; }
# install_once FOLDER COMMAND WHAT…
install_once() {
  [ -e "$1/complete" ] && return
  say "installing ${*:3}"
  rm -rf "$1" && mkdir -p "$1"
  "$2" "$1" "${@:3}" && touch "$1/complete"
}
install_python() {
  python3 -m venv "$1/python"
  "$1/python/bin/pip" install --quiet --disable-pip-version-check "${@:2}"
}
install_both_sdks() {
  install_python "$1" "$2"
  mkdir "$1/node" && (cd "$1/node" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund "${@:3}")
}

install_sdks() {
  local sdk folder pid pids=()
  sdks=$(kept sdks "$PYTHON_SDK" "$NODE_SDK" "${NODE_TOOLS[@]}")
  install_once "$sdks" install_both_sdks "$PYTHON_SDK" "$NODE_SDK" "${NODE_TOOLS[@]}" & pids+=($!)
  # Each has an environment of its own: they don't agree on what else they need.
  older_pythons=()
  for sdk in "${OLDER_PYTHON_SDKS[@]}"; do
    folder=$(kept sdk "$sdk")
    install_once "$folder" install_python "$sdk" & pids+=($!)
    older_pythons+=("$folder/python/bin/python")
  done
  folder=$(kept schemathesis "$SCHEMATHESIS")
  install_once "$folder" install_python "$SCHEMATHESIS" & pids+=($!)
  schemathesis=$folder/python/bin/schemathesis
  for pid in "${pids[@]}"; do wait "$pid"; done
}

# Where the base snapshot has it, too.
install_typescript_server() { command -v typescript-language-server >/dev/null || deploy/base/typescript-server.sh /; }

run_tests() {
  say "cargo test"
  # The daemon as it ships, built by node/build.rs.
  export ATOLL_DAEMON_BINARY=$CARGO_TARGET_DIR/daemon-static/$(uname -m)-unknown-linux-gnu/daemon/atoll-daemon
  export ATOLL_BINARY=$CARGO_TARGET_DIR/debug/atoll
  export ATOLL_TESTS_REQUIRE_ALL=1 ATOLL_PYTHON=$sdks/python/bin/python ATOLL_NODE_MODULES=$sdks/node/node_modules
  export ATOLL_OLDER_PYTHONS="${older_pythons[*]}" ATOLL_SCHEMATHESIS=$schemathesis
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
  skopeo docker-registry apache2-utils python3-pylsp node-typescript procps chromium
command -v node >/dev/null || install_packages nodejs npm
install_npm
timed "desktop packages" install_packages $(cat deploy/base/desktop.txt)
timed "typescript-language-server" install_typescript_server
install_rust
timed docker start_docker
timed format check_format
timed "base snapshot" "$root/deploy/base/build.sh" >/dev/null
# For the trials of computer use on both runtimes: Docker's engine is given it by the nodes.
timed "desktop snapshot" env ATOLL_BASE_DOCKER=skip "$root/deploy/base/build.sh" desktop >/dev/null
timed SDKs install_sdks
timed lints check_lints
timed build cargo build --workspace --locked
timed tests run_tests
timed deny check_tree
if [ -x deploy/fuzz.sh ]; then timed fuzz deploy/fuzz.sh; fi
count_tests
print_timings
