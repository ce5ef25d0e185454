#!/usr/bin/env bash
# Real Elasticsearch, from Maven Central, kept in a tool cache keyed by version.
#
#   elasticsearch.sh home         install if needed (progress on stderr), print the folder of the distribution
#   elasticsearch.sh java         print the folder of a Java 21 or newer
#
# VERSION chooses another than 9.2.0 (8.19.5 is the other that is tested). The cache is $DSOBS_TOOL_CACHE (default
# ~/.cache/dsobs-tools). It is Elastic's own minimal distribution for integration tests: the server with security, without
# ILM, ingest, Painless, and the page at `/`; API keys can't be made there (the index that they are in needs an analyzer
# that it has not), and the failure store can be asked for and is not used. tests/real/elasticsearch.py runs copies of it.
set -euo pipefail
VERSION=${VERSION:-9.2.0}
CACHE=${DSOBS_TOOL_CACHE:-$HOME/.cache/dsobs-tools}
ROOT=$CACHE/elasticsearch-$VERSION
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

java_home() {
  local home major
  for home in ${ES_JAVA_HOME:-} ${JAVA_HOME:-} /usr/lib/jvm/*; do
    [ -x "$home/bin/java" ] || continue
    major=$("$home/bin/java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p')
    if [ "${major:-0}" -ge 21 ]; then echo "$home"; return; fi
  done
  echo 'elasticsearch.sh: no Java 21 or newer; install one, or set ES_JAVA_HOME' >&2
  return 1
}

install() {
  mkdir -p "$CACHE"
  exec 9>"$ROOT.lock"
  flock 9
  if [ -e "$ROOT/installed" ]; then return; fi
  echo "installing Elasticsearch $VERSION into $ROOT" >&2
  command -v mvn >/dev/null || bash "$HERE/apt.sh" maven
  command -v unzip >/dev/null || bash "$HERE/apt.sh" unzip
  rm -rf "$ROOT"
  mkdir -p "$ROOT"
  mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy "-DoutputDirectory=$ROOT" \
    "-Dartifact=org.elasticsearch.distribution.integ-test-zip:elasticsearch:$VERSION:zip" >&2
  unzip -q "$ROOT/elasticsearch-$VERSION.zip" -d "$ROOT"
  rm "$ROOT/elasticsearch-$VERSION.zip"
  touch "$ROOT/installed"
}

case ${1:-} in
  home) install; echo "$ROOT/elasticsearch-$VERSION" ;;
  java) java_home ;;
  *) sed -n '2,10p' "$0" >&2; exit 2 ;;
esac
