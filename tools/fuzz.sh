#!/usr/bin/env bash
# Runs every fuzz target for FUZZTIME and prints how many inputs each has seen. A target that fails leaves its input in
# testdata/fuzz beside the test, to be committed with the fix; what is worth keeping of the others is in Go's cache.
set -euo pipefail

module=$(go list -m)
failed=0
total=0
row='%-24s %-26s %12s %8s %8s  %s\n'
# shellcheck disable=SC2059 # the format of every row
printf "$row" package target inputs kept corpus ''
while read -r package target; do
  log=$(mktemp)
  outcome=held
  if ! go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-30s}" -fuzzminimizetime 1s -parallel "${FUZZWORKERS:-4}" "$package" >"$log" 2>&1; then
    outcome=FAILED failed=1
    cat "$log"
  fi
  executed=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' "$log" | tail -1)
  known=$(sed -n 's/.*(total: \([0-9]*\)).*/\1/p' "$log" | tail -1)
  corpus=$(find "$(go list -f '{{.Dir}}' "$package")/testdata/fuzz/$target" -type f 2>/dev/null | wc -l)
  total=$((total + ${executed:-0}))
  # shellcheck disable=SC2059
  printf "$row" "${package#"$module"/}" "$target" "${executed:-0}" "${known:-0}" "$corpus" "$outcome"
  rm -f "$log"
done < <(grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z]*' function internal | sed 's|\(.*\)/[^/]*_test.go:func \(Fuzz.*\)|\1 \2|' | sort |
  while read -r directory target; do echo "$module/$directory $target"; done)

printf '%-51s %12s\n' total "$total"
exit $failed
