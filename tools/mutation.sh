#!/usr/bin/env bash
# Changes the pure core, one operator at a time, and runs the tests of the package each time; prints the score of each
# package and what survived. One worker, since the changed copies share a machine with the tests. MUTATE names packages.
set -euo pipefail

gremlins=$(go tool -modfile=tools/mutation/go.mod -n gremlins)
for package in ${MUTATE:-internal/reservation internal/pod internal/disk internal/notice internal/event}; do
  echo "== $package"
  "$gremlins" unleash --workers 1 --timeout-coefficient 20 "./$package" 2>&1 | grep -E 'LIVED|NOT COVERED|TIMED OUT|Killed|Timed out|efficacy|coverage'
done
