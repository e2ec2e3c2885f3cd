#!/usr/bin/env bash
# Operating it for real. `prometheus`: our configuration, rules and dashboard on a real Prometheus server; a minute.
# `cluster`: a local cluster (Ray with a token, S3 server, Prometheus) on free ports, the tests against it, and its end;
# at last nothing of it may be left.
#
#   PYTHON=.venv/bin/python tests/operate/run.sh prometheus|cluster [arguments for pytest]
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "run.sh: set PYTHON to the interpreter of the environment" >&2; exit 1; }
BIN=$(cd "$(dirname "$PYTHON")" && pwd)
export BIN
cd "$HERE/../.."
WHAT=${1:-}
shift || true

if [ "$WHAT" = prometheus ]; then
  tests/install.sh promtool prometheus
  exec "$BIN/python" -m pytest tests/operate -m prometheus "$@"
fi
[ "$WHAT" = cluster ] || { echo "run.sh: say prometheus or cluster" >&2; exit 2; }

read -r DASHBOARD_PORT PROMETHEUS_PORT S3_PORT GRAFANA_PORT < <("$BIN/python" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(s.getsockname()[1] for s in sockets))')
export DASHBOARD_PORT PROMETHEUS_PORT S3_PORT GRAFANA_PORT
DIR=$(mktemp -u /tmp/ebm-XXXXXX)
left() {
  grep -lsaF "$DIR/token" /proc/[0-9]*/environ
}
cleanup() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [ -n "${TESTS:-}" ]; then
    kill -TERM "$TESTS" 2>/dev/null && wait "$TESTS" || true
  fi
  if [ -d "$DIR" ]; then
    deploy/local/cluster.sh stop "$DIR"
    for _ in {1..60}; do left || break; sleep 0.5; done # workers end by themselves when their raylet has
    if left; then
      echo "run.sh: these processes outlived the cluster in $DIR" >&2
      status=1
    fi
    ((status)) || rm -rf "$DIR"
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

tests/install.sh "chromium chromedriver" chromium chromium-driver
if ! command -v grafana >/dev/null && ! apt-cache show grafana >/dev/null 2>&1; then
  echo "Grafana does not install here: tests/operate/grafana_stand_in.py takes its place"
  export PATH="$PATH:$HERE/stand_in"
fi
deploy/local/cluster.sh start "$DIR"
echo "a local cluster in $DIR after $SECONDS s"
(
  # shellcheck source=/dev/null
  . "$DIR/env"
  PATH="$BIN:$PATH" EBM_CLUSTER=$DIR exec "$BIN/python" -m pytest tests/operate -m operate "$@"
) & # in the background, so that a signal to this script is heard at once
TESTS=$!
wait "$TESTS"
echo "all of it took $SECONDS s"
