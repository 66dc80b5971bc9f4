#!/usr/bin/env bash
# Installs the library into an empty environment, from the checkout and as a wheel, and trains a step.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --constraint requirements.txt .
"$folder/env/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" .
"$folder/env/bin/python" -m pip install --quiet --force-reinstall --no-deps "$folder"/*.whl
cat > "$folder/step.py" <<'EOF'
"""Train a step with every method on toy networks, with the installed library alone."""

from pathlib import Path

import stylegan2_fewshot
from stylegan2_fewshot import Plugins, laws
from stylegan2_fewshot.plugin import registry

place = Path(stylegan2_fewshot.__file__).parent
assert "site-packages" in place.parts, place
for kernels in ("ops/cpu/winograd.cpp", "ops/cuda/upfirdn2d.cu", "py.typed"):
    assert (place / kernels).is_file(), kernels
for name, cls in registry().items():
    laws.check(cls)
    assert laws.steps(Plugins({name: cls(**cls.neutral)})), name
print(f"the installed library trains a step with each of {len(registry())} methods")
EOF
cd "$folder" && env/bin/python step.py
