#!/usr/bin/env bash
# A cluster of nodes with addresses of their own, in network namespaces: needs root and iproute2, installed where missing.
#
#   PYTHON=.venv/bin/python tests/nodes/run.sh [arguments for pytest]
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "run.sh: set PYTHON to the interpreter of the environment" >&2; exit 1; }
cd "$HERE/../.."
[ "$(id -u)" = 0 ] || { echo "run.sh: network namespaces need root; try sudo -E" >&2; exit 1; }
tests/install.sh "ip tc" iproute2
exec "$PYTHON" -m pytest -s tests/nodes -m nodes "$@"
