#!/usr/bin/env bash
# Makes a virtual environment from requirements.lock: infra/install.sh PYTHON VENV [TORCH_BACKEND]
# TORCH_BACKEND (cpu, cu126, …) takes torch and torchvision from PyTorch's own index, as `uv pip install --torch-backend`
# does; the lock cannot hold the hashes of those builds, so both and torch's CUDA packages are then taken out of it.
set -euo pipefail
python=$1 venv=$2 backend=${3:-}
cd "$(dirname "$0")/.."

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "ICG Worker needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Try: make PYTHON=python3.12 …" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
    echo "$python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2
    exit 1
}
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r infra/uv.lock
install=("$venv/bin/uv" pip install --quiet --python "$venv/bin/python")
lock=requirements.lock
echo "Installing $(grep -c '==' "$lock") packages into $venv (about 6 GB with the CUDA build of torch) …"
if [ -n "$backend" ]; then
    lock="$venv/requirements.$backend.lock"
    "$python" infra/without_torch.py requirements.lock >"$lock"
    read -ra torch < <("$python" infra/without_torch.py requirements.lock --names)
    "${install[@]}" --torch-backend "$backend" "${torch[@]}"
    "${install[@]}" --compile-bytecode --no-deps --require-hashes -r "$lock"
else
    "${install[@]}" --compile-bytecode --require-hashes -r "$lock"
fi
"${install[@]}" --no-deps --no-build-isolation --editable .
