#!/bin/sh
# Runs tests/containers in a Docker engine of its own: `make container-test`. Arguments go to pytest.
#
# The engine, its containers and the tests live in namespaces of their own (network, mounts, processes), which end with
# this script however it ends. So they meet no other engine, need no free port, and leave nothing behind but
# .venv/container: the root file systems that debootstrap made for the stand-in images, and the wheels of the locks.
# No image is pulled: Debian stands for python, redis and postgres (tests/containers/standins).
set -eu
cd "$(dirname "$0")/.."

cache=$PWD/.venv/container
engine=$cache/engine
cgroup=rstore-container-test
mirror=${DEBIAN_MIRROR-http://deb.debian.org/debian}

fail() {
    printf 'container-test cannot run: %s\n' "$1" >&2
    exit 1
}

# --- what the tests need ----------------------------------------------------------------------------------

check_machine() {
    [ "$(uname -s)" = Linux ] || fail 'it starts a Docker engine, which takes Linux'
    [ "$(id -u)" = 0 ] || fail 'it starts a Docker engine and makes root file systems, which takes root'
    unshare --net --mount --pid --fork true 2>/dev/null || fail 'this machine lets root make no namespaces (a container without privileges?)'
}

missing() {
    for pair in dockerd:docker.io docker:docker-cli containerd:containerd runc:runc debootstrap:debootstrap ip:iproute2 iptables:iptables xz:xz-utils; do
        command -v "${pair%%:*}" >/dev/null || printf ' %s' "${pair#*:}"
    done
}

install_programs() {
    packages=$(missing)
    [ "$packages" ] || return 0
    if command -v apt-get >/dev/null; then
        # Some releases have the client in the package of the engine.
        apt-cache show docker-cli >/dev/null 2>&1 || packages=$(printf '%s' "$packages" | sed 's/ docker-cli//')
        # shellcheck disable=SC2086 # several words, each a package
        scripts/servers.sh --install $packages || true
    fi
    packages=$(missing)
    [ -z "$packages" ] || fail "these programs are missing, by the names of their Debian packages:$packages"
}

# A root file system of a Debian release with some packages, as $cache/NAME.tar.
make_root() {
    name=$1 release=$2 packages=$3
    [ -e "$cache/$name.tar" ] && return
    echo "Making a Debian $release with $packages (once) …" >&2
    rm -rf "${cache:?}/$name"
    debootstrap --variant=minbase --include="$packages" "$release" "$cache/$name" "$mirror" >"$cache/$name.log" 2>&1 ||
        fail "debootstrap $release failed; see $cache/$name.log (DEBIAN_MIRROR names another mirror than $mirror)"
    rm -rf "$cache/$name"/var/cache/apt/archives/*.deb "$cache/$name"/var/lib/apt/lists/* "$cache/$name"/usr/share/doc
    plugin=$cache/$name/usr/libexec/docker/cli-plugins/docker-compose
    [ ! -e "$plugin" ] || mv "$plugin" "$cache/docker-compose"
    tar -C "$cache/$name" --one-file-system -cf "$cache/$name.tar.new" .
    rm -rf "${cache:?}/$name"
    mv "$cache/$name.tar.new" "$cache/$name.tar"
}

# The wheels of the locks for the Python of the image, checked against their hashes. What only early patch releases need is
# always among them: the Python that downloads is a later one than the stand-in's.
download_wheels() {
    [ "$cache/index" -nt locks/service.txt ] && [ "$cache/index" -nt locks/build.txt ] && return
    echo 'Downloading the wheels of locks/service.txt and locks/build.txt …' >&2
    rm -rf "$cache/index" "$cache/index.new"
    for lock in service build; do
        sed 's/ ; python_full_version < [^\\]*/ /' "locks/$lock.txt" >"$cache/$lock.txt"
    done
    .venv/bin/python -m pip --quiet --disable-pip-version-check download --python-version 3.11 --require-hashes \
        --only-binary :all: --no-deps --dest "$cache/index.new" -r "$cache/service.txt" -r "$cache/build.txt" ||
        fail 'pip could not download the wheels'
    mv "$cache/index.new" "$cache/index"
    touch "$cache/index"
}

# --- the engine and the tests, in their namespaces ---------------------------------------------------------

clean() {
    rm -rf "$engine"
    for controller in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ ! -d "$controller/$cgroup" ] || find "$controller/$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
}

inside() {
    ip link set lo up
    # Sockets and state of the engine. Those of another one are out of sight.
    mount -t tmpfs tmpfs /run
    mkdir -p "$engine/client/cli-plugins" "$engine/tmp"
    ln -s "$cache/docker-compose" "$engine/client/cli-plugins/docker-compose"
    echo '{}' >"$engine/daemon.json"
    dockerd --config-file "$engine/daemon.json" --data-root "$engine/data" --exec-root /run/docker --pidfile /run/docker.pid \
        --host unix:///run/docker.sock --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$cgroup" >"$engine/log" 2>&1 &
    export DOCKER_HOST=unix:///run/docker.sock DOCKER_CONFIG="$engine/client" TMPDIR="$engine/tmp" RSTORE_CONTAINER_CACHE="$cache"
    unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH
    tries=0
    until docker version >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" = 300 ] || ! kill -0 $! 2>/dev/null; then
            cat "$engine/log" >&2
            fail 'the Docker engine did not start; its log is above'
        fi
        sleep 0.2
    done
    .venv/bin/pytest tests/containers "$@"
}

if [ "${1-}" = --inside ]; then
    shift
    inside "$@"
    exit
fi

check_machine
mkdir -p "$cache"
exec 9>"$cache/lock"
flock --nonblock 9 || fail 'another container-test runs in this folder'
install_programs
make_root python bookworm python3-venv,python-is-python3
make_root servers trixie redis-server,postgresql-17,docker-compose
download_wheels
clean # what a run that was killed left
trap clean EXIT
trap 'exit 130' HUP INT TERM
status=0
# Whoever kills this script ends them too.
setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private "$0" --inside "$@" 9>&- || status=$?
exit "$status"
