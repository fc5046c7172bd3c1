#!/bin/bash
# Three real Ray nodes on one machine, each as if a machine of its own: namespaces for its network, mounts (/tmp and
# /dev/shm are its own), processes, host name, IPC and clock (CLOCK_MONOTONIC differs), and token authentication.
# All hangs on one init process for each node and one for the switch between them: when this shell ends, however it
# does, the kernel removes everything. Needs root.
#
#   three_nodes.sh COMMAND...     runs COMMAND on node a, the head, with RAY_ADDRESS and RAY_API_SERVER_ADDRESS set
#   RATE=20mbit                   the network of node b is that slow
#   PYTHON=.venv/bin/python       whose ray
#   DASHBOARD=true                with the job API
#   CUT_WHEN=FILE                 the cable of node c is pulled as soon as FILE is there (on the machine itself)
set -u
python=${PYTHON:-python3}
work=$(mktemp -d /tmp/three-nodes.XXXXXX)
chmod 700 "$work"
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -c1-64)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_DISABLE_IMPORT_WARNING=1 RAY_USAGE_STATS_ENABLED=0
declare -A init
inits=() starts=()

clean() {
  trap - EXIT INT TERM HUP
  for process in "${starts[@]}" "${inits[@]}"; do kill -KILL "$process" 2>/dev/null; done
  wait 2>/dev/null
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

child() {                                    # the process that `unshare --fork` has started
  local found
  for _ in $(seq 100); do
    found=$(tr -d ' ' 2>/dev/null <"/proc/$1/task/$1/children")
    [ -n "$found" ] && echo "$found" && return
    sleep 0.05
  done
  exit 1
}

on() {                                       # on NODE COMMAND...
  local node=$1
  shift
  nsenter -t "${init[$node]}" -n -m -p -u -i -T -- sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
}

setpriv --pdeathsig KILL unshare --net --kill-child --fork sleep infinity &
inits+=($!)
lan=$(child $!)
nsenter -t "$lan" -n sh -c 'ip link add br0 type bridge && ip link set br0 up && ip link set lo up' || exit 1

private_tmp='mount -t tmpfs -o size=1g tmpfs /tmp'
case $PWD/ in                                # what is run from below /tmp stays visible
  /tmp/*) private_tmp="mount --bind '$PWD' /mnt && $private_tmp && mkdir -p '$PWD' && mount --move /mnt '$PWD'" ;;
esac
number=0
for node in a b c; do
  number=$((number + 1))
  setpriv --pdeathsig KILL unshare --net --mount --pid --uts --ipc --time --monotonic $((number * 1000)) \
    --boottime $((number * 1000)) --fork --kill-child --mount-proc sh -c "
      hostname node-$node
      mount -t tmpfs -o size=1g tmpfs /dev/shm
      $private_tmp
      exec sleep infinity" &
  inits+=($!)
  init[$node]=$(child $!)
  ip link add "v$node" netns "$lan" type veth peer name eth0 netns "${init[$node]}" || exit 1
  nsenter -t "$lan" -n ip link set "v$node" master br0 up
  nsenter -t "${init[$node]}" -n sh -c "
    ip link set lo up && ip link set eth0 up && ip addr add 10.99.0.$number/24 dev eth0"
done
if [ -n "${RATE:-}" ]; then
  nsenter -t "${init[b]}" -n tc qdisc add dev eth0 root tbf rate "$RATE" burst 10k latency 100ms || exit 1
fi

common=(--num-cpus 1 --object-store-memory $((80 * 1024 * 1024)) --disable-usage-stats --include-log-monitor false
  --block --temp-dir /tmp/ray)
begin() {                                    # begin NODE NUMBER OPTIONS...
  local node=$1 number=$2
  shift 2
  on "$node" "$python" -m ray.scripts.scripts start --node-ip-address "10.99.0.$number" \
    --resources "{\"node_$node\": 1}" --labels "site=$node" "${common[@]}" "$@" >"$work/$node.log" 2>&1 &
  starts+=($!)
}
begin a 1 --head --port 6379 --include-dashboard "${DASHBOARD:-false}" --dashboard-host 10.99.0.1 --dashboard-port 8265
until on a bash -c '</dev/tcp/10.99.0.1/6379' 2>/dev/null; do
  kill -0 "${starts[0]}" 2>/dev/null || { tail -n 5 "$work/a.log" >&2; exit 1; }
  sleep 0.2
done
begin b 2 --address 10.99.0.1:6379
begin c 3 --address 10.99.0.1:6379

export RAY_ADDRESS=10.99.0.1:6379 RAY_API_SERVER_ADDRESS=http://10.99.0.1:8265
on a timeout 150 "$python" -c '
import logging, time, ray
ray.init(log_to_driver=False, logging_level=logging.ERROR)
while sum(node["Alive"] for node in ray.nodes()) < 3: time.sleep(0.1)
' || { tail -n 5 "$work"/?.log >&2; exit 1; }
if [ -n "${CUT_WHEN:-}" ]; then
  (until [ -e "$CUT_WHEN" ]; do sleep 0.1; done; nsenter -t "$lan" -n ip link set vc down) &
  starts+=($!)
fi
on a "$@"
