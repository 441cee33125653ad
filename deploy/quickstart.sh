#!/usr/bin/env bash
# From a fresh Debian machine to a three-node mesh with a first sandbox, answering through a node that doesn't own it.
# Can be run again; what is there already is kept. Ends with how long each part took, and leaves the mesh running.
#
#   deploy/quickstart.sh              NODES=3  REGIONS=local  BASE_PORT=9100  may be set
#   deploy/quickstart.sh stop         stops that mesh and removes its sandboxes
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

nodes=${NODES:-3} regions=${REGIONS:-local} base_port=${BASE_PORT:-9100}
state=${XDG_STATE_HOME:-$HOME/.local/state}/atoll-quickstart
ready=$state/ready.json
atoll=$CARGO_TARGET_DIR/release/atoll

stop_mesh() {
  [ -s "$state/dev.pid" ] || return 0
  local pid
  pid=$(cat "$state/dev.pid")
  if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q 'atoll dev'; then
    note "stopping the mesh of an earlier run (pid $pid)"
    kill -TERM "$pid"
    for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  fi
  rm -f "$state/dev.pid"
}

build() {
  say "building Atoll (release; the first time takes several minutes on two cores)"
  (cd "$root" && cargo build --release --locked -p atoll-node)
}

base_snapshot() {
  say "making the base snapshot from Debian's packages and one of npm's (no registry of images)"
  "$root/deploy/base/build.sh" >/dev/null
}

start_mesh() {
  say "starting $nodes nodes (regions: $regions)"
  mkdir -p "$state"
  stop_mesh
  rm -f "$ready"
  setsid nohup "$atoll" dev --nodes "$nodes" --regions "$regions" --base-port "$base_port" --ready-file "$ready" \
    >"$state/dev.log" 2>&1 </dev/null &
  echo $! >"$state/dev.pid"
  for _ in $(seq 600); do
    [ -s "$ready" ] && return
    kill -0 "$(cat "$state/dev.pid")" 2>/dev/null || { tail -n 30 "$state/dev.log" >&2; die "atoll dev ended"; }
    sleep 0.1
  done
  tail -n 30 "$state/dev.log" >&2
  die "the mesh is not ready after 60 s"
}

field() { jq -r "$1" "$ready"; }

first_sandbox() {
  say "a first sandbox"
  key=$(field .api_key)
  local first answer owner
  first=$(field '.nodes[0].http')
  answer=$(curl -fsS -X POST "$first/api/sandbox" -H "Authorization: Bearer $key" -H 'Content-Type: application/json' -d '{}')
  sandbox=$(jq -r .id <<<"$answer")
  [ "$(jq -r .state <<<"$answer")" = started ] || die "the sandbox did not start: $answer"
  owner=$(jq -r .runnerId <<<"$answer")
  # Any node answers; to show it, ask one that doesn't own the sandbox.
  other=$(jq -r --arg owner "$owner" '[.nodes[] | select(.id != $owner)][0] // .nodes[0] | .http' "$ready")
  note "sandbox $sandbox runs on node $owner; asking $other:"
  curl -fsS -X POST "$other/toolbox/$sandbox/process/execute" -H "Authorization: Bearer $key" \
    -H 'Content-Type: application/json' -d '{"command": "echo \"hello from $(hostname), as $(whoami), $(python3 --version)\""}' |
    jq -r .result | sed 's/^/   /' >&2
}

next_steps() {
  cat <<EOF

The mesh runs (pid $(cat "$state/dev.pid")); 'deploy/quickstart.sh stop' ends it. Type next:

  export DAYTONA_API_URL=$other/api DAYTONA_API_KEY=$key

  # curl: run something in the sandbox, through any node
  curl -sS $other/toolbox/$sandbox/process/execute -H "Authorization: Bearer \$DAYTONA_API_KEY" \\
       -H 'Content-Type: application/json' -d '{"command": "uname -a"}'

  # Python SDK, unmodified
  python3 -m venv ~/atoll-sdk && ~/atoll-sdk/bin/pip install -q daytona==0.226.1
  ~/atoll-sdk/bin/python -c 'from daytona import Daytona; s = Daytona().create(); print(s.process.exec("echo hi from \$(hostname)").result); s.delete()'

  # SSH, through any node
  \$(curl -sS -X POST "\$DAYTONA_API_URL/sandbox/$sandbox/ssh-access" -H "Authorization: Bearer \$DAYTONA_API_KEY" | jq -r .sshCommand)

  # the cluster
  $atoll cluster status --api-url \$DAYTONA_API_URL

EOF
}

if [ "${1:-}" = stop ]; then
  stop_mesh
  exit
fi
need_root
timed packages install_packages "${BUILD_PACKAGES[@]}" "${BASE_PACKAGES[@]}" "${RUNTIME_PACKAGES[@]}" jq openssh-client python3-venv
timed npm install_npm
install_rust
timed build build
timed "base snapshot" base_snapshot
timed mesh start_mesh
timed "first sandbox" first_sandbox
next_steps
print_timings
