#!/usr/bin/env bash
# Makes the layer that turns the default snapshot into one with a desktop, as a tar of what is new or different. Cached under a
# key of this file, desktop.txt and what the layer lies on.
#
#   deploy/base/desktop.sh BASE.tar OUT.tar LOG
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
base=$1 tar=$2 log=$3

say() { printf '    %s\n' "$*" >&2; }

work=$(mktemp -d "$(dirname "$tar")/desktop.XXXXXX")
rootfs=$work/rootfs
leave() {
  umount "$rootfs/proc" 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap leave EXIT
mkdir "$rootfs" && tar --numeric-owner -C "$rootfs" -xpf "$base"
(cd "$rootfs" && find . -mindepth 1 | sort) >"$work/before"
# What packages bring has old times; the time of the last change of an inode is now, whatever they say.
touch "$work/began" && sleep 1

# apt within sees what apt here sees: names, proxies, and the mirror, which debootstrap has written down.
cp --remove-destination /etc/resolv.conf "$rootfs/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$rootfs/usr/sbin/policy-rc.d" && chmod 0755 "$rootfs/usr/sbin/policy-rc.d"
mount -t proc proc "$rootfs/proc"
in_rootfs() { DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$rootfs" "$@" >>"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }; }
: >"$log"
say "installing $(wc -l <"$here/desktop.txt") packages of a desktop (log: $log)"
in_rootfs apt-get -q update
# shellcheck disable=SC2046  # one word a package
in_rootfs apt-get -q -o Dpkg::Use-Pty=0 install -y --no-install-recommends $(cat "$here/desktop.txt")
umount "$rootfs/proc"

rm -rf "$rootfs/usr/sbin/policy-rc.d" "$rootfs"/var/cache/apt/*.bin "$rootfs"/var/cache/apt/archives/*.deb \
  "$rootfs"/var/lib/apt/lists/* "$rootfs"/var/log/* "$rootfs"/usr/share/{doc,man,info,locale} "$rootfs"/var/cache/debconf/*-old
: >"$rootfs/etc/machine-id"
: >"$rootfs/etc/resolv.conf"

(cd "$rootfs" && find . -mindepth 1 | sort) >"$work/after"
# What the base has and this has not, as layers say it.
comm -23 "$work/before" "$work/after" | while IFS= read -r gone; do
  [ ! -d "$rootfs/$(dirname "$gone")" ] || : >"$rootfs/$(dirname "$gone")/.wh.$(basename "$gone")"
done
(cd "$rootfs" && find . -mindepth 1 -cnewer "$work/began" -print0 | sort -z) >"$work/layer"
say "packing $(tr '\0' '\n' <"$work/layer" | wc -l) files"
tar --numeric-owner --no-recursion --null -C "$rootfs" -T "$work/layer" -cf "$tar.partial"
mv "$tar.partial" "$tar"
