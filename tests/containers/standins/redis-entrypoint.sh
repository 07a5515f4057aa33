#!/bin/sh
# What the official image's entrypoint does for a container whose `user` is not root.
set -e
if [ "${1#-}" != "$1" ] || [ "${1%.conf}" != "$1" ]; then
    set -- redis-server "$@"
fi
[ "$(umask)" = 0022 ] && umask 0077
exec "$@"
