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

func TestPlanPolicy(t *testing.T) {
	var (
		none     = Policy{}
		unlocked = func(days int32) Policy { return Policy{Days: days} }
		locked   = func(days int32) Policy { return Policy{Days: days, Locked: true} }
		set      = func(days int32) Step { return Step{Policy: unlocked(days)} }
		lock     = func(days int32) Step { return Step{Lock: true, Policy: locked(days)} }
		remove   = Step{}
	)
	tests := []struct {
		name                    string
		desired, live, recorded Policy
		steps                   []Step
		drift                   bool
		refusal                 string
	}{
		{name: "nothing desired, nothing there", desired: none, live: none, recorded: none},
		{name: "nothing desired, our unlocked policy is gone already", desired: none, live: none, recorded: unlocked(4)},
		{name: "our unlocked policy is removed", desired: none, live: unlocked(4), recorded: unlocked(4), steps: []Step{remove}},
		{name: "our unlocked policy is left once others changed it", desired: none, live: unlocked(2), recorded: unlocked(4)},
		{name: "an unlocked policy of others is left", desired: none, live: unlocked(4), recorded: none},
		{name: "a locked policy of others is left", desired: none, live: locked(4), recorded: none},
		{name: "a policy that others locked is left", desired: none, live: locked(4), recorded: unlocked(4)},
		{name: "a lock cannot be disabled", desired: none, live: locked(4), recorded: locked(4), refusal: reasonDisable},
		{name: "a longer lock cannot be disabled", desired: none, live: locked(5), recorded: locked(4), refusal: reasonDisable},
		{name: "a removed lock is restored, not disabled", desired: none, live: none, recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonDisable},
		{name: "an unlocked lock is restored, not disabled", desired: none, live: unlocked(4), recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonDisable},
		{name: "a shortened lock is restored, not disabled", desired: none, live: locked(2), recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonDisable},

		{name: "unlocked is set", desired: unlocked(4), live: none, recorded: none, steps: []Step{set(4)}},
		{name: "unlocked is as desired", desired: unlocked(4), live: unlocked(4), recorded: unlocked(4)},
		{name: "unlocked is adopted", desired: unlocked(4), live: unlocked(4), recorded: none},
		{name: "unlocked is extended", desired: unlocked(4), live: unlocked(2), recorded: unlocked(2), steps: []Step{set(4)}},
		{name: "unlocked is shortened", desired: unlocked(2), live: unlocked(4), recorded: unlocked(4), steps: []Step{set(2)}},
		{name: "removed unlocked is set again", desired: unlocked(4), live: none, recorded: unlocked(4), steps: []Step{set(4)}, drift: true},
		{name: "shortened unlocked is set again", desired: unlocked(4), live: unlocked(1), recorded: unlocked(4), steps: []Step{set(4)}, drift: true},
		{name: "a lock cannot be unlocked", desired: unlocked(4), live: locked(4), recorded: locked(4), refusal: reasonUnlock},
		{name: "a lock of others cannot be unlocked", desired: unlocked(4), live: locked(4), recorded: none, refusal: reasonUnlock},
		{name: "a lock cannot be unlocked by asking for longer", desired: unlocked(9), live: locked(4), recorded: locked(4), refusal: reasonUnlock},
		{name: "a removed lock is restored, not unlocked", desired: unlocked(4), live: none, recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonUnlock},

		{name: "locked is set, then locked", desired: locked(4), live: none, recorded: none, steps: []Step{set(4), lock(4)}},
		{name: "another unlocked is set, then locked", desired: locked(4), live: unlocked(2), recorded: unlocked(2), steps: []Step{set(4), lock(4)}},
		{name: "a longer unlocked is shortened, then locked", desired: locked(4), live: unlocked(9), recorded: none, steps: []Step{set(4), lock(4)}},
		{name: "what was read back is locked", desired: locked(4), live: unlocked(4), recorded: none, steps: []Step{lock(4)}},
		{name: "weakened unlocked is set before it is locked", desired: locked(4), live: unlocked(1), recorded: unlocked(2), steps: []Step{set(4), lock(4)}, drift: true},
		{name: "locked is as desired", desired: locked(4), live: locked(4), recorded: locked(4)},
		{name: "locked is adopted", desired: locked(4), live: locked(4), recorded: none},
		{name: "locked is extended", desired: locked(4), live: locked(2), recorded: locked(2), steps: []Step{lock(4)}},
		{name: "a lock of others is extended", desired: locked(4), live: locked(2), recorded: none, steps: []Step{lock(4)}},
		{name: "a lock cannot be shortened", desired: locked(2), live: locked(4), recorded: locked(4), refusal: reasonShorten},
		{name: "a lock of others cannot be shortened", desired: locked(2), live: locked(4), recorded: none, refusal: reasonShorten},
		{name: "a lock that is longer than recorded cannot be shortened", desired: locked(3), live: locked(4), recorded: locked(2), refusal: reasonShorten},
		{name: "a removed lock is restored", desired: locked(4), live: none, recorded: locked(4), steps: []Step{lock(4)}, drift: true},
		{name: "an unlocked lock is restored", desired: locked(4), live: unlocked(4), recorded: locked(4), steps: []Step{lock(4)}, drift: true},
		{name: "a shortened lock is restored", desired: locked(4), live: locked(2), recorded: locked(4), steps: []Step{lock(4)}, drift: true},
		{name: "a removed lock is restored and extended", desired: locked(9), live: none, recorded: locked(4), steps: []Step{lock(9)}, drift: true},
		{name: "a removed lock is restored, not shortened", desired: locked(2), live: none, recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonShorten},
		{name: "a shortened lock is restored, not left short", desired: locked(2), live: locked(2), recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonShorten},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			plan := planPolicy(test.desired, test.live, test.recorded)
			reason := ""
			if plan.Refusal != nil {
				reason = plan.Refusal.Reason
			}
			if !slices.Equal(plan.Steps, test.steps) || plan.Drift != test.drift || reason != test.refusal {
				t.Errorf("desired %s, live %s, recorded %s: got steps %v, drift %t, refusal %q; want steps %v, drift %t, refusal %q",
					test.desired, test.live, test.recorded, plan.Steps, plan.Drift, reason, test.steps, test.drift, test.refusal)
			}
		})
	}
}

func TestRefusalMessage(t *testing.T) {
	tests := []struct {
		desired Policy
		want    string
	}{
		{Policy{}, "the bucket has a locked retention of 96h, spec.providerConfig asks for no immutability: a locked policy cannot be disabled; " +
			"keep immutability locked (S3: mode: compliance) with retentionPeriod: 96h or longer"},
		{Policy{Days: 9}, "the bucket has a locked retention of 96h, spec.providerConfig asks for unlocked retention of 216h: a locked policy cannot be unlocked; " +
			"keep immutability locked (S3: mode: compliance) with retentionPeriod: 96h or longer"},
		{Policy{Days: 1, Locked: true}, "the bucket has a locked retention of 96h, spec.providerConfig asks for locked retention of 24h: a locked policy cannot be shortened; " +
			"keep immutability locked (S3: mode: compliance) with retentionPeriod: 96h or longer"},
	}
	for _, test := range tests {
		refusal := planPolicy(test.desired, Policy{Days: 4, Locked: true}, Policy{Days: 4, Locked: true}).Refusal
		if refusal == nil || refusal.Error() != test.want {
			t.Errorf("asked for %s: got %v, want %s", test.desired, refusal, test.want)
		}
	}
}

// TestPlanPolicyProperties looks at every combination of small policies.
func TestPlanPolicyProperties(t *testing.T) {
	all := []Policy{{}}
	for days := int32(1); days <= 3; days++ {
		all = append(all, Policy{Days: days}, Policy{Days: days, Locked: true})
	}
	covers := func(p, q Policy) bool { return p.Days >= q.Days && (p.Locked || !q.Locked) }
	for _, desired := range all {
		for _, live := range all {
			for _, recorded := range all {
				t.Run(fmt.Sprintf("%s, %s, %s", desired, live, recorded), func(t *testing.T) {
					var floor Policy
					for _, p := range []Policy{live, recorded} {
						if p.Locked && p.Days > floor.Days {
							floor = p
						}
					}
					foreign := desired.None() && !recorded.Locked
					refused := floor.Locked && !foreign && !covers(desired, floor)

					plan := planPolicy(desired, live, recorded)
					if got := plan.Refusal != nil; got != refused {
						t.Fatalf("refused: %t, want %t", got, refused)
					}
					if plan.Drift && len(plan.Steps) == 0 {
						t.Error("drift without a repair")
					}
					for _, step := range plan.Steps {
						if step.Lock != step.Policy.Locked {
							t.Errorf("step %v locks and does not", step)
						}
						if !foreign && !covers(step.Policy, floor) {
							t.Errorf("step %v is weaker than %s", step, floor)
						}
						if live.Locked && !covers(step.Policy, live) {
							t.Errorf("step %v is weaker than the live lock %s", step, live)
						}
						if refused && step.Policy != floor {
							t.Errorf("step %v of a refused plan leads elsewhere than to %s", step, floor)
						}
					}

					// One step at a time, as in a pass: the record is that of its start.
					at, taken := live, 0
					for ; ; taken++ {
						plan := planPolicy(desired, at, recorded)
						if len(plan.Steps) == 0 {
							break
						}
						if taken == 2 {
							t.Fatalf("not converged after %d steps: at %s, next %v", taken, at, plan.Steps)
						}
						step := plan.Steps[0]
						readBack := at == Policy{Days: step.Policy.Days}
						extends := at.Locked && covers(step.Policy, at)
						repairs := recorded.Locked && covers(step.Policy, recorded)
						if step.Lock && !readBack && !extends && !repairs {
							t.Errorf("locks %s unseen: the bucket has %s", step.Policy, at)
						}
						at = step.Policy
					}
					switch {
					case refused && !covers(at, floor):
						t.Errorf("ends at %s, weaker than %s", at, floor)
					case !refused && !desired.None() && at != desired:
						t.Errorf("ends at %s, want %s", at, desired)
					case desired.None() && recorded.None() && taken > 0:
						t.Errorf("changed to %s what is not ours", at)
					}

					// What the pass recorded is at rest.
					if !refused {
						after := Policy{}
						if at == desired {
							after = at
						}
						if next := planPolicy(desired, at, after); len(next.Steps) > 0 || next.Drift || next.Refusal != nil {
							t.Errorf("the next pass is not idle: %+v", next)
						}
					}
				})
			}
		}
	}
}

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
	config, err := parseConfig(providerConfigPath, storeS3, providerType, raw)
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

func TestPolicyString(t *testing.T) {
	tests := []struct {
		policy Policy
		text   string
		// end of the retention of an object of 2026-01-02.
		end string
	}{
		{Policy{}, "no immutability", "2026-01-02"},
		{Policy{Days: 1}, "unlocked retention of 24h", "2026-01-03"},
		{Policy{Days: 4, Locked: true}, "locked retention of 96h", "2026-01-06"},
		{Policy{Days: s3MaxRetentionDays, Locked: true}, "locked retention of 876000h", "2125-12-09"},
		{Policy{Days: azureMaxRetentionDays, Locked: true}, "locked retention of 3504000h", "2425-09-27"},
	}
	for _, test := range tests {
		if got := test.policy.String(); got != test.text {
			t.Errorf("got %q, want %q", got, test.text)
		}
		if got := test.policy.until(time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)).Format(time.DateOnly); got != test.end {
			t.Errorf("%s: ends on %s, want %s", test.text, got, test.end)
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
	for kind, limit := range map[storeKind]int32{storeS3: s3MaxRetentionDays, storeAzure: azureMaxRetentionDays} {
		got, err := parseConfig(providerConfigPath, kind, "s3", raw)
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
		if kind == storeS3 && (got.Cloud != "" || got.Rotation != nil) {
			t.Errorf("S3 knows %+v", got)
		}
		if r := got.Rotation; r != nil && (r.Days < 2 || r.ExpirationDays < 0 ||
			r.ExpirationDays > 0 && r.ExpirationDays <= r.Days) {
			t.Errorf("accepted %+v", *r)
		}
		// What is written is what is read.
		if back, err := json.Marshal(providerStatus(kind, "s3", got.Policy, "", "")); err != nil || recordedPolicy(back) != got.Policy {
			t.Errorf("%s: %s reads back as %s, %v", back, got.Policy, recordedPolicy(back), err)
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
		want      bucketConfig
	}{
		{"absent", "", bucketConfig{}},
		{"null", "null", bucketConfig{}},
		{"nothing", "{" + azureTestHeader + "}", bucketConfig{}},
		{"null fields", azureTestRaw(`"immutability": null, "cloudConfiguration": null, "rotationConfig": null`), bucketConfig{}},
		{"every field", azureTestRaw(`"immutability": {"retentionType": "bucket", "retentionPeriod": "96h", "locked": true},
			"cloudConfiguration": {"name": "AzureChina"}, "rotationConfig": {"rotationPeriodDays": 30, "expirationPeriodDays": 90}`),
			bucketConfig{Policy: Policy{Days: 4, Locked: true}, Cloud: "AzureChina", Rotation: &keyRotation{Days: 30, ExpirationDays: 90}}},
		{"not locked", azureTestImmutability(`"retentionPeriod": "96h"`), bucketConfig{Policy: Policy{Days: 4}}},
		{"unlocked", azureTestImmutability(`"retentionPeriod": "96h", "locked": false`), bucketConfig{Policy: Policy{Days: 4}}},
		{"null locked", azureTestImmutability(`"retentionPeriod": "96h", "locked": null`), bucketConfig{Policy: Policy{Days: 4}}},
		{"longer than S3 allows", azureTestImmutability(`"retentionPeriod": "2400000h", "locked": true`), bucketConfig{Policy: Policy{Days: 100000, Locked: true}}},
		{"longest", azureTestImmutability(`"retentionPeriod": "3504000h"`), bucketConfig{Policy: Policy{Days: 146000}}},
		{"a cloud alone", azureTestRaw(`"cloudConfiguration": {"name": "my cloud"}`), bucketConfig{Cloud: "my cloud"}},
		{"shortest rotation", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 2}`), bucketConfig{Rotation: &keyRotation{Days: 2}}},
		{"null expiration", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 2, "expirationPeriodDays": null}`), bucketConfig{Rotation: &keyRotation{Days: 2}}},
		{"expiration just above", azureTestRaw(`"rotationConfig": {"rotationPeriodDays": 30, "expirationPeriodDays": 31}`),
			bucketConfig{Rotation: &keyRotation{Days: 30, ExpirationDays: 31}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseConfig(providerConfigPath, storeAzure, "azure", []byte(test.raw))
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
			got, err := parseConfig(providerConfigPath, storeAzure, "azure", []byte(test.raw))
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
		if _, err := parseConfig(providerConfigPath, storeS3, "s3", []byte("{"+policyTestHeader+", "+field+"}")); err == nil || !strings.Contains(err.Error(), "unknown field") {
			t.Errorf("%s on S3: %v", field, err)
		}
	}
}

// A period that overflows would make the keys due at every look.
func TestParseConfigAzureLongRotation(t *testing.T) {
	for _, days := range []int32{106751, 106752, 200000, 213504, 1 << 30, math.MaxInt32} {
		config, err := parseConfig(providerConfigPath, storeAzure, "azure", fmt.Appendf(nil, `{%s, "rotationConfig": {"rotationPeriodDays": %d}}`, azureTestHeader, days))
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
	rotation := &keyRotation{Days: 30}
	const fields = `"cloudConfiguration": {"name": "AzureChina"}, "rotationConfig": {"rotationPeriodDays": 30}`
	tests := []struct {
		name, raw string
		want      bucketConfig
	}{
		{"immutability", azureTestRaw(fields + `, "immutability": {"retentionType": "bucket", "retentionPeriod": "25h"}`), bucketConfig{Cloud: "AzureChina", Rotation: rotation}},
		{"rotation", azureTestRaw(`"cloudConfiguration": {"name": "AzureChina"}, "rotationConfig": {"rotationPeriodDays": 1}`), bucketConfig{Cloud: "AzureChina"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseConfig(providerConfigPath, storeAzure, "azure", []byte(test.raw))
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
			if got, err := parseConfig(providerConfigPath, storeAzure, "azure", []byte(raw)); err == nil || got.Cloud != "AzureChina" {
				t.Errorf("got %+v, %v; want the cloud", got, err)
			}
		})
	}
}

func TestRefuseExtension(t *testing.T) {
	refusal := refuseExtension(Policy{Days: 10, Locked: true}, Policy{Days: 4, Locked: true})
	want := "the bucket has a locked retention of 96h, spec.providerConfig asks for locked retention of 240h: " +
		"Azure allows a locked policy to be extended only five times, and that has been done; write retentionPeriod: 96h"
	if refusal.Error() != want || refusal.Reason != "extend" {
		t.Errorf("reason %s, got %s", refusal.Reason, refusal)
	}
}

// What is recorded reads back as it was.
func TestProviderStatus(t *testing.T) {
	policies := []Policy{{Days: 1}, {Days: 1, Locked: true}, {Days: 4}, {Days: 4, Locked: true}, {Days: s3MaxRetentionDays, Locked: true}}
	for kind, policies := range map[storeKind][]Policy{
		storeS3:    policies,
		storeAzure: append(slices.Clone(policies), Policy{Days: 100000, Locked: true}, Policy{Days: azureMaxRetentionDays, Locked: true}),
	} {
		for _, policy := range policies {
			data, err := json.Marshal(providerStatus(kind, "my", policy, "", ""))
			if err != nil {
				t.Fatal(err)
			}
			if got := recordedPolicy(data); got != policy {
				t.Errorf("%s: %s reads back as %s", data, policy, got)
			}
			mode := ""
			if kind == storeS3 {
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
		if got := providerStatus(kind, "my", Policy{}, "", ""); got != nil {
			t.Errorf("no policy is recorded as %v", got)
		}
	}
}

// Whatever else lies in a status is no record of ours.
func TestRecordedPolicyOfOthers(t *testing.T) {
	const immutability = `"immutability": {"retentionType": "bucket", "retentionPeriod": "96h", "locked": true}`
	const version = `"apiVersion": "azure.provider.extensions.gardener.cloud/v1alpha1"`
	if got, want := recordedPolicy([]byte("{"+version+`, "kind": "BackupBucketStatus", `+immutability+"}")), (Policy{Days: 4, Locked: true}); got != want {
		t.Fatalf("our own: got %s", got)
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
		if got := recordedPolicy([]byte(raw)); got != (Policy{}) {
			t.Errorf("%s: got %s", raw, got)
		}
	}
}

func TestPlanKeys(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	key := func(name string, age time.Duration) accessKey {
		return accessKey{Name: name, Value: name + "-value", Created: now.Add(-age)}
	}
	undated := func(name string) accessKey { return accessKey{Name: name, Value: name + "-value"} }
	both := func(first, second accessKey) []accessKey { return []accessKey{first, second} }
	const (
		month     = 30 * testDay
		no, asked = false, true
	)
	monthly := &keyRotation{Days: 30}
	tests := []struct {
		name      string
		keys      []accessKey
		published string
		rotation  *keyRotation
		requested bool
		publish   string
		// regenerate is published instead, if it is not empty.
		regenerate string
	}{
		{"no keys", nil, "", monthly, asked, "", ""},
		{"no keys, something published", nil, "old", monthly, asked, "", ""},

		{"one key", []accessKey{key("a", 0)}, "", nil, no, "a", ""},
		{"one key, published", []accessKey{key("a", 0)}, "a-value", nil, no, "a", ""},
		{"one key, nothing to rotate to", []accessKey{key("a", month)}, "a-value", monthly, asked, "a", ""},

		{"nothing published", both(key("a", 2), key("b", 1)), "", nil, no, "b", ""},
		{"nothing published, rotation is due and asked for", both(key("a", 2*month), key("b", month)), "", monthly, asked, "b", ""},
		{"the youngest is the first", both(key("a", 1), key("b", 2)), "a-value", nil, no, "a", ""},
		{"the youngest is the second", both(key("a", 2), key("b", 1)), "b-value", nil, no, "b", ""},

		{"both of one age, nothing published", both(key("a", 1), key("b", 1)), "", nil, no, "a", ""},
		{"both of one age, the first published", both(key("a", 1), key("b", 1)), "a-value", nil, no, "a", ""},
		{"both of one age, the second published", both(key("a", 1), key("b", 1)), "b-value", nil, no, "b", ""},
		{"both of one age, something else published", both(key("a", 1), key("b", 1)), "x", nil, no, "a", ""},
		{"both of one age, the second published, asked for", both(key("a", 1), key("b", 1)), "b-value", nil, asked, "b", "a"},

		{"unknown ages, nothing published", both(undated("a"), undated("b")), "", monthly, no, "a", ""},
		{"unknown ages without rotation", both(undated("a"), undated("b")), "b-value", nil, no, "b", ""},
		{"unknown ages are due", both(undated("a"), undated("b")), "b-value", monthly, no, "b", "a"},
		{"unknown ages are due, however long the period", both(undated("a"), undated("b")), "b-value", &keyRotation{Days: math.MaxInt32}, no, "b", "a"},
		{"of unknown age is older, first", both(undated("a"), key("b", 10*month)), "b-value", nil, no, "b", ""},
		{"of unknown age is older, second", both(key("a", 10*month), undated("b")), "a-value", nil, asked, "a", "b"},
		{"of unknown age is published, the other is younger", both(undated("a"), key("b", 1)), "a-value", monthly, asked, "b", ""},

		{"just not due", both(key("a", month-1), key("b", 2*month)), "a-value", monthly, no, "a", ""},
		{"just due", both(key("a", month), key("b", 2*month)), "a-value", monthly, no, "a", "b"},
		{"long due", both(key("a", 9*month), key("b", 8*month)), "b-value", monthly, no, "b", "a"},
		{"due without rotation", both(key("a", 9*month), key("b", 8*month)), "b-value", nil, no, "b", ""},
		{"created in the future", both(key("a", -testDay), key("b", 9*month)), "a-value", monthly, no, "a", ""},

		{"asked for without rotation", both(key("a", 1), key("b", 2)), "a-value", nil, asked, "a", "b"},
		{"asked for, not due", both(key("a", 1), key("b", 2)), "a-value", monthly, asked, "a", "b"},

		{"cut off", both(key("a", 1), key("b", month)), "b-value", nil, no, "a", ""},
		{"cut off, asked for", both(key("a", 1), key("b", month)), "b-value", nil, asked, "a", ""},
		{"cut off long ago, due again", both(key("a", month), key("b", 2*month)), "b-value", monthly, asked, "a", ""},
		{"a value of neither", both(key("a", 2), key("b", 1)), "x", monthly, asked, "b", ""},

		{"the oldest of three goes", []accessKey{key("a", 2), key("b", 3), key("c", 1)}, "c-value", nil, asked, "c", "b"},
		{"the oldest of three comes first", []accessKey{key("a", 3), key("b", 1), key("c", 2)}, "b-value", nil, asked, "b", "a"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			publish, regenerate := planKeys(test.keys, test.published, test.rotation, test.requested, now)
			if publish.Name != test.publish || regenerate != test.regenerate {
				t.Errorf("publishes %q, regenerates %q; want %q, %q", publish.Name, regenerate, test.publish, test.regenerate)
			}
			if test.publish != "" && publish.Value != test.publish+"-value" {
				t.Errorf("publishes %q of key %q", publish.Value, publish.Name)
			}
			if regenerate != "" && regenerate == publish.Name {
				t.Error("regenerates the key that is in use")
			}
		})
	}
}
