#!/usr/bin/env bash
# What tests need beside Python: Debian's PACKAGES, unless every one of COMMANDS is there already.
#
#   tests/install.sh "chromium chromedriver" chromium chromium-driver
set -euo pipefail

read -ra COMMANDS <<<"$1"
shift
for command in "${COMMANDS[@]}"; do
  command -v "$command" >/dev/null || { MISSING=$command; break; }
done
[ -n "${MISSING:-}" ] || exit 0
command -v apt-get >/dev/null || {
  echo "install.sh: no $MISSING here and no apt-get to install it; install Debian's $* or what your system calls it" >&2
  exit 1
}
SUDO=$([ "$(id -u)" = 0 ] || echo sudo)
echo "installing $*"
$SUDO apt-get update -qq
$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
