#!/usr/bin/env bash
# A cluster of nodes with addresses of their own, in network namespaces: needs root and iproute2, installed where missing.
#
#   PYTHON=.venv/bin/python tests/nodes/run.sh [arguments for pytest]
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "run.sh: set PYTHON to the interpreter of the environment" >&2; exit 1; }
cd "$HERE/../.."
[ "$(id -u)" = 0 ] || { echo "run.sh: network namespaces need root; try sudo -E" >&2; exit 1; }
if ! command -v ip >/dev/null || ! command -v tc >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends iproute2 >/dev/null
fi
exec "$PYTHON" -m pytest -s tests/nodes -m nodes "$@"
