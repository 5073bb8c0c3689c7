#!/usr/bin/env bash
# What `make bench-peers` runs beside meshq, and their clients. What cannot be had is said, and left out of the tables.
#   install.sh PYTHON
set -uo pipefail
cd "$(dirname "$0")/../.."
out=benchmarks/out/kafka

lacking() { echo "bench-peers: $1: left out" >&2; }

"$1" -m pip install --quiet --disable-pip-version-check --no-input --editable '.[dev,bench-peers]' ||
    lacking "the clients could not be installed"

packages=()
command -v redis-server >/dev/null || packages+=(redis-server)
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || packages+=(rabbitmq-server)
command -v java >/dev/null || packages+=(default-jre-headless)
command -v openssl >/dev/null || packages+=(openssl)
[ -n "$(ls "$out"/kafka_2.13-*.jar 2>/dev/null)" ] || command -v mvn >/dev/null || packages+=(maven)
if [ "${#packages[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        lacking "${packages[*]} (not root, or no apt-get here)"
    else
        # Debian starts a server that it installs; these are to run only when they are measured.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
            trap 'rm -f "$policy"' EXIT
        fi
        export DEBIAN_FRONTEND=noninteractive
        timeout 120 apt-get update -qq >/dev/null 2>&1
        timeout 600 apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null 2>&1 ||
            lacking "${packages[*]} (apt-get failed)"
    fi
fi

if [ -z "$(ls "$out"/kafka_2.13-*.jar 2>/dev/null)" ]; then
    mkdir -p "$out"
    mvn -q -B -f benchmarks/peers/kafka.pom.xml dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$PWD/$out" >/dev/null 2>&1 || lacking "Kafka's jars (mvn failed)"
fi
exit 0
