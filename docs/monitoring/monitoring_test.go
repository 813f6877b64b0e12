package monitoring_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(text)
}

func alerts(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(read(t, "rules.yaml"), -1) {
		names = append(names, m[1])
	}
	require.NotEmpty(t, names)
	return names
}

// promtool is in Debian's package prometheus; STACK_PROMTOOL names one that is not in PATH.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	program := cmp.Or(os.Getenv("STACK_PROMTOOL"), "promtool")
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	require.NoErrorf(t, err, "%s %s:\n%s", program, strings.Join(args, " "), out)
}

func TestRulesAreValidAndFireWhenTheyShould(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "rules", "rules.yaml")
	promtool(t, "test", "rules", "rules_test.yaml")
}

func TestEveryAlertIsShownToFireAndNotToFire(t *testing.T) {
	t.Parallel()
	tests := read(t, "rules_test.yaml")
	for _, alert := range alerts(t) {
		require.Regexp(t, `alertname: `+alert+`\n +exp_alerts:`, tests, "%s never fires in a test", alert)
		require.Regexp(t, `alertname: `+alert+`\}`, tests, "%s always fires", alert)
	}
}

func TestEveryAlertHasItsSectionInTheRunbook(t *testing.T) {
	t.Parallel()
	runbook := read(t, "runbook.md")
	rules := read(t, "rules.yaml")
	for _, alert := range alerts(t) {
		require.Contains(t, runbook, "\n## "+alert+"\n")
		require.Contains(t, rules, "runbook_url: docs/monitoring/runbook.md#"+strings.ToLower(alert)+"\n")
	}
}

func TestDashboardIsValidAndUsesWhatTheRulesRecord(t *testing.T) {
	t.Parallel()
	var dashboard struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(read(t, "dashboard.json")), &dashboard))
	rules := read(t, "rules.yaml")
	ids := map[int]bool{}
	var asRules strings.Builder // for promtool, which reads no dashboards
	asRules.WriteString("groups: [{name: dashboard, rules: [\n")
	recorded := regexp.MustCompile(`reservation_expiry:[a-z0-9_:]+`)
	for _, panel := range dashboard.Panels {
		require.False(t, ids[panel.ID], "two panels have the id %d", panel.ID)
		ids[panel.ID] = true
		require.True(t, panel.Type == "row" || len(panel.Targets) > 0, panel.Title)
		for _, target := range panel.Targets {
			expr, err := json.Marshal(target.Expr)
			require.NoError(t, err)
			fmt.Fprintf(&asRules, "{record: expr, labels: {n: \"%d\"}, expr: %s},\n", asRules.Len(), expr)
			for _, name := range recorded.FindAllString(target.Expr, -1) {
				require.Contains(t, rules, "record: "+name+"\n", panel.Title)
			}
		}
	}
	asRules.WriteString("]}]\n")
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	require.NoError(t, os.WriteFile(file, []byte(asRules.String()), 0o600))
	promtool(t, "check", "rules", file)
}
