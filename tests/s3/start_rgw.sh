#!/usr/bin/env bash
# A real S3 server (Ceph RGW) on loopback, all of it in one folder, in memory.
#
#   start_rgw.sh start DIR PORT MON_PORT ACCESS_KEY SECRET_KEY   returns when the server answers
#   start_rgw.sh stop DIR                                        ends exactly the processes that DIR/run/*.pid name
#
# Needs the commands of the Debian packages radosgw, ceph-mon, ceph-osd and ceph-common.
set -euo pipefail

HOST=127.0.0.1

fail() {
  echo "start_rgw.sh: $*" >&2
  exit 1
}

# wait_for SECONDS COMMAND...: try until it succeeds
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.3
  done
}

write_config() {
  cat >"$DIR/ceph.conf" <<CONF
[global]
fsid = $CLUSTER
mon initial members = a
mon host = [v2:$HOST:$MON_PORT]
public addr = $HOST
ms bind ipv6 = false
auth supported = cephx
auth allow insecure global id reclaim = false
keyring = $DIR/keyring
run dir = $DIR/run
pid file = $DIR/run/\$name.pid
admin socket = $DIR/run/\$name.asok
log file = $DIR/log/\$name.log
# one disk, so one copy of everything, and few placement groups
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon max pg per osd = 2000
osd crush chooseleaf type = 0
mon data = $DIR/mon
# the monitor refuses to work on a nearly full disk; this one needs next to nothing
mon data avail crit = 1
mon data avail warn = 2
osd data = $DIR/osd
osd objectstore = memstore
memstore device bytes = 4294967296

[client]
# without tcp_nodelay a short answer waits 40 ms for the acknowledgement of its first half
rgw frontends = beast endpoint=$HOST:$PORT tcp_nodelay=1
rgw thread pool size = 32
rgw data = $DIR/rgw
rgw dynamic resharding = false
CONF
}

write_keys() {
  ceph-authtool --create-keyring "$DIR/keyring" --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool "$DIR/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
  ceph-authtool "$DIR/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
}

start_monitor() {
  monmaptool --create --fsid "$CLUSTER" --addv a "[v2:$HOST:$MON_PORT]" "$DIR/monmap"
  ceph-mon -c "$CONF" -i a --mkfs --monmap "$DIR/monmap" --keyring "$DIR/keyring"
  ceph-mon -c "$CONF" -i a
}

osd_is_up() {
  ceph -c "$CONF" --connect-timeout 10 osd stat | grep -q '1 up'
}

start_disk() {
  local id
  id=$(cat /proc/sys/kernel/random/uuid)
  ceph -c "$CONF" --connect-timeout 30 osd new "$id"
  ceph-osd -c "$CONF" -i 0 --mkfs --osd-uuid "$id" # the same id, or the monitor does not know the disk
  ceph-osd -c "$CONF" -i 0
  wait_for 60 osd_is_up || fail "the disk did not come up; see $DIR/log"
}

start_gateway() {
  radosgw -c "$CONF" -n client.admin --pid-file "$DIR/run/radosgw.pid" --log-file "$DIR/log/radosgw.log"
  wait_for 60 bash -c "exec 3<>/dev/tcp/$HOST/$PORT" || fail "nothing listens on $HOST:$PORT; see $DIR/log"
  radosgw-admin -c "$CONF" -n client.admin user create --uid=tests --display-name=tests \
    --access-key="$ACCESS_KEY" --secret-key="$SECRET_KEY"
}

start() {
  local command
  for command in ceph ceph-mon ceph-osd ceph-authtool monmaptool radosgw radosgw-admin; do
    command -v "$command" >/dev/null || fail "$command is missing; install radosgw ceph-mon ceph-osd ceph-common"
  done
  mkdir -p "$DIR"
  [ -z "$(ls -A "$DIR")" ] || fail "$DIR is not empty; give an empty folder"
  mkdir "$DIR"/{mon,osd,rgw,run,log}
  chmod 700 "$DIR"
  trap 'status=$?; if ((status)); then tail -n 5 "$DIR/log/start.log" >&2 || true; stop; fi' EXIT
  CONF=$DIR/ceph.conf
  CLUSTER=$(cat /proc/sys/kernel/random/uuid)
  write_config
  local stage
  for stage in write_keys start_monitor start_disk start_gateway; do
    # not `if`, under which bash would go on after a failed line of the stage
    "$stage" >>"$DIR/log/start.log" 2>&1
  done
}

# stop_process PID_FILE: TERM, then KILL, if the process is still the daemon that wrote the file
stop_process() {
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 0
  [[ $pid =~ ^[0-9]+$ ]] || return 0
  is_ours() { tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$DIR/ceph.conf"; }
  is_gone() { ! is_ours; }
  is_ours || return 0
  kill -TERM "$pid" 2>/dev/null || true
  wait_for 10 is_gone || kill -KILL "$pid" 2>/dev/null || true
}

stop() {
  local name
  for name in radosgw osd.0 mon.a; do
    stop_process "$DIR/run/$name.pid"
  done
}

case ${1:-} in
start)
  [ $# = 6 ] || fail "usage: start_rgw.sh start DIR PORT MON_PORT ACCESS_KEY SECRET_KEY"
  DIR=$(realpath -m "$2") PORT=$3 MON_PORT=$4 ACCESS_KEY=$5 SECRET_KEY=$6
  start
  ;;
stop)
  [ $# = 2 ] || fail "usage: start_rgw.sh stop DIR"
  DIR=$(realpath -m "$2")
  stop
  ;;
*)
  fail "usage: start_rgw.sh start DIR PORT MON_PORT ACCESS_KEY SECRET_KEY | stop DIR"
  ;;
esac
