#!/usr/bin/env bash
# What `make test-all` does: every test, the long ones and those on a real Slurm too, and a record of it.
#     bash tests/all.sh PYTHON
set -euo pipefail
python=$1
cd "$(dirname "$0")/.."

# A one-node Slurm for tests/slurm. Where it cannot be installed those tests skip, and the record says so.
if ! command -v slurmctld >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurmctld slurmd slurm-client munge
fi

report=$(mktemp)
trap 'rm -f "$report"' EXIT
status=0
OMP_NUM_THREADS=1 "$python" -m pytest -n 2 --dist loadfile --junitxml="$report" "${@:2}" || status=$?
"$python" tests/record.py "$report" results/benchmarks/test-all.md
exit "$status"
