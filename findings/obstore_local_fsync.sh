#!/usr/bin/env bash
# Library:  obstore 0.12.1, LocalStore (needs Linux and strace)
# Expected: An object that put() has returned for is on the disk, as it is with the object stores
#           behind the same interface.
# Happens:  The file is written beside and renamed, but neither the file nor its folder is synced: a
#           loss of power can take it.
# For us:   Local files are written by our own function, which syncs file and folder.
set -euo pipefail
VERSION=${VERSION:-0.12.1}
command -v strace >/dev/null || { echo "this needs strace" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "obstore==$VERSION"

cat > put.py <<'PYTHON'
import obstore
from obstore.store import LocalStore

for mode in ("create", "overwrite"):
    obstore.put(LocalStore("store", mkdir=True), "hour/file", bytes(1_000), mode=mode)
PYTHON
strace -f -qq -e signal=none -e trace=fsync,fdatasync,syncfs,sync,rename,renameat,renameat2,link,linkat \
    -o calls env/bin/python put.py
synced=$(grep -cE ' (fsync|fdatasync|syncfs|sync)\(' calls || true)
published=$(grep -cE '(rename|link)[a-z0-9]*\(.*store/hour/file' calls || true)

echo "obstore $(env/bin/python -c 'from importlib.metadata import version; print(version("obstore"))')"
echo "expected: a put() that creates and one that overwrites sync their file"
echo "happened: $published renames or links to the object's name, $synced calls that sync"
if [ "$published" -eq 0 ]; then echo "changed: no rename or link was seen" >&2 && exit 1; fi
if [ "$synced" -ne 0 ]; then echo "changed: something is synced" >&2 && exit 1; fi
