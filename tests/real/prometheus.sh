#!/usr/bin/env bash
# Real Prometheus 3 and Alertmanager, built from their Go modules and kept in a tool cache keyed by version.
#
#   prometheus.sh server          build if needed (progress on stderr), print the path of the prometheus binary
#   prometheus.sh promtool        the same for promtool
#   prometheus.sh alertmanager    the same for alertmanager
#   prometheus.sh amtool          the same for amtool
#
# The cache is $DSOBS_TOOL_CACHE (default ~/.cache/dsobs-tools). Needs Go 1.25 or newer. The first build of Prometheus
# takes about 9 minutes on two cores, the one of Alertmanager 2. No web UI: neither module carries its built assets.
set -euo pipefail
PROMETHEUS=v0.316.0
ALERTMANAGER=v0.34.0
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}

# build ROOT MODULE VERSION BINARY...: compiles MODULE/cmd/BINARY into ROOT, once, under a lock.
build() {
  local root=$1 module=$2 version=$3
  shift 3
  mkdir -p "$CACHE"
  exec 9>"$root.lock"
  flock 9
  if [ -e "$root/installed" ]; then return; fi
  PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || { echo "prometheus.sh: Go 1.25 or newer is needed, and there is no go in PATH" >&2; exit 1; }
  # A module that is not on the proxy is an error at once, not a slow clone.
  GOPROXY=$(go env GOPROXY | sed 's/,direct$//')
  export GOPROXY GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CGO_ENABLED=0
  echo "building $module $version into $root (some minutes, once)" >&2
  rm -rf "$root"
  mkdir -p "$root/work"
  cd "$root/work"
  go mod init dsobs.test/tools >&2
  go get "$module@$version" >&2
  if [ "$module" = github.com/prometheus/alertmanager ]; then
    # The web UI is embedded, so a copy of the module with a placeholder page is what compiles.
    cp -r "$(go list -m -f '{{.Dir}}' "$module")" "$root/module"
    chmod -R u+w "$root/module"
    mkdir -p "$root/module/ui/app/dist" "$root/module/ui/mantine-ui/dist"
    echo '<html><body>No web UI in this build.</body></html>' | tee "$root/module/ui/app/dist/index.html" \
      >"$root/module/ui/mantine-ui/dist/index.html"
    cd "$root/module"
    for binary in "$@"; do nice -n 15 go build -o "$root/$binary" "./cmd/$binary" >&2; done
  else
    # The commands' own dependencies are not part of the module's, hence -mod=mod.
    for binary in "$@"; do nice -n 15 go build -mod=mod -o "$root/$binary" "$module/cmd/$binary" >&2; done
  fi
  cd "$CACHE"
  chmod -R u+w "$root/work"
  rm -rf "$root/work" "$root/module"
  touch "$root/installed"
}

prometheus() {
  local root=$CACHE/prometheus-$PROMETHEUS
  build "$root" github.com/prometheus/prometheus "$PROMETHEUS" promtool prometheus
  echo "$root/$1"
}

alertmanager() {
  local root=$CACHE/alertmanager-$ALERTMANAGER
  build "$root" github.com/prometheus/alertmanager "$ALERTMANAGER" alertmanager amtool
  echo "$root/$1"
}

case ${1:-} in
  server) prometheus prometheus ;;
  promtool) prometheus promtool ;;
  alertmanager | amtool) alertmanager "$1" ;;
  *) sed -n '2,10p' "$0" >&2; exit 2 ;;
esac
