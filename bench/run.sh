#!/usr/bin/env bash
# Measures a release build beside its references and writes the figures into bench/RESULTS.md. What is said there about them is
# written by hand and stays; read it against the date above the table.
#
#   bench/run.sh                  everything
#   bench/run.sh create delete    only these, in place of the whole table
#                                 (create starts warm burst delete exec files live idle commit preview ssh)
#
# RUNTIME=docker    measures the docker runtime's nodes instead of the embedded runtime's
# MANY=500          idle sandboxes kept at once
# BASE_PORT=9400    the first of thirty ports for the nodes
# SMOKE=1           a tenth of the samples, printed and not written: to see whether everything works
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/lib.sh"
need_root
results=$root/bench/RESULTS.md
: "${RUNTIME:=embedded}" "${MANY:=500}" "${BASE_PORT:=9400}" "${SMOKE:=}"

install_packages "${BUILD_PACKAGES[@]}" "${BASE_PACKAGES[@]}" "${RUNTIME_PACKAGES[@]}" binutils etcd-server nginx-light openssh-client openssh-server wrk
install_npm
install_rust
start_docker
# ATOLL and ATOLL_BENCH: programs that were built before, instead of building them.
if [ -z "${ATOLL:-}" ]; then
  say "building the node"
  (cd "$root" && cargo build --release --locked -p atoll-node)
  ATOLL=$CARGO_TARGET_DIR/release/atoll
fi
if [ -z "${ATOLL_BENCH:-}" ]; then
  say "building the bench"
  (cd "$root" && cargo build --release --locked -p atoll-bench)
  ATOLL_BENCH=$CARGO_TARGET_DIR/release/atoll-bench
fi
# A release build has no symbols.
profile='release build'
if readelf -S "$ATOLL" | grep -q '\.symtab'; then profile='UNOPTIMIZED DEBUG BUILD: no measure of what Atoll can do'; fi
"$root/deploy/base/build.sh" >/dev/null

say "starting three nodes"
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/atoll-bench.XXXXXX")
# The nodes run as users of their own, and pass through it to their folders.
chmod 0711 "$dir"
# The idle sandboxes are spread evenly, and one node is filled on purpose beside them.
"$ATOLL" dev --nodes 3 --runtime "$RUNTIME" --base-port "$BASE_PORT" --sandboxes-max $((MANY / 2 + 50)) --data-dir "$dir/nodes" \
  --ready-file "$dir/ready.json" >"$dir/dev.log" 2>&1 &
dev=$!
stop() {
  kill -TERM "$dev" 2>/dev/null || true
  wait "$dev" 2>/dev/null || true
  rm -rf --one-file-system "$dir"
}
trap stop EXIT
for _ in $(seq 600); do
  [ -s "$dir/ready.json" ] && break
  kill -0 "$dev" 2>/dev/null || { tail -n 30 "$dir/dev.log" >&2; die "atoll dev ended"; }
  sleep 0.1
done
[ -s "$dir/ready.json" ] || die "the cluster is not ready after 60 s"

say "measuring"
failed=0
"$ATOLL_BENCH" run --ready-file "$dir/ready.json" --many "$MANY" --seed "$(cache_dir)/base/atoll-base.oci" ${SMOKE:+--smoke} "$@" \
  >"$dir/figures.md" || failed=1
if [ -n "$SMOKE" ]; then
  cat "$dir/figures.md"
  exit "$failed"
fi

# Between the marks; the rest of the file is kept.
begin='<!-- figures: written by bench/run.sh -->' end='<!-- end of the figures -->'
if [ ! -f "$results" ]; then
  printf '# Figures\n\n%s\n%s\n' "$begin" "$end" >"$results"
fi
{
  commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
  printf '%s, commit %s, Linux %s. Node: %s of %s, runtime %s. Beside it: Docker %s, etcd %s, %s, %s.\n\n' \
    "$(date -u '+%Y-%m-%d %H:%M UTC')" "$commit" "$(uname -r)" "$profile" "$(date -u -r "$ATOLL" '+%Y-%m-%d %H:%M UTC')" "$RUNTIME" \
    "$(docker version --format '{{.Server.Version}}')" "$(etcd --version | sed -n 's/^etcd Version: //p')" \
    "$(nginx -v 2>&1 | sed 's/.*: //')" "$(ssh -V 2>&1 | cut -d, -f1)"
  cat "$dir/figures.md"
} >"$dir/section.md"
awk -v begin="$begin" -v end="$end" -v section="$dir/section.md" '
  $0 == begin { print; print ""; while ((getline line < section) > 0) print line; print ""; inside = 1; next }
  $0 == end { inside = 0 }
  !inside { print }
' "$results" >"$dir/results.md"
cat "$dir/results.md" >"$results"
say "written to bench/RESULTS.md"
exit "$failed"
