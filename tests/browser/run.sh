#!/usr/bin/env bash
# The pages in a real browser: installs headless Chromium with its driver where they are missing (Debian), then tests.
#
#   PYTHON=.venv/bin/python tests/browser/run.sh [arguments for pytest]
set -euo pipefail

PYTHON=$(command -v "${PYTHON:-python3}") || { echo "run.sh: set PYTHON to the interpreter of the environment" >&2; exit 1; }
PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
PACKAGES=(chromium chromium-driver)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install() {
  command -v apt-get >/dev/null || {
    echo "run.sh: no Chromium here and no apt-get to install it; install ${PACKAGES[*]}" >&2
    exit 1
  }
  echo "installing ${PACKAGES[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}" >/dev/null
}

for command in chromium chromedriver; do
  command -v "$command" >/dev/null || { install; break; }
done
exec "$PYTHON" -m pytest tests/browser -m browser "$@"
