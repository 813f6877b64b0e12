package event

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

//go:embed schemas/*.json
var schemas embed.FS

const schemaBase = "https://gpudev.internal/reservation-expiry/schemas/"

// DataSchema returns the URI that names the JSON Schema of the data of events of this type; it is the schema's $id.
func DataSchema(eventType string) string { return schemaBase + eventType + ".json" }

var compiled sync.Map // event type → func() (*jsonschema.Schema, error), compiled at first use

func schemaOf(eventType string) (*jsonschema.Schema, error) {
	once, _ := compiled.LoadOrStore(eventType, sync.OnceValues(func() (*jsonschema.Schema, error) {
		file, err := schemas.ReadFile("schemas/" + eventType + ".json")
		if err != nil {
			return nil, fmt.Errorf("there is no schema for %s", eventType)
		}
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(file))
		if err != nil {
			return nil, fmt.Errorf("read the schema of %s: %w", eventType, err)
		}
		compiler := jsonschema.NewCompiler()
		compiler.AssertFormat()
		if err := compiler.AddResource(DataSchema(eventType), document); err != nil {
			return nil, fmt.Errorf("load the schema of %s: %w", eventType, err)
		}
		return compiler.Compile(DataSchema(eventType))
	}))
	return once.(func() (*jsonschema.Schema, error))()
}

// ValidateData checks JSON data against the schema of its type. The error says in one line what is wrong.
func ValidateData(eventType string, data []byte) error {
	schema, err := schemaOf(eventType)
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("data of %s is not JSON: %w", eventType, err)
	}
	var invalid *jsonschema.ValidationError
	if err := schema.Validate(value); errors.As(err, &invalid) {
		_, reasons, _ := strings.Cut(invalid.Error(), "\n- ") // its first line only names the schema
		return fmt.Errorf("data of %s: %s", eventType, strings.Join(strings.Fields(reasons), " "))
	} else if err != nil {
		return fmt.Errorf("data of %s: %w", eventType, err)
	}
	return nil
}
