#!/bin/sh
# What the benchmarks measure rstore against: programs of Debian, installed as root, and packages of PyPI, each in a
# virtual environment of its own under .venv/peers. What cannot be installed is told and shown as not measured.
set -eu
cd "$(dirname "$0")/.."

missing=
for pair in wrk:wrk etcd:etcd-server webdis:webdis victoria-metrics:victoria-metrics influxd:influxdb; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
if [ "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # shellcheck disable=SC2086 # several words, each a package
        scripts/servers.sh --install $missing || echo "not everything was installed:$missing" >&2
    else
        echo "NOT MEASURED will be what is missing here: apt-get install$missing" >&2
    fi
fi

environment() {
    folder=.venv/peers/$1
    shift
    [ -e "$folder/.installed" ] && return
    rm -rf "$folder"
    .venv/bin/python -m venv "$folder" &&
        "$folder/bin/pip" install --quiet --disable-pip-version-check "$@" &&
        touch "$folder/.installed" || echo "NOT MEASURED will be $1: it could not be installed" >&2
}

environment kinto 'kinto[postgresql]==26.5.0'
environment eventsourcing 'eventsourcing[postgres]==9.5.6' 'psycopg[binary]'
# rlib-store's Redis part needs redis-py as it was in 2018.
environment rlib-store rlib-store==0.1 redis==2.10.6 psycopg2-binary
