#!/bin/sh
# The system programs that tests need, named in this one place. `make test` runs it first; `make programs` runs it alone.
#
#   all are there       it says nothing and takes some milliseconds
#   Debian or Ubuntu    it installs what is missing, as root or with a sudo that wants no password;
#                       as anyone else it stops with the one command that does
#   other systems       it stops with the names of what is missing
#
# Usage: system_programs.sh [PYTHON...]. One of those interpreters must be new enough and able to make environments.
# SYSTEM_ROOT: where the system's files begin, for the test of this script.
set -eu
root=${SYSTEM_ROOT-}
PATH=$PATH:$root/usr/sbin # Debian keeps haproxy there, where an ordinary user does not look
release() { [ ! -r "$root/etc/os-release" ] || (. "$root/etc/os-release" && eval "printf %s \"\${$1-}\""); }

case $(release ID)-$(release VERSION_ID) in
  ubuntu-22.04) python="python3.11 python3.11-venv" ;; # its python3 is 3.10
  *) python="python3 python3-venv" ;;
esac
case $(release ID) in
  ubuntu) chromium=chromium-browser ;; # brings the snap; a container, which has no snaps, needs Google Chrome
  *) chromium=chromium ;;
esac

there() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

need() { # PACKAGES PROGRAM [INSTEAD...]: of Debian, and what they bring; any one of the programs will do
  packages=$1 program=$2
  shift
  for candidate; do ! there "$candidate" || return 0; done
  missing_packages="$missing_packages $packages" missing_programs="$missing_programs $program"
}

can_make_environments() {
  for interpreter; do
    ! "$interpreter" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 0
  done
  return 1
}

look() {
  missing_packages='' missing_programs=''
  [ $# = 0 ] || can_make_environments "$@" || need "$python" "Python-3.11-or-newer-with-venv"
  ! [ -e "$root/etc/debian_version" ] || need ca-certificates "$root/etc/ssl/certs/ca-certificates.crt"
  need openssl openssl # certificates of tests
  need curl curl # commands of the documentation
  need jq jq
  need postgresql postgres "$root"/usr/lib/postgresql/*/bin/postgres # the store
  need "$chromium" chromium chromium-browser google-chrome google-chrome-stable # the pages
  need haproxy haproxy # a gateway
  need prometheus promtool # rules, and the alert loop
  need prometheus-alertmanager prometheus-alertmanager
}

look "$@"
[ -n "$missing_packages" ] || exit 0

case " $(release ID) $(release ID_LIKE) " in
  *" debian "* | *" ubuntu "*) ;;
  *)
    echo "Tests need programs that are not here:$missing_programs" >&2
    echo "Install them with the package manager of this system; on Debian and Ubuntu make does." >&2
    exit 2
    ;;
esac

if [ "$(id -u)" = 0 ]; then
  as_root=''
elif sudo -n true 2>/dev/null; then
  as_root='sudo -n'
else
  command="apt-get update && apt-get install --yes --no-install-recommends$missing_packages"
  echo "Tests need programs that are not here:$missing_programs" >&2
  echo "This installs them, as root:" >&2
  if there sudo; then echo "    sudo sh -c '$command'" >&2; else echo "    su -c '$command'" >&2; fi
  exit 2
fi

echo "Installing what tests need (once):$missing_packages"
# Errors are still printed.
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null >/dev/null; }
apt update
# shellcheck disable=SC2086 # one word for each package
apt install --yes --no-install-recommends --no-upgrade $missing_packages # what is there stays as it is
look "$@"
[ -z "$missing_programs" ] || {
  echo "Installed, and still not to be found:$missing_programs" >&2
  exit 2
}
