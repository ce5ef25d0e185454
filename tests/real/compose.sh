#!/usr/bin/env bash
# Docker Compose, the plugin of the docker command, built from its Go module and kept in a tool cache keyed by version.
#
#   compose.sh    build if needed (progress on stderr), print the folder whose cli-plugins/docker-compose it is
#
# The cache is $DSOBS_TOOL_CACHE (default ~/.cache/dsobs-tools). Needs Go 1.24 or newer.
set -euo pipefail
COMPOSE=v2.40.3
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
MODULE=github.com/docker/compose/v2
ROOT=$CACHE/compose-$COMPOSE

mkdir -p "$CACHE"
exec 9>"$ROOT.lock"
flock 9
if [ ! -e "$ROOT/installed" ]; then
  PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || { echo "compose.sh: Go 1.24 or newer is needed, and there is no go in PATH" >&2; exit 1; }
  # A module that is not on the proxy is an error at once, not a slow clone.
  GOPROXY=$(go env GOPROXY | sed 's/,direct$//')
  export GOPROXY GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CGO_ENABLED=0
  echo "building Docker Compose $COMPOSE into $ROOT (some minutes, once)" >&2
  rm -rf "$ROOT"
  mkdir -p "$ROOT/cli-plugins"
  source=$(go mod download -json "$MODULE@$COMPOSE" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  # In a copy, since what the module replaces holds only in the module itself.
  cp -r "$source" "$ROOT/work"
  chmod -R u+w "$ROOT/work"
  cd "$ROOT/work"
  nice -n 15 go build -trimpath -ldflags "-s -w -X $MODULE/internal.Version=$COMPOSE" \
    -o "$ROOT/cli-plugins/docker-compose" ./cmd >&2
  cd "$CACHE"
  rm -rf "$ROOT/work"
  touch "$ROOT/installed"
fi
echo "$ROOT"
