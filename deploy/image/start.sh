#!/bin/sh
# start.sh COMMAND…: the first process of dsobs's container.
# Kubernetes counts a native sidecar in the readiness of its pod, and a container that ends, for whatever reason, takes
# the pod out of service until it is back. So `dsobs run` belongs to `dsobs supervise`, which starts it again when it ends,
# and the container stays. Who stops the container says how long that may take. Every other command takes this
# process's place.
[ "${1-}" = run ] || exec dsobs "$@"
exec dsobs supervise --socket /var/lib/dsobs/supervise.sock --stop-grace inf -- dsobs "$@"
