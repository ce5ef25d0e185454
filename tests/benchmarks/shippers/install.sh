#!/usr/bin/env bash
# The shippers that dsobs is compared with.
#
#   install.sh collector      build the OpenTelemetry Collector if needed (progress on stderr), print the binary's path
#   install.sh debian         unpack Debian's rsyslog and syslog-ng if needed, print the folder with their usr
#
# Both are kept in $DSOBS_TOOL_CACHE (default ~/.cache/dsobs-tools). The Collector is built from its Go modules, keyed by
# version: needs Go 1.26 or newer; the first build takes about 3 minutes on two idle cores.
set -euo pipefail
COLLECTOR=0.160.0
HERE=$(cd "$(dirname "$0")" && pwd)
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
# A module that is not on the proxy is an error at once, not a slow clone.
GOPROXY=$(go env GOPROXY | sed 's/,direct$//')
export GOPROXY GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CGO_ENABLED=0

collector() {
  local root=$CACHE/otelcol-$COLLECTOR-2
  mkdir -p "$CACHE"
  exec 9>"$root.lock"
  flock 9
  if [ ! -e "$root/installed" ]; then
    echo "building the OpenTelemetry Collector $COLLECTOR into $root (some minutes, once)" >&2
    rm -rf "$root"
    mkdir -p "$root/work"
    cp "$HERE"/collector/* "$root/work"
    cd "$root/work"
    nice -n 15 go mod tidy >&2
    nice -n 15 go build -ldflags '-s -w' -o "$root/collector" . >&2
    cd "$CACHE"
    rm -rf "$root/work"
    touch "$root/installed"
  fi
  echo "$root/collector"
}

# Unpacked, not installed: nothing on this machine is to change, and no service to be started.
debian() {
  local root=$CACHE/debian-shippers
  # One at a time: they exclude each other.
  local each packages=('rsyslog rsyslog-elasticsearch' 'syslog-ng-core syslog-ng-mod-http')
  mkdir -p "$CACHE"
  exec 9>"$root.lock"
  flock 9
  if [ ! -e "$root/installed" ]; then
    echo "unpacking ${packages[*]} into $root" >&2
    rm -rf "$root"
    mkdir -p "$root/debs/partial" "$root/root"
    apt-get update -q >&2
    for each in "${packages[@]}"; do
      # shellcheck disable=SC2086
      apt-get install -q -y --download-only --no-install-recommends -o "Dir::Cache::archives=$root/debs" $each >&2
    done
    for package in "$root"/debs/*.deb; do dpkg -x "$package" "$root/root"; done
    rm -rf "$root/debs"
    touch "$root/installed"
  fi
  echo "$root/root"
}

case ${1:-} in
  collector | debian) "$1" ;;
  *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac
