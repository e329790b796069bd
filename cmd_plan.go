// bucketwarden plan: what would become of a bucket if a Seed, a BackupBucket or a providerConfig were applied, step by step,
// what of it cannot be undone, what it costs, and whether admission would refuse it.
//
// Rules:
//   - Admission is judged by the webhook's own functions (webhook.go), and steps are those of the daemon's own pass.
//   - Steps start from what the cloud answers now. What could not be found out is told, and never planned around.
//   - Nothing is changed.

package main

import (
	"bytes"
	"cmp"
	"context"
	stdjson "encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
)

var planCommand = command{
	name: "plan", args: "-f FILE [BUCKET]", short: "Shows what would become of a bucket, and what of it cannot be undone",
	long: `FILE has a Seed, a BackupBucket (of the garden or of the seed) or a bare providerConfig (kind: BackupBucketConfig), in YAML
or JSON; - is standard input. BUCKET names the BackupBucket on the seed. Without it the name is that of the BackupBucket in
the file, or the UID of the Seed in it, else that of the only BackupBucket of that type. --new plans for a bucket that does
not exist yet, and asks neither the cloud nor an API server.

The cloud is asked what the bucket has now, with the credentials of the BackupBucket. Nothing is changed. The file is judged
as the admission webhook would judge it; the exit code is 2 if the webhook or the daemon would refuse it.`,
	examples: []string{
		"plan -f seed.yaml",
		"plan -f backupbucket.yaml -o json",
		"plan --new -f seed.yaml",
		"plan -f - 5f3a7c1e-9d2b-4c1f-8e57-2b6a90d1c4e3 < providerconfig.yaml",
	},
	make: func(c *cli, fs *flag.FlagSet) func(context.Context, []string) error {
		p := &planner{cli: c}
		fs.StringVar(&p.file, "f", "", "`file` with a Seed, a BackupBucket or a providerConfig; - is standard input")
		fs.BoolVar(&p.isNew, "new", false, "plan for a bucket that does not exist yet")
		return p.run
	},
}

// planner is one run of plan.
type planner struct {
	*cli
	file  string
	isNew bool
}

// planned is the output of plan.
type planned struct {
	Bucket string `json:"bucket,omitempty"`
	From   string `json:"from"`
	Type   string `json:"type"`
	Region string `json:"region,omitempty"`
	// Now is absent if it is not known, as Unknown says, and with --new.
	Now     *plannedState `json:"now,omitempty"`
	Unknown string        `json:"unknown,omitempty"`
	// Recorded and Desired are absent if there is no immutability. Without RecordKnown, a lock that the store has is taken for ours.
	Recorded    *shownPolicy  `json:"recorded,omitempty"`
	RecordKnown bool          `json:"recordKnown"`
	Desired     *shownPolicy  `json:"desired,omitempty"`
	Steps       []plannedStep `json:"steps"`
	// Refused says that admission or the daemon would refuse it.
	Refused   bool             `json:"refused"`
	Admission plannedAdmission `json:"admission"`
	// Daemon is why the daemon would refuse it, even where admission was bypassed.
	Daemon string `json:"daemon,omitempty"`
	// ExtensionsLeft is how often the policy can be extended afterwards; absent if there is no limit or it is not known.
	ExtensionsLeft *int32 `json:"extensionsLeft,omitempty"`

	readable bool // what is asked for
}

// plannedState is what the cloud says.
type plannedState struct {
	Exists         bool         `json:"exists"`
	Policy         *shownPolicy `json:"policy,omitempty"`
	ExtensionsLeft *int32       `json:"extensionsLeft,omitempty"`
}

// plannedStep is one change.
type plannedStep struct {
	Action       string       `json:"action"`
	Policy       *shownPolicy `json:"policy,omitempty"`
	Text         string       `json:"text"`
	Irreversible bool         `json:"irreversible"`
	Extensions   int32        `json:"extensions,omitempty"`
}

// plannedAdmission is the verdict of the webhook.
type plannedAdmission struct {
	Allowed  bool     `json:"allowed"`
	Reason   string   `json:"reason,omitempty"`
	Message  string   `json:"message,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// proposal is what a file asks for.
type proposal struct {
	// object is what the file has; nil for a bare providerConfig.
	object *unstructured.Unstructured
	gvr    schema.GroupVersionResource
	from   string
	// name is that of the BackupBucket, empty if the file does not tell.
	name, provider, region string
	config                 any
}

func (p *planner) run(ctx context.Context, names []string) error {
	switch {
	case p.file == "":
		return usageErrorf("plan: give -f")
	case len(names) > 1:
		return usageErrorf("plan: name at most one BackupBucket")
	case p.isNew && (len(names) > 0 || p.bucketSecret != ""):
		return usageErrorf("plan: --new is for a bucket that does not exist yet")
	case p.bucketSecret == "" && cmp.Or(p.bucket, p.store) != "":
		return usageErrorf("--bucket and --store go with --bucket-secret")
	}
	asked, err := p.read()
	if err != nil {
		return err
	}
	if len(names) > 0 {
		asked.name, p.bucket = names[0], names[0]
	}
	stores, err := p.stores()
	if err != nil {
		return err
	}
	result, err := p.plan(ctx, stores, asked)
	if err != nil {
		return err
	}
	if err := p.show(result); err != nil {
		return err
	}
	switch {
	case result.Refused:
		return errFound
	case result.Unknown != "":
		return errors.New("what there is now could not be found out, so the steps are not known")
	}
	return nil
}

// read reads the file.
func (p *planner) read() (*proposal, error) {
	from := p.in
	if p.file != "-" {
		file, err := os.Open(p.file)
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }()
		from = file
	}
	text, err := io.ReadAll(io.LimitReader(from, maxSecretFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", p.file, err)
	}
	if len(text) > maxSecretFile {
		return nil, fmt.Errorf("%s is larger than an object can be", p.file)
	}
	u := &unstructured.Unstructured{}
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), len(text)+1)
	for {
		var document map[string]any
		err := documents.Decode(&document)
		switch {
		case errors.Is(err, io.EOF):
			if u.Object == nil {
				return nil, fmt.Errorf("%s is empty", p.file)
			}
			return p.propose(u)
		case err != nil:
			return nil, fmt.Errorf("%s is neither YAML nor JSON: %w", p.file, err)
		case len(document) == 0:
		case u.Object != nil:
			return nil, fmt.Errorf("%s has several objects, plan takes one", p.file)
		default:
			u.Object = runtime.DeepCopyJSON(document)
		}
	}
}

// propose reads the parts that make a bucket.
func (p *planner) propose(u *unstructured.Unstructured) (*proposal, error) {
	gvk := u.GroupVersionKind()
	a := &proposal{object: u, from: gvk.Kind}
	kind := func(gvr schema.GroupVersionResource, provider, region, config []string) (*proposal, error) {
		d := &decoder{content: u.Object}
		a.gvr, a.provider, a.region = gvr, d.str(provider...), d.str(region...)
		a.config, _, _ = unstructured.NestedFieldCopy(u.Object, config...)
		if a.from += " " + u.GetName(); a.provider == "" {
			return nil, fmt.Errorf("the %s has no %s, so it has no bucket", gvk.Kind, strings.Join(provider, "."))
		}
		return a, nil
	}
	switch {
	case gvk == extensionsGV.WithKind(kindBackupBucket):
		a.name = u.GetName()
		return kind(bucketsGVR, []string{"spec", "type"}, []string{"spec", "region"}, []string{"spec", "providerConfig"})
	case gvk == gardenGV.WithKind(kindBackupBucket):
		a.name = u.GetName()
		return kind(gardenGV.WithResource(resourceBackupBuckets), []string{"spec", "provider", "type"}, []string{"spec", "provider", "region"},
			[]string{"spec", "providerConfig"})
	case gvk == gardenGV.WithKind("Seed"):
		// gardenlet names the bucket so (gardener/gardener pkg/gardenlet/controller/seed).
		a.name = string(u.GetUID())
		region := []string{"spec", "backup", "region"}
		if d := (&decoder{content: u.Object}); d.str(region...) == "" {
			region = []string{"spec", "provider", "region"}
		}
		return kind(gardenGV.WithResource(resourceSeeds), []string{"spec", "backup", "provider"}, region,
			[]string{"spec", "backup", "providerConfig"})
	case gvk.Kind == backupBucketConfigKind:
		a.object, a.config = nil, u.Object
		a.provider, _, _ = strings.Cut(gvk.Group, providerGroupSuffix)
		return a, nil
	}
	return nil, fmt.Errorf("%s has a %q; plan takes a Seed, a BackupBucket or a providerConfig (kind: %s)", p.file, gvk.String(),
		backupBucketConfigKind)
}

// plan finds out what there is, and what would become of it.
func (p *planner) plan(ctx context.Context, stores map[string]provider, asked *proposal) (*planned, error) {
	if p.scopeFor(stores, defaultClass).providers[asked.provider] == nil {
		return nil, fmt.Errorf("its type is %q, of which the store is not known: give --type %s=STORE", asked.provider, asked.provider)
	}
	var current map[string]any
	var secret *corev1.Secret
	unknown, region := error(nil), p.region
	switch {
	case p.isNew:
	case p.bucketSecret != "":
		var err error
		if secret, err = readSecretFile(p.bucketSecret); err != nil {
			return nil, err
		}
		asked.name, region = cmp.Or(p.bucketIn(secret), asked.name), cmp.Or(region, regionIn(secret))
		if asked.name == "" {
			return nil, usageErrorf("give --bucket: the secret has no %s", dataKeyBucketName)
		}
	default:
		current, unknown = p.current(ctx, asked)
	}
	next := asked.bucket(current, region)
	b := decodeBucket(&unstructured.Unstructured{Object: next})
	r := &planned{Bucket: b.Name, From: asked.from, Type: asked.provider, Region: b.Region, Steps: []plannedStep{}}
	if err := p.judge(ctx, stores, asked, current, next, r); err != nil {
		return nil, err
	}
	view := &bucketView{b: b, scope: p.scopeFor(stores, b.Class), err: unknown}
	isNew := p.isNew || secret == nil && current == nil && b.SecretRef.Name == ""
	switch {
	case unknown != nil:
	case isNew:
		b.Region = cmp.Or(b.Region, "a region that the file does not tell")
		view.desired, view.record = view.scope.readBucket(b)
	case secret != nil:
		view.desired, view.record = view.scope.readBucket(b)
		view.secret = secret
		if view.err = view.open(""); view.err == nil {
			view.live, view.err = view.store.Observe(ctx)
		}
		if view.live.Policy.Locked {
			// As if it were ours: that is what admission and the daemon would not have weakened.
			view.record.Policy = view.live.Policy
		}
	default:
		view = p.viewBucket(ctx, stores, b)
	}
	r.RecordKnown = secret == nil && unknown == nil
	p.steps(view, r, isNew)
	return r, nil
}

// current is the BackupBucket on the seed; nil if there is none.
func (p *planner) current(ctx context.Context, asked *proposal) (map[string]any, error) {
	if asked.name != "" {
		_, object, err := p.getBucket(ctx, asked.name)
		if apierrors.IsNotFound(err) && asked.object != nil {
			return nil, nil
		}
		return object, err
	}
	var of []map[string]any
	if err := p.listBuckets(ctx, func(b *backupBucket, object map[string]any) {
		if b.Type == asked.provider {
			of = append(of, object)
		}
	}); err != nil {
		return nil, err
	}
	switch len(of) {
	case 0:
		return nil, nil
	case 1:
		return of[0], nil
	}
	return nil, fmt.Errorf("there are %d BackupBuckets of type %q: name the one that is meant", len(of), asked.provider)
}

// bucket is the BackupBucket on the seed as it would be.
func (a *proposal) bucket(current map[string]any, region string) map[string]any {
	next := map[string]any{"apiVersion": extensionsGV.String(), "kind": kindBackupBucket, "metadata": map[string]any{"name": a.name}}
	switch {
	case current != nil:
		next = runtime.DeepCopyJSON(current)
	case a.gvr == bucketsGVR:
		next = runtime.DeepCopyJSON(a.object.Object)
	}
	spec, _, _ := unstructured.NestedMap(next, "spec")
	if a.gvr == bucketsGVR {
		spec, _, _ = unstructured.NestedMap(a.object.Object, "spec")
	}
	if spec == nil {
		spec = map[string]any{}
	}
	spec["type"] = a.provider
	if a.region != "" {
		spec["region"] = a.region
	}
	if spec["region"] == nil && region != "" {
		spec["region"] = region
	}
	delete(spec, "providerConfig")
	if a.config != nil {
		spec["providerConfig"] = a.config
	}
	next["spec"] = spec
	return next
}

// judge asks the webhook's functions: of the object itself, and of the BackupBucket that gardenlet would make of it.
func (p *planner) judge(ctx context.Context, stores map[string]provider, asked *proposal, current, next map[string]any, r *planned) error {
	class := decodeBucket(&unstructured.Unstructured{Object: next}).Class
	if current != nil {
		class = decodeBucket(&unstructured.Unstructured{Object: current}).Class
	}
	w := &webhook{scope: p.scopeFor(stores, class), metrics: p.metrics}
	r.Admission.Allowed = true
	warnings := map[string]string{}
	review := func(gvr schema.GroupVersionResource, old, object map[string]any) error {
		request := &admissionv1.AdmissionRequest{Operation: admissionv1.Create, Resource: metav1.GroupVersionResource(gvr)}
		var err error
		if request.Object.Raw, err = stdjson.Marshal(object); err != nil {
			return err
		}
		if old != nil {
			request.Operation = admissionv1.Update
			if request.OldObject.Raw, err = stdjson.Marshal(old); err != nil {
				return err
			}
		}
		v, _ := w.judge(ctx, request)
		if v.code != 0 && r.Admission.Allowed {
			r.Refused = true
			r.Admission.Allowed, r.Admission.Reason, r.Admission.Message = false, v.reason, v.message
		}
		maps.Copy(warnings, v.warnings)
		return nil
	}
	// An object of the garden is judged as new, since only the seed is asked. What it may not weaken is on the seed.
	if asked.object != nil && asked.gvr != bucketsGVR {
		if err := review(asked.gvr, nil, asked.object.Object); err != nil {
			return err
		}
		if current != nil {
			clear(warnings) // those of a change say more than those of a new object
		}
	}
	if current != nil || asked.object == nil || asked.gvr == bucketsGVR {
		if err := review(bucketsGVR, current, next); err != nil {
			return err
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(warnings)) {
		r.Admission.Warnings = append(r.Admission.Warnings, warnings[reason])
	}
	return nil
}

// steps plans from what there is.
func (p *planner) steps(v *bucketView, r *planned, isNew bool) {
	r.Recorded = showPolicy(v.record.Policy)
	if v.err != nil {
		r.Unknown = v.err.Error()
		return
	}
	if r.readable = v.desired.err == nil; r.readable {
		r.Desired = showPolicy(v.desired.Policy)
	} else if r.Refused = true; r.Admission.Allowed {
		r.Daemon = v.desired.err.Error()
	}
	if !isNew {
		r.Now = &plannedState{Exists: v.live.Exists, Policy: showPolicy(v.live.Policy), ExtensionsLeft: v.live.Extensions}
	}
	// A spec that is not understood makes no bucket. What is recorded is still defended.
	if v.desired.err != nil && v.record.Policy.None() {
		return
	}
	live := v.live
	if !live.Exists {
		r.Steps = append(r.Steps, plannedStep{Action: "create", Text: "create the bucket in " + v.b.Region})
		live.Exists = true
	}
	// As many as the daemon makes, see bucketPass.converge.
	for range maxConvergeSteps {
		plan := v.nextSteps(live)
		if plan.Refusal != nil {
			r.Refused, r.Daemon = true, plan.Refusal.Message
		}
		if len(plan.Steps) == 0 {
			break
		}
		step := plan.Steps[0]
		made := describeStep(step, live, v.record.Policy)
		r.Steps = append(r.Steps, made)
		live.Policy, live.Appends, live.Years, live.Default = step.Policy, false, false, Policy{}
		if live.Extensions != nil && made.Extensions > 0 {
			left := *live.Extensions - made.Extensions
			live.Extensions = &left
		}
	}
	r.ExtensionsLeft = live.Extensions
}

// describeStep says what a step of the daemon is.
func describeStep(step Step, live BucketState, recorded Policy) plannedStep {
	s := plannedStep{Policy: showPolicy(step.Policy), Irreversible: step.Lock}
	switch {
	case step.Policy.None():
		s.Action, s.Text = "remove", fmt.Sprintf("remove the %s", live.Policy)
	case !step.Lock:
		s.Action, s.Text = "set", fmt.Sprintf("set an %s", step.Policy)
	case live.Policy.Locked && live.Policy.Days < step.Policy.Days:
		s.Action, s.Text = "extend", fmt.Sprintf("extend the %s to %s", live.Policy, step.Policy.Hours())
		if live.Extensions != nil {
			s.Extensions = 1
		}
	case live.Policy.Locked:
		s.Action, s.Text = "rewrite", fmt.Sprintf("write the %s anew, in days", live.Policy)
		s.Irreversible = false
	case recorded.Locked && !step.Policy.weakerThan(recorded):
		s.Action, s.Text = "restore", fmt.Sprintf("restore the %s, which somebody has weakened", step.Policy)
	default:
		s.Action, s.Text = "lock", fmt.Sprintf("lock a retention of %s", step.Policy.Hours())
	}
	return s
}

// show prints the plan.
func (p *planner) show(r *planned) error {
	if !p.tabular() {
		return p.object(r)
	}
	var rows [][]string
	for i, s := range r.Steps {
		undo := "possible"
		if s.Irreversible {
			undo = "never"
		}
		extensions := ""
		if s.Extensions > 0 {
			extensions = strconv.Itoa(int(s.Extensions))
		}
		rows = append(rows, []string{strconv.Itoa(i + 1), s.Action, undo, s.Text, extensions})
	}
	if len(rows) > 0 {
		if err := p.table([]string{"STEP", "ACTION", "UNDO", "WHAT", "EXTENSIONS"}, 4, rows); err != nil {
			return err
		}
	}
	switch {
	case r.Unknown != "":
		p.say("Unknown: what there is now could not be found out: %s", oneLine(r.Unknown))
	case r.Now == nil && p.isNew:
		p.say("Now: nothing, and nobody was asked.")
	case r.Now == nil:
		p.say("Now: nothing, there is no BackupBucket for it.")
	case !r.Now.Exists:
		p.say("Now: the bucket does not exist; recorded is %s.", policyText(r.Recorded))
	case !r.RecordKnown:
		p.say("Now: the store says %s; what was recorded is not known, so a lock counts as ours.", policyText(r.Now.Policy))
	default:
		p.say("Now: the store says %s; recorded is %s.", policyText(r.Now.Policy), policyText(r.Recorded))
	}
	if r.readable {
		p.say("Asked for: %s.", policyText(r.Desired))
	}
	if r.Unknown == "" && len(rows) == 0 {
		p.say("Nothing would be changed.")
	}
	if !r.RecordKnown {
		p.say("Admission was judged as of a new object, since the BackupBucket could not be read.")
	}
	for _, s := range r.Steps {
		if s.Extensions > 0 && r.ExtensionsLeft != nil {
			p.say("Cost: one of the extensions that the store allows; %d are left afterwards.", *r.ExtensionsLeft)
		}
	}
	for _, warning := range r.Admission.Warnings {
		p.say("Warning: %s.", oneLine(strings.TrimSuffix(warning, ".")))
	}
	if !r.Admission.Allowed {
		p.say("Refused by admission: %s", oneLine(r.Admission.Message))
	}
	if r.Daemon != "" {
		p.say("Refused by the daemon: %s", oneLine(r.Daemon))
	}
	return nil
}

// policyText is a policy in a sentence.
func policyText(p *shownPolicy) string {
	switch {
	case p == nil:
		return Policy{}.String()
	case p.Locked:
		return "locked retention of " + p.RetentionPeriod
	}
	return "unlocked retention of " + p.RetentionPeriod
}
