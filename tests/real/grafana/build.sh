#!/usr/bin/env bash
# The reader of dashboards by Grafana's schema (main.go, with the Go module of Grafana's Foundation SDK), built once into
# the tool cache and keyed by version. Prints its path; progress on stderr. Needs Go 1.21 or newer; 3 minutes on 2 cores.
set -euo pipefail
SDK=v0.0.22
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$CACHE/grafana-schema-$SDK-$(sha256sum "$HERE/main.go" | cut -c1-12)

mkdir -p "$CACHE"
exec 9>"$ROOT.lock"
flock 9
if [ ! -e "$ROOT/installed" ]; then
  PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || { echo "build.sh: Go 1.21 or newer is needed, and there is no go in PATH" >&2; exit 1; }
  # A module that is not on the proxy is an error at once, not a slow clone.
  GOPROXY=$(go env GOPROXY | sed 's/,direct$//')
  export GOPROXY GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -mod=mod" CGO_ENABLED=0
  echo "building Grafana's schema reader into $ROOT (some minutes, once)" >&2
  rm -rf "$ROOT"
  mkdir -p "$ROOT/work"
  cp "$HERE/main.go" "$ROOT/work/"
  cd "$ROOT/work"
  go mod init dsobs.test/grafana >&2
  go get "github.com/grafana/grafana-foundation-sdk/go@$SDK" >&2
  nice -n 15 go build -o "$ROOT/schema" . >&2
  cd "$CACHE"
  rm -rf "$ROOT/work"
  touch "$ROOT/installed"
fi
echo "$ROOT/schema"
