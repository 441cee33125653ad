#!/usr/bin/env bash
# Makes the default snapshot from Debian's packages, without any registry: an OCI layout for the nodes' stores, and an
# image for Docker where that is there. Cached outside the tree, so that only the first run takes long.
#
#   deploy/base/build.sh                        prints the image's name, e.g. atoll-base:3f2a9c01d4e5
#   deploy/base/build.sh desktop                the same with a desktop for computer use, as a second layer: atoll-desktop:…
#   ATOLL_BASE_DOCKER=skip deploy/base/build.sh the layout only: <cache>/base/atoll-base.oci
#   ATOLL_CACHE_DIR=…                           default: /var/cache/atoll for root, else ~/.cache/atoll
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../cache.sh"
suite=bookworm
arch=$(dpkg --print-architecture)
key=$(cat "$here/rootfs.sh" "$here/packages.txt" "$here/typescript-server.sh" <(echo "$suite $arch") | sha256sum | cut -c1-12)
cache=$(cache_dir)/base
title=atoll-base
layers=("$cache/$key.tar")
# ts-node checks types first unless it is told not to, which takes seconds for a line of code.
environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TS_NODE_TRANSPILE_ONLY=true)

variant=${1:-base}
case $variant in
  base) ;;
  desktop)
    title=atoll-desktop
    key=$(cat "$here/desktop.sh" "$here/desktop.txt" <(echo "$key") | sha256sum | cut -c1-12)
    layers+=("$cache/$key.tar")
    ;;
  *) echo "usage: $0 [base|desktop]" >&2; exit 2 ;;
esac
layout=$cache/$key.oci
image=$title:$key

say() { printf '    %s\n' "$*" >&2; }

# add_blob TEXT: writes it into the layout, prints its digest without "sha256:".
add_blob() {
  local digest
  digest=$(printf '%s' "$1" | sha256sum | cut -d' ' -f1)
  printf '%s' "$1" >"$new/blobs/sha256/$digest"
  echo "$digest"
}

# The layers are the tars themselves, uncompressed: the layout lies on the machine that unpacks them.
build_layout() {
  local new=$layout.partial tar layer env config manifest manifest_digest config_digest diff_ids= descriptors=
  rm -rf "$new" && mkdir -p "$new/blobs/sha256"
  for tar in "${layers[@]}"; do
    layer=$(sha256sum "$tar" | cut -d' ' -f1)
    ln -f "$tar" "$new/blobs/sha256/$layer" 2>/dev/null || cp "$tar" "$new/blobs/sha256/$layer"
    diff_ids+='"sha256:'$layer'",'
    descriptors+='{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:'$layer'","size":'$(stat -c %s "$tar")'},'
  done
  env=$(printf '"%s",' "${environment[@]}")
  config='{"architecture":"'$arch'","os":"linux","config":{"Env":['${env%,}'],"Labels":{"org.opencontainers.image.title":"'$title'"}},"rootfs":{"type":"layers","diff_ids":['${diff_ids%,}']}}'
  config_digest=$(add_blob "$config")
  manifest='{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:'$config_digest'","size":'${#config}'},"layers":['${descriptors%,}']}'
  manifest_digest=$(add_blob "$manifest")
  printf '{"imageLayoutVersion":"1.0.0"}' >"$new/oci-layout"
  printf '%s' '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:'$manifest_digest'","size":'${#manifest}',"platform":{"architecture":"'$arch'","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"'$title'"}}]}' >"$new/index.json"
  # A node runs as a user of its own and reads it.
  chmod -R u=rwX,go=rX "$new"
  rm -rf "$layout" && mv "$new" "$layout"
}

import_into_docker() {
  local base=atoll-base:$(basename "${layers[0]}" .tar)
  docker image inspect "$base" >/dev/null 2>&1 || {
    say "importing into Docker as $base"
    docker import "${environment[@]/#/--change=ENV }" --change "LABEL org.opencontainers.image.title=atoll-base" "${layers[0]}" "$base" >/dev/null
  }
  docker image inspect "$image" >/dev/null 2>&1 || {
    say "importing into Docker as $image"
    # ADD unpacks a tar.
    printf 'FROM %s\nADD *.tar /\nLABEL org.opencontainers.image.title=%s\n' "$base" "$title" >"$cache/$key.dockerfile"
    tar -C "$cache" -cf - "$key.dockerfile" "$key.tar" | docker build --quiet --tag "$image" --file "$key.dockerfile" - >/dev/null
    rm "$cache/$key.dockerfile"
  }
  docker tag "$image" "$title:latest"
}

mkdir -p "$cache" && chmod 0755 "$(cache_dir)" "$cache"
[ -s "${layers[0]}" ] || "$here/rootfs.sh" "$suite" "${layers[0]}" "${layers[0]%.tar}.log"
[ $variant = base ] || [ -s "${layers[1]}" ] || "$here/desktop.sh" "${layers[0]}" "${layers[1]}" "${layers[1]%.tar}.log"
[ -e "$layout/index.json" ] || build_layout
ln -sfn "$key.oci" "$cache/$title.oci.new" && mv -T "$cache/$title.oci.new" "$cache/$title.oci"
if [ "${ATOLL_BASE_DOCKER:-}" != skip ] && docker info >/dev/null 2>&1; then import_into_docker; fi
echo "$image"
