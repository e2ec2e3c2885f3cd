#!/usr/bin/env bash
# The storage tests against a real S3 server: installs Ceph RGW where it is missing, starts it, tests, stops it, always.
#
#   PYTHON=.venv/bin/python tests/s3/run.sh [arguments for pytest]
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "run.sh: set PYTHON to the interpreter of the environment" >&2; exit 1; }
PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
cd "$HERE/../.."

free_ports() {
  "$PYTHON" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))'
}

tests/install.sh "radosgw radosgw-admin ceph ceph-mon ceph-osd" radosgw ceph-mon ceph-osd ceph-common

DIR=$(mktemp -d "${TMPDIR:-/tmp}/rgw-XXXXXX")
cleanup() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [ -n "${TESTS:-}" ]; then
    kill -TERM "$TESTS" 2>/dev/null && wait "$TESTS" || true
  fi
  "$HERE/start_rgw.sh" stop "$DIR" || true
  rm -rf "$DIR"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

read -r PORT MON_PORT < <(free_ports)
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY CONFAB_S3_ENDPOINT CONFAB_S3_SERVER
AWS_ACCESS_KEY_ID=tests$RANDOM$RANDOM
AWS_SECRET_ACCESS_KEY=$(cat /proc/sys/kernel/random/uuid)
CONFAB_S3_ENDPOINT=http://127.0.0.1:$PORT
CONFAB_S3_SERVER=$DIR
unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3

"$HERE/start_rgw.sh" start "$DIR" "$PORT" "$MON_PORT" "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"
echo "$(radosgw --version) at $CONFAB_S3_ENDPOINT"
"$PYTHON" -m pytest tests/s3 -m s3 "$@" & # in the background, so that a signal to this script is heard at once
TESTS=$!
wait "$TESTS"
