#!/usr/bin/env bash
# apt.sh PACKAGE...: installs those of Debian's packages that are missing; calls at the same time wait for each other.
set -euo pipefail
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
mkdir -p "$CACHE"
exec 9>"$CACHE/apt.lock"
flock 9
missing=()
for package in "$@"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then exit; fi
if [ "$(id -u)" != 0 ]; then
  echo "missing packages; as root: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}" >&2
# A service that a package starts must not keep the lock.
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >&2 9>&-
apt-get install -q -y --no-install-recommends "${missing[@]}" >&2 9>&-
