#!/usr/bin/env bash
# Lints the Dockerfile, then checks the cpu image without a container engine.
# Uses the Python on PATH, with the `dev` extra installed: PATH=.venv/bin:$PATH deploy/check_image.sh
set -euo pipefail
cd "$(dirname "$0")/.."
hadolint --failure-threshold info Dockerfile
echo "ok: hadolint has nothing to say"
exec python deploy/check_image.py "$@"
