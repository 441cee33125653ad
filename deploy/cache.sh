# Where what takes long to make is kept between runs. A node, which runs as a user of its own, reads from there: so not in
# root's home, which nobody else may enter.
# shellcheck shell=bash

cache_dir() { echo "${ATOLL_CACHE_DIR:-$(default_cache_dir)}"; }
default_cache_dir() {
  if [ "$(id -u)" = 0 ]; then echo /var/cache/atoll; else echo "${XDG_CACHE_HOME:-$HOME/.cache}/atoll"; fi
}
