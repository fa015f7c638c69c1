#!/bin/sh
# Sets up this clone on a Debian machine: the few system packages that sandboxes without a daemon
# need, a virtual environment in .venv, and the project in it. What is there is left as it is.
#
# As root, or with sudo; an ordinary user without it is told what root has to install.
set -eu
cd "$(dirname "$0")"

missing=
need() { # COMMAND PACKAGE
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need runc runc
need tini-static tini
need newuidmap uidmap
need slirp4netns slirp4netns
need mmdebstrap mmdebstrap
need python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"

if [ -n "$missing" ]; then
    sudo=
    if [ "$(id -u)" != 0 ]; then
        sudo=sudo
        if ! command -v sudo >/dev/null; then
            echo "setup.sh: as root, first: apt-get install$missing" >&2
            exit 1
        fi
    fi
    if ! command -v apt-get >/dev/null; then
        echo "setup.sh: install these with your package manager, then run it again:$missing" >&2
        exit 1
    fi
    echo "setup.sh: installing$missing"
    $sudo apt-get update -qq
    # shellcheck disable=SC2086 # the names are words of their own
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

[ -x .venv/bin/pip ] || python3 -m venv .venv
.venv/bin/pip install -q "pip>=25.1"
.venv/bin/pip install -q -e . --group test
