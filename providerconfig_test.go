package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const policyTestHeader = `"apiVersion": "s3.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig"`

func policyTestConfig(immutability string) string {
	return "{" + policyTestHeader + `, "immutability": {"retentionType": "bucket", ` + immutability + "}}"
}

func TestParsePolicy(t *testing.T) {
	tests := []struct {
		name, raw string
		want      Policy
	}{
		{"absent", "", Policy{}},
		{"null", "null", Policy{}},
		{"no immutability", "{" + policyTestHeader + "}", Policy{}},
		{"metadata, as in Gardener's samples", "{" + policyTestHeader + `, "metadata": {"name": "sample", "labels": {"a": "b"}}}`, Policy{}},
		{"metadata beside immutability", strings.Replace(policyTestConfig(`"retentionPeriod": "96h", "locked": true`), "{", `{"metadata": {"name": "sample"}, `, 1),
			Policy{Days: 4, Locked: true}},
		{"null immutability", "{" + policyTestHeader + `, "immutability": null}`, Policy{}},
		{"neither mode nor locked", policyTestConfig(`"retentionPeriod": "96h"`), Policy{Days: 4}},
		{"null mode and locked", policyTestConfig(`"retentionPeriod": "96h", "mode": null, "locked": null`), Policy{Days: 4}},
		{"locked", policyTestConfig(`"retentionPeriod": "96h", "locked": true`), Policy{Days: 4, Locked: true}},
		{"unlocked", policyTestConfig(`"retentionPeriod": "96h", "locked": false`), Policy{Days: 4}},
		{"compliance", policyTestConfig(`"retentionPeriod": "96h", "mode": "compliance"`), Policy{Days: 4, Locked: true}},
		{"governance", policyTestConfig(`"retentionPeriod": "96h", "mode": "governance"`), Policy{Days: 4}},
		{"compliance and locked", policyTestConfig(`"retentionPeriod": "96h", "mode": "compliance", "locked": true`), Policy{Days: 4, Locked: true}},
		{"governance and unlocked", policyTestConfig(`"retentionPeriod": "96h", "mode": "governance", "locked": false`), Policy{Days: 4}},
		{"shortest", policyTestConfig(`"retentionPeriod": "24h"`), Policy{Days: 1}},
		{"longest", policyTestConfig(`"retentionPeriod": "876000h"`), Policy{Days: s3MaxRetentionDays}},
		{"other units", policyTestConfig(`"retentionPeriod": "47h59m60s"`), Policy{Days: 2}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := policyTestParse("s3", []byte(test.raw))
			if err != nil || got != test.want {
				t.Errorf("got %v, %v; want %v", got, err, test.want)
			}
		})
	}
}

func TestParsePolicyMistakes(t *testing.T) {
	const period = "spec.providerConfig.immutability.retentionPeriod "
	tests := []struct {
		name, raw string
		// want is the message; ending in "..." it is only how the message begins.
		want string
	}{
		{"empty object", `{}`, `spec.providerConfig.kind is "", must be "BackupBucketConfig"`},
		{"array", `[]`, "spec.providerConfig..."},
		{"string", `"x"`, "spec.providerConfig..."},
		{"number", `7`, "spec.providerConfig..."},
		{"boolean", `true`, "spec.providerConfig..."},
		{"truncated", `{`, "spec.providerConfig cannot be decoded: ..."},
		{"trailing data", "{" + policyTestHeader + "}x", "spec.providerConfig cannot be decoded: ..."},
		{"endless nesting", strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000), "spec.providerConfig cannot be decoded: ..."},
		{"nested immutability", "{" + policyTestHeader + `, "immutability": ` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + "}", "spec.providerConfig..."},
		{"immutability is a string", "{" + policyTestHeader + `, "immutability": "locked"}`, "spec.providerConfig..."},
		{"kind is a number", `{"kind": 1}`, "spec.providerConfig..."},

		{"wrong kind", `{"apiVersion": "s3.provider.extensions.gardener.cloud/v1alpha1", "kind": "WorkerConfig", "volumes": 1}`,
			`spec.providerConfig.kind is "WorkerConfig", must be "BackupBucketConfig"`},
		{"wrong version", `{"apiVersion": "s3.provider.extensions.gardener.cloud/v1", "kind": "BackupBucketConfig"}`,
			`spec.providerConfig.apiVersion is "s3.provider.extensions.gardener.cloud/v1", must be "s3.provider.extensions.gardener.cloud/v1alpha1" for type "s3"`},
		{"apiVersion of another type", `{"apiVersion": "aws.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig"}`,
			`spec.providerConfig.apiVersion is "aws.provider.extensions.gardener.cloud/v1alpha1", must be "s3.provider.extensions.gardener.cloud/v1alpha1" for type "s3"`},
		{"no apiVersion", `{"kind": "BackupBucketConfig"}`,
			`spec.providerConfig.apiVersion is "", must be "s3.provider.extensions.gardener.cloud/v1alpha1" for type "s3"`},

		{"unknown field", "{" + policyTestHeader + `, "rotationConfig": {}}`, `spec.providerConfig is not valid: unknown field "rotationConfig"`},
		{"unknown nested field", policyTestConfig(`"retentionPeriod": "96h", "lokced": true`), `spec.providerConfig is not valid: unknown field "immutability.lokced"`},
		{"metadata elsewhere", policyTestConfig(`"retentionPeriod": "96h", "metadata": {}`), `spec.providerConfig is not valid: unknown field "immutability.metadata"`},
		{"metadata in another case", "{" + policyTestHeader + `, "Metadata": {}}`, `spec.providerConfig is not valid: unknown field "Metadata"`},
		{"field in another case", "{" + policyTestHeader + `, "Immutability": {}}`, `spec.providerConfig is not valid: unknown field "Immutability"`},
		{"duplicated key", "{" + policyTestHeader + `, "kind": "BackupBucketConfig"}`, `spec.providerConfig is not valid: duplicate field "kind"`},
		{"duplicated nested key", policyTestConfig(`"retentionPeriod": "96h", "locked": true, "locked": false`), `spec.providerConfig is not valid: duplicate field "immutability.locked"`},

		{"no retentionType", "{" + policyTestHeader + `, "immutability": {}}`, `spec.providerConfig.immutability.retentionType is "", must be "bucket"`},
		{"wrong retentionType", "{" + policyTestHeader + `, "immutability": {"retentionType": "object", "retentionPeriod": "96h"}}`, `spec.providerConfig.immutability.retentionType is "object", must be "bucket"`},

		{"no retentionPeriod", policyTestConfig(`"locked": true`), period + `is missing: write whole days in hours, such as "96h"`},
		{"not whole days", policyTestConfig(`"retentionPeriod": "25h"`), period + "is 25h, must be whole days (a multiple of 24h)"},
		{"a nanosecond too much", policyTestConfig(`"retentionPeriod": "24h1ns"`), period + "is 24h1ns, must be whole days (a multiple of 24h)"},
		{"too short", policyTestConfig(`"retentionPeriod": "1h"`), period + "is 1h, must be at least 24h"},
		{"zero", policyTestConfig(`"retentionPeriod": "0"`), period + "is 0, must be at least 24h"},
		{"zero hours", policyTestConfig(`"retentionPeriod": "0h", "locked": true`), period + "is 0h, must be at least 24h"},
		{"negative", policyTestConfig(`"retentionPeriod": "-24h"`), period + "is -24h, must be at least 24h"},
		{"days", policyTestConfig(`"retentionPeriod": "4d"`), period + `"4d" is not a duration up to 876000h: write whole days in hours, such as "96h"`},
		{"overflow", policyTestConfig(`"retentionPeriod": "1000000000h"`), period + `"1000000000h" is not a duration up to 876000h: write whole days in hours, such as "96h"`},
		{"longer than the store allows", policyTestConfig(`"retentionPeriod": "876024h"`), period + "is 876024h, the store allows at most 876000h"},
		{"not UTF-8", policyTestConfig("\"retentionPeriod\": \"\xff\""), period + "..."},
		{"a number", policyTestConfig(`"retentionPeriod": 96`), "spec.providerConfig..."},

		{"unknown mode", policyTestConfig(`"retentionPeriod": "96h", "mode": "COMPLIANCE"`),
			`spec.providerConfig.immutability.mode is "COMPLIANCE", must be "compliance" or "governance"`},
		{"compliance but not locked", policyTestConfig(`"retentionPeriod": "96h", "mode": "compliance", "locked": false`),
			`spec.providerConfig.immutability.mode "compliance" contradicts locked: false; compliance is locked, governance is not: write only one of the two`},
		{"governance but locked", policyTestConfig(`"retentionPeriod": "96h", "mode": "governance", "locked": true`),
			`spec.providerConfig.immutability.mode "governance" contradicts locked: true; compliance is locked, governance is not: write only one of the two`},
		{"locked is a string", policyTestConfig(`"retentionPeriod": "96h", "locked": "true"`), "spec.providerConfig..."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := policyTestParse("s3", []byte(test.raw))
			if !got.None() {
				t.Errorf("got %s with an error", got)
			}
			var mistake *configError
			if !errors.As(err, &mistake) {
				t.Fatalf("got error %v of type %T, want a *configError", err, err)
			}
			begin, open := strings.CutSuffix(test.want, "...")
			if open && !strings.HasPrefix(err.Error(), begin) || !open && err.Error() != test.want {
				t.Errorf("got  %s\nwant %s", err, test.want)
			}
		})
	}
}

// policyTestParse is parseConfig on S3, which knows no more than a policy.
func policyTestParse(providerType string, raw []byte) (Policy, error) {
	config, err := (&s3Clients{}).parseConfig(providerConfigPath, providerType, raw)
	return config.Policy, err
}

func TestParsePolicyNamesTheType(t *testing.T) {
	for _, providerType := range []string{"aws", "s3", "S3"} {
		raw := `{"apiVersion": "` + providerType + `.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig"}`
		if _, err := policyTestParse(providerType, []byte(raw)); err != nil {
			t.Errorf("spec.type %s: %v", providerType, err)
		}
	}
}

// parseConfigSeeds are those of FuzzParseConfig.
func parseConfigSeeds(testing.TB) []string {
	return []string{
		"", "null", "{}", "[]", `"x"`, "7", "{" + policyTestHeader + "}",
		policyTestConfig(`"retentionPeriod": "96h", "mode": "compliance", "locked": true`),
		policyTestConfig(`"retentionPeriod": "-24h"`),
		policyTestConfig(`"retentionPeriod": "1000000000h"`),
		policyTestConfig(`"retentionPeriod": "2562047h47m16.854775807s"`),
		policyTestConfig("\"retentionPeriod\": \"\xff\""),
		policyTestConfig(`"retentionPeriod": "96h", "mode": "governance", "locked": true`),
		policyTestConfig(`"retentionPeriod": "2400000h", "locked": true`),
		"{" + policyTestHeader + `, "cloudConfiguration": {"name": "AzurePublic"}, "rotationConfig": {"rotationPeriodDays": 30, "expirationPeriodDays": 90}}`,
		"{" + policyTestHeader + `, "cloudConfiguration": {"name": "\u0000"}, "rotationConfig": {"rotationPeriodDays": -1, "expirationPeriodDays": null}}`,
	}
}

// checkParseConfig is what must hold for every providerConfig.
func checkParseConfig(t testing.TB, raw []byte) {
	for store, limit := range map[provider]int32{&s3Clients{}: s3MaxRetentionDays, &azureClients{}: azureMaxRetentionDays} {
		kind := store.name()
		got, err := store.parseConfig(providerConfigPath, "s3", raw)
		if err != nil {
			var mistake *configError
			if !errors.As(err, &mistake) || !got.Policy.None() || got.Policy.Locked {
				t.Errorf("%s: got %s with the error %v of type %T", kind, got.Policy, err, err)
			}
			if utf8.Valid(raw) && !utf8.ValidString(err.Error()) {
				t.Errorf("%s: the message %q is no UTF-8", kind, err)
			}
		}
		if p := got.Policy; p.Days < 0 || p.Days > limit || p.None() && p.Locked {
			t.Errorf("%s: accepted %+v", kind, p)
		}
		if kind == storeS3 && (got.Cloud != "" || got.Rotation != keyRotation{}) {
			t.Errorf("S3 knows %+v", got)
		}
		if r := got.Rotation; r != (keyRotation{}) && (r.Days < 2 || r.ExpirationDays < 0 ||
			r.ExpirationDays > 0 && r.ExpirationDays <= r.Days) {
			t.Errorf("accepted %+v", r)
		}
		// What is written is what is read.
		if back, err := json.Marshal(store.record("s3", record{Policy: got.Policy})); err != nil || readRecord(back).Policy != got.Policy {
			t.Errorf("%s: %s reads back as %s, %v", back, got.Policy, readRecord(back).Policy, err)
		}
	}
}

func TestParsePolicyMessagesAreReadable(t *testing.T) {
	for _, raw := range []string{
		"{" + policyTestHeader + `, "foo": 1, "bar": 2}`,
		policyTestConfig(`"retentionPeriod": 96`),
		"{" + policyTestHeader + `, "immutability": "locked"}`,
		"[]",
	} {
		_, err := policyTestParse("s3", []byte(raw))
		if message := err.Error(); strings.ContainsAny(message, "\n") || strings.Contains(message, "Go ") || strings.Contains(message, "main.") {
			t.Errorf("not one readable sentence: %s", message)
		}
	}
}

const azureTestHeader = `"apiVersion": "azure.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig"`

// azureTestRaw is a providerConfig with further fields.
func azureTestRaw(fields string) string { return "{" + azureTestHeader + ", " + fields + "}" }

func azureTestImmutability(fields string) string {
	return azureTestRaw(`"immutability": {"retentionType": "bucket", ` + fields + "}")
}

const testDay = 24 * time.Hour

func TestParseConfigAzure(t *testing.T) {
	tests := []struct {
		name, raw string
		want      desired
	}{
		{"absent", "", desired{}},
		{"null", "null", desired{}},
		{"nothing", "{" + azureTestHeader + "}", desired{}},
		{"null fields", azureTestRaw(`"immutability": null, "cloudConfiguration": null, "rotationConfig": null`), desired{}},
		{"every field", azureTestRaw(`"immutability": {"retentionType": "bucket", "retentionPeriod": "96h", "locked": true},
			"cloudConfiguration": {"name": "AzureChina"}, "rotationConfig": {"rotationPeriodDays": 30, "expirationPeriodDays": 90}`),
			desired{Policy: Policy{Days: 4, Locked: true}, Cloud: "AzureChina", Rotation: keyRotation{Days: 30, ExpirationDays: 90}}},
		{"not locked", azureTestImmutability(`"retentionPeriod": "96h"`), desired{Policy: Policy{Days: 4}}},
		{"unlocked", azureTestImmutability(`"retentionPeriod": "96h", "locked": false`), desired{Policy: Policy{Days: 4}}},
		{"null locked", azureTestImmutability(`"retentionPeriod": "96h", "locked": null`), desired{Policy: Policy{Days: 4}}},
		{"longer than S3 allows", azureTestImmutability(`"retentionPeriod": "2400000h", "locked": true`), desired{Policy: Policy{Days: 100000, Locked: true}}},
		{"longest", azureTestImmutability(`"retentionPeriod": "3504000h"`), desired{Policy: Policy{Days: 146000}}},
		{"metadata", azureTestRaw(`"metadata": {"name": "sample"}`), desired{}},
		{"a cloud alone", azureTestRaw(`"cloudConfiguration": {"name": "my cloud"}`), desired{Cloud: "my cloud"}},
		{"shortest rotation", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 2}`), desired{Rotation: keyRotation{Days: 2}}},
		{"null expiration", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 2, "expirationPeriodDays": null}`), desired{Rotation: keyRotation{Days: 2}}},
		{"expiration just above", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 30, "expirationPeriodDays": 31}`),
			desired{Rotation: keyRotation{Days: 30, ExpirationDays: 31}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := (&azureClients{}).parseConfig(providerConfigPath, "azure", []byte(test.raw))
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestParseConfigAzureMistakes(t *testing.T) {
	const (
		immutability = "spec.providerConfig.immutability."
		rotation     = "spec.providerConfig.rotationConfig."
	)
	tests := []struct {
		name, raw string
		// want is the message; ending in "..." it is only how the message begins.
		want string
	}{
		{"no object", "[]", "spec.providerConfig..."},
		{"truncated", "{", "spec.providerConfig cannot be decoded: ..."},
		{"no kind", "{}", `spec.providerConfig.kind is "", must be "BackupBucketConfig"`},
		{"apiVersion of another type", "{" + policyTestHeader + "}",
			`spec.providerConfig.apiVersion is "s3.provider.extensions.gardener.cloud/v1alpha1", must be "azure.provider.extensions.gardener.cloud/v1alpha1" for type "azure"`},
		{"unknown field", azureTestRaw(`"immutabilty": {}`), `spec.providerConfig is not valid: unknown field "immutabilty"`},
		{"field in another case", azureTestRaw(`"rotationconfig": {}`), `spec.providerConfig is not valid: unknown field "rotationconfig"`},
		{"duplicated key", azureTestRaw(`"kind": "BackupBucketConfig"`), `spec.providerConfig is not valid: duplicate field "kind"`},
		{"mode is S3's", azureTestImmutability(`"retentionPeriod": "96h", "mode": "compliance"`), `spec.providerConfig is not valid: unknown field "immutability.mode"`},

		{"wrong retentionType", azureTestRaw(`"immutability": {"retentionType": "object", "retentionPeriod": "96h"}`), immutability + `retentionType is "object", must be "bucket"`},
		{"no retentionPeriod", azureTestImmutability(`"locked": true`), immutability + `retentionPeriod is missing: write whole days in hours, such as "96h"`},
		{"not whole days", azureTestImmutability(`"retentionPeriod": "25h"`), immutability + "retentionPeriod is 25h, must be whole days (a multiple of 24h)"},
		{"too short", azureTestImmutability(`"retentionPeriod": "23h"`), immutability + "retentionPeriod is 23h, must be at least 24h"},
		{"zero hours", azureTestImmutability(`"retentionPeriod": "0h", "locked": true`), immutability + "retentionPeriod is 0h, must be at least 24h"},
		{"no duration", azureTestImmutability(`"retentionPeriod": "4d"`), immutability + `retentionPeriod "4d" is not a duration up to 3504000h: ...`},
		{"longer than Azure allows", azureTestImmutability(`"retentionPeriod": "3504024h"`), immutability + "retentionPeriod..."},
		{"locked is a string", azureTestImmutability(`"retentionPeriod": "96h", "locked": "true"`), immutability + "locked must not be a JSON string"},

		{"no cloud name", azureTestRaw(`"cloudConfiguration": {}`), "spec.providerConfig.cloudConfiguration.name is empty"},
		{"empty cloud name", azureTestRaw(`"cloudConfiguration": {"name": ""}`), "spec.providerConfig.cloudConfiguration.name is empty"},
		{"cloud name is a number", azureTestRaw(`"cloudConfiguration": {"name": 1}`), "spec.providerConfig.cloudConfiguration.name must not be a JSON number"},
		{"cloud is a string", azureTestRaw(`"cloudConfiguration": "AzurePublic"`), "spec.providerConfig.cloudConfiguration must not be a JSON string"},
		{"unknown field of the cloud", azureTestRaw(`"cloudConfiguration": {"name": "x", "host": "y"}`), `spec.providerConfig is not valid: unknown field "cloudConfiguration.host"`},

		{"no rotation period", azureTestRaw(`"rotationConfig": {}`), rotation + "rotationPeriodDays is 0, must be at least 2"},
		{"rotation period of 0", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 0}`), rotation + "rotationPeriodDays is 0, must be at least 2"},
		{"rotation period of 1", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 1, "expirationPeriodDays": 9}`), rotation + "rotationPeriodDays is 1, must be at least 2"},
		{"negative rotation period", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": -30}`), rotation + "rotationPeriodDays is -30, must be at least 2"},
		{"rotation period is a string", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": "30"}`), rotation + "rotationPeriodDays must not be a JSON string"},
		{"rotation period is a fraction", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 2.5}`), "spec.providerConfig..."},
		{"rotation period is no int32", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 2147483648}`), "spec.providerConfig..."},
		{"expiration is the rotation period", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 30, "expirationPeriodDays": 30}`),
			rotation + "expirationPeriodDays is 30, must be above rotationPeriodDays, which is 30"},
		{"expiration below the rotation period", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 30, "expirationPeriodDays": 29}`),
			rotation + "expirationPeriodDays is 29, must be above rotationPeriodDays, which is 30"},
		{"expiration of 0", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 30, "expirationPeriodDays": 0}`),
			rotation + "expirationPeriodDays is 0, must be above rotationPeriodDays, which is 30"},
		{"expiration alone", azureTestRaw(`"rotationConfig": {"expirationPeriodDays": 90}`), rotation + "rotationPeriodDays is 0, must be at least 2"},
		{"unknown field of the rotation", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 30, "days": 1}`), `spec.providerConfig is not valid: unknown field "rotationConfig.days"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := (&azureClients{}).parseConfig(providerConfigPath, "azure", []byte(test.raw))
			if !got.Policy.None() {
				t.Errorf("got %s with an error", got.Policy)
			}
			var mistake *configError
			if !errors.As(err, &mistake) {
				t.Fatalf("got error %v of type %T, want a *configError", err, err)
			}
			begin, open := strings.CutSuffix(test.want, "...")
			if open && !strings.HasPrefix(err.Error(), begin) || !open && err.Error() != test.want {
				t.Errorf("got  %s\nwant %s", err, test.want)
			}
			if message := err.Error(); strings.ContainsAny(message, "\n") || strings.Contains(message, "Go ") || strings.Contains(message, "main.") {
				t.Errorf("not one readable sentence: %s", message)
			}
		})
	}
	for _, field := range []string{`"rotationConfig": {"rotationPeriodDays": 30}`, `"cloudConfiguration": {"name": "AzurePublic"}`} {
		if _, err := (&s3Clients{}).parseConfig(providerConfigPath, "s3", []byte("{"+policyTestHeader+", "+field+"}")); err == nil || !strings.Contains(err.Error(), "unknown field") {
			t.Errorf("%s on S3: %v", field, err)
		}
	}
}

// A period that overflows would make the keys due at every look.
func TestParseConfigAzureLongRotation(t *testing.T) {
	for _, days := range []int32{106751, 106752, 200000, 213504, 1 << 30, math.MaxInt32} {
		config, err := (&azureClients{}).parseConfig(providerConfigPath, "azure", fmt.Appendf(nil, `{%s, "rotationConfig": {"rotationPeriodDays": %d}}`, azureTestHeader, days))
		if err != nil {
			continue
		}
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		if config.Rotation.Days <= 0 || config.Rotation.due(now.Add(-time.Hour), now) {
			t.Errorf("with %d days a key of an hour is due, the period is %d days", days, config.Rotation.Days)
		}
	}
}

// A mistake in one field must not send credentials to another cloud than the spec names.
func TestParseConfigAzurePartial(t *testing.T) {
	rotation := keyRotation{Days: 30}
	const fields = `"cloudConfiguration": {"name": "AzureChina"}, "rotationConfig": {"rotationPeriodDays": 30}`
	tests := []struct {
		name, raw string
		want      desired
	}{
		{"immutability", azureTestRaw(fields + `, "immutability": {"retentionType": "bucket", "retentionPeriod": "25h"}`), desired{Cloud: "AzureChina", Rotation: rotation}},
		{"rotation", azureTestRaw(`"cloudConfiguration": {"name": "AzureChina"}, "rotationConfig": {"rotationPeriodDays": 1}`), desired{Cloud: "AzureChina"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := (&azureClients{}).parseConfig(providerConfigPath, "azure", []byte(test.raw))
			if err == nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
	for name, raw := range map[string]string{
		"unknown field":         azureTestRaw(fields + `, "immutabilty": {}`),
		"unknown nested field":  azureTestRaw(fields + `, "immutability": {"retentionType": "bucket", "retentionPeriod": "96h", "mode": "compliance"}`),
		"field of another type": azureTestRaw(fields + `, "immutability": {"retentionType": "bucket", "retentionPeriod": 96}`),
		"wrong apiVersion":      strings.Replace(azureTestRaw(fields), "v1alpha1", "v1", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := (&azureClients{}).parseConfig(providerConfigPath, "azure", []byte(raw)); err == nil || got.Cloud != "AzureChina" {
				t.Errorf("got %+v, %v; want the cloud", got, err)
			}
		})
	}
}

// What is recorded reads back as it was.
func TestProviderStatus(t *testing.T) {
	policies := []Policy{{Days: 1}, {Days: 1, Locked: true}, {Days: 4}, {Days: 4, Locked: true}, {Days: s3MaxRetentionDays, Locked: true}}
	for store, policies := range map[provider][]Policy{
		&s3Clients{}:    policies,
		&azureClients{}: append(slices.Clone(policies), Policy{Days: 100000, Locked: true}, Policy{Days: azureMaxRetentionDays, Locked: true}),
	} {
		for _, policy := range policies {
			data, err := json.Marshal(store.record("my", record{Policy: policy}))
			if err != nil {
				t.Fatal(err)
			}
			if got := readRecord(data).Policy; got != policy {
				t.Errorf("%s: %s reads back as %s", data, policy, got)
			}
			mode := ""
			if store.name() == storeS3 {
				mode = `,"mode":"governance"`
				if policy.Locked {
					mode = `,"mode":"compliance"`
				}
			}
			want := fmt.Sprintf(`{"apiVersion":"my.provider.extensions.gardener.cloud/v1alpha1","kind":"BackupBucketStatus","immutability":{"retentionType":"bucket","retentionPeriod":"%s","locked":%t%s},"cloudConfiguration":null}`,
				policy.Hours(), policy.Locked, mode)
			if string(data) != want {
				t.Errorf("got  %s\nwant %s", data, want)
			}
		}
		if got := store.record("my", record{}); got != nil {
			t.Errorf("no policy is recorded as %v", got)
		}
	}
}

// Whatever else lies in a status is no record of ours.
func TestRecordedPolicyOfOthers(t *testing.T) {
	const immutability = `"immutability": {"retentionType": "bucket", "retentionPeriod": "96h", "locked": true}`
	const version = `"apiVersion": "azure.provider.extensions.gardener.cloud/v1alpha1"`
	if got, want := readRecord([]byte("{"+version+`, "kind": "BackupBucketStatus", `+immutability+"}")).Policy, (Policy{Days: 4, Locked: true}); got != want {
		t.Fatalf("our own: got %s", got)
	}
	for _, beside := range []string{`"origin": 0`, `"origin": {}`, `"storageAccount": ["a"]`, `"cloudConfiguration": "x"`, `"cloudConfiguration": {"name": 7}`,
		`"metadata": 1`, `"other": null`} {
		if got, want := readRecord([]byte("{"+version+`, "kind": "BackupBucketStatus", `+immutability+", "+beside+"}")).Policy, (Policy{Days: 4, Locked: true}); got != want {
			t.Errorf("beside %s: got %s", beside, got)
		}
	}
	for _, raw := range []string{
		"", "null", "{}", "[]", `"x"`, "7", "{", "\xff",
		"{" + immutability + "}",
		"{" + version + ", " + immutability + "}",
		"{" + version + `, "kind": "BackupBucketConfig", ` + immutability + "}",
		"{" + version + `, "kind": "backupbucketstatus", ` + immutability + "}",
		"{" + version + `, "kind": "BackupBucketStatus"}`,
		"{" + version + `, "kind": "BackupBucketStatus", "immutability": null}`,
		"{" + version + `, "kind": "BackupBucketStatus", "immutability": "locked"}`,
		"{" + version + `, "kind": "BackupBucketStatus", "immutability": {}}`,
		"{" + version + `, "kind": "BackupBucketStatus", "immutability": {"retentionType": "object", "retentionPeriod": "96h", "locked": true}}`,
		"{" + version + `, "kind": "BackupBucketStatus", "immutability": {"retentionType": "bucket", "retentionPeriod": "-96h", "locked": true}}`,
		"{" + version + `, "kind": "BackupBucketStatus", "immutability": {"retentionType": "bucket", "retentionPeriod": "25h", "locked": true}}`,
		"{" + version + `, "kind": "BackupBucketStatus", "immutability": {"retentionType": "bucket", "retentionPeriod": "96h", "locked": "yes"}}`,
	} {
		if got := readRecord([]byte(raw)).Policy; got != (Policy{}) {
			t.Errorf("%s: got %s", raw, got)
		}
	}
}
