#!/usr/bin/env bash
# Changes the pure core and the handlers, one operator at a time, and runs the tests of the package each time; prints the
# score of each package and what survived. MUTATE names packages, WORKERS how many mutants are tried at once (1).
set -euo pipefail

core="internal/reservation internal/pod internal/disk internal/notice internal/event internal/fault internal/config internal/home"
handlers="internal/authn internal/followup internal/dispatch internal/warning internal/sweep internal/cleanup internal/snapshot function"

GO=$(command -v go)
gremlins=$(go tool -modfile=tools/mutation/go.mod -n gremlins)
# A failure is enough: no property is to be shrunk, nor a failing input kept for the next mutant.
export GO PATH=$PWD/tools/mutation:$PATH RAPID_SHRINKTIME=100ms RAPID_NOFAILFILE=true
for package in ${MUTATE:-$core $handlers}; do
  echo "== $package"
  skip= exclude=^$
  case $package in
  function) # the handler, and the tests of it that take no minutes
    skip=-skip='ADayInTheLife|AProcessMayBeKilled|OnTheWire|AnAnswerLost|AnExecThatHangs|TracingCosts|AStartFromZero|Restarts|OnATerminal'
    exclude='^(command|shell|main|wire|telemetry)' ;;
  internal/cleanup) # without those that wait for real pods
    skip=-skip='ForReal|OnADeadNode|TakesItsTime|TroubleInAWS' ;;
  esac
  GOFLAGS="-trimpath -vet=off $skip" "$gremlins" unleash --workers "${WORKERS:-1}" --timeout-coefficient 20 --exclude-files "$exclude" \
    --invert-logical --invert-loopctrl --invert-bitwise --invert-assignments --remove-self-assignments "./$package" 2>&1 \
    | grep -E 'LIVED|TIMED OUT|Killed|Timed out|efficacy'
done
