#!/usr/bin/env bash
# What the tests in network namespaces need: ip (iproute2), nft (nftables) and tcpdump. Where they cannot be installed, says so and
# succeeds: those tests are then skipped, with the reason.
set -euo pipefail

missing=()
command -v ip >/dev/null || missing+=(iproute2)
command -v nft >/dev/null || missing+=(nftables)
command -v tcpdump >/dev/null || missing+=(tcpdump)
[ "${#missing[@]}" -gt 0 ] || exit 0

skip() {
    echo "lab: ${missing[*]} not installed ($1): the tests that need it are skipped" >&2
    exit 0
}
[ "$(id -u)" = 0 ] || skip "not root"
command -v apt-get >/dev/null || skip "no apt-get here"

export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
"${install[@]}" >/dev/null 2>&1 ||
    { timeout 120 apt-get update -qq >/dev/null 2>&1 && timeout 300 "${install[@]}" >/dev/null 2>&1; } ||
    skip "apt-get failed"
echo "lab: installed ${missing[*]}"
