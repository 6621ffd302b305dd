#!/usr/bin/env bash
# deps.sh CRANE PACKAGE... installs what is missing for the tests, and is quick
# when nothing is.
set -euo pipefail
crane=$1
shift

missing=()
for package in "$@"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
  command -v apt-get >/dev/null || { echo "deps: install by hand, this is no Debian: ${missing[*]}" >&2; exit 1; }
  ((EUID == 0)) || { echo "deps: run as root to install: ${missing[*]}" >&2; exit 1; }
  apt-get update -q
  # Nothing here is to run as a service: the tests start what they need.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${missing[@]}"
fi
[[ -x $(go env GOPATH)/bin/crane ]] || GOFLAGS=-mod=mod go install "$crane"
