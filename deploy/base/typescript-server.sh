#!/usr/bin/env bash
# Puts the language server for TypeScript and JavaScript into a root file system, below /usr/local. It is not in Debian. This is the
# last one that runs on Debian's Node.js; it is one file, and takes Debian's TypeScript, which ts-node brings.
#
#   deploy/base/typescript-server.sh ROOTFS
set -euo pipefail
rootfs=$1
name=typescript-language-server
version=4.4.1
sha512=bc4bc3c3e72363be5a7cc376ae1c74cfcb10b450c0507a019e292c06607a3546650edd2b108c10ab4d55322ab25c59bdb99c1c103db8ef97260de5f1a031e57a
modules=$rootfs/usr/local/lib/node_modules

command -v npm >/dev/null || { echo "npm is needed to fetch $name: apt-get install npm" >&2; exit 1; }
packed=$(mktemp -d)
trap 'rm -rf "$packed"' EXIT
(cd "$packed" && npm pack --silent "$name@$version" >/dev/null)
echo "$sha512  $packed/$name-$version.tgz" | sha512sum --check --quiet >&2
install -d "$modules/$name" "$rootfs/usr/local/bin"
tar --no-same-owner --strip-components=1 -C "$modules/$name" -xzf "$packed/$name-$version.tgz" \
  package/package.json package/LICENSE package/lib/cli.mjs
chmod -R u=rwX,go=rX "$modules/$name" && chmod 0755 "$modules" "$modules/$name/lib/cli.mjs"
ln -sfn ../../../share/nodejs/typescript "$modules/typescript"
ln -sfn "../lib/node_modules/$name/lib/cli.mjs" "$rootfs/usr/local/bin/$name"
