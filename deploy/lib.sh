# Shared by quickstart.sh and test.sh: installing what is missing, and Docker where no service manager runs it.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/deploy/cache.sh"
: "${CARGO_TARGET_DIR:=$root/target}"
export CARGO_TARGET_DIR
PATH="$HOME/.cargo/bin:$PATH"

say() { printf '\n== %s\n' "$*" >&2; }
note() { printf '   %s\n' "$*" >&2; }
die() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

# timed NAME COMMAND…: runs it and remembers how long it took.
timings=()
timed() {
  local name=$1 began=$SECONDS
  shift
  "$@"
  timings+=("$name $((SECONDS - began)) s")
}
print_timings() {
  local IFS=,
  printf 'took: %s\n' "$(printf '%s' "${timings[*]}" | sed 's/,/, /g')"
}

need_root() {
  [ "$(id -u)" = 0 ] || die "run this as root: it installs packages and runs sandboxes (sudo $0)"
  [ -r /etc/debian_version ] || die "this script knows Debian and its relatives only; see README.md for what is needed"
}

# install_packages NAME…: those that are missing, and nothing when none is.
install_packages() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing ${missing[*]}"
  [ -n "$(find /var/lib/apt/lists -name '*_Packages*' -mtime -1 2>/dev/null | head -n 1)" ] || apt-get -qq update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "${missing[@]}" >&2
}

# npm fetches the language server that Debian does not have, for the base snapshot. Other sources of Node.js bring their own.
install_npm() { command -v npm >/dev/null || install_packages npm; }

# Rust: what rust-toolchain.toml names, by rustup: the one that is there, Debian's where it is packaged (13 and newer), else its own installer.
install_rust() {
  command -v cargo >/dev/null && return
  say "installing Rust"
  if ! command -v rustup >/dev/null; then
    if [ -n "$(apt-cache search --names-only '^rustup$')" ]; then install_packages rustup; else rustup_by_its_installer; fi
  fi
  (cd "$root" && rustup toolchain install >&2)
}
rustup_by_its_installer() {
  local from folder
  from=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
  folder=$(mktemp -d)
  note "from $from, into $HOME/.cargo"
  curl -fsSL --proto '=https' --retry 3 -o "$folder/rustup-init" "$from" &&
    curl -fsSL --proto '=https' --retry 3 "$from.sha256" | awk -v file="$folder/rustup-init" '{ print $1 "  " file }' | sha256sum --check --quiet >&2 ||
    die "could not fetch rustup from static.rust-lang.org: install it by hand (https://rustup.rs), then run this again"
  chmod +x "$folder/rustup-init"
  "$folder/rustup-init" -y --quiet --no-modify-path --profile minimal --default-toolchain none >&2
  rm -r "$folder"
}

# Docker Engine, started here where no service manager does it.
start_docker() {
  install_packages docker.io iptables
  docker_answers && return
  if [ -d /run/systemd/system ]; then
    systemctl start docker
    docker_answers_soon && return
  else
    say "starting dockerd (no service manager here; its log: /var/log/dockerd.log)"
    # More than once: a predecessor that was killed a moment ago may still hold its place.
    for _ in 1 2 3; do
      # A pid file that it left behind stops the next one, also while it is an unreaped zombie.
      if ! runs dockerd "$(cat /var/run/docker.pid 2>/dev/null)"; then rm -f /var/run/docker.pid; fi
      setsid nohup dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
      docker_answers_soon && return
    done
    tail -n 20 /var/log/dockerd.log >&2 || true
  fi
  die "Docker does not answer; see the log above, and 'atoll doctor'"
}
docker_answers_soon() {
  for _ in $(seq 60); do
    docker_answers && return
    sleep 0.3
  done
  return 1
}
# runs NAME PID: whether that process is there, is that program, and is no zombie.
runs() {
  [ -n "$2" ] && [ "$(cat "/proc/$2/comm" 2>/dev/null)" = "$1" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$2/status"
}
docker_answers() { docker info >/dev/null 2>&1; }

BUILD_PACKAGES=(build-essential ca-certificates curl git pkg-config)
BASE_PACKAGES=(debootstrap)
# What a node with the embedded runtime calls, and its tests.
RUNTIME_PACKAGES=(iproute2 iptables nftables)
