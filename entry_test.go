package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"
)

const (
	testEntry     = "shoot--p--s--u"
	testNamespace = "shoot--p--s"
)

// putEntry stores a BackupEntry in bucket b, and its secret if it is not there. A
// settled one has both finalizers and has Succeeded.
func (h *harness) putEntry(name string, settled bool, edits ...editObject) {
	h.t.Helper()
	edits = append([]editObject{set("b", "spec", "bucketName")}, edits...)
	var held []string
	if settled {
		held = []string{finalizerBackupEntry}
		edits = append([]editObject{withFinalizers(finalizerBackupEntry), withLast(operationTypeReconcile, stateSucceeded, "done")}, edits...)
	}
	h.put(entriesGVR, testObject(kindBackupEntry, name, "entry", edits...))
	if h.secret("garden", "entry") == nil {
		h.putSecret("garden", "entry", staticCredentials(), held...)
	}
}

// wantEtcdBackup checks the secret that an entry with static credentials writes.
func (h *harness) wantEtcdBackup(namespace, name, entry string) {
	h.t.Helper()
	secret := h.secret(namespace, name)
	if secret == nil {
		h.t.Fatalf("no secret %s/%s", namespace, name)
	}
	want := staticCredentials()
	want["bucketName"], want["region"] = []byte("b"), []byte("eu-1")
	if !maps.EqualFunc(secret.Data, want, func(a, b []byte) bool { return string(a) == string(b) }) {
		h.t.Errorf("data %q, want %q", secret.Data, want)
	}
	if len(secret.Labels) > 0 || !maps.Equal(secret.Annotations, map[string]string{annotationCreatedBy: entry}) || secret.Type != corev1.SecretTypeOpaque {
		h.t.Errorf("labels %v, annotations %v, type %s", secret.Labels, secret.Annotations, secret.Type)
	}
}

func TestEntryCreateAndReconcile(t *testing.T) {
	h := newHarness(t)
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, false, withOperation(operationReconcile), withFinalizers("other"))
	if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(
		"patch backupentries shoot--p--s--u annotations,finalizers",
		"status backupentries shoot--p--s--u Create Processing",
		"patch secrets garden/entry finalizers",
		"create secrets shoot--p--s/etcd-backup",
		`store b List ".bucketwarden/tombstones/shoot--p--s--u/"`,
		"status backupentries shoot--p--s--u Create Succeeded",
	)
	if n := h.requests(); n != 5 {
		t.Errorf("%d API requests, want 5", n)
	}
	h.wantStatus(entriesGVR, testEntry, operationTypeCreate, stateSucceeded)
	h.wantEtcdBackup(testNamespace, "etcd-backup", testEntry)
	if got := h.get(entriesGVR, testEntry).GetFinalizers(); !slices.Equal(got, []string{"other", finalizerBackupEntry}) {
		t.Errorf("finalizers %v", got)
	}

	// Without a trigger there is nothing to do.
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	h.wantNothing()

	h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	h.wantTrace(
		"patch backupentries shoot--p--s--u annotations",
		"get secrets garden/entry",
		"get secrets shoot--p--s/etcd-backup",
		`store b List ".bucketwarden/tombstones/shoot--p--s--u/"`,
		"status backupentries shoot--p--s--u Reconcile Succeeded",
	)
	if n := h.requests(); n != 4 {
		t.Errorf("%d API requests, want 4", n)
	}

	// Changed credentials replace everything.
	h.editSecret("garden", "entry", func(s *corev1.Secret) {
		s.Data["secretAccessKey"] = []byte(secretMarker + "-new")
		s.Data["region"] = []byte("elsewhere")
	})
	h.editSecret(testNamespace, "etcd-backup", func(s *corev1.Secret) {
		s.Data["stale"] = []byte(secretMarker)
		s.Labels, s.Annotations["foreign"] = map[string]string{"a": "b"}, "x"
	})
	h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	h.wantTrace(
		"patch backupentries shoot--p--s--u annotations",
		"get secrets garden/entry",
		"get secrets shoot--p--s/etcd-backup",
		"get namespaces shoot--p--s",
		"status backupentries shoot--p--s--u Reconcile Processing",
		"patch secrets shoot--p--s/etcd-backup annotations,labels,data",
		`store b List ".bucketwarden/tombstones/shoot--p--s--u/"`,
		"status backupentries shoot--p--s--u Reconcile Succeeded",
	)
	secret := h.secret(testNamespace, "etcd-backup")
	if _, stale := secret.Data["stale"]; stale || string(secret.Data["secretAccessKey"]) != secretMarker+"-new" || string(secret.Data["region"]) != "eu-1" {
		t.Errorf("data %q", secret.Data)
	}
	if len(secret.Labels) > 0 || !maps.Equal(secret.Annotations, map[string]string{annotationCreatedBy: testEntry}) {
		t.Errorf("labels %v, annotations %v", secret.Labels, secret.Annotations)
	}
}

// An entry whose secret appeared before the entry's first pass ended.
func TestEntryCreateFindsTheSecret(t *testing.T) {
	h := newHarness(t)
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, false)
	h.putSecret(testNamespace, "etcd-backup", map[string][]byte{"old": []byte(secretMarker)})
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	h.wantEtcdBackup(testNamespace, "etcd-backup", testEntry)
	if n := strings.Count(strings.Join(h.trace, "\n"), "Processing"); n != 1 {
		t.Errorf("%d times Processing: %q", n, h.trace)
	}
}

func TestEntryWanted(t *testing.T) {
	h := newHarness(t)
	h.scope.ignoreOperationAnnotation = true
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, true)
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	h.wantNothing()
	if _, err := h.pass(t.Context(), h.entries.reconcile, testEntry, true); err != nil {
		t.Error(err)
	}
	h.wantEtcdBackup(testNamespace, "etcd-backup", testEntry)
}

func TestEntryNames(t *testing.T) {
	for _, test := range []struct{ name, namespace, secret string }{
		{"shoot--p--s--u", "shoot--p--s", "etcd-backup"},
		{"source-shoot--p--s--u", "shoot--p--s", "source-etcd-backup"},
		{"garden--0815", "garden", "etcd-backup"},
		{"shoot--p--s", "shoot--p", "etcd-backup"},
		{"x--x", "x", "etcd-backup"},
		{"kube-system", "", ""},
		{"source-kube-system", "", ""},
		{"source--kube-system", "", ""},
		{"source-", "", ""},
		{"--u", "", ""},
		{"garden--", "", ""},
		{"--", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			for _, namespace := range []string{"garden", "kube-system", "-kube-system", "shoot--p", "shoot--p--s", "x"} {
				h.putNamespace(namespace, false)
			}
			h.cloud.put("b", Policy{})
			h.putEntry(test.name, false)
			_, err := h.passEntry(test.name)
			if test.namespace != "" {
				if err != nil {
					t.Error(err)
				}
				h.wantEtcdBackup(test.namespace, test.secret, test.name)
				return
			}
			if err == nil {
				t.Error("no error")
			}
			s := h.wantStatus(entriesGVR, test.name, operationTypeCreate, stateError, codeConfigurationProblem)
			if !strings.Contains(s.Error, "<technical ID>--<UID>") {
				t.Errorf("message %q", s.Error)
			}
			if _, err := h.passEntry(test.name); err == nil {
				t.Error("no error")
			}
			h.wantNothing()
		})
	}
}

func TestEntryBadSpec(t *testing.T) {
	for name, edit := range map[string]editObject{
		"no bucket":              set("", "spec", "bucketName"),
		"no region":              set("", "spec", "region"),
		"no secret name":         set(map[string]any{"namespace": "garden"}, "spec", "secretRef"),
		"bucketName is a number": set(int64(1), "spec", "bucketName"),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putNamespace(testNamespace, false)
			h.putEntry(testEntry, false, edit)
			if _, err := h.passEntry(testEntry); err == nil {
				t.Error("no error")
			}
			if slices.ContainsFunc(h.trace, func(line string) bool { return strings.Contains(line, "secrets") }) {
				t.Errorf("trace %q", h.trace)
			}
			h.wantStatus(entriesGVR, testEntry, operationTypeCreate, stateError, codeConfigurationProblem)
		})
	}
}

func TestEntryNamespaceMissingOrTerminating(t *testing.T) {
	for name, prepare := range map[string]func(h *harness){
		"missing":     func(*harness) {},
		"terminating": func(h *harness) { h.putNamespace(testNamespace, true) },
		"terminating, with the secret": func(h *harness) {
			h.putNamespace(testNamespace, true)
			h.putSecret(testNamespace, "etcd-backup", map[string][]byte{"old": []byte(secretMarker)})
		},
		"missing, with a ghost of the secret": func(h *harness) {
			h.putSecret(testNamespace, "etcd-backup", map[string][]byte{"old": []byte(secretMarker)})
		},
	} {
		for _, settled := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				h := newHarness(t)
				prepare(h)
				before := h.secret(testNamespace, "etcd-backup")
				h.putEntry(testEntry, settled, withOperation(operationReconcile))
				if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
				if s := h.status(entriesGVR, testEntry); s.State != string(stateSucceeded) {
					t.Errorf("status %+v", s)
				}
				after := h.secret(testNamespace, "etcd-backup")
				if (before == nil) != (after == nil) || before != nil && before.ResourceVersion != after.ResourceVersion {
					t.Errorf("the secret was %v, is %v", before, after)
				}
			})
		}
	}
}

func TestEntryErrors(t *testing.T) {
	forbidden := apierrors.NewForbidden(secretsGVR.GroupResource(), "etcd-backup", errors.New("exceeded quota"))
	for name, test := range map[string]struct {
		prepare func(h *harness)
		heal    func(h *harness)
		codes   []errorCode
		says    string
	}{
		"secret is missing": {
			prepare: func(h *harness) { h.deleteSecret("garden", "entry") },
			heal:    func(h *harness) { h.putSecret("garden", "entry", staticCredentials()) },
			says:    "garden/entry",
		},
		"secret lacks a key": {
			prepare: func(h *harness) {
				h.editSecret("garden", "entry", func(s *corev1.Secret) { delete(s.Data, "secretAccessKey") })
			},
			heal: func(h *harness) {
				h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Data = staticCredentials() })
			},
			codes: []errorCode{codeConfigurationProblem},
			says:  "secretAccessKey",
		},
		"secret cannot be created": {
			prepare: func(h *harness) { h.answer("create", "secrets", 3, forbidden) },
			heal:    func(*harness) {},
			says:    "creating secret shoot--p--s/etcd-backup",
		},
		"secret cannot be held": {
			prepare: func(h *harness) { h.answer("patch", "secrets", 3, forbidden) },
			heal:    func(*harness) {},
			says:    "garden/entry",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putNamespace(testNamespace, false)
			h.putEntry(testEntry, false, withOperation(operationReconcile))
			test.prepare(h)
			for range 3 {
				if wait, err := h.passEntry(testEntry); err == nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
				if s := h.wantStatus(entriesGVR, testEntry, operationTypeCreate, stateError, test.codes...); !strings.Contains(s.Error, test.says) {
					t.Errorf("message %q", s.Error)
				}
				if h.secret(testNamespace, "etcd-backup") != nil {
					t.Error("a secret was written")
				}
			}
			test.heal(h)
			if _, err := h.passEntry(testEntry); err != nil {
				t.Error(err)
			}
			h.wantStatus(entriesGVR, testEntry, operationTypeCreate, stateSucceeded)
			h.wantEtcdBackup(testNamespace, "etcd-backup", testEntry)
		})
	}
}

// A conflict is another writer at work and no failure: no Error status.
func TestEntryConflicts(t *testing.T) {
	t.Run("in claim", func(t *testing.T) {
		h := newHarness(t)
		h.putNamespace(testNamespace, false)
		h.putEntry(testEntry, false, withOperation(operationReconcile))
		h.on("patch", "backupentries", 1, func() error {
			h.edit(entriesGVR, testEntry, withAnnotation("x", "y"))
			return nil
		})
		if _, err := h.passEntry(testEntry); !apierrors.IsConflict(err) {
			t.Errorf("error %v", err)
		}
		h.wantTrace("patch backupentries shoot--p--s--u annotations,finalizers")
	})
	t.Run("on the credentials", func(t *testing.T) {
		h := newHarness(t)
		h.putNamespace(testNamespace, false)
		h.putEntry(testEntry, false, withLast(operationTypeReconcile, stateError, "no"))
		h.on("patch", "secrets", 1, func() error {
			h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Annotations = map[string]string{"x": "y"} })
			return nil
		})
		if _, err := h.passEntry(testEntry); !apierrors.IsConflict(err) {
			t.Errorf("error %v", err)
		}
		h.wantStatus(entriesGVR, testEntry, operationTypeReconcile, stateProcessing)
		if _, err := h.passEntry(testEntry); err != nil {
			t.Error(err)
		}
		if s := h.secret("garden", "entry"); s.Annotations["x"] != "y" || !slices.Equal(s.Finalizers, []string{finalizerBackupEntry}) {
			t.Errorf("secret %v", s.ObjectMeta)
		}
	})
	t.Run("on etcd-backup", func(t *testing.T) {
		h := newHarness(t)
		h.putNamespace(testNamespace, false)
		h.putEntry(testEntry, true, withOperation(operationReconcile))
		h.putSecret(testNamespace, "etcd-backup", map[string][]byte{"old": []byte(secretMarker)})
		h.on("patch", "secrets", 1, func() error {
			h.editSecret(testNamespace, "etcd-backup", func(s *corev1.Secret) { s.Data["newer"] = []byte(secretMarker) })
			return nil
		})
		if _, err := h.passEntry(testEntry); err != nil {
			t.Error(err)
		}
		h.wantEtcdBackup(testNamespace, "etcd-backup", testEntry)
	})
}

func TestEntryLeftAlone(t *testing.T) {
	for name, edit := range map[string]editObject{
		"wait-for-state":              withOperation(operationWaitForState),
		"wait-for-state and deleting": func(u *unstructured.Unstructured) { withOperation(operationWaitForState)(u); deleting(u) },
		"other type": func(u *unstructured.Unstructured) {
			set("gcp", "spec", "type")(u)
			withOperation(operationReconcile)(u)
		},
		"other class": func(u *unstructured.Unstructured) {
			set("seed", "spec", "class")(u)
			withOperation(operationReconcile)(u)
		},
		"deleting without finalizer": func(u *unstructured.Unstructured) { deleting(u); u.SetFinalizers([]string{"other"}) },
		"succeeded":                  func(*unstructured.Unstructured) {},
		"migrated":                   withLast(operationTypeMigrate, stateSucceeded, "done"),
		"migrated and reconcile": func(u *unstructured.Unstructured) {
			withLast(operationTypeMigrate, stateSucceeded, "done")(u)
			withOperation(operationReconcile)(u)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putEntry(testEntry, true, edit)
			if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantNothing()
		})
	}
	t.Run("stale cache", func(t *testing.T) {
		h := newHarness(t)
		h.putNamespace(testNamespace, false)
		h.putEntry(testEntry, false)
		h.sync()
		h.frozen = true
		if _, err := h.passEntry(testEntry); err != nil {
			t.Error(err)
		}
		if wait, err := h.passEntry(testEntry); err != nil || wait != staleRetry {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantNothing()
	})
}

func TestEntryMigrate(t *testing.T) {
	for _, dying := range []bool{false, true} {
		h := newHarness(t)
		h.putNamespace(testNamespace, false)
		h.putEntry(testEntry, true, withFinalizers("other"), withOperation(operationMigrate), withAnnotation("x", "y"))
		h.putSecret(testNamespace, "etcd-backup", staticCredentials())
		h.cloud.put("b", Policy{}).objects[testEntry+"/1"] = memObject{}
		if dying {
			// Migrate wins.
			h.edit(entriesGVR, testEntry, deleting)
		}
		if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantTrace(
			"status backupentries shoot--p--s--u Migrate Processing",
			"status backupentries shoot--p--s--u Migrate Succeeded",
			"get secrets garden/entry",
			"patch secrets garden/entry finalizers",
			"patch backupentries shoot--p--s--u annotations,finalizers",
		)
		if got := h.secret("garden", "entry").Finalizers; len(got) > 0 {
			t.Errorf("the secret has finalizers %v", got)
		}
		if h.secret(testNamespace, "etcd-backup") == nil || len(h.cloud.buckets["b"].objects) != 1 {
			t.Error("something was deleted")
		}
		u := h.get(entriesGVR, testEntry)
		if dying {
			if u != nil {
				t.Error("the entry is still there")
			}
			continue
		}
		if len(u.GetFinalizers()) > 0 || !maps.Equal(u.GetAnnotations(), map[string]string{"x": "y"}) {
			t.Errorf("metadata %v", u.Object["metadata"])
		}
		h.wantStatus(entriesGVR, testEntry, operationTypeMigrate, stateSucceeded)
		for _, edit := range []editObject{withAnnotation("a", "b"), withOperation(operationReconcile)} {
			h.edit(entriesGVR, testEntry, edit)
			if _, err := h.passEntry(testEntry); err != nil {
				t.Error(err)
			}
			h.wantNothing()
		}
	}
}

func TestEntryMigrateErrors(t *testing.T) {
	h := newHarness(t)
	h.putEntry(testEntry, true, withOperation(operationMigrate))
	h.answer("get", "secrets", 1, apierrors.NewServiceUnavailable("etcd is slow"))
	if _, err := h.passEntry(testEntry); err == nil {
		t.Error("no error")
	}
	h.wantStatus(entriesGVR, testEntry, operationTypeMigrate, stateError)
	u := h.get(entriesGVR, testEntry)
	if u.GetAnnotations()[annotationOperation] != operationMigrate || len(u.GetFinalizers()) != 1 {
		t.Errorf("metadata %v", u.Object["metadata"])
	}
	// The secret may be gone by now.
	h.deleteSecret("garden", "entry")
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	h.wantStatus(entriesGVR, testEntry, operationTypeMigrate, stateSucceeded)
}

func TestEntryRestore(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, false, withOperation(operationRestore))
	h.answer("create", "secrets", 1, apierrors.NewServiceUnavailable("etcd is slow"))
	if _, err := h.passEntry(testEntry); err == nil {
		t.Error("no error")
	}
	h.wantStatus(entriesGVR, testEntry, operationTypeRestore, stateError)
	if got := h.get(entriesGVR, testEntry).GetAnnotations()[annotationOperation]; got != operationRestore {
		t.Errorf("operation %q", got)
	}
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	// It comes from another cluster, which it tells the bucket.
	if at := slices.IndexFunc(h.trace, func(line string) bool {
		return strings.HasPrefix(line, "store b Put "+revocationKey(testEntry, "")[:len(tombstonePrefix)+len(testEntry)+9])
	}); at < 0 {
		t.Errorf("trace %q", h.trace)
	} else {
		h.trace = slices.Delete(h.trace, at, at+1)
	}
	h.wantTrace(
		"get secrets garden/entry",
		"status backupentries shoot--p--s--u Restore Processing",
		"get secrets shoot--p--s/etcd-backup",
		"create secrets shoot--p--s/etcd-backup",
		`store b List ".bucketwarden/tombstones/shoot--p--s--u/"`,
		"status backupentries shoot--p--s--u Restore Succeeded",
		"patch backupentries shoot--p--s--u annotations",
	)
	h.wantStatus(entriesGVR, testEntry, operationTypeRestore, stateSucceeded)
	h.wantEtcdBackup(testNamespace, "etcd-backup", testEntry)
	u := h.get(entriesGVR, testEntry)
	if u.GetAnnotations()[annotationOperation] != "" || !slices.Equal(u.GetFinalizers(), []string{finalizerBackupEntry}) {
		t.Errorf("metadata %v", u.Object["metadata"])
	}

	// A reconcile may follow.
	h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
	if _, err := h.passEntry(testEntry); err != nil || h.requests() != 4 {
		t.Errorf("error %v, trace %q", err, h.trace)
	}
	h.wantStatus(entriesGVR, testEntry, operationTypeReconcile, stateSucceeded)
}

// A failed restore that is then told to reconcile goes on restoring, but the annotation
// reconcile has to go before the first status write.
func TestEntryReconcileAfterFailedRestore(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, true, withLast(operationTypeRestore, stateError, "no"), withOperation(operationReconcile))
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	if h.trace[0] != "patch backupentries shoot--p--s--u annotations" || h.trace[len(h.trace)-1] != "status backupentries shoot--p--s--u Restore Succeeded" {
		t.Errorf("trace %q", h.trace)
	}
}

// putDeletingEntry stores an entry being deleted with all that belongs to it.
func (h *harness) putDeletingEntry(name string, edits ...editObject) *memBucket {
	h.t.Helper()
	namespace, _ := splitEntryName(name)
	h.putNamespace(namespace, false)
	h.putEntry(name, true, append([]editObject{withFinalizers("other"), deleting}, edits...)...)
	h.putSecret(namespace, etcdBackupName(name), staticCredentials())
	h.editSecret(namespace, etcdBackupName(name), func(s *corev1.Secret) { s.Annotations = map[string]string{annotationCreatedBy: name} })
	bucket := h.cloud.put("b", Policy{})
	for _, key := range []string{testEntry + "/1", testEntry + "/2", testEntry + "0/1", "source-" + testEntry + "/1", "other"} {
		bucket.objects[key] = memObject{size: 1024}
	}
	return bucket
}

func TestEntryDelete(t *testing.T) {
	for _, name := range []string{testEntry, "source-" + testEntry} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingEntry(name)
			if wait, err := h.passEntry(name); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			sibling, secret := "source-"+testEntry, "etcd-backup"
			if name != testEntry {
				sibling, secret = testEntry, "source-etcd-backup"
			}
			h.wantTrace(
				"get backupentries "+name,
				"status backupentries "+name+" Delete Processing",
				"get secrets garden/entry",
				"get secrets shoot--p--s/"+secret,
				"delete secrets shoot--p--s/"+secret,
				"get backupentries "+sibling,
				`store b Purge "shoot--p--s--u/"`,
				"get backupentries "+name,
				"get backupentries "+sibling,
				`store b List ".bucketwarden/tombstones/shoot--p--s--u/"`,
				"status backupentries "+name+" Delete Succeeded",
				"get secrets garden/entry",
				"patch secrets garden/entry finalizers",
				"get backupentries "+name,
				"patch backupentries "+name+" finalizers",
			)
			if got, want := slices.Sorted(maps.Keys(bucket.objects)), []string{"other", "shoot--p--s--u0/1", "source-shoot--p--s--u/1"}; !slices.Equal(got, want) {
				t.Errorf("the bucket still has %q, want %q", got, want)
			}
			if got := h.get(entriesGVR, name).GetFinalizers(); !slices.Equal(got, []string{"other"}) {
				t.Errorf("finalizers %v", got)
			}
			if got := h.secret("garden", "entry").Finalizers; len(got) > 0 {
				t.Errorf("the secret has finalizers %v", got)
			}
			h.wantStatus(entriesGVR, name, operationTypeDelete, stateSucceeded)
			h.wantMetric(2, "bucketwarden_purged_objects_total", "b")
			h.wantMetric(2048, "bucketwarden_purged_bytes_total", "b")
			if _, err := h.passEntry(name); err != nil {
				t.Error(err)
			}
			h.wantNothing()
		})
	}
}

// The operation annotation goes before the first status write.
func TestEntryDeleteRemovesTheOperation(t *testing.T) {
	for _, operation := range []string{operationReconcile, operationRestore} {
		h := newHarness(t)
		h.putDeletingEntry(testEntry, withOperation(operation), withAnnotation("x", "y"))
		if _, err := h.passEntry(testEntry); err != nil {
			t.Error(err)
		}
		if want := []string{"get backupentries shoot--p--s--u", "patch backupentries shoot--p--s--u annotations", "status backupentries shoot--p--s--u Delete Processing"}; !slices.Equal(h.trace[:3], want) {
			t.Errorf("trace %q, want first %q", h.trace, want)
		}
		if got := h.get(entriesGVR, testEntry).GetAnnotations(); !maps.Equal(got, map[string]string{"x": "y", annotationSecret: "garden/entry"}) {
			t.Errorf("annotations %v", got)
		}
		h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
	}
}

func TestEntryDeleteEtcdBackup(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		kept    bool
	}{
		"of another entry": {func(h *harness) {
			h.editSecret(testNamespace, "etcd-backup", func(s *corev1.Secret) { s.Annotations[annotationCreatedBy] = "other" })
		}, true},
		"without a creator": {func(h *harness) {
			h.editSecret(testNamespace, "etcd-backup", func(s *corev1.Secret) { s.Annotations = nil })
		}, false},
		"gone": {func(h *harness) { h.deleteSecret(testNamespace, "etcd-backup") }, false},
		"gone with its namespace": {func(h *harness) {
			h.deleteSecret(testNamespace, "etcd-backup")
			if err := h.core.Tracker().Delete(namespaceGVR, "", testNamespace); err != nil {
				h.t.Fatal(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingEntry(testEntry)
			test.prepare(h)
			if _, err := h.passEntry(testEntry); err != nil {
				t.Error(err)
			}
			if (h.secret(testNamespace, "etcd-backup") != nil) != test.kept {
				t.Errorf("the secret is there: %t", !test.kept)
			}
			if len(bucket.objects) != 3 {
				t.Errorf("objects %v", bucket.objects)
			}
			h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
		})
	}
}

// Another entry that takes the secret over while we delete keeps it.
func TestEntryDeleteDoesNotRaceForEtcdBackup(t *testing.T) {
	h := newHarness(t)
	h.putDeletingEntry(testEntry)
	h.on("delete", "secrets", 1, func() error {
		h.editSecret(testNamespace, "etcd-backup", func(s *corev1.Secret) { s.Annotations[annotationCreatedBy] = "other" })
		return nil
	})
	if _, err := h.passEntry(testEntry); !apierrors.IsConflict(err) {
		t.Errorf("error %v", err)
	}
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	if h.secret(testNamespace, "etcd-backup") == nil {
		t.Error("the secret of another entry is gone")
	}
}

func TestEntryDeleteWithoutCredentials(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		edits   []editObject
		trace   []string
	}{
		"secret is gone": {
			prepare: func(h *harness) { h.deleteSecret("garden", "entry") },
			// The second read is for our finalizer, should it come back.
			trace: []string{"get secrets garden/entry", "get secrets garden/entry"},
		},
		"no reference": {
			prepare: func(*harness) {},
			edits:   []editObject{set(map[string]any{}, "spec", "secretRef")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingEntry(testEntry, test.edits...)
			test.prepare(h)
			if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantTrace(slices.Concat(
				[]string{"get backupentries shoot--p--s--u", "status backupentries shoot--p--s--u Delete Processing"}, test.trace,
				[]string{"get backupentries shoot--p--s--u", "patch backupentries shoot--p--s--u finalizers"})...)
			h.wantEvents("ObjectsLeft")
			if h.recorder.events[0].eventType != corev1.EventTypeWarning || len(bucket.objects) != 5 || h.secret(testNamespace, "etcd-backup") == nil {
				t.Errorf("events %v, objects %v", h.recorder.events, bucket.objects)
			}
		})
	}
}

func TestEntryDeleteSibling(t *testing.T) {
	for _, name := range []string{testEntry, "source-" + testEntry} {
		sibling := "source-" + testEntry
		if name == sibling {
			sibling = testEntry
		}
		for _, test := range []struct {
			title string
			edits []editObject
			kept  bool
		}{
			{"alive", nil, true},
			{"alive, of another type", []editObject{set("other", "spec", "type")}, true},
			{"deleting", []editObject{deleting}, false},
			{"in another bucket", []editObject{set("c", "spec", "bucketName")}, false},
		} {
			t.Run(name+", sibling "+test.title, func(t *testing.T) {
				h := newHarness(t)
				bucket := h.putDeletingEntry(name)
				h.putEntry(sibling, true, append([]editObject{withFinalizers("other")}, test.edits...)...)
				if _, err := h.passEntry(name); err != nil {
					t.Error(err)
				}
				if want := map[bool]int{true: 5, false: 3}[test.kept]; len(bucket.objects) != want {
					t.Errorf("%d objects, want %d", len(bucket.objects), want)
				}
				if test.kept {
					h.wantEvents("ObjectsKept")
				}
				h.wantStatus(entriesGVR, name, operationTypeDelete, stateSucceeded)
				// They share the credentials, too.
				held := len(h.secret("garden", "entry").Finalizers) > 0
				if shared := test.title != "alive, of another type"; held != shared {
					t.Errorf("the secret is held: %t", held)
				}
			})
		}
	}
	t.Run("unreadable", func(t *testing.T) {
		h := newHarness(t)
		bucket := h.putDeletingEntry(testEntry)
		h.on("get", "backupentries", 1, func() error {
			h.answer("get", "backupentries", 1, apierrors.NewServiceUnavailable("etcd is slow"))
			return nil
		})
		if _, err := h.passEntry(testEntry); err == nil {
			t.Error("no error")
		}
		h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateError)
		if len(bucket.objects) != 5 {
			t.Errorf("objects %v", bucket.objects)
		}
	})
}

func TestEntryDeleteLeavesATombstone(t *testing.T) {
	until := time.Now().Add(72 * time.Hour).UTC().Truncate(time.Second)
	for title, test := range map[string]struct {
		object memObject
		due    time.Time
		says   string
	}{
		"retained":   {memObject{size: 5 << 20, until: until}, until, "retained until " + until.Format(time.RFC3339)},
		"rounded up": {memObject{size: 5 << 20, until: until.Add(time.Millisecond)}, until.Add(time.Second), "retained until " + until.Format(time.RFC3339)},
		"legal hold": {memObject{size: 5 << 20, held: true}, time.Time{}, "legal hold"},
	} {
		t.Run(title, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingEntry(testEntry)
			bucket.objects[testEntry+"/1"] = test.object
			if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
			h.wantEvents("ObjectsDeleted", "ObjectsRetained")
			if note := h.recorder.events[1].note; !strings.Contains(note, "1 objects (5.0 MiB) in bucket b are retained") || !strings.Contains(note, test.says) {
				t.Errorf("event %q", note)
			}
			if len(h.secret("garden", "entry").Finalizers) > 0 || len(h.get(entriesGVR, testEntry).GetFinalizers()) != 1 {
				t.Error("not released")
			}
			marks := h.marks(testEntry)
			if len(marks) != 1 || marks[0].revoked || marks[0].objects != 1 || marks[0].bytes != 5<<20 || !test.due.IsZero() && !marks[0].due.Equal(test.due) {
				t.Errorf("marks %+v", marks)
			}
			want := []string{`store b Purge "shoot--p--s--u/"`, `store b List ".bucketwarden/tombstones/shoot--p--s--u/"`, "store b Put " + marks[0].key}
			if got := h.storeCalls(); !slices.Equal(got, want) {
				t.Errorf("the store saw %q, want %q", got, want)
			}
		})
	}
}

func TestEntryDeleteErrors(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		heal    func(h *harness)
		codes   []errorCode
	}{
		"purge fails": {
			prepare: func(h *harness) { h.cloud.fail["Purge"] = denied },
			heal:    func(h *harness) { delete(h.cloud.fail, "Purge") },
			codes:   []errorCode{codeUnauthorized},
		},
		"secret is empty": {
			prepare: func(h *harness) { h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Data = nil }) },
			heal: func(h *harness) {
				h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Data = staticCredentials() })
			},
			codes: []errorCode{codeConfigurationProblem},
		},
		"secret cannot be read": {
			prepare: func(h *harness) { h.answer("get", "secrets", 3, apierrors.NewServiceUnavailable("etcd is slow")) },
			heal:    func(*harness) {},
		},
		"etcd-backup cannot be deleted": {
			prepare: func(h *harness) {
				h.answer("delete", "secrets", 3, apierrors.NewForbidden(secretsGVR.GroupResource(), "etcd-backup", errors.New("no")))
			},
			heal: func(*harness) {},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingEntry(testEntry)
			test.prepare(h)
			for range 3 {
				if wait, err := h.passEntry(testEntry); err == nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
				h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateError, test.codes...)
				if len(bucket.objects) != 5 || len(h.secret("garden", "entry").Finalizers) == 0 || len(h.get(entriesGVR, testEntry).GetFinalizers()) != 2 {
					t.Error("something was released")
				}
			}
			test.heal(h)
			if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
		})
	}
}

// A purge that runs out of time goes on in the next pass, and is no error.
func TestEntryDeletePartialPurge(t *testing.T) {
	h := newHarness(t)
	bucket := h.putDeletingEntry(testEntry)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	h.cloud.purgeLimit, h.cloud.afterPurge = 1, func() error {
		cancel(context.DeadlineExceeded)
		return &storeError{code: codeRetryableDependencies, err: context.DeadlineExceeded}
	}
	wait, err := h.pass(ctx, h.entries.reconcile, testEntry, false)
	if err != nil || wait != time.Second {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if s := h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateProcessing); !strings.Contains(s.Description, "Deleted 1 object versions") || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	if len(bucket.objects) != 4 {
		t.Errorf("objects %v", bucket.objects)
	}
	h.cloud.purgeLimit = 0
	if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
	h.wantMetric(2, "bucketwarden_purged_objects_total", "b")
}

// An entry whose name or spec nobody can serve must not be stuck forever.
func TestEntryDeleteBadEntries(t *testing.T) {
	for name, test := range map[string]struct {
		entry string
		edits []editObject
	}{
		"name without UID": {entry: "kube-system"},
		"no bucket":        {entry: testEntry, edits: []editObject{set("", "spec", "bucketName")}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putNamespace("kube-system", false)
			h.putEntry(test.entry, true, append(test.edits, withFinalizers("other"), deleting)...)
			h.putSecret("kube-system", "etcd-backup", map[string][]byte{"a": []byte(secretMarker)})
			if _, err := h.passEntry(test.entry); err != nil {
				t.Error(err)
			}
			h.wantStatus(entriesGVR, test.entry, operationTypeDelete, stateSucceeded)
			if h.secret("kube-system", "etcd-backup") == nil {
				t.Error("a secret that was never ours is gone")
			}
		})
	}
}

// What is in a bucket that is not ours is none of ours.
func TestEntryDeleteWithoutBucketOfOurs(t *testing.T) {
	h := newHarness(t)
	h.putDeletingEntry(testEntry)
	h.cloud.fail["Purge"] = &storeError{code: codeConfigurationProblem, err: errNotOurBucket}
	if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantEvents("ObjectsLeft")
	h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
	if len(h.secret("garden", "entry").Finalizers) > 0 || h.secret(testNamespace, "etcd-backup") != nil {
		t.Error("not released")
	}
}

func TestEntryBase(t *testing.T) {
	for entry, want := range map[string]string{"a--1": "a--1", "source-shoot--p--s--u": "shoot--p--s--u", "source-source-x": "source-x", "source-": ""} {
		if got := entryBase(entry); got != want {
			t.Errorf("entryBase(%q) is %q, want %q", entry, got, want)
		}
	}
}

// An event that meets a stale cache is not lost.
func TestEntryWantedOnAStaleCache(t *testing.T) {
	h := newHarness(t)
	h.scope.ignoreOperationAnnotation = true
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, true)
	h.sync()
	c := h.entries.resource.controller
	c.reconcile = h.entries.reconcile
	key := cache.ObjectName{Name: testEntry}
	c.wrote(key, "999999")
	c.want(key)
	c.queue.Add(key)
	c.processNext(t.Context())
	if !c.takeWanted(key) {
		t.Error("the event is forgotten")
	}
}

// What the client asks for during a restore is left to the next pass.
func TestEntryRestoreKeepsANewerOperation(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, false, withOperation(operationRestore))
	h.on("create", "secrets", 1, func() error {
		h.edit(entriesGVR, testEntry, withOperation(operationMigrate))
		return nil
	})
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	if got := h.get(entriesGVR, testEntry).GetAnnotations()[annotationOperation]; got != operationMigrate {
		t.Errorf("operation %q", got)
	}
}

// putAzureEntry stores an entry on Azure with the credentials of a generated secret.
func (h *harness) putAzureEntry(name string, settled bool, edits ...editObject) {
	h.t.Helper()
	h.putEntry(name, settled, append([]editObject{set("azure", "spec", "type")}, edits...)...)
	h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Data = generatedData("bkpb", memKey1) })
}

func TestAzureEntry(t *testing.T) {
	h := newHarness(t)
	h.putNamespace(testNamespace, false)
	h.putAzureEntry(testEntry, false, withOperation(operationReconcile))
	if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(
		"patch backupentries shoot--p--s--u annotations,finalizers",
		"status backupentries shoot--p--s--u Create Processing",
		"patch secrets garden/entry finalizers",
		"create secrets shoot--p--s/etcd-backup",
		`store b List ".bucketwarden/tombstones/shoot--p--s--u/"`,
		"status backupentries shoot--p--s--u Create Succeeded",
	)
	want := func(key string) {
		t.Helper()
		data := generatedData("bkpb", key)
		data["bucketName"] = []byte("b")
		secret := h.secret(testNamespace, "etcd-backup")
		if !sameData(secret.Data, data) || len(secret.Labels) > 0 || !maps.Equal(secret.Annotations, map[string]string{annotationCreatedBy: testEntry}) {
			t.Errorf("data %q, want %q, metadata %v", secret.Data, data, secret.ObjectMeta)
		}
	}
	want(memKey1)

	// A rotated key reaches it, and what is not of Azure goes.
	h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Data = generatedData("bkpb", memKey2) })
	h.editSecret(testNamespace, "etcd-backup", func(s *corev1.Secret) { s.Data["region"] = []byte("eu-1") })
	h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	want(memKey2)
	if got := h.storeCalls(); !slices.Equal(got, []string{`store b List ".bucketwarden/tombstones/shoot--p--s--u/"`}) {
		t.Errorf("the store saw %q", got)
	}
}

func TestAzureEntryErrors(t *testing.T) {
	for name, test := range map[string]struct {
		edit func(*corev1.Secret)
		says []string
	}{
		"without a key": {func(s *corev1.Secret) { delete(s.Data, dataKeyStorageKey) }, []string{"garden/entry", dataKeyStorageKey}},
		"of a bucket":   {func(s *corev1.Secret) { s.Data = azureCredentials() }, []string{"garden/entry", dataKeyStorageKey}},
		"of S3":         {func(s *corev1.Secret) { s.Data = staticCredentials() }, []string{"garden/entry", dataKeyStorageKey}},
		"identity": {func(s *corev1.Secret) {
			s.Labels = map[string]string{labelPurpose: purposeTokenRequestor, labelWorkloadProvider: "azure"}
			s.Annotations = map[string]string{annotationWorkloadName: "wi", annotationWorkloadNS: "garden-p"}
		}, []string{"garden/entry", "workload identity", dataKeyStorageAccount, dataKeyStorageKey}},
	} {
		for _, settled := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				h := newHarness(t)
				h.putNamespace(testNamespace, false)
				h.putAzureEntry(testEntry, settled, withOperation(operationReconcile))
				h.editSecret("garden", "entry", test.edit)
				for range 2 {
					if wait, err := h.passEntry(testEntry); err == nil || wait != 0 {
						t.Errorf("wait %s, error %v", wait, err)
					}
					opType := operationTypeCreate
					if settled {
						opType = operationTypeReconcile
					}
					s := h.wantStatus(entriesGVR, testEntry, opType, stateError, codeConfigurationProblem)
					for _, part := range test.says {
						if !strings.Contains(s.Error, part) {
							t.Errorf("the message %q does not say %q", s.Error, part)
						}
					}
					if h.secret(testNamespace, "etcd-backup") != nil {
						t.Error("a secret was written")
					}
				}
				h.editSecret("garden", "entry", func(s *corev1.Secret) {
					s.Labels, s.Annotations, s.Data = nil, nil, generatedData("bkpb", memKey1)
				})
				if _, err := h.passEntry(testEntry); err != nil || h.secret(testNamespace, "etcd-backup") == nil {
					t.Errorf("error %v", err)
				}
			})
		}
	}
}

// The credentials of an entry cannot read the policy of a container.
func TestAzureEntryDelete(t *testing.T) {
	for name, test := range map[string]struct {
		status   any
		recorded Policy
	}{
		"without a record": {},
		"with a record": {map[string]any{"apiVersion": "azure.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketStatus",
			"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "96h", "locked": true}}, locked4d},
		"with that of others": {map[string]any{"kind": "Other", "immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "96h"}}, Policy{}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			edits := []editObject{set("azure", "spec", "type")}
			if test.status != nil {
				edits = append(edits, set(test.status, "spec", "backupBucketProviderStatus"))
			}
			bucket := h.putDeletingEntry(testEntry, edits...)
			h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Data = generatedData("bkpb", memKey1) })
			if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if got, want := h.cloud.opened, (bucketRef{Name: "b", Region: "eu-1", Recorded: test.recorded}); got != want {
				t.Errorf("opened %+v, want %+v", got, want)
			}
			if got := h.storeCalls(); !slices.Equal(got, []string{`store b Purge "shoot--p--s--u/"`, `store b List ".bucketwarden/tombstones/shoot--p--s--u/"`}) || len(bucket.objects) != 3 {
				t.Errorf("calls %q, left %v", got, slices.Sorted(maps.Keys(bucket.objects)))
			}
			h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
			if h.secret(testNamespace, "etcd-backup") != nil || len(h.secret("garden", "entry").Finalizers) > 0 {
				t.Error("the etcd-backup secret is still there, or the credentials are held")
			}
		})
	}
	t.Run("without a key", func(t *testing.T) {
		h := newHarness(t)
		h.putDeletingEntry(testEntry, set("azure", "spec", "type"))
		if _, err := h.passEntry(testEntry); err == nil {
			t.Error("no error")
		}
		if s := h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateError, codeConfigurationProblem); !strings.Contains(s.Error, "garden/entry") || !strings.Contains(s.Error, dataKeyStorageKey) {
			t.Errorf("message %q", s.Error)
		}
	})
}

// An S3 entry has its region, whatever the record says.
func TestS3EntryWithARecord(t *testing.T) {
	h := newHarness(t)
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, false, set(map[string]any{"kind": "BackupBucketStatus",
		"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "96h", "mode": modeCompliance}}, "spec", "backupBucketProviderStatus"))
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	h.wantEtcdBackup(testNamespace, "etcd-backup", testEntry)
}

// Whoever takes the annotation away between the status and the finalizers does not keep an
// entry for ever: it has migrated, and its objects belong to another seed.
func TestEntryMigratedAndDeletedIsHandedOver(t *testing.T) {
	h := newHarness(t)
	h.putPrefix(testEntry)
	h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry), withLast(operationTypeMigrate, stateSucceeded, "done"), deleting)
	if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantPrefix(testEntry, 2)
	if h.get(entriesGVR, testEntry) != nil && len(h.get(entriesGVR, testEntry).GetFinalizers()) > 0 {
		t.Error("the entry is held")
	}
	if got := h.secret("garden", "entry").Finalizers; len(got) > 0 {
		t.Errorf("the secret has finalizers %v", got)
	}
}
