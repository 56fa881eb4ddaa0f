#!/usr/bin/env bash
# Library:  mkdocs-material 9.8.2 with mkdocs 1.6.1
# Expected: The built-in offline plugin makes a site that opens from a folder without network.
# Happens:  Each page loads a script from a public CDN, which the search needs when opened from a folder.
# For us:   Our site carries a worker of its own for the search, and makes no request.
set -euo pipefail
VERSION=${VERSION:-9.8.2}
export NO_MKDOCS_2_WARNING=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "mkdocs-material==$VERSION" mkdocs==1.6.1

mkdir docs
echo "# Home" > docs/index.md
cat > mkdocs.yml <<'YAML'
site_name: offline
theme:
  name: material
  font: false
plugins: [search, offline]
YAML
env/bin/mkdocs build --quiet
env/bin/python - <<'PYTHON'
import re
import sys
from importlib.metadata import version

page = open("site/index.html").read()
scripts = re.findall(r'<script[^>]+src="?(https?://[^" >]+)', page)
print(f"mkdocs-material {version('mkdocs-material')}, mkdocs {version('mkdocs')}")
print("expected: no script of the page is loaded from the network")
print(f"happened: {len(scripts)} from the network, its path ends with {scripts[0].rsplit('/', 1)[1] if scripts else '-'}")
if not scripts:
    sys.exit("changed: the page loads no script from the network")
PYTHON
