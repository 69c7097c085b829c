# Sourced by the scripts beside it: goes to the root of the repository and names the environment.
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TS_VENV="${TS_VENV:-.venv}"
case "$TS_VENV" in /*) ;; *) TS_VENV="$PWD/$TS_VENV" ;; esac
export TS_VENV
