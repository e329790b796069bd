package main

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const testRoleARN = "arn:aws:iam::123456789012:role/" + secretMarker

// workloadIdentitySource is the secret of a workload identity as gardenlet writes it.
func workloadIdentitySource() *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "garden", Name: "entry",
			Labels: map[string]string{labelPurpose: purposeTokenRequestor, labelWorkloadProvider: "aws", "foreign": "x"},
			Annotations: map[string]string{annotationWorkloadName: "wi", annotationWorkloadNS: "garden-p", annotationWorkloadContext: `{"kind":"Shoot"}`,
				annotationTimestamp: "2026-01-02T03:04:05Z", annotationTokenRenew: "source"},
		},
		Data: map[string][]byte{
			"config":  []byte(`{"kind":"WorkloadIdentityConfig","roleARN":"` + testRoleARN + `"}`),
			"token":   []byte(secretMarker + "-source-token"),
			"foreign": []byte(secretMarker),
		},
	}
}

func decodeTestEntry(name string) *backupEntry {
	return decodeEntry(testObject(kindBackupEntry, name, "entry", set("b", "spec", "bucketName")))
}

func sameData(a, b map[string][]byte) bool {
	return maps.EqualFunc(a, b, func(a, b []byte) bool { return string(a) == string(b) })
}

func TestEtcdBackupSecretStatic(t *testing.T) {
	source := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "entry", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{annotationTimestamp: "x"}},
		Data:       staticCredentials(),
	}
	source.Data["region"], source.Data["bucketName"], source.Data["endpoint"] = []byte("elsewhere"), []byte("other"), []byte("https://s3.example.com")
	existing := &corev1.Secret{Data: map[string][]byte{"stale": {1}, "token": {2}}}
	got, err := etcdBackupSecret(&s3Clients{}, decodeTestEntry("source-shoot--p--s--u"), source, existing)
	if err != nil {
		t.Fatal(err)
	}
	want := staticCredentials()
	want["region"], want["bucketName"], want["endpoint"] = []byte("eu-1"), []byte("b"), []byte("https://s3.example.com")
	if !sameData(got.Data, want) {
		t.Errorf("data %q, want %q", got.Data, want)
	}
	if got.Namespace != "shoot--p--s" || got.Name != "source-etcd-backup" || got.Type != corev1.SecretTypeOpaque || len(got.Labels) > 0 ||
		!maps.Equal(got.Annotations, map[string]string{annotationCreatedBy: "source-shoot--p--s--u"}) {
		t.Errorf("secret %v", got.ObjectMeta)
	}
	if string(source.Data["region"]) != "elsewhere" {
		t.Error("the source was changed")
	}
}

// What is handed to clusters is what was understood, in the spelling that etcd-backup-restore reads.
func TestEtcdBackupSecretIsSpelledAsRead(t *testing.T) {
	for name, test := range map[string]struct{ given, want map[string]string }{
		"newlines": {map[string]string{"accessKeyID": "AKIA\n", "secretAccessKey": " key\r\n", "s3ForcePathStyle": "true\n", "sseCustomerKey": "x\n"},
			map[string]string{"accessKeyID": "AKIA", "secretAccessKey": "key", "s3ForcePathStyle": "true", "sseCustomerKey": "x"}},
		"booleans": {map[string]string{"s3ForcePathStyle": "T", "insecureSkipVerify": "0"},
			map[string]string{"s3ForcePathStyle": "true", "insecureSkipVerify": "false"}},
		"empty is absent": {map[string]string{"s3ForcePathStyle": "\n", "insecureSkipVerify": "", "endpoint": " ", "trustedCaCert": "\n", "requestChecksumCalculation": ""}, nil},
		"checksums": {map[string]string{"requestChecksumCalculation": "WHEN_REQUIRED", "responseChecksumValidation": "When_Supported\n"},
			map[string]string{"requestChecksumCalculation": "when_required", "responseChecksumValidation": "when_supported"}},
		"bare endpoint":    {map[string]string{"endpoint": "minio.example.com:9000\n"}, map[string]string{"endpoint": "https://minio.example.com:9000"}},
		"endpoint, a path": {map[string]string{"endpoint": "http://10.0.0.1:9000/s3"}, map[string]string{"endpoint": "http://10.0.0.1:9000/s3"}},
	} {
		t.Run(name, func(t *testing.T) {
			source := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "entry"}, Data: staticCredentials()}
			want := staticCredentials()
			want["region"], want["bucketName"] = []byte("eu-1"), []byte("b")
			for key, value := range test.given {
				source.Data[key] = []byte(value)
			}
			for key, value := range test.want {
				want[key] = []byte(value)
			}
			got, err := etcdBackupSecret(&s3Clients{}, decodeTestEntry(testEntry), source, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !sameData(got.Data, want) {
				t.Errorf("data %q, want %q", got.Data, want)
			}
			// It is the client's own understanding, also of what was understood.
			before, err := parseS3Credentials(source.Data)
			if err != nil {
				t.Fatal(err)
			}
			after, err := parseS3Credentials(got.Data)
			if err != nil {
				t.Fatal(err)
			}
			before.region, after.region = "", ""
			if !reflect.DeepEqual(before, after) {
				t.Errorf("the daemon reads %+v, etcd-backup-restore %+v", before, after)
			}
		})
	}
	source := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "entry"}, Data: staticCredentials()}
	source.Data["s3ForcePathStyle"] = []byte(secretMarker)
	if _, err := etcdBackupSecret(&s3Clients{}, decodeTestEntry(testEntry), source, nil); codeOf(err) != codeConfigurationProblem ||
		!strings.Contains(err.Error(), "garden/entry") || strings.Contains(err.Error(), secretMarker) {
		t.Errorf("what cannot be read is handed over: %v", err)
	}
}

func TestEtcdBackupSecretWorkloadIdentity(t *testing.T) {
	source := workloadIdentitySource()
	for name, existing := range map[string]*corev1.Secret{
		"new": nil,
		"existing": {
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"old": "x"}, Annotations: map[string]string{"old": "x", annotationTokenRenew: "renew"}},
			Data:       map[string][]byte{"token": []byte(secretMarker + "-token"), "accessKeyID": []byte(secretMarker)},
		},
		"existing without token": {Data: map[string][]byte{"accessKeyID": []byte(secretMarker)}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := etcdBackupSecret(&s3Clients{}, decodeTestEntry(testEntry), source, existing)
			if err != nil {
				t.Fatal(err)
			}
			data := map[string][]byte{"config": source.Data["config"], "roleARN": []byte(testRoleARN), "bucketName": []byte("b"), "region": []byte("eu-1")}
			annotations := map[string]string{annotationCreatedBy: testEntry, annotationWorkloadName: "wi", annotationWorkloadNS: "garden-p", annotationWorkloadContext: `{"kind":"Shoot"}`}
			if name == "existing" {
				data["token"], annotations[annotationTokenRenew] = existing.Data["token"], "renew"
			}
			if !sameData(got.Data, data) {
				t.Errorf("data %q, want %q", got.Data, data)
			}
			if !maps.Equal(got.Annotations, annotations) {
				t.Errorf("annotations %v, want %v", got.Annotations, annotations)
			}
			if want := map[string]string{labelPurpose: purposeTokenRequestor, labelWorkloadProvider: "aws"}; !maps.Equal(got.Labels, want) {
				t.Errorf("labels %v, want %v", got.Labels, want)
			}
		})
	}
	t.Run("without context object", func(t *testing.T) {
		source := workloadIdentitySource()
		delete(source.Annotations, annotationWorkloadContext)
		got, err := etcdBackupSecret(&s3Clients{}, decodeTestEntry(testEntry), source, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := got.Annotations[annotationWorkloadContext]; ok {
			t.Errorf("annotations %v", got.Annotations)
		}
	})
}

func TestEtcdBackupSecretErrors(t *testing.T) {
	for name, test := range map[string]struct {
		edit func(*corev1.Secret)
		says string
	}{
		"no provider label":       {func(s *corev1.Secret) { delete(s.Labels, labelWorkloadProvider) }, labelWorkloadProvider},
		"no name annotation":      {func(s *corev1.Secret) { delete(s.Annotations, annotationWorkloadName) }, annotationWorkloadName},
		"no namespace annotation": {func(s *corev1.Secret) { delete(s.Annotations, annotationWorkloadNS) }, annotationWorkloadNS},
		"no annotations":          {func(s *corev1.Secret) { s.Annotations = nil }, annotationWorkloadName},
		"no config":               {func(s *corev1.Secret) { delete(s.Data, "config") }, "roleARN"},
		"config is no config":     {func(s *corev1.Secret) { s.Data["config"] = []byte(secretMarker + ": [") }, "config"},
		"roleARN is no role":      {func(s *corev1.Secret) { s.Data["roleARN"] = []byte(secretMarker) }, "roleARN"},
	} {
		t.Run(name, func(t *testing.T) {
			source := workloadIdentitySource()
			test.edit(source)
			_, err := etcdBackupSecret(&s3Clients{}, decodeTestEntry(testEntry), source, nil)
			if codeOf(err) != codeConfigurationProblem {
				t.Fatalf("error %v has code %q", err, codeOf(err))
			}
			if !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "garden/entry") {
				t.Errorf("%q does not name %s and the secret", err, test.says)
			}
			if strings.Contains(err.Error(), secretMarker) {
				t.Errorf("%q shows a secret", err)
			}
		})
	}
}

// The token requestor of gardenlet and the entry write the same secret.
func TestEntryWithWorkloadIdentity(t *testing.T) {
	h := newHarness(t)
	h.putNamespace(testNamespace, false)
	// gardenlet's token requestor may be later than we are.
	source := workloadIdentitySource()
	delete(source.Data, dataKeyToken)
	h.put(secretsGVR, source)
	h.putEntry(testEntry, false)
	if _, err := h.passEntry(testEntry); err != nil {
		t.Fatal(err)
	}
	renewed := func() error {
		h.editSecret(testNamespace, "etcd-backup", func(s *corev1.Secret) {
			s.Data["token"] = []byte(secretMarker + h.nextVersion())
			s.Annotations[annotationTokenRenew] = h.nextVersion()
		})
		return nil
	}
	if err := renewed(); err != nil {
		t.Fatal(err)
	}
	token := string(h.secret(testNamespace, "etcd-backup").Data["token"])
	h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
	if _, err := h.passEntry(testEntry); err != nil || h.requests() != 4 {
		t.Errorf("error %v, trace %q", err, h.trace)
	}
	if got := string(h.secret(testNamespace, "etcd-backup").Data["token"]); got != token {
		t.Errorf("the token was %q, is %q", token, got)
	}

	// Now the requestor writes between our read and our write.
	h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Annotations[annotationWorkloadName] = "other" })
	h.on("patch", "secrets", 1, renewed)
	h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
	if _, err := h.passEntry(testEntry); err != nil {
		t.Fatal(err)
	}
	s := h.secret(testNamespace, "etcd-backup")
	if got := string(s.Data["token"]); got == token || got == "" || s.Annotations[annotationTokenRenew] == "" || s.Annotations[annotationWorkloadName] != "other" {
		t.Errorf("data %q, annotations %v", s.Data, s.Annotations)
	}

	// Static credentials take its place, and nothing of it stays.
	h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Labels, s.Annotations, s.Data = nil, nil, staticCredentials() })
	h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
	if _, err := h.passEntry(testEntry); err != nil {
		t.Fatal(err)
	}
	h.wantEtcdBackup(testNamespace, "etcd-backup", testEntry)
}

func TestReplaceSecretPatch(t *testing.T) {
	existing := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7", UID: "u", Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1", "b": "2"}},
		Data:       map[string][]byte{"k": []byte("v"), "stale": []byte("x")},
	}
	if patch := replaceSecretPatch(existing, existing.DeepCopy()); patch != nil {
		t.Errorf("patch %v of what is the same", patch)
	}
	wanted := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a": "3"}}, Data: map[string][]byte{"k": []byte("v"), "new": []byte("y")}}
	got, err := json.Marshal(replaceSecretPatch(existing, wanted))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"data":{"k":"dg==","new":"eQ==","stale":null},"metadata":{"annotations":{"a":"3","b":null},"labels":{"l":null},"resourceVersion":"7"}}`
	if string(got) != want {
		t.Errorf("patch\n%s, want\n%s", got, want)
	}
	// Any one difference counts.
	for name, change := range map[string]func(*corev1.Secret){
		"label":      func(s *corev1.Secret) { s.Labels = nil },
		"annotation": func(s *corev1.Secret) { s.Annotations["a"] = "9" },
		"data":       func(s *corev1.Secret) { s.Data["k"] = nil },
	} {
		wanted := existing.DeepCopy()
		change(wanted)
		if replaceSecretPatch(existing, wanted) == nil {
			t.Errorf("no patch of a changed %s", name)
		}
	}
}

func TestSecretsHoldAndRelease(t *testing.T) {
	ref := types.NamespacedName{Namespace: "garden", Name: "x"}
	h := newHarness(t)
	s := h.entries.secrets
	h.putSecret(ref.Namespace, ref.Name, staticCredentials(), "other")
	for range 2 {
		secret, err := s.get(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.hold(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
	}
	h.wantTrace("get secrets garden/x", "patch secrets garden/x finalizers", "get secrets garden/x")
	if got := h.secret("garden", "x").Finalizers; !slices.Equal(got, []string{"other", finalizerBackupEntry}) {
		t.Errorf("finalizers %v", got)
	}
	// A stale read must not take other finalizers away.
	stale := h.secret("garden", "x")
	h.editSecret("garden", "x", func(s *corev1.Secret) { s.Finalizers = []string{"other", "new"} })
	stale.Finalizers = []string{"other"}
	if err := s.hold(t.Context(), stale); !apierrors.IsConflict(err) {
		t.Errorf("error %v", err)
	}
	h.editSecret("garden", "x", func(s *corev1.Secret) { s.Finalizers = append(s.Finalizers, finalizerBackupEntry) })

	h.trace = nil
	h.on("patch", "secrets", 1, func() error {
		h.editSecret("garden", "x", func(s *corev1.Secret) { s.Finalizers = append(s.Finalizers, "newer") })
		return nil
	})
	for range 2 {
		if err := s.release(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	h.wantTrace("get secrets garden/x", "patch secrets garden/x finalizers", "get secrets garden/x", "patch secrets garden/x finalizers", "get secrets garden/x")
	if got := h.secret("garden", "x").Finalizers; !slices.Equal(got, []string{"other", "new", "newer"}) {
		t.Errorf("finalizers %v", got)
	}
	for _, ref := range []types.NamespacedName{{Namespace: "garden", Name: "gone"}, {Name: "x"}, {}} {
		if err := s.release(t.Context(), ref); err != nil {
			t.Errorf("releasing %v: %v", ref, err)
		}
	}
	h.on("patch", "secrets", 1, func() error { return apierrors.NewNotFound(secretsGVR.GroupResource(), "x") })
	h.editSecret("garden", "x", func(s *corev1.Secret) { s.Finalizers = []string{finalizerBackupEntry} })
	if err := s.release(t.Context(), ref); err != nil {
		t.Errorf("releasing a secret that goes: %v", err)
	}
	h.answer("get", "secrets", 1, apierrors.NewServiceUnavailable("etcd is slow"))
	if err := s.release(t.Context(), ref); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("error %v", err)
	}
}

func TestSecretsHoldUnread(t *testing.T) {
	h := newHarness(t)
	s := h.entries.secrets
	h.putSecret("garden", "x", staticCredentials(), "other")
	for range 2 {
		secret, err := s.holdUnread(t.Context(), types.NamespacedName{Namespace: "garden", Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Sorted(slices.Values(h.secret("garden", "x").Finalizers)); !slices.Equal(got, []string{finalizerBackupEntry, "other"}) {
			t.Errorf("finalizers %v", got)
		}
		if !sameData(secret.Data, staticCredentials()) || !s.held(secret) {
			t.Errorf("secret %v", secret.ObjectMeta)
		}
	}
	h.wantTrace("patch secrets garden/x finalizers", "patch secrets garden/x finalizers")
	missing := new(secretMissingError)
	if _, err := s.holdUnread(t.Context(), types.NamespacedName{Namespace: "garden", Name: "gone"}); !errors.As(err, &missing) {
		t.Errorf("error %v", err)
	}
	if _, err := s.holdUnread(t.Context(), types.NamespacedName{Name: "x"}); codeOf(err) != codeConfigurationProblem {
		t.Errorf("error %v", err)
	}
	h.answer("patch", "secrets", 1, apierrors.NewServiceUnavailable("etcd is slow"))
	if _, err := s.holdUnread(t.Context(), types.NamespacedName{Namespace: "garden", Name: "x"}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("error %v", err)
	}
}

func TestSecretsGet(t *testing.T) {
	h := newHarness(t)
	for _, ref := range []types.NamespacedName{{Name: "x"}, {Namespace: "garden"}, {}} {
		if _, err := h.entries.secrets.get(t.Context(), ref); codeOf(err) != codeConfigurationProblem {
			t.Errorf("reading %v: %v", ref, err)
		}
	}
	h.wantNothing()
	missing := new(secretMissingError)
	if _, err := h.entries.secrets.get(t.Context(), types.NamespacedName{Namespace: "garden", Name: "x"}); !errors.As(err, &missing) || codeOf(err) != "" || !strings.Contains(err.Error(), "garden/x") {
		t.Errorf("error %v", err)
	}
}

func TestGeneratedSecretRef(t *testing.T) {
	for annotation, want := range map[string]string{"": "garden/generated-bucket-b", "shoot--p--s": "shoot--p--s/generated-bucket-b"} {
		u := testObject(kindBackupBucket, "b", "bucket-b")
		if annotation != "" {
			withAnnotation(annotationGeneratedSecretNamespace, annotation)(u)
		}
		if got := generatedSecretRef(decodeBucket(u)).String(); got != want {
			t.Errorf("annotation %q: got %s, want %s", annotation, got, want)
		}
	}
}

func TestEtcdBackupSecretOnAzure(t *testing.T) {
	source := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "entry", Labels: map[string]string{"a": "b"}}, Data: generatedData("bkpb", memKey1)}
	source.Data[dataKeyBucketName] = []byte("other")
	existing := &corev1.Secret{Data: map[string][]byte{"region": {1}, "token": {2}}}
	got, err := etcdBackupSecret(&azureClients{}, decodeTestEntry(testEntry), source, existing)
	if err != nil {
		t.Fatal(err)
	}
	want := generatedData("bkpb", memKey1)
	want[dataKeyBucketName] = []byte("b")
	if !sameData(got.Data, want) || len(got.Labels) > 0 || !maps.Equal(got.Annotations, map[string]string{annotationCreatedBy: testEntry}) {
		t.Errorf("data %q, want %q, metadata %v", got.Data, want, got.ObjectMeta)
	}
	if string(source.Data[dataKeyBucketName]) != "other" {
		t.Error("the source was changed")
	}
	if _, err := etcdBackupSecret(&azureClients{}, decodeTestEntry(testEntry), workloadIdentitySource(), nil); codeOf(err) != codeConfigurationProblem ||
		!strings.Contains(err.Error(), "garden/entry") || strings.Contains(err.Error(), secretMarker) {
		t.Errorf("of a workload identity: %v", err)
	}
}
