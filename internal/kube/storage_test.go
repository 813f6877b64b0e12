package kube_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpudev.internal/reservation-expiry/internal/fault"
)

func volumeObject(policy corev1.PersistentVolumeReclaimPolicy) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		TypeMeta:   metav1.TypeMeta{Kind: "PersistentVolume", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: "pv", UID: "u", ResourceVersion: "5"},
		Spec:       corev1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: policy},
	}
}

func TestRetainVolume(t *testing.T) {
	t.Parallel()
	const patch = `PATCH {"metadata":{"resourceVersion":"5","uid":"u"},"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`
	for name, c := range map[string]struct {
		before, after corev1.PersistentVolumeReclaimPolicy
		uid           string
		patched       int
		requests      []string
		want          fault.Kind
		retained      bool
	}{
		"patched and read back":          {"Delete", "Retain", "u", 200, []string{"GET", patch, "GET"}, 0, true},
		"retained already":               {"Retain", "Retain", "u", 200, []string{"GET"}, 0, true},
		"patched but not so when read":   {"Delete", "Delete", "u", 200, []string{"GET", patch, "GET"}, fault.Conflict, false},
		"another volume by now":          {"Delete", "Retain", "u0", 200, []string{"GET"}, fault.Conflict, false},
		"changed meanwhile":              {"Delete", "Delete", "u", 409, []string{"GET", patch}, fault.Conflict, false},
		"no permission":                  {"Delete", "Delete", "u", 403, []string{"GET", patch}, fault.Permanent, false},
		"the API server fails over this": {"Delete", "Delete", "u", 500, []string{"GET", patch}, fault.Transient, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests []string
			policy := c.before
			cluster := answering(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if r.Method == http.MethodGet {
					requests = append(requests, "GET")
					write(w, 200, volumeObject(policy))
					return
				}
				requests = append(requests, r.Method+" "+string(body))
				if c.patched != 200 {
					reasons := map[int]metav1.StatusReason{409: metav1.StatusReasonConflict, 403: metav1.StatusReasonForbidden, 500: metav1.StatusReasonInternalError}
					write(w, c.patched, status(c.patched, reasons[c.patched], "persistentvolumes", "pv"))
					return
				}
				policy = c.after
				write(w, 200, volumeObject("Retain"))
			})
			v, err := cluster.RetainVolume(t.Context(), "pv", c.uid)
			require.Equal(t, c.requests, requests)
			require.Equal(t, c.retained, v.Retained())
			if c.retained {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			require.Equal(t, c.want.String(), fault.KindOf(err).String(), err)
		})
	}
}

func TestWhatAVolumeNames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		source     corev1.PersistentVolumeSource
		driver, id string
	}{
		"the CSI driver":             {corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "ebs.csi.aws.com", VolumeHandle: "vol-0123456789abcdef0"}}, "ebs.csi.aws.com", "vol-0123456789abcdef0"},
		"the in-tree field":          {corev1.PersistentVolumeSource{AWSElasticBlockStore: &corev1.AWSElasticBlockStoreVolumeSource{VolumeID: "aws://us-east-1a/vol-0123456789abcdef0"}}, "kubernetes.io/aws-ebs", "vol-0123456789abcdef0"},
		"another driver, other ids":  {corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "efs.csi.aws.com", VolumeHandle: "fs-0123"}}, "efs.csi.aws.com", ""},
		"a directory on the machine": {corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := volumeObject("Retain")
			o.Spec.PersistentVolumeSource = c.source
			o.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "gpu-dev", Name: "claim", UID: "cu"}
			v, err := answering(t, func(w http.ResponseWriter, _ *http.Request) { write(w, 200, o) }).GetVolume(t.Context(), "pv")
			require.NoError(t, err)
			require.Equal(t, c.driver, v.Driver)
			require.Equal(t, c.id, v.VolumeID)
			require.Equal(t, "gpu-dev/claim cu", v.ClaimNamespace+"/"+v.ClaimName+" "+v.ClaimUID)
		})
	}
}
