#!/usr/bin/env bash
# Run the unit tests, the demo, and the demo of an installed wheel with the Python and the OpenSSL of another Debian
# release, in a chroot that begins as a minimal installation.
#
#   tests/pythons.sh [RELEASE [PYTEST ARGUMENT...]]     RELEASE is a Debian code name, trixie by default
#
# The base system is made once by debootstrap in build/pythons/RELEASE, from the mirror that this machine's own
# apt uses; remove that folder to make it anew. The checkout is copied into it as git knows it, with changes that
# are not committed. Mounts live in a mount namespace of their own and end with this script.
set -euo pipefail
cd "$(dirname "$0")/.."

release=${1:-trixie}
shift || true
[ "$#" -gt 0 ] || set -- tests/unit
system=$PWD/build/pythons/$release
packages=python3,python3-venv,python3-dev,gcc,libc6-dev,make,git,libssl-dev,openssl,ca-certificates,libpq5
# Peers of the unit tests, and programs that they call. Tests that start no process need none.
case " $* " in
  *" --fast "*) ;;
  *) packages+=,dcmtk,orthanc,postgresql,redis-server,procps,strace,util-linux,e2fsprogs ;;
esac

# With CI=true a missing program is a failure, as in the tests.
skip() { echo "skipped: $1"; [ "${CI:-}" != true ]; exit; }
command -v debootstrap >/dev/null || skip "debootstrap is missing; apt-get install debootstrap"
command -v unshare >/dev/null || skip "unshare is missing; apt-get install util-linux"
[ "$(id -u)" -eq 0 ] || skip "a chroot needs root; run this with sudo"

if [ "$(cat "$system/complete" 2>/dev/null)" != "$packages" ]; then
  echo "Making a Debian $release in $system …"
  rm -rf "$system"
  mkdir -p "$system"
  debootstrap --variant=minbase --include="$packages" "$release" "$system" "$(python3 tests/install/network.py mirror)" \
    >"$system.log" 2>&1 || { tail -n 40 "$system.log"; exit 1; }
  echo "$packages" >"$system/complete"
fi
python3 tests/install/network.py open "$system"
mkdir -p "$system/src"

# Keep the virtual environment of an earlier run; everything else comes from this checkout. The extensions are built
# anew: they lie among the sources, and go with them.
rm -f "$system/src/.venv/stamp"
find "$system/src" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- --ignore-failed-read \
  | tar --extract --directory="$system/src"

inside='
set -e
cd /src
python3 --version
openssl version
make setup
.venv/bin/python -m pytest -p no:cacheprovider "$@"
make demo
# The wheel, in a virtual environment that knows nothing of the sources and has no extra.
.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir /tmp/wheels .
python3 -m venv /tmp/venv
/tmp/venv/bin/pip install --quiet /tmp/wheels/*.whl
cd /tmp
/tmp/venv/bin/ingest --version
/tmp/venv/bin/ingest demo
'
# Tests of programs that the chroot has not (jing, promtool) are skipped there, with CI=true too.
# The settings of pip are in its pip.conf; variables may name files that only this machine has.
mapfile -t variables < <(compgen -e | grep -E '^(PIP_|CI$|PYTHON|VIRTUAL_ENV|NODE_|SSL_CERT)' | sed 's/^/--unset=/')
# shellcheck disable=SC2016
exec env "${variables[@]}" SYSTEM="$system" INSIDE="$inside" \
  unshare --mount --propagation private --pid --fork --mount-proc="$system/proc" bash -c '
    mount --rbind /dev "$SYSTEM/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$SYSTEM/tmp"
    exec chroot "$SYSTEM" /usr/bin/env -u INSIDE HOME=/root LANG=C.UTF-8 bash -c "$INSIDE" pythons "$@"
  ' pythons "$@"
