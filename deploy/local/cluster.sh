#!/usr/bin/env bash
# A whole cluster on loopback, to try things and to test them: a Ray head with a token, an S3 server, Prometheus, and
# Grafana where it is installed or apt knows it (Grafana's own repository; Debian has none).
#
#   cluster.sh start DIR     returns when all answer, with DIR/env to source; DIR must be new, absolute and short
#   cluster.sh stop DIR      ends what runs from DIR, and nothing else; keeps DIR for its logs
#
# Ports: DASHBOARD_PORT (8265), PROMETHEUS_PORT (9090), S3_PORT (7480), GRAFANA_PORT (3000); the others are free ones.
# BIN: the folder of ebm, ray and python (default: .venv/bin of this checkout). GRAFANA_HOME: /usr/share/grafana.
# Needs the Debian packages prometheus, radosgw, ceph-mon, ceph-osd and ceph-common; missing ones are installed.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
BIN=${BIN:-$ROOT/.venv/bin}
export PATH="$BIN:$PATH"
PACKAGES=(prometheus radosgw ceph-mon ceph-osd ceph-common)

fail() {
  echo "cluster.sh: $*" >&2
  exit 1
}

# wait_for SECONDS COMMAND...: try until it succeeds
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.5
  done
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install() {
  command -v apt-get >/dev/null || fail "install prometheus and Ceph's radosgw, ceph-mon, ceph-osd, ceph-common"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

free_ports() {
  python -c '
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))' "$1"
}

# run NAME COMMAND...: in the background, with its process id in DIR/run/NAME.pid and what it says in DIR/log/NAME.log
run() {
  local name=$1
  shift
  setsid "$@" >"$DIR/log/$name.log" 2>&1 </dev/null &
  echo $! >"$DIR/run/$name.pid"
}

start_s3() {
  local mon_port
  read -r mon_port < <(free_ports 1)
  "$ROOT/tests/s3/start_rgw.sh" start "$DIR/s3" "$S3_PORT" "$mon_port" "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"
  python -c 'import boto3, sys
boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1").create_bucket(Bucket="runs")' \
    "http://127.0.0.1:$S3_PORT"
}

start_ray() {
  local ports attempt
  for attempt in 1 2 3; do # on a busy machine Ray may give up on itself after 30 s
    read -r -a ports < <(free_ports 6)
    # The flags of deploy/compose, and ports and folders of its own.
    run ray ray start --head --block --disable-usage-stats --dashboard-host=127.0.0.1 \
      --dashboard-port="$DASHBOARD_PORT" --node-ip-address=127.0.0.1 --port="${ports[0]}" \
      --ray-client-server-port="${ports[1]}" --dashboard-agent-listen-port="${ports[2]}" \
      --dashboard-agent-grpc-port="${ports[3]}" --metrics-export-port="${ports[4]}" \
      --runtime-env-agent-port="${ports[5]}" --num-cpus="${NUM_CPUS:-2}" --object-store-memory=200000000 \
      --temp-dir="$DIR/r"
    wait_for 120 ray_has_decided || true
    if grep -q 'block forever' "$DIR/log/ray.log"; then
      wait_for 120 env RAY_ADDRESS="http://127.0.0.1:$DASHBOARD_PORT" ray job list && return
    fi
    stop_ours
  done
  fail "the Ray head does not start; see $DIR/log/ray.log"
}

ray_has_decided() {
  grep -q 'block forever' "$DIR/log/ray.log" || ! kill -0 "$(cat "$DIR/run/ray.pid")"
}

start_prometheus() {
  cp "$ROOT/deploy/prometheus/alerts.yml" "$DIR/"
  ebm metrics config --temp-dir "$DIR/r" >"$DIR/prometheus.yml"
  run prometheus prometheus --config.file="$DIR/prometheus.yml" --storage.tsdb.path="$DIR/prometheus" \
    --web.listen-address="127.0.0.1:$PROMETHEUS_PORT"
  wait_for 60 bash -c "exec 3<>/dev/tcp/127.0.0.1/$PROMETHEUS_PORT" ||
    fail "Prometheus does not answer; see $DIR/log/prometheus.log"
}

# The whole of Grafana in DIR: its user is admin, its password in DIR/grafana/password.
start_grafana() {
  local folder=$DIR/grafana
  if (exec 3<>"/dev/tcp/127.0.0.1/$GRAFANA_PORT") 2>/dev/null; then
    fail "port $GRAFANA_PORT is taken (by another Grafana?); set GRAFANA_PORT"
  fi
  mkdir -m 700 -p "$folder"/provisioning/{dashboards,datasources} "$folder/dashboards"
  (umask 077 && python -c 'import secrets; print(secrets.token_hex(16), end="")' >"$folder/password")
  cp "$ROOT/deploy/grafana/datasource.yml" "$folder/provisioning/datasources/"
  cp "$ROOT/deploy/grafana/ebm.json" "$folder/dashboards/"
  sed "s|path: .*|path: $folder/dashboards|" "$ROOT/deploy/grafana/dashboards.yml" >"$folder/provisioning/dashboards/ebm.yml"
  cat >"$folder/grafana.ini" <<INI
[paths]
data = $folder/data
logs = $folder/log
plugins = $folder/plugins
provisioning = $folder/provisioning
[server]
http_addr = 127.0.0.1
http_port = $GRAFANA_PORT
[security]
admin_password = \$__file{$folder/password}
[analytics]
reporting_enabled = false
check_for_updates = false
check_for_plugin_updates = false
INI
  run grafana grafana server --homepath="${GRAFANA_HOME:-/usr/share/grafana}" --config="$folder/grafana.ini"
  wait_for 120 bash -c "exec 3<>/dev/tcp/127.0.0.1/$GRAFANA_PORT" ||
    fail "Grafana does not answer; see $DIR/log/grafana.log"
  echo "export GRAFANA_URL=http://127.0.0.1:$GRAFANA_PORT" >>"$DIR/env"
}

write_environment() {
  cat >"$DIR/env" <<ENV
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$DIR/token
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 # or Ray listens on all addresses, whatever --node-ip-address says
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$DASHBOARD_PORT
export AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY
export AWS_ENDPOINT_URL=http://127.0.0.1:$S3_PORT AWS_REGION=us-east-1
export PROMETHEUS_URL=http://127.0.0.1:$PROMETHEUS_PORT
ENV
}

start() {
  local command
  [[ $DIR = /* && ${#DIR} -le 40 ]] || fail "$DIR: give an absolute path of at most 40 characters (Ray's sockets)"
  [ ! -e "$DIR" ] || fail "$DIR exists; stop what runs from it, and remove it"
  for command in prometheus radosgw radosgw-admin ceph ceph-mon ceph-osd; do
    command -v "$command" >/dev/null || { install "${PACKAGES[@]}"; break; }
  done
  if ! command -v grafana >/dev/null && apt-cache show grafana >/dev/null 2>&1; then
    install grafana || echo "cluster.sh: Grafana does not install; going on without it" >&2
  fi
  mkdir -m 700 -p "$DIR"/{run,log}
  trap 'status=$?; if ((status)); then stop; fi' EXIT
  (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$DIR/token")
  export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY
  AWS_SECRET_ACCESS_KEY=$(python -c 'import secrets; print(secrets.token_hex(16))')
  export AWS_REQUEST_CHECKSUM_CALCULATION=when_required AWS_RESPONSE_CHECKSUM_VALIDATION=when_required
  (umask 077 && write_environment)
  # shellcheck source=/dev/null
  . "$DIR/env"
  start_s3
  start_ray
  start_prometheus
  if command -v grafana >/dev/null; then start_grafana; fi
}

# Ray's own processes, Prometheus and Grafana, by the folder in an option of theirs. Workers and jobs end with their raylet.
ours() {
  local folder
  for folder in /proc/[0-9]*; do
    if { tr "\0" "\n" <"$folder/cmdline"; } 2>/dev/null | grep -qE "^--[a-z_.-]+=$DIR/(r|prometheus\.yml|grafana)(/|\$)"; then
      echo "${folder#/proc/}"
    fi
  done
}

none_left() {
  [ -z "$(ours)" ]
}

stop_ours() {
  local pid
  for pid in $(ours); do kill -TERM "$pid" 2>/dev/null || true; done
  wait_for 20 none_left || for pid in $(ours); do kill -KILL "$pid" 2>/dev/null || true; done
}

stop() {
  stop_ours
  "$ROOT/tests/s3/start_rgw.sh" stop "$DIR/s3"
}

[ $# = 2 ] || fail "usage: cluster.sh start DIR | stop DIR"
DIR=$2
DASHBOARD_PORT=${DASHBOARD_PORT:-8265} PROMETHEUS_PORT=${PROMETHEUS_PORT:-9090} S3_PORT=${S3_PORT:-7480}
GRAFANA_PORT=${GRAFANA_PORT:-3000}
case $1 in
start) start ;;
stop) stop ;;
*) fail "usage: cluster.sh start DIR | stop DIR" ;;
esac
