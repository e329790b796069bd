package main

import (
	"errors"
	"fmt"
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
			`spec.providerConfig.apiVersion is "s3.provider.extensions.gardener.cloud/v1", must be "s3.provider.extensions.gardener.cloud/v1alpha1" for spec.type "s3"`},
		{"apiVersion of another type", `{"apiVersion": "aws.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig"}`,
			`spec.providerConfig.apiVersion is "aws.provider.extensions.gardener.cloud/v1alpha1", must be "s3.provider.extensions.gardener.cloud/v1alpha1" for spec.type "s3"`},
		{"no apiVersion", `{"kind": "BackupBucketConfig"}`,
			`spec.providerConfig.apiVersion is "", must be "s3.provider.extensions.gardener.cloud/v1alpha1" for spec.type "s3"`},

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
	config, err := parseConfig(storeS3, providerType, raw)
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
		policy    Policy
		text      string
		retention time.Duration
	}{
		{Policy{}, "no immutability", 0},
		{Policy{Days: 1}, "unlocked retention of 24h", 24 * time.Hour},
		{Policy{Days: 4, Locked: true}, "locked retention of 96h", 96 * time.Hour},
		{Policy{Days: s3MaxRetentionDays, Locked: true}, "locked retention of 876000h", 876000 * time.Hour},
	}
	for _, test := range tests {
		if got := test.policy.String(); got != test.text {
			t.Errorf("got %q, want %q", got, test.text)
		}
		if got := test.policy.Retention(); got != test.retention {
			t.Errorf("%s: got %s, want %s", test.text, got, test.retention)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	for _, seed := range []string{
		"", "null", "{}", "[]", `"x"`, "7", "{" + policyTestHeader + "}",
		policyTestConfig(`"retentionPeriod": "96h", "mode": "compliance", "locked": true`),
		policyTestConfig(`"retentionPeriod": "-24h"`),
		policyTestConfig(`"retentionPeriod": "1000000000h"`),
		policyTestConfig(`"retentionPeriod": "2562047h47m16.854775807s"`),
		policyTestConfig("\"retentionPeriod\": \"\xff\""),
		policyTestConfig(`"retentionPeriod": "96h", "mode": "governance", "locked": true`),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := policyTestParse("s3", raw)
		if err != nil {
			var mistake *configError
			if !errors.As(err, &mistake) || !got.None() || got.Locked {
				t.Errorf("got %s with the error %v of type %T", got, err, err)
			}
			if utf8.Valid(raw) && !utf8.ValidString(err.Error()) {
				t.Errorf("the message %q is no UTF-8", err)
			}
			return
		}
		if got.Days < 0 || got.Days > s3MaxRetentionDays || got.None() && got.Locked {
			t.Errorf("accepted %+v", got)
		}
	})
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
