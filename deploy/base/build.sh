#!/usr/bin/env bash
# Makes the default snapshot's root file system from Debian's packages, without any registry, and imports it into Docker.
# The tar is cached outside the tree under a key of its inputs, so that only the first run takes long.
#
#   deploy/base/build.sh            prints the image's name, e.g. atoll-base:3f2a9c01d4e5
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suite=bookworm
arch=$(dpkg --print-architecture)
key=$(cat "$here/build.sh" "$here/packages.txt" <(echo "$suite $arch") | sha256sum | cut -c1-12)
cache=${ATOLL_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/atoll}/base
tar=$cache/$key.tar
image=atoll-base:$key

say() { printf '    %s\n' "$*" >&2; }

build_tar() {
  # The machine's own mirror, so that a proxy or a local mirror is honoured.
  local mirror rootfs log
  mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v suite="$suite" '$2 == suite && $3 == "main" { print $1; exit }')
  mkdir -p "$cache"
  rootfs=$(mktemp -d "$cache/rootfs.XXXXXX")
  log=$cache/$key.log
  trap 'rm -rf --one-file-system "$rootfs"' EXIT
  say "debootstrap $suite ($(wc -l <"$here/packages.txt") packages beside the base; log: $log)"
  # shellcheck disable=SC2086  # an empty mirror must vanish, so that debootstrap takes its default
  debootstrap --variant=minbase --merged-usr --include="$(paste -sd, "$here/packages.txt")" "$suite" "$rootfs" $mirror 2>&1 |
    tee "$log" | awk '/^I: (Retrieving|Extracting|Unpacking|Configuring)/ { n++; if (n % 100 == 0) print "    … " n " steps" > "/dev/stderr" }' ||
    { tail -n 20 "$log" >&2; return 1; }
  chroot "$rootfs" useradd --create-home --shell /bin/bash --uid 1000 daytona
  echo 'daytona ALL=(ALL) NOPASSWD:ALL' >"$rootfs/etc/sudoers.d/daytona"
  chmod 0440 "$rootfs/etc/sudoers.d/daytona"
  ln -sf python3 "$rootfs/usr/bin/python"
  # What a sandbox never needs, and what would differ between two builds.
  rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/* "$rootfs"/var/log/* \
    "$rootfs"/usr/share/{doc,man,info,locale} "$rootfs"/var/cache/debconf/*-old "$rootfs"/etc/machine-id
  : >"$rootfs/etc/machine-id"
  : >"$rootfs/etc/resolv.conf"
  echo sandbox >"$rootfs/etc/hostname"
  say "packing $(du -sh --one-file-system "$rootfs" | cut -f1)"
  tar --numeric-owner --sort=name -C "$rootfs" -cf "$tar.partial" .
  mv "$tar.partial" "$tar"
  rm -rf --one-file-system "$rootfs"
  trap - EXIT
}

[ -s "$tar" ] || build_tar
if ! docker image inspect "$image" >/dev/null 2>&1; then
  say "importing into Docker as $image"
  # ts-node checks types first unless it is told not to, which takes seconds for a line of code.
  docker import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' --change 'ENV TS_NODE_TRANSPILE_ONLY=true' --change 'LABEL org.opencontainers.image.title=atoll-base' "$tar" "$image" >/dev/null
fi
docker tag "$image" atoll-base:latest
echo "$image"
