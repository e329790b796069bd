package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"bucketwarden/test/env"
)

// admissionCase is a write of a BackupBucket and what becomes of it. The webhook and the
// ValidatingAdmissionPolicy are to agree, except on what only the webhook judges.
type admissionCase struct {
	name string
	// The object as it is before: spec.type (aws if empty), spec.class, spec.providerConfig
	// and status.providerStatus (left out if nil), and whether a BackupEntry refers to it.
	kind          string
	class         any
	old, recorded map[string]any
	inUse         bool
	// change is the update. With create the changed object is created as another one, with
	// deleted the object is deleted instead.
	change          func(*unstructured.Unstructured)
	create, deleted bool

	// denied is what the denial says; nothing if the write is allowed, with the warnings
	// that contain what warned says, one each.
	denied string
	warned []string
	// onlyWebhook: the policy allows it, because it is not meant to judge that.
	onlyWebhook bool
	// policyDenied, if set, is what the policy says instead of denied.
	policyDenied string
}

// retentionOf is spec.providerConfig.immutability with further fields as key, value, ...
func retentionOf(period any, more ...any) map[string]any {
	immutability := map[string]any{"retentionType": "bucket", "retentionPeriod": period}
	for i := 0; i < len(more); i += 2 {
		immutability[more[i].(string)] = more[i+1]
	}
	return immutability
}

// lockedFor is a locked immutability in the form of the type.
func lockedFor(kind string, period any) map[string]any {
	if kind == "azure" {
		return retentionOf(period, "locked", true)
	}
	return retentionOf(period, "mode", "compliance")
}

// unlockedFor is an unlocked immutability in the form of the type.
func unlockedFor(kind string, period any) map[string]any {
	if kind == "azure" {
		return retentionOf(period, "locked", false)
	}
	return retentionOf(period, "mode", "governance")
}

// configWith is a spec.providerConfig with anything as immutability and further fields.
func configWith(kind string, immutability any, more ...any) map[string]any {
	config := providerConfig(kind, nil)
	config["immutability"] = immutability
	for i := 0; i < len(more); i += 2 {
		config[more[i].(string)] = more[i+1]
	}
	return config
}

// recordOf is a status.providerStatus as the daemon writes it.
func recordOf(kind string, immutability any) map[string]any {
	status := configWith(kind, immutability)
	status["kind"] = "BackupBucketStatus"
	return status
}

// recordedFor is the record of a policy.
func recordedFor(kind, period string, locked bool) map[string]any {
	immutability := retentionOf(period, "locked", locked)
	if kind != "azure" {
		immutability["mode"] = map[bool]string{true: "compliance", false: "governance"}[locked]
	}
	return recordOf(kind, immutability)
}

// configured is a change of spec.providerConfig; nil removes it.
func configured(config map[string]any) func(*unstructured.Unstructured) {
	return func(o *unstructured.Unstructured) {
		unstructured.RemoveNestedField(o.Object, "spec", "providerConfig")
		if config != nil {
			set(o, config, "spec", "providerConfig")
		}
	}
}

// specified is a change of one field of spec; nil removes it.
func specified(field string, value any) func(*unstructured.Unstructured) {
	return func(o *unstructured.Unstructured) {
		unstructured.RemoveNestedField(o.Object, "spec", field)
		if value != nil {
			set(o, value, "spec", field)
		}
	}
}

func changes(all ...func(*unstructured.Unstructured)) func(*unstructured.Unstructured) {
	return func(o *unstructured.Unstructured) {
		for _, change := range all {
			change(o)
		}
	}
}

// weakening is what both say of a wish that would weaken a lock of floor.
func weakening(floor, asked, rule string) string {
	return fmt.Sprintf("spec.providerConfig.immutability: the bucket has a locked retention of %s, spec.providerConfig asks for %s: a locked policy cannot be %s; "+
		"keep immutability locked (S3: mode: compliance) with retentionPeriod: %s or longer", floor, asked, rule, floor)
}

func disabling(floor string) string { return weakening(floor, "no immutability", "disabled") }

// unreadable is what the policy says of an invalid immutability.
func unreadable(floor string) string {
	return weakening(floor, "an immutability that is not valid", "disabled")
}

func leaving(field, floor, old, new string) string {
	return fmt.Sprintf("spec.%s: the bucket has a locked retention of %s, which must not be left to somebody else: it is %q and cannot become %q", field, floor, old, new)
}

const (
	warnedLock       = "locking is irreversible: from now on retention can only grow"
	warnedExtend     = "Azure allows a locked policy to be extended five times, ever"
	warnedLong       = "is longer than a year"
	warnedShort      = "is very short"
	warnedGovernance = "governance protects only from those without the permission s3:BypassGovernanceRetention"
	warnedMoved      = "the region changes"
)

func admissionCases() []admissionCase {
	return slices.Concat(policyTableCases(), floorCases(), durationCases(), formCases(), invalidCases(), serviceCases(), otherAdmissionCases())
}

// policyTableCases are the rows of docs/immutability.md.
func policyTableCases() (cases []admissionCase) {
	for _, kind := range []string{"aws", "azure"} {
		locked := func(period string) map[string]any { return configWith(kind, lockedFor(kind, period)) }
		unlocked := func(period string) map[string]any { return configWith(kind, unlockedFor(kind, period)) }
		none := providerConfig(kind, nil)
		var governance, extended []string
		lockField := "immutability.mode: "
		if kind == "azure" {
			extended, lockField = []string{warnedExtend}, "immutability.locked: "
		} else {
			governance = []string{warnedGovernance}
		}
		for _, c := range []admissionCase{
			{name: "none, as before", old: nil, change: configured(none)},
			{name: "none over unlocked", old: unlocked("96h"), recorded: recordedFor(kind, "96h", false), change: configured(none)},
			{name: "none over unlocked, not carried out yet", old: unlocked("96h"), change: configured(none)},
			{name: "none over locked", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(none), denied: disabling("96h")},
			{name: "none over locked, not carried out yet", old: locked("96h"), change: configured(none), denied: disabling("96h")},
			{name: "no providerConfig over locked", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(nil), denied: disabling("96h")},
			{name: "null over locked", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(configWith(kind, nil)), denied: disabling("96h")},
			{name: "unlocked over none", old: none, change: configured(unlocked("96h")), warned: governance},
			{name: "unlocked over unlocked, shorter", old: unlocked("96h"), recorded: recordedFor(kind, "96h", false), change: configured(unlocked("24h")), warned: governance},
			{name: "unlocked over unlocked, longer", old: unlocked("96h"), recorded: recordedFor(kind, "96h", false), change: configured(unlocked("120h")), warned: governance},
			{name: "unlocked over locked", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(unlocked("96h")),
				denied: weakening("96h", "unlocked retention of 96h", "unlocked")},
			{name: "unlocked over locked, shorter", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(unlocked("24h")),
				denied: weakening("96h", "unlocked retention of 24h", "unlocked")},
			{name: "unlocked over locked, longer", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(unlocked("960h")),
				denied: weakening("96h", "unlocked retention of 960h", "unlocked")},
			{name: "unlocked by default over locked", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(configWith(kind, retentionOf("96h"))),
				denied: weakening("96h", "unlocked retention of 96h", "unlocked")},
			{name: "locked over none", old: none, change: configured(locked("96h")), warned: []string{lockField + warnedLock}},
			{name: "locked over unlocked", old: unlocked("96h"), recorded: recordedFor(kind, "96h", false), change: configured(locked("96h")), warned: []string{lockField + warnedLock}},
			{name: "locked over unlocked, shorter", old: unlocked("96h"), recorded: recordedFor(kind, "96h", false), change: configured(locked("24h")),
				warned: []string{lockField + warnedLock, warnedShort}},
			{name: "locked over locked, longer", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(locked("120h")), warned: extended},
			{name: "locked over locked, above a year", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(locked("8784h")),
				warned: append([]string{warnedLong}, extended...)},
			{name: "locked over locked, shorter", old: locked("96h"), recorded: recordedFor(kind, "96h", true), change: configured(locked("72h")),
				denied: weakening("96h", "locked retention of 72h", "shortened")},
			{name: "locked over locked, much shorter though more digits", old: locked("240h"), recorded: recordedFor(kind, "240h", true), change: configured(locked("1440m")),
				denied: weakening("240h", "locked retention of 24h", "shortened")},
		} {
			c.name, c.kind = kind+": "+c.name, kind
			cases = append(cases, c)
		}
	}
	return cases
}

// floorCases: the longest lock of the old spec and the record counts.
func floorCases() (cases []admissionCase) {
	for _, kind := range []string{"aws", "azure"} {
		locked := func(period string) map[string]any { return configWith(kind, lockedFor(kind, period)) }
		unlocked := func(period string) map[string]any { return configWith(kind, unlockedFor(kind, period)) }
		none := providerConfig(kind, nil)
		var extended, governance []string
		if kind == "azure" {
			extended = []string{warnedExtend}
		} else {
			governance = []string{warnedGovernance}
		}
		shortened := func(floor, asked string) string { return weakening(floor, "locked retention of "+asked, "shortened") }
		for _, c := range []admissionCase{
			{name: "old longer than recorded", old: locked("120h"), recorded: recordedFor(kind, "96h", true), change: configured(locked("96h")), denied: shortened("120h", "96h")},
			{name: "old shorter than recorded", old: locked("96h"), recorded: recordedFor(kind, "120h", true), change: configured(locked("72h")), denied: shortened("120h", "72h")},
			{name: "old shorter than recorded, back to what is recorded", old: locked("96h"), recorded: recordedFor(kind, "120h", true), change: configured(locked("120h"))},
			{name: "old none, recorded locked, first config", old: nil, recorded: recordedFor(kind, "96h", true), change: configured(none), denied: disabling("96h")},
			{name: "old none, recorded locked, shorter", old: none, recorded: recordedFor(kind, "96h", true), change: configured(locked("72h")), denied: shortened("96h", "72h")},
			{name: "old none, recorded locked, unlocked", old: none, recorded: recordedFor(kind, "96h", true), change: configured(unlocked("96h")),
				denied: weakening("96h", "unlocked retention of 96h", "unlocked")},
			{name: "old none, recorded locked, back to it", old: none, recorded: recordedFor(kind, "96h", true), change: configured(locked("96h"))},
			{name: "old none, recorded locked, longer", old: none, recorded: recordedFor(kind, "96h", true), change: configured(locked("120h")), warned: extended},
			{name: "old none, recorded locked, config removed", old: none, recorded: recordedFor(kind, "96h", true), change: configured(nil), denied: disabling("96h")},
			{name: "old unlocked and longer, recorded locked", old: unlocked("960h"), recorded: recordedFor(kind, "96h", true), change: configured(locked("96h"))},
			{name: "old locked, recorded unlocked and longer", old: locked("96h"), recorded: recordedFor(kind, "960h", false), change: configured(locked("120h")), warned: extended},
			{name: "old locked, recorded unlocked and longer, then shorter", old: locked("96h"), recorded: recordedFor(kind, "960h", false), change: configured(locked("72h")), denied: shortened("96h", "72h")},
			{name: "old invalid, recorded locked", old: configWith(kind, retentionOf("garbage", "locked", true)), recorded: recordedFor(kind, "96h", true), change: configured(none), denied: disabling("96h")},
			{name: "old invalid, recorded locked, repaired", old: configWith(kind, retentionOf("garbage", "locked", true)), recorded: recordedFor(kind, "96h", true), change: configured(locked("96h"))},
			{name: "recorded by somebody else", old: none, recorded: configWith(kind, retentionOf("96h", "locked", true), "kind", "SomebodysStatus"), change: configured(unlocked("24h")), warned: governance},
			{name: "recorded without a kind", old: none, recorded: map[string]any{"immutability": retentionOf("96h", "locked", true)}, change: configured(unlocked("24h")), warned: governance},
			{name: "recorded without immutability", old: unlocked("24h"), recorded: map[string]any{"apiVersion": "azure.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketStatus", "immutability": nil, "storageAccount": "bkp"}, change: configured(none)},
			{name: "recorded as locked only", old: none, recorded: recordOf(kind, retentionOf("96h", "locked", true)), change: configured(nil), denied: disabling("96h")},
			{name: "recorded as mode only", old: none, recorded: recordOf(kind, retentionOf("96h", "mode", "compliance")), change: configured(nil), denied: disabling("96h")},
			{name: "recorded contradiction", old: none, recorded: recordOf(kind, retentionOf("96h", "mode", "governance", "locked", true)), change: configured(nil)},
			{name: "recorded junk", old: none, recorded: recordOf(kind, "x"), change: configured(nil)},
			{name: "recorded junk list", old: none, recorded: recordOf(kind, []any{retentionOf("96h", "locked", true)}), change: configured(nil)},
			{name: "recorded junk period", old: none, recorded: recordOf(kind, retentionOf(int64(96), "locked", true)), change: configured(nil)},
			{name: "recorded junk locked", old: none, recorded: recordOf(kind, retentionOf("96h", "locked", "yes")), change: configured(nil)},
			{name: "recorded kind of another type", old: none, recorded: configWith(kind, retentionOf("96h", "locked", true), "kind", int64(5)), change: configured(nil)},
		} {
			c.name, c.kind = kind+": "+c.name, kind
			cases = append(cases, c)
		}
	}
	return cases
}

// fourDays are the many ways to write 96h.
var fourDays = []string{"96h", "5760m", "345600s", "345600000ms", "345600000000us", "345600000000µs", "345600000000μs", "345600000000000ns",
	"96h0m0s", "95h60m", "95h59m60s", "1h5700m", "48h48h", "0096h", "+96h", "+5760m", "96.0h", "96.h", "95.5h30m", ".5h95.5h", "1.6h5664m",
	"345599.5s500ms", "0h0m0s96h", "60m95h", "000000000000000000000000000000000000000096h"}

// notDurations are retention periods that are none: junk, not whole days, or out of range.
var notDurations = []any{nil, "", " ", "x", "h", "96", "0", "-96h", "4d", "96H", " 96h", "96h ", "96 h", "1e3h", "0x60h", "96h-1m", "--96h", "++96h", "96h+24h", ".h", "1..5h", "96h\n", "九十六h",
	"100h", "23h", "0h", "0s", "12h", "1ns", "24h1ns", "96h0.5s", "95h59m59.999999999s", "5759m", "1h30m",
	"3504024h", "99999999h", "9223372036854775807h", "99999999999999999999999h", "2562048h0m", "2562047h60m", "153722868m", "9223372037s", "9223372036854775808ns", "9223372036854775807ns9223372036854775807ns",
	"9999999999999999999999999999999999999999999999999999999999999999999999m", strings.Repeat("9", 400) + "m", strings.Repeat("1h", 400), strings.Repeat("1h", 640_000), strings.Repeat("0", 1_280_000) + "100h", "." + strings.Repeat("9", 400) + "h",
	int64(96), 96.5, true, []any{"96h"}, map[string]any{"hours": int64(96)}}

// durationCases: durations are compared as durations.
func durationCases() (cases []admissionCase) {
	add := func(c admissionCase, kind, format string, args ...any) {
		c.kind, c.name = kind, kind+": "+fmt.Sprintf(format, args...)
		cases = append(cases, c)
	}
	kinds := []string{"aws", "azure"}
	for i, period := range fourDays {
		kind := kinds[i%2]
		config := configWith(kind, lockedFor(kind, period))
		add(admissionCase{recorded: recordedFor(kind, "96h", true), change: configured(config)}, kind, "%s is 96h", period)
		add(admissionCase{recorded: recordedFor(kind, "120h", true), change: configured(config), denied: weakening("120h", "locked retention of 96h", "shortened")},
			kind, "%s is less than 120h", period)
		add(admissionCase{old: config, change: configured(configWith(kind, lockedFor(kind, "4320m"))), denied: weakening("96h", "locked retention of 72h", "shortened")},
			kind, "%s is more than 4320m", period)
	}
	for i, period := range notDurations {
		kind := kinds[i%2]
		config := configWith(kind, lockedFor(kind, period))
		label := fmt.Sprintf("no duration %d %.20v", i, period)
		add(admissionCase{recorded: recordedFor(kind, "24h", true), change: configured(config),
			denied: "spec.providerConfig.immutability.retentionPeriod", policyDenied: unreadable("24h")}, kind, "%s instead of a lock", label)
		add(admissionCase{change: configured(config), denied: "spec.providerConfig.immutability.retentionPeriod", onlyWebhook: true}, kind, "%s instead of nothing", label)
		add(admissionCase{old: config, change: configured(nil)}, kind, "nothing instead of %s", label)
		add(admissionCase{old: config, change: configured(configWith(kind, lockedFor(kind, "96h"))), warned: []string{warnedLock}}, kind, "a lock instead of %s", label)
	}
	for _, century := range []string{"876000h", "52560000m", "3153600000s", "3153600000000ms", "3153600000000000000ns", "875999h59m60s", "0876000h", "876000h0m0s"} {
		config := configWith("aws", lockedFor("aws", century))
		add(admissionCase{recorded: recordedFor("aws", "876000h", true), change: configured(config), warned: []string{warnedLong}}, "aws", "%s is a century", century)
		add(admissionCase{old: config, change: configured(configWith("aws", lockedFor("aws", "875976h"))), denied: weakening("876000h", "locked retention of 875976h", "shortened")},
			"aws", "%s is more than a century without a day", century)
	}
	add(admissionCase{recorded: recordedFor("aws", "96h", true), change: configured(configWith("aws", lockedFor("aws", "876024h"))),
		denied: "the store allows at most 876000h", policyDenied: unreadable("96h")}, "aws", "more than S3 allows")
	add(admissionCase{old: configWith("aws", lockedFor("aws", "876024h")), change: configured(nil)}, "aws", "more than S3 allows was never applied")
	for _, longest := range []string{"3504000h", "0003504000h"} {
		config := configWith("azure", lockedFor("azure", longest))
		add(admissionCase{recorded: recordedFor("azure", "3504000h", true), change: configured(config), warned: []string{warnedLong}}, "azure", "%s is the longest", longest)
		add(admissionCase{old: config, change: configured(configWith("azure", lockedFor("azure", "3503976h"))), denied: weakening("3504000h", "locked retention of 3503976h", "shortened")},
			"azure", "%s is more than the longest without a day", longest)
		add(admissionCase{old: config, change: configured(configWith("azure", lockedFor("azure", "2562024h0m"))), denied: weakening("3504000h", "locked retention of 2562024h", "shortened")},
			"azure", "%s is more than the longest of Go's", longest)
	}
	add(admissionCase{recorded: recordedFor("azure", "96h", true), change: configured(configWith("azure", lockedFor("azure", "3504000h"))), warned: []string{warnedExtend, warnedLong}}, "azure", "to the longest")
	add(admissionCase{recorded: recordedFor("azure", "3504000h", true), change: configured(providerConfig("azure", nil)), denied: disabling("3504000h")}, "azure", "none over the longest")
	add(admissionCase{recorded: recordedFor("azure", "2562048h", true), change: configured(configWith("azure", lockedFor("azure", "2562024h"))),
		denied: weakening("2562048h", "locked retention of 2562024h", "shortened")}, "azure", "across the longest of Go's")
	return cases
}

// formCases are the forms of a lock.
func formCases() (cases []admissionCase) {
	for _, form := range []struct {
		name, kind string
		lock       []any
		want       string
	}{
		{"locked", "aws", []any{"locked", true}, "locked"},
		{"locked and compliance", "aws", []any{"locked", true, "mode", "compliance"}, "locked"},
		{"locked and empty mode", "aws", []any{"locked", true, "mode", ""}, "locked"},
		{"locked and null mode", "aws", []any{"locked", true, "mode", nil}, "locked"},
		{"null locked and compliance", "aws", []any{"locked", nil, "mode", "compliance"}, "locked"},
		{"of type s3", "s3", []any{"mode", "compliance"}, "locked"},
		{"of type S3", "S3", []any{"mode", "compliance"}, "locked"},
		{"not locked", "aws", []any{"locked", false}, "unlocked"},
		{"not locked and governance", "aws", []any{"locked", false, "mode", "governance"}, "unlocked"},
		{"null locked and mode", "aws", []any{"locked", nil, "mode", nil}, "unlocked"},
		{"locked and governance", "aws", []any{"locked", true, "mode", "governance"}, "invalid"},
		{"not locked and compliance", "aws", []any{"locked", false, "mode", "compliance"}, "invalid"},
		{"locked and unknown mode", "aws", []any{"locked", true, "mode", "COMPLIANCE"}, "invalid"},
		{"locked and mode of another type", "aws", []any{"locked", true, "mode", int64(1)}, "invalid"},
		{"locked and mode list", "aws", []any{"locked", true, "mode", []any{"compliance"}}, "invalid"},
		{"locked yes", "aws", []any{"locked", "yes"}, "invalid"},
		{"locked true as text", "aws", []any{"locked", "true", "mode", "compliance"}, "invalid"},
		{"locked 1", "aws", []any{"locked", int64(1)}, "invalid"},
		{"locked list", "aws", []any{"locked", []any{true}}, "invalid"},
		{"retentionType object", "aws", []any{"locked", true, "retentionType", "object"}, "invalid"},
		{"retentionType Bucket", "aws", []any{"locked", true, "retentionType", "Bucket"}, "invalid"},
		{"retentionType null", "aws", []any{"locked", true, "retentionType", nil}, "invalid"},
		{"retentionType of another type", "aws", []any{"locked", true, "retentionType", int64(1)}, "invalid"},
		{"null locked", "azure", []any{"locked", nil}, "unlocked"},
		{"locked yes", "azure", []any{"locked", "yes"}, "invalid"},
		{"locked 1", "azure", []any{"locked", int64(1)}, "invalid"},
		{"locked map", "azure", []any{"locked", map[string]any{}}, "invalid"},
		{"retentionType object", "azure", []any{"locked", true, "retentionType", "object"}, "invalid"},
		{"retentionType list", "azure", []any{"locked", true, "retentionType", []any{"bucket"}}, "invalid"},
	} {
		add := func(c admissionCase, what string) {
			c.kind, c.name = form.kind, form.kind+": "+form.name+": "+what
			cases = append(cases, c)
		}
		config := configWith(form.kind, retentionOf("96h", form.lock...))
		recorded := recordedFor(form.kind, "96h", true)
		switch form.want {
		case "locked":
			add(admissionCase{recorded: recorded, change: configured(config)}, "over a lock")
			add(admissionCase{old: config, change: configured(nil), denied: disabling("96h")}, "disabled")
		case "unlocked":
			add(admissionCase{recorded: recorded, change: configured(config), denied: weakening("96h", "unlocked retention of 96h", "unlocked")}, "over a lock")
			add(admissionCase{old: config, change: configured(nil)}, "disabled")
		default:
			add(admissionCase{recorded: recorded, change: configured(config), denied: "spec.providerConfig.immutability", policyDenied: unreadable("96h")}, "over a lock")
			add(admissionCase{change: configured(config), denied: "spec.providerConfig.immutability", onlyWebhook: true}, "over nothing")
			add(admissionCase{old: config, change: configured(nil)}, "disabled")
			add(admissionCase{old: config, change: configured(configWith(form.kind, lockedFor(form.kind, "96h"))), warned: []string{warnedLock}}, "repaired")
		}
	}
	for i, junk := range []any{"x", int64(5), 1.5, true, []any{}, []any{lockedFor("azure", "96h")}, map[string]any{}, map[string]any{"locked": true}, map[string]any{"retentionPeriod": "96h", "locked": true}} {
		for _, kind := range []string{"aws", "azure"} {
			name := fmt.Sprintf("%s: junk immutability %d: ", kind, i)
			config := configWith(kind, junk)
			cases = append(cases,
				admissionCase{name: name + "over a lock", kind: kind, recorded: recordedFor(kind, "96h", true), change: configured(config), denied: "spec.providerConfig.immutability", policyDenied: unreadable("96h")},
				admissionCase{name: name + "over nothing", kind: kind, change: configured(config), denied: "spec.providerConfig.immutability", onlyWebhook: true},
				admissionCase{name: name + "disabled", kind: kind, old: config, change: configured(nil)})
		}
	}
	return cases
}

// invalidCases are configs that are invalid elsewhere than in immutability. The policy
// judges immutability alone, of the old object too.
func invalidCases() (cases []admissionCase) {
	for _, kind := range []string{"aws", "azure"} {
		for _, invalid := range []struct {
			name, denied string
			more         []any
		}{
			{"unknown field", `unknown field "bogus"`, []any{"bogus", true}},
			{"kind", `spec.providerConfig.kind is "Bogus"`, []any{"kind", "Bogus"}},
			{"kind of another type", "spec.providerConfig.kind must not be a JSON number", []any{"kind", int64(5)}},
			{"apiVersion", `spec.providerConfig.apiVersion is "v1"`, []any{"apiVersion", "v1"}},
			{"rotationConfig", "rotationConfig", []any{"rotationConfig", map[string]any{"rotationPeriodDays": int64(1)}}},
			{"cloudConfiguration", "cloudConfiguration", []any{"cloudConfiguration", map[string]any{"bogus": "x"}}},
		} {
			locked := configWith(kind, lockedFor(kind, "96h"), invalid.more...)
			weaker := configWith(kind, lockedFor(kind, "72h"), invalid.more...)
			add := func(c admissionCase, what string) {
				c.kind, c.name = kind, kind+": invalid "+invalid.name+": "+what
				cases = append(cases, c)
			}
			add(admissionCase{recorded: recordedFor(kind, "96h", true), change: configured(locked), denied: invalid.denied, onlyWebhook: true}, "lock kept")
			add(admissionCase{recorded: recordedFor(kind, "96h", true), change: configured(weaker), denied: invalid.denied,
				policyDenied: weakening("96h", "locked retention of 72h", "shortened")}, "lock shortened")
			add(admissionCase{change: configured(locked), denied: invalid.denied, onlyWebhook: true}, "nothing locked")
			add(admissionCase{old: locked, recorded: recordedFor(kind, "96h", true), change: configured(nil), denied: disabling("96h")}, "disabled")
			add(admissionCase{old: locked, recorded: recordedFor(kind, "96h", true), change: configured(configWith(kind, lockedFor(kind, "96h")))}, "repaired")
			// To the webhook what is invalid was never applied.
			add(admissionCase{old: locked, change: configured(nil), policyDenied: disabling("96h")}, "disabled, never carried out")
		}
		cases = append(cases,
			admissionCase{name: kind + ": unknown field in immutability", kind: kind, recorded: recordedFor(kind, "96h", true),
				change: configured(configWith(kind, retentionOf("96h", "locked", true, "bogus", true))), denied: `unknown field "immutability.bogus"`, onlyWebhook: true},
			admissionCase{name: kind + ": empty config over a lock", kind: kind, recorded: recordedFor(kind, "96h", true),
				change: configured(map[string]any{}), denied: "spec.providerConfig.kind", policyDenied: disabling("96h")},
			admissionCase{name: kind + ": empty config", kind: kind, change: configured(map[string]any{}), denied: "spec.providerConfig.kind", onlyWebhook: true},
			admissionCase{name: kind + ": misspelt immutability over a lock", kind: kind, recorded: recordedFor(kind, "96h", true),
				change: configured(func() map[string]any {
					config := providerConfig(kind, nil)
					config["Immutability"] = lockedFor(kind, "96h")
					return config
				}()), denied: `unknown field "Immutability"`, policyDenied: disabling("96h")})
	}
	return append(cases,
		admissionCase{name: "azure: mode is unknown, unlocked", kind: "azure", recorded: recordedFor("azure", "96h", true),
			change: configured(configWith("azure", retentionOf("96h", "mode", "compliance"))), denied: `unknown field "immutability.mode"`,
			policyDenied: weakening("96h", "unlocked retention of 96h", "unlocked")},
		admissionCase{name: "azure: mode is unknown, locked", kind: "azure", recorded: recordedFor("azure", "96h", true),
			change: configured(configWith("azure", retentionOf("96h", "mode", "governance", "locked", true))), denied: `unknown field "immutability.mode"`, onlyWebhook: true},
		admissionCase{name: "azure: mode was unknown", kind: "azure", old: configWith("azure", retentionOf("96h", "mode", "compliance")), change: configured(nil)},
		admissionCase{name: "azure: rotationConfig added to a lock", kind: "azure", old: configWith("azure", lockedFor("azure", "96h")), recorded: recordedFor("azure", "96h", true),
			change: configured(configWith("azure", lockedFor("azure", "96h"), "rotationConfig", map[string]any{"rotationPeriodDays": int64(30)}, "cloudConfiguration", map[string]any{"name": "AzurePublic"}))},
		admissionCase{name: "azure: only rotationConfig kept of a lock", kind: "azure", old: configWith("azure", lockedFor("azure", "96h"), "rotationConfig", map[string]any{"rotationPeriodDays": int64(30)}),
			change: configured(func() map[string]any {
				config := providerConfig("azure", nil)
				config["rotationConfig"] = map[string]any{"rotationPeriodDays": int64(30)}
				return config
			}()), denied: disabling("96h")},
	)
}

// serviceCases are about who is responsible for a bucket.
func serviceCases() (cases []admissionCase) {
	locked, recorded := configWith("aws", lockedFor("aws", "96h")), recordedFor("aws", "96h", true)
	unlocked := configWith("aws", unlockedFor("aws", "96h"))
	taken := func(config map[string]any) func(*unstructured.Unstructured) {
		return changes(specified("type", "aws"), configured(config))
	}
	return []admissionCase{
		{name: "another type", kind: "openstack", old: locked, recorded: recorded, change: configured(nil)},
		{name: "another class", class: "garden", old: locked, recorded: recorded, change: configured(nil)},
		{name: "class shoot", class: "shoot", old: locked, recorded: recorded, change: configured(nil), denied: disabling("96h")},
		{name: "empty class", class: "", old: locked, recorded: recorded, change: configured(nil), denied: disabling("96h")},

		{name: "type to one not served", old: locked, recorded: recorded, change: specified("type", "openstack"), denied: leaving("type", "96h", "aws", "openstack")},
		{name: "type to one not served, only recorded", recorded: recorded, change: specified("type", "openstack"), denied: leaving("type", "96h", "aws", "openstack")},
		{name: "type to one not served, not carried out yet", old: locked, change: specified("type", "openstack"), denied: leaving("type", "96h", "aws", "openstack")},
		{name: "type to one not served, config removed", old: locked, recorded: recorded, change: changes(specified("type", "openstack"), configured(nil)), denied: leaving("type", "96h", "aws", "openstack")},
		{name: "type to one not served, unlocked", old: unlocked, recorded: recordedFor("aws", "96h", false), change: specified("type", "openstack")},
		{name: "type to one not served, none", change: specified("type", "openstack")},
		{name: "type to another store", old: locked, recorded: recorded, change: changes(specified("type", "azure"), configured(configWith("azure", lockedFor("azure", "96h")))),
			denied: leaving("type", "96h", "aws", "azure")},
		{name: "type to another name of the store", old: locked, recorded: recorded, change: changes(specified("type", "s3"), configured(configWith("s3", lockedFor("s3", "96h")))),
			denied: leaving("type", "96h", "aws", "s3")},
		{name: "type to another name of the store, unlocked", old: unlocked, recorded: recordedFor("aws", "96h", false),
			change: changes(specified("type", "s3"), configured(configWith("s3", lockedFor("s3", "96h")))), warned: []string{warnedLock}},
		{name: "type to another case", old: locked, change: specified("type", "AWS"), denied: leaving("type", "96h", "aws", "AWS")},
		{name: "type emptied", old: locked, change: specified("type", ""), denied: leaving("type", "96h", "aws", "")},
		{name: "type with quotes", old: locked, change: specified("type", `a"b'c`), denied: leaving("type", "96h", "aws", `a"b'c`)},
		{name: "type with a line feed", old: locked, change: specified("type", "a\nb"), denied: leaving("type", "96h", "aws", "a\nb")},
		{name: "type and class", old: locked, change: changes(specified("type", "openstack"), specified("class", "garden")), denied: leaving("type", "96h", "aws", "openstack")},

		{name: "class to one not served", old: locked, recorded: recorded, change: specified("class", "garden"), denied: leaving("class", "96h", "shoot", "garden")},
		{name: "class to one not served, only recorded", recorded: recorded, change: specified("class", "garden"), denied: leaving("class", "96h", "shoot", "garden")},
		{name: "class to one not served, config removed", old: locked, recorded: recorded, change: changes(specified("class", "garden"), configured(nil)), denied: leaving("class", "96h", "shoot", "garden")},
		{name: "class to one not served, unlocked", old: unlocked, recorded: recordedFor("aws", "96h", false), change: specified("class", "garden")},
		{name: "class named", old: locked, recorded: recorded, change: specified("class", "shoot")},
		{name: "class named, weaker spec as before", recorded: recorded, change: specified("class", "shoot")},
		{name: "class named and config removed", old: locked, change: changes(specified("class", "shoot"), configured(nil)), denied: disabling("96h")},
		{name: "class removed", class: "shoot", old: locked, recorded: recorded, change: specified("class", nil)},

		{name: "taken over from another type, recorded locked", kind: "openstack", recorded: recorded, change: taken(nil), denied: disabling("96h")},
		{name: "taken over from another type, recorded locked, kept", kind: "openstack", recorded: recorded, change: taken(locked)},
		{name: "taken over from another type, shortened", kind: "openstack", recorded: recorded, change: taken(configWith("aws", lockedFor("aws", "72h"))),
			denied: weakening("96h", "locked retention of 72h", "shortened")},
		{name: "taken over from another type, its spec is not ours to judge", kind: "openstack", old: locked, change: taken(nil)},
		{name: "taken over from another class, weaker spec as before", class: "garden", recorded: recorded, change: specified("class", nil), denied: disabling("96h")},
		{name: "taken over from another class, locked spec", class: "garden", old: locked, change: changes(specified("class", nil), configured(nil)), denied: disabling("96h")},
		{name: "taken over from another class, kept", class: "garden", old: locked, recorded: recorded, change: specified("class", nil)},
	}
}

// otherAdmissionCases are writes that the policy does not judge at all, and updates of
// other things, which nobody may deny.
func otherAdmissionCases() (cases []admissionCase) {
	for _, kind := range []string{"aws", "azure"} {
		locked, recorded := configWith(kind, lockedFor(kind, "96h")), recordedFor(kind, "96h", true)
		for _, before := range []admissionCase{
			{name: "locked", old: locked, recorded: recorded},
			{name: "weaker than recorded", old: configWith(kind, unlockedFor(kind, "24h")), recorded: recorded},
			{name: "none, recorded locked", recorded: recorded},
			{name: "invalid, recorded locked", old: configWith(kind, "x"), recorded: recorded},
		} {
			add := func(what string, change func(*unstructured.Unstructured), warned ...string) {
				c := before
				c.kind, c.name, c.change, c.warned = kind, kind+": "+before.name+": "+what, change, warned
				cases = append(cases, c)
			}
			add("annotation", func(o *unstructured.Unstructured) { annotate(o, annotationOperation, "reconcile") })
			add("label", func(o *unstructured.Unstructured) { o.SetLabels(map[string]string{"a": "b"}) })
			add("finalizer", func(o *unstructured.Unstructured) { o.SetFinalizers([]string{finalizerBackupBucket}) })
			add("secretRef", specified("secretRef", map[string]any{"name": "other", "namespace": gardenNamespace}))
			add("region", specified("region", "elsewhere"), warnedMoved)
			add("same config", configured(before.old))
		}
		invalid := providerConfig(kind, nil)
		invalid["bogus"] = true
		for _, c := range []admissionCase{
			{name: "none", create: true, change: configured(nil)},
			{name: "locked", create: true, change: configured(locked), warned: []string{warnedLock}},
			{name: "locked for a day", create: true, change: configured(configWith(kind, lockedFor(kind, "24h"))), warned: []string{warnedLock, warnedShort}},
			{name: "locked for years", create: true, change: configured(configWith(kind, lockedFor(kind, "87600h"))), warned: []string{warnedLock, warnedLong}},
			{name: "invalid", create: true, change: configured(invalid), denied: `unknown field "bogus"`, onlyWebhook: true},
			{name: "invalid period", create: true, change: configured(configWith(kind, lockedFor(kind, "4d"))), denied: "spec.providerConfig.immutability.retentionPeriod", onlyWebhook: true},
			{name: "invalid, of another type", create: true, change: changes(configured(invalid), specified("type", "openstack"))},
			{name: "invalid, of another class", create: true, change: changes(configured(invalid), specified("class", "garden"))},
		} {
			c.kind, c.name = kind, kind+": create: "+c.name
			cases = append(cases, c)
		}
		cases = append(cases,
			admissionCase{name: kind + ": delete", kind: kind, old: locked, recorded: recorded, deleted: true},
			admissionCase{name: kind + ": delete in use", kind: kind, old: locked, recorded: recorded, inUse: true, deleted: true, denied: "cannot be deleted while BackupEntry", onlyWebhook: true},
		)
	}
	return append(cases,
		admissionCase{name: "create: governance", create: true, change: configured(configWith("aws", unlockedFor("aws", "96h"))), warned: []string{warnedGovernance}},
		admissionCase{name: "create: contradiction", create: true, change: configured(configWith("aws", retentionOf("96h", "mode", "governance", "locked", true))), denied: "contradicts locked: true", onlyWebhook: true},
		admissionCase{name: "delete in use, of another type", kind: "openstack", inUse: true, deleted: true},
	)
}

// warningRecorder keeps the warnings of a client's requests.
type warningRecorder struct {
	mu       sync.Mutex
	warnings []string
}

// HandleWarningHeaderWithContext implements rest.WarningHandlerWithContext.
func (r *warningRecorder) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, text)
}

func (r *warningRecorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	warnings := r.warnings
	r.warnings = nil
	return warnings
}

// admissionRun runs the table against what protects an API server of its own.
type admissionRun struct {
	kube     *env.Kube
	buckets  dynamic.ResourceInterface
	warnings *warningRecorder
	cases    []admissionCase
}

// prepareAdmission starts an API server and creates what the cases change, before anything
// protects it.
func prepareAdmission(t *testing.T) *admissionRun {
	t.Helper()
	k, err := env.StartKube(t.Context(), binaries.Testkube)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	run := &admissionRun{kube: k, warnings: &warningRecorder{}, cases: admissionCases()}
	config := rest.CopyConfig(k.Config)
	config.WarningHandlerWithContext = run.warnings
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	run.buckets = client.Resource(buckets)
	names := map[string]bool{}
	for i := range run.cases {
		c := &run.cases[i]
		if names[c.name] {
			t.Fatalf("two cases are named %q", c.name)
		}
		names[c.name] = true
		if !c.create {
			run.createObject(t, i)
		}
	}
	return run
}

func admissionName(i int) string { return fmt.Sprintf("case-%d", i) }

func (c *admissionCase) object(name string) *unstructured.Unstructured {
	kind := c.kind
	if kind == "" {
		kind = "aws"
	}
	o := bucketObject(name, kind, c.old)
	if c.class != nil {
		set(o, c.class, "spec", "class")
	}
	return o
}

// createObject creates the object of a case.
func (r *admissionRun) createObject(t *testing.T, i int) {
	t.Helper()
	c := &r.cases[i]
	o, err := r.buckets.Create(t.Context(), c.object(admissionName(i)), metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	if c.recorded != nil {
		set(o, c.recorded, "status", "providerStatus")
		if _, err := r.buckets.UpdateStatus(t.Context(), o, metav1.UpdateOptions{}); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	if c.inUse {
		entry := entryObject("shoot--p--s--"+admissionName(i), "aws", o.GetName())
		if _, err := r.kube.Dynamic.Resource(entries).Create(t.Context(), entry, metav1.CreateOptions{}); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
}

// write makes the write of a case.
func (r *admissionRun) write(ctx context.Context, i int, dryRun ...string) error {
	c, name := &r.cases[i], admissionName(i)
	if c.deleted {
		return r.buckets.Delete(ctx, name, metav1.DeleteOptions{DryRun: dryRun})
	}
	if c.create {
		o := c.object(name)
		c.change(o)
		_, err := r.buckets.Create(ctx, o, metav1.CreateOptions{DryRun: dryRun})
		return err
	}
	o, err := r.buckets.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the object: %w", err)
	}
	c.change(o)
	_, err = r.buckets.Update(ctx, o, metav1.UpdateOptions{DryRun: dryRun})
	return err
}

// run makes the writes of all cases, each first as a dry run; want is what is expected of
// one: what its denial says, or the warnings.
func (r *admissionRun) run(t *testing.T, want func(c *admissionCase) (denied string, warned []string)) {
	for i := range r.cases {
		c := &r.cases[i]
		t.Run(c.name, func(t *testing.T) {
			denied, warned := want(c)
			before := r.stored(t, i)
			for _, dryRun := range [][]string{{metav1.DryRunAll}, nil} {
				err := answered(t, func(ctx context.Context) error {
					r.warnings.take()
					return r.write(ctx, i, dryRun...)
				})
				checkDenied(t, err, denied)
				checkWarnings(t, r.warnings.take(), warned)
				if after := r.stored(t, i); (dryRun != nil || denied != "") && after != before {
					t.Errorf("a write that was denied or a dry run (%v) left %q, before it was %q", dryRun, after, before)
				}
			}
		})
	}
}

// stored is the resourceVersion of a case's object, empty if there is none.
func (r *admissionRun) stored(t *testing.T, i int) string {
	t.Helper()
	o, err := r.buckets.Get(t.Context(), admissionName(i), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return o.GetResourceVersion()
}

// checkDenied checks that err is a denial that says denied, or none if that is empty.
func checkDenied(t *testing.T, err error, denied string) {
	t.Helper()
	switch {
	case denied == "" && err != nil:
		t.Errorf("it was denied: %v", err)
	case denied == "":
	case err == nil:
		t.Errorf("it was allowed, want %q", denied)
	case !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) && !apierrors.IsConflict(err), !strings.Contains(err.Error(), denied):
		t.Errorf("got %v\nwant %s", err, denied)
	}
}

func checkWarnings(t *testing.T, got, want []string) {
	t.Helper()
	left := slices.Clone(got)
	for _, part := range want {
		i := slices.IndexFunc(left, func(warning string) bool { return strings.Contains(warning, part) })
		if i < 0 {
			t.Errorf("no warning %q in %q", part, got)
			continue
		}
		left = slices.Delete(left, i, i+1)
	}
	if len(left) > 0 {
		t.Errorf("unexpected warnings %q", left)
	}
}

// patch makes the writes of kubectl's other commands; all that weaken the lock are denied.
func (r *admissionRun) patch(t *testing.T) {
	i := r.named(t, "aws: none over locked")
	name, before := admissionName(i), r.stored(t, i)
	for _, patch := range []struct {
		name   string
		kind   types.PatchType
		data   string
		denied string
	}{
		{"merge patch", types.MergePatchType, `{"spec":{"providerConfig":null}}`, disabling("96h")},
		{"merge patch of one field", types.MergePatchType, `{"spec":{"providerConfig":{"immutability":{"mode":"governance"}}}}`, weakening("96h", "unlocked retention of 96h", "unlocked")},
		{"JSON patch", types.JSONPatchType, `[{"op":"replace","path":"/spec/providerConfig/immutability/retentionPeriod","value":"4320m"}]`, weakening("96h", "locked retention of 72h", "shortened")},
		{"apply", types.ApplyYAMLPatchType, `{"apiVersion":"extensions.gardener.cloud/v1alpha1","kind":"BackupBucket","spec":{"providerConfig":{"immutability":{"retentionPeriod":"24h"}}}}`,
			weakening("96h", "locked retention of 24h", "shortened")},
		{"apply of another type", types.ApplyYAMLPatchType, `{"apiVersion":"extensions.gardener.cloud/v1alpha1","kind":"BackupBucket","spec":{"type":"openstack"}}`, leaving("type", "96h", "aws", "openstack")},
	} {
		t.Run(patch.name, func(t *testing.T) {
			options := metav1.PatchOptions{}
			if patch.kind == types.ApplyYAMLPatchType {
				options.FieldManager, options.Force = "test", ptr.To(true)
			}
			err := answered(t, func(ctx context.Context) error {
				_, err := r.buckets.Patch(ctx, name, patch.kind, []byte(patch.data), options)
				return err
			})
			checkDenied(t, err, patch.denied)
			if after := r.stored(t, i); after != before {
				t.Errorf("the object is at %s, before it was at %s", after, before)
			}
		})
	}
	// The status is the daemon's.
	if _, err := r.buckets.Patch(t.Context(), name, types.MergePatchType, []byte(`{"status":{"providerStatus":null}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Errorf("a change of the status was denied: %v", err)
	}
}

// named returns the index of a case.
func (r *admissionRun) named(t *testing.T, name string) int {
	t.Helper()
	i := slices.IndexFunc(r.cases, func(c admissionCase) bool { return c.name == name })
	if i < 0 {
		t.Fatalf("no case %q", name)
	}
	return i
}
