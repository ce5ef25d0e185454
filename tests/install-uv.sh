#!/usr/bin/env bash
# install-uv.sh VERSION: puts that version of uv at .uv/bin/uv of the repository. Needs Python 3 and a package index that
# pip can reach; says nothing unless it fails.
set -euo pipefail
version=${1:?usage: install-uv.sh VERSION}
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

quietly() { "$@" >>"$log" 2>&1; }

fail() {
    rm -rf .uv
    {
        echo "install-uv.sh: uv $version could not be installed: $1"
        tail -n 3 "$log" | cut -c 1-200 | sed 's/^/    /'
        echo "    Install uv by hand (https://docs.astral.sh/uv) and run make again."
    } >&2
    exit 1
}

in_venv() {
    rm -rf .uv
    quietly python3 -m venv .uv && quietly .uv/bin/python -m pip install --quiet "uv==$version"
}

# Debian's python3 without python3-venv has no ensurepip, but may have pip.
by_pip() {
    rm -rf .uv
    quietly python3 -m pip --version || return 1
    quietly python3 -m pip install --quiet --target .uv/packages "uv==$version" || return 1
    mkdir -p .uv/bin && ln -sf ../packages/bin/uv .uv/bin/uv
}

with_apt() {
    # With ensurepip there, the package would change nothing: something else is wrong.
    quietly python3 -c 'import ensurepip' && return 1
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    quietly env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
        quietly env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-venv && in_venv
}

command -v python3 >/dev/null || fail "there is no python3"
in_venv || by_pip || with_apt || fail "neither venv nor pip got it"
quietly .uv/bin/uv --version || fail "the program does not run"
