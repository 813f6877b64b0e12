#!/bin/sh
# Runs a command of the service's binary in a pod of its own, for when no instance is up to exec into: with the image, the
# account, the settings and the sink that the service is deployed with.
#
#   knative/account/run.sh pause --why "EKS upgrade" --for 2h
set -eu
kubectl() { command kubectl --namespace reservation-expiry "$@"; }

# The Knative Service, KEDA's Deployment or the CronJob: whichever there is.
for kind in ksvc deployment cronjob; do
  kubectl get "$kind" reservation-expiry >/dev/null 2>&1 && break
done
spec=.spec.template.spec
[ "$kind" != cronjob ] || spec=.spec.jobTemplate.spec.template.spec
deployed() { kubectl get "$kind" reservation-expiry -o jsonpath="{$spec$1}"; }

# add PATH WITHOUT: what is deployed at PATH; WITHOUT, where nothing is.
add() {
  value=$(deployed "$1")
  printf '{"op":"add","path":"/spec%s","value":%s},' "$(echo "$1" | tr '.[' '/' | tr -d ']')" "${value:-$2}"
}
image=$(deployed '.containers[0].image')
overrides=$(
  add .securityContext '{}'
  add .volumes '[]'
  for field in env envFrom volumeMounts; do add ".containers[0].$field" '[]'; done
  for field in resources securityContext; do add ".containers[0].$field" '{}'; done
)
pod=reservation-expiry-$(date +%s)-$$
trap 'kubectl delete pod "$pod" --wait=false --ignore-not-found >/dev/null' EXIT
trap 'exit 1' INT TERM
kubectl run "$pod" --restart=Never --labels=app.kubernetes.io/name=reservation-expiry --override-type=json \
  --image="$image" \
  --overrides="[$overrides{\"op\":\"add\",\"path\":\"/spec/serviceAccountName\",\"value\":\"$(deployed .serviceAccountName)\"}]" \
  -- "$@" >/dev/null

# Not attached: what ends at once would have said nothing.
tries=60
until kubectl logs --follow "$pod" 2>/dev/null; do
  tries=$((tries - 1))
  [ $tries -gt 0 ] || { kubectl describe pod "$pod" | sed -n '/^Events:/,$p' >&2; exit 1; }
  sleep 1
done
code=
until [ -n "$code" ]; do
  code=$(kubectl get pod "$pod" -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}')
done
exit "$code"
