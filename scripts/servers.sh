#!/bin/sh
# PostgreSQL, Redis (or Valkey) and nginx for the tests: says nothing when they are there, installs them where it may, and
# otherwise says what will be skipped. No server is left running: the tests start their own.
#
#   scripts/servers.sh             as root on Debian and its kin it installs what is missing
#   scripts/servers.sh --dry-run   say what would be done
#   scripts/servers.sh --install PACKAGE…   install these, as root on Debian, and start nothing
#
# With CI=true it fails unless everything is there in the end, since what is skipped is not tested. Programs are
# looked for on PATH and in the folders of SERVER_FOLDERS.
set -eu

folders=${SERVER_FOLDERS-/usr/lib/postgresql/*/bin /usr/sbin /opt/homebrew/opt/*/bin /usr/local/opt/*/bin}

there() {
    for program in "$@"; do
        command -v "$program" >/dev/null && return
        for folder in $folders; do
            [ -x "$folder/$program" ] && return
        done
    done
    return 1
}

# The packages whose programs are missing; tests/servers.py looks for the same programs.
missing() {
    { there initdb && there postgres && there pg_basebackup; } || printf ' postgresql'
    { there redis-server valkey-server && there redis-cli valkey-cli; } || printf ' redis-server'
    there nginx || printf ' nginx'
}

run() {
    echo "+ $*" >&2
    [ "$dry" ] || "$@"
}

# Debian starts a server that it has installed unless this file forbids it.
policy=/usr/sbin/policy-rc.d

install_packages() {
    if [ ! "$dry" ] && [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    run apt-get update -qq
    # shellcheck disable=SC2086 # several words, each a package
    run env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $1
}

dry=
case "${1-}" in
--dry-run) dry=yes ;;
--install) shift; install_packages "$*"; exit ;;
?*) echo "usage: $0 [--dry-run | --install PACKAGE…]" >&2; exit 2 ;;
esac

packages=$(missing)
[ "$packages" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing for the tests:$packages …" >&2
    # What failed is seen by what is still missing.
    install_packages "$packages" || true
    [ "$dry" ] || packages=$(missing)
    [ "$packages" ] && [ ! "$dry" ] || exit 0
fi

remedy="apt-get install$packages"
case "${CI-}" in
1 | [Tt]rue | TRUE) echo "ERROR: the tests need what is not installed: $remedy" >&2; exit 1 ;;
esac
cat >&2 <<END

  ****************************************************************************
  NOT EVERYTHING WILL BE TESTED: tests are skipped for what is missing here.
  To run them:  $remedy
  ****************************************************************************

END
