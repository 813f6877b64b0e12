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
pod=.spec.template.spec
[ "$kind" != cronjob ] || pod=.spec.jobTemplate.spec.template.spec
deployed() { kubectl get "$kind" reservation-expiry -o jsonpath="{$pod$1}"; }

# add PATH WITHOUT: what is deployed at PATH; WITHOUT, where nothing is.
add() {
  value=$(deployed "$1")
  printf '{"op":"add","path":"/spec%s","value":%s},' "$(echo "$1" | tr '.[' '/' | tr -d ']')" "${value:-$2}"
}
overrides=$(
  add .securityContext '{}'
  add .volumes '[]'
  for field in env envFrom volumeMounts; do add ".containers[0].$field" '[]'; done
  for field in resources securityContext; do add ".containers[0].$field" '{}'; done
)
kubectl run "reservation-expiry-$(date +%s)" --rm --stdin --quiet --restart=Never \
  --labels=app.kubernetes.io/name=reservation-expiry --image="$(deployed '.containers[0].image')" --override-type=json \
  --overrides="[$overrides{\"op\":\"add\",\"path\":\"/spec/serviceAccountName\",\"value\":\"$(deployed .serviceAccountName)\"}]" -- "$@"
