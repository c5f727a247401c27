package cli

import (
	"reflect"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// crdType is a resource of ours with the type this command knows it by.
type crdType struct {
	plural string
	object reflect.Type
}

var crdTypes = []crdType{
	{"servicetokens", reflect.TypeFor[v1alpha1.ServiceToken]()},
	{"apikeys", reflect.TypeFor[v1alpha1.APIKey]()},
	{"credentialclasses", reflect.TypeFor[v1alpha1.CredentialClass]()},
	{"revocations", reflect.TypeFor[v1alpha1.Revocation]()},
	{"accessroles", reflect.TypeFor[v1alpha1.AccessRole]()},
	{"accesspolicies", reflect.TypeFor[v1alpha1.AccessPolicy]()},
	{"trustedissuers", reflect.TypeFor[v1alpha1.TrustedIssuer]()},
}

// maxFields is how many fields a message names.
const maxFields = 5

// compareSchema compares the fields of spec and status by name: those the CRD
// lacks, and those it has besides.
func compareSchema(object reflect.Type, schema *apiextensionsv1.CustomResourceValidation) (missing, unknown []string) {
	if schema == nil || schema.OpenAPIV3Schema == nil {
		return []string{"schema"}, nil
	}
	for _, part := range []string{"Spec", "Status"} {
		field, ok := object.FieldByName(part)
		if !ok {
			continue
		}
		name := strings.ToLower(part)
		props, ok := schema.OpenAPIV3Schema.Properties[name]
		if !ok {
			missing = append(missing, name)
			continue
		}
		m, u := compareFields(name, field.Type, &props)
		missing, unknown = append(missing, m...), append(unknown, u...)
	}
	return firstFew(missing), firstFew(unknown)
}

func firstFew(fields []string) []string {
	slices.Sort(fields)
	if len(fields) > maxFields {
		fields = append(fields[:maxFields:maxFields], "...")
	}
	return fields
}

func compareFields(path string, t reflect.Type, schema *apiextensionsv1.JSONSchemaProps) (missing, unknown []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		switch {
		case t.Kind() == reflect.Slice && schema.Items != nil && schema.Items.Schema != nil:
			schema = schema.Items.Schema
		case t.Kind() == reflect.Map && schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil:
			schema = schema.AdditionalProperties.Schema
		}
		t = t.Elem()
	}
	// Of other people's types (times, selectors) the schema is theirs.
	if t.Kind() != reflect.Struct || t.PkgPath() != reflect.TypeFor[v1alpha1.ServiceToken]().PkgPath() {
		return nil, nil
	}
	known := map[string]bool{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		known[name] = true
		props, ok := schema.Properties[name]
		if !ok {
			missing = append(missing, path+"."+name)
			continue
		}
		m, u := compareFields(path+"."+name, t.Field(i).Type, &props)
		missing, unknown = append(missing, m...), append(unknown, u...)
	}
	for name := range schema.Properties {
		if !known[name] {
			unknown = append(unknown, path+"."+name)
		}
	}
	return missing, unknown
}
