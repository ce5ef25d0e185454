#!/usr/bin/env bash
# axe.sh: axe-core from npm, into the tool cache; prints the path of its script.
set -euo pipefail
VERSION=4.14.1
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
FOLDER=$CACHE/axe-core-$VERSION
mkdir -p "$CACHE"
exec 9>"$FOLDER.lock"
flock 9
if [ ! -f "$FOLDER/axe.min.js" ]; then
  command -v npm >/dev/null || bash "$(dirname "$0")/apt.sh" npm
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && npm pack --silent "axe-core@$VERSION" >&2 && tar xzf "axe-core-$VERSION.tgz")
  rm -rf "$FOLDER"
  mv "$work/package" "$FOLDER"
fi
echo "$FOLDER/axe.min.js"
