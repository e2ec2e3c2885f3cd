#!/usr/bin/env bash
# The pages in a real browser: installs headless Chromium with its driver where they are missing (Debian), then tests.
#
#   PYTHON=.venv/bin/python tests/browser/run.sh [arguments for pytest]
set -euo pipefail

PYTHON=$(command -v "${PYTHON:-python3}") || { echo "run.sh: set PYTHON to the interpreter of the environment" >&2; exit 1; }
PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tests/install.sh "chromium chromedriver" chromium chromium-driver
exec "$PYTHON" -m pytest tests/browser -m browser "$@"
