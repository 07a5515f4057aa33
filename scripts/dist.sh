#!/bin/sh
# Builds the sdist, and the wheel from the sdist, into dist/, and tries both: the tests of the project's files run in the
# unpacked sdist; into empty environments pip installs the sdist without extras, and the wheel with all; both are used.
# The dependencies have the versions of the locks, and pip fetches them.
set -eu

cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
service=
finish() {
    [ -z "$service" ] || kill "$service" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

rm -rf dist
.venv/bin/python -m hatchling build -t sdist -d dist
tar -xzf dist/rstore-*.tar.gz -C "$work"
cd "$work"/rstore-*
"$root/.venv/bin/python" -m hatchling build -t wheel -d "$root/dist"

echo 'Running the tests of the files in the sdist'
"$root/.venv/bin/python" -m pytest -q tests/test_docs.py tests/test_locks.py tests/test_style.py
"$root/.venv/bin/python" -m pytest -q --collect-only tests >"$work/collected" || { tail "$work/collected"; exit 1; }

cd "$work"
sdist=$(ls "$root"/dist/rstore-*.tar.gz)
wheel=$(ls "$root"/dist/rstore-*.whl)
# A constraint with hashes would ask for one of the wheel itself, too.
sed -nE 's/^([a-z0-9-]+==[^\\]*[^\\ ]) ?\\?$/\1/p' "$root/locks/development.txt" >constraints.txt
for environment in bare whole; do
    "$root/.venv/bin/python" -m venv "$environment"
done
echo 'Installing the sdist without extras, and the wheel with all that users have'
bare/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$sdist"
whole/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$wheel[service,cli]"
bare/bin/python -m pip check
whole/bin/python -m pip check

whole/bin/rstored serve --port 0 --dsn "sqlite:///$work/store.db" >address 2>log &
service=$!
tries=0
until grep -q 'http://' address; do
    tries=$((tries + 1))
    [ "$tries" -le 600 ] || { cat log >&2; exit 1; }
    sleep 0.1
done
RSTORE_URL=$(sed -nE 's|.*(http://[0-9.:]+).*|\1|p' address)
export RSTORE_URL

echo 'Using them'
bare/bin/python - <<'END'
import os

import rstore

with rstore.Store(os.environ["RSTORE_URL"], "smoke", frozen=False) as store:
    store["plain"] = {"n": 1}
    assert store["plain"] == {"n": 1}
with rstore.Store(os.environ["RSTORE_URL"], "smoke", key=rstore.generate_key(), frozen=False) as store:
    store["sealed"] = {"n": 2}
    assert store["sealed"] == {"n": 2}
    assert store.get("sealed") == {"n": 2}
END
whole/bin/rstore --namespace smoke set answer 42 >set
[ "$(whole/bin/rstore --namespace smoke get answer)" = 42 ]
[ "$(whole/bin/rstored version)" = "$(bare/bin/python -c 'import rstore; print(rstore.__version__)')" ]
kill "$service"
wait "$service"
service=
ls "$root"/dist
