package manifests

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gpudev.internal/reservation-expiry/internal/disk"
)

// statement is one of an IAM policy. IAM takes a text for a list of one.
type statement struct {
	Sid, Effect      string
	Action, Resource oneOrMore
	Condition        map[string]map[string]oneOrMore
}

type oneOrMore []string

func (o *oneOrMore) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*o = oneOrMore{one}
		return nil
	}
	var more []string
	if err := json.Unmarshal(text, &more); err != nil {
		return fmt.Errorf("neither a text nor a list of texts: %w", err)
	}
	*o = more
	return nil
}

func policy(t *testing.T) []statement {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "knative", "account", "iam-policy.json"))
	require.NoError(t, err)
	var p struct {
		Version   string
		Statement []statement
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&p))
	require.Equal(t, "2012-10-17", p.Version)
	return p.Statement
}

// prefixes are what IAM calls the services that the SDK names otherwise.
var prefixes = map[string]string{"elasticloadbalancingv2": "elasticloadbalancing"}

// actions are what IAM calls the calls that the SDK names otherwise.
var actions = map[string]string{"lambda:Invoke": "lambda:InvokeFunction"}

// free need no permission: whoever has credentials may ask whose they are.
var free = map[string]bool{"sts:GetCallerIdentity": true}

func TestThePolicyAllowsTheCallsThatTheCodeMakesAndNoOthers(t *testing.T) {
	t.Parallel()
	called := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(root, "internal", "aws", "*.go"))
	require.NoError(t, err)
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			maps.Copy(called, calls(t, file))
		}
	}
	for action := range free {
		require.Contains(t, called, action)
		delete(called, action)
	}
	allowed := map[string]bool{}
	for _, s := range policy(t) {
		require.Equal(t, "Allow", s.Effect, s.Sid)
		for _, action := range s.Action {
			require.NotContains(t, action, "*", s.Sid)
			allowed[action] = true
		}
	}
	require.Equal(t, slices.Sorted(maps.Keys(called)), slices.Sorted(maps.Keys(allowed)))
}

// calls returns the actions of the SDK's calls in a file: each has an input named for it ("&ec2.DeleteVolumeInput{…}").
func calls(t *testing.T, path string) map[string]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	require.NoError(t, err)
	services := map[string]string{}
	for _, i := range file.Imports {
		name, service, ok := importOf(i)
		if ok {
			services[name] = service
		}
	}
	found := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		literal, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		input, ok := literal.Type.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		of, _ := input.X.(*ast.Ident)
		call, isInput := strings.CutSuffix(input.Sel.Name, "Input")
		if service := services[of.Name]; service != "" && isInput {
			action := service + ":" + call
			if other, ok := actions[action]; ok {
				action = other
			}
			found[action] = true
		}
		return true
	})
	return found
}

func importOf(i *ast.ImportSpec) (name, service string, ok bool) {
	from, err := strconv.Unquote(i.Path.Value)
	if err != nil || path.Base(path.Dir(from)) != "service" {
		return "", "", false
	}
	name, service = path.Base(from), path.Base(from)
	if prefix, ok := prefixes[service]; ok {
		service = prefix
	}
	if i.Name != nil {
		name = i.Name.Name
	}
	return name, service, true
}

func TestNothingIsTakenAwayThatIsNotThePlatforms(t *testing.T) {
	t.Parallel()
	ours := "aws:ResourceTag/" + disk.TagUser
	for _, s := range policy(t) {
		for _, action := range s.Action {
			switch action {
			case "ec2:DeleteVolume", "ec2:DeleteSnapshot", "ec2:DeleteTags":
				require.Equal(t, oneOrMore{"false"}, s.Condition["Null"][ours], s.Sid)
			case "ec2:DetachVolume":
				if strings.Contains(s.Resource[0], ":instance/") {
					require.Contains(t, s.Condition["StringEquals"], "aws:ResourceTag/kubernetes.io/cluster/${CLUSTER}", s.Sid)
					continue
				}
				require.Equal(t, oneOrMore{"false"}, s.Condition["Null"][ours], s.Sid)
			case "ec2:CreateTags":
				if slices.Equal(s.Condition["StringEquals"]["ec2:CreateAction"], []string{"CreateSnapshot"}) {
					continue
				}
				require.Equal(t, oneOrMore{"false"}, s.Condition["Null"][ours], s.Sid)
				require.ElementsMatch(t, disk.DeletionTagKeys(), s.Condition["ForAllValues:StringEquals"]["aws:TagKeys"], s.Sid)
				require.Equal(t, oneOrMore{"false"}, s.Condition["Null"]["aws:TagKeys"], "ForAllValues is true of no values at all")
			}
			if s.Resource[0] == "*" {
				require.Contains(t, action, ":Describe", s.Sid)
			}
		}
	}
}
