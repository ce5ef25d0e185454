#!/usr/bin/env bash
# What makes a cluster without a network plugin of its own heed NetworkPolicies: kube-network-policies of Kubernetes'
# SIG Network, built from its Go module and kept in a tool cache keyed by version. Prints the path of the program.
#
# The cache is $DSOBS_TOOL_CACHE (default ~/.cache/dsobs-tools). Needs Go 1.24 or newer. The first build takes 5 minutes
# on two busy cores.
set -euo pipefail
VERSION=v0.8.0
MODULE=sigs.k8s.io/kube-network-policies
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
ROOT=$CACHE/kube-network-policies-$VERSION

mkdir -p "$CACHE"
exec 9>"$ROOT.lock"
flock 9
if [ ! -e "$ROOT/installed" ]; then
  PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || { echo "network-policies.sh: Go 1.24 or newer is needed, and there is no go in PATH" >&2; exit 1; }
  # A module that is not on the proxy is an error at once, not a slow clone.
  GOPROXY=$(go env GOPROXY | sed 's/,direct$//')
  export GOPROXY GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CGO_ENABLED=0
  echo "building $MODULE $VERSION into $ROOT (some minutes, once)" >&2
  rm -rf "$ROOT"
  mkdir -p "$ROOT"
  # In the module's own folder its go.sum holds for all that it needs.
  cp -r "$(go mod download -json "$MODULE@$VERSION" | sed -nE 's/^\s*"Dir": "(.*)",$/\1/p')" "$ROOT/work"
  chmod -R u+w "$ROOT/work"
  cd "$ROOT/work"
  nice -n 15 go build -ldflags "-s -w" -o "$ROOT/kube-network-policies" ./cmd >&2
  cd "$CACHE"
  rm -rf "$ROOT/work"
  touch "$ROOT/installed"
fi
echo "$ROOT/kube-network-policies"
