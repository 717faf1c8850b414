#!/usr/bin/env bash
# Installs the Debian packages of the named sections of packages.txt.
#   deploy/install_packages.sh build [test] [eval]
# Does nothing where all are installed; otherwise it needs root.
set -euo pipefail
list=$(dirname "$0")/packages.txt
[ $# -gt 0 ] || { echo "usage: $0 SECTION..." >&2; exit 2; }

wanted=()
for section in "$@"; do
  mapfile -t found < <(sed -n "s/^$section: *//p" "$list" | tr ' ' '\n')
  if [ ${#found[@]} -eq 0 ]; then
    echo "$0: no section '$section' in $list" >&2
    exit 2
  fi
  wanted+=("${found[@]}")
done

missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [ "${status:0:2}" = ii ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "$0: these packages are missing; install them as root: ${missing[*]}" >&2
  exit 1
fi
echo "installing: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >&2
# Debian's prometheus starts a daemon when installed; tests run their own.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
