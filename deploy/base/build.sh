#!/usr/bin/env bash
# Makes the default snapshot from Debian's packages, without any registry: an OCI layout for the nodes' stores, and an
# image for Docker where that is there. Cached outside the tree, so that only the first run takes long.
#
#   deploy/base/build.sh                        prints the image's name, e.g. atoll-base:3f2a9c01d4e5
#   ATOLL_BASE_DOCKER=skip deploy/base/build.sh the layout only: <cache>/base/atoll-base.oci
#   ATOLL_CACHE_DIR=…                           default: /var/cache/atoll for root, else ~/.cache/atoll
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../cache.sh"
suite=bookworm
arch=$(dpkg --print-architecture)
key=$(cat "$here/rootfs.sh" "$here/packages.txt" "$here/typescript-server.sh" <(echo "$suite $arch") | sha256sum | cut -c1-12)
cache=$(cache_dir)/base
tar=$cache/$key.tar
layout=$cache/$key.oci
image=atoll-base:$key
# ts-node checks types first unless it is told not to, which takes seconds for a line of code.
environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TS_NODE_TRANSPILE_ONLY=true)
title=atoll-base

say() { printf '    %s\n' "$*" >&2; }

# add_blob TEXT: writes it into the layout, prints its digest without "sha256:".
add_blob() {
  local digest
  digest=$(printf '%s' "$1" | sha256sum | cut -d' ' -f1)
  printf '%s' "$1" >"$new/blobs/sha256/$digest"
  echo "$digest"
}

# The layer is the tar itself, uncompressed: the layout lies on the machine that unpacks it.
build_layout() {
  local new=$layout.partial layer env config manifest manifest_digest config_digest
  rm -rf "$new" && mkdir -p "$new/blobs/sha256"
  layer=$(sha256sum "$tar" | cut -d' ' -f1)
  ln -f "$tar" "$new/blobs/sha256/$layer" 2>/dev/null || cp "$tar" "$new/blobs/sha256/$layer"
  env=$(printf '"%s",' "${environment[@]}")
  config='{"architecture":"'$arch'","os":"linux","config":{"Env":['${env%,}'],"Labels":{"org.opencontainers.image.title":"'$title'"}},"rootfs":{"type":"layers","diff_ids":["sha256:'$layer'"]}}'
  config_digest=$(add_blob "$config")
  manifest='{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:'$config_digest'","size":'${#config}'},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:'$layer'","size":'$(stat -c %s "$tar")'}]}'
  manifest_digest=$(add_blob "$manifest")
  printf '{"imageLayoutVersion":"1.0.0"}' >"$new/oci-layout"
  printf '%s' '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:'$manifest_digest'","size":'${#manifest}',"platform":{"architecture":"'$arch'","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"'$title'"}}]}' >"$new/index.json"
  # A node runs as a user of its own and reads it.
  chmod -R u=rwX,go=rX "$new"
  rm -rf "$layout" && mv "$new" "$layout"
}

import_into_docker() {
  docker image inspect "$image" >/dev/null 2>&1 || {
    say "importing into Docker as $image"
    docker import "${environment[@]/#/--change=ENV }" --change "LABEL org.opencontainers.image.title=$title" "$tar" "$image" >/dev/null
  }
  docker tag "$image" atoll-base:latest
}

mkdir -p "$cache" && chmod 0755 "$(cache_dir)" "$cache"
[ -s "$tar" ] || "$here/rootfs.sh" "$suite" "$tar" "$cache/$key.log"
[ -e "$layout/index.json" ] || build_layout
ln -sfn "$key.oci" "$cache/atoll-base.oci.new" && mv -T "$cache/atoll-base.oci.new" "$cache/atoll-base.oci"
if [ "${ATOLL_BASE_DOCKER:-}" != skip ] && docker info >/dev/null 2>&1; then import_into_docker; fi
echo "$image"
