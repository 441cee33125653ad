#!/usr/bin/env bash
# Makes the default snapshot's root file system from Debian's packages, without any registry, as a tar. What it makes is
# cached under a key of this file, packages.txt and typescript-server.sh: change what is in the snapshot here, and how it is packed elsewhere.
#
#   deploy/base/rootfs.sh SUITE OUT.tar LOG
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suite=$1 tar=$2 log=$3

say() { printf '    %s\n' "$*" >&2; }

# The machine's own mirror, so that a proxy or a local mirror is honoured.
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
  awk -v suite="$suite" '$2 == suite && $3 == "main" { print $1; exit }')
rootfs=$(mktemp -d "$(dirname "$tar")/rootfs.XXXXXX")
trap 'rm -rf --one-file-system "$rootfs"' EXIT
say "debootstrap $suite ($(wc -l <"$here/packages.txt") packages beside the base; log: $log)"
# shellcheck disable=SC2086  # an empty mirror must vanish, so that debootstrap takes its default
debootstrap --variant=minbase --merged-usr --include="$(paste -sd, "$here/packages.txt")" "$suite" "$rootfs" $mirror 2>&1 |
  tee "$log" | awk '/^I: (Retrieving|Extracting|Unpacking|Configuring)/ { n++; if (n % 100 == 0) print "    … " n " steps" > "/dev/stderr" }' ||
  { tail -n 20 "$log" >&2; exit 1; }
chmod 0755 "$rootfs"
chroot "$rootfs" useradd --create-home --shell /bin/bash --uid 1000 daytona
echo 'daytona ALL=(ALL) NOPASSWD:ALL' >"$rootfs/etc/sudoers.d/daytona"
chmod 0440 "$rootfs/etc/sudoers.d/daytona"
ln -sf python3 "$rootfs/usr/bin/python"
"$here/typescript-server.sh" "$rootfs"
# It is the user's own machine: pip installs what it is asked for, as in images made for Python.
rm -f "$rootfs"/usr/lib/python3*/EXTERNALLY-MANAGED
# What a sandbox never needs, and what would differ between two builds.
rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/* "$rootfs"/var/log/* \
  "$rootfs"/usr/share/{doc,man,info,locale} "$rootfs"/var/cache/debconf/*-old "$rootfs"/etc/machine-id
: >"$rootfs/etc/machine-id"
: >"$rootfs/etc/resolv.conf"
echo sandbox >"$rootfs/etc/hostname"
say "packing $(du -sh --one-file-system "$rootfs" | cut -f1)"
tar --numeric-owner --sort=name -C "$rootfs" -cf "$tar.partial" .
mv "$tar.partial" "$tar"
