package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corefake "k8s.io/client-go/kubernetes/fake"
)

// Through client-go's own broadcaster: what was told differs if its text differs, and only what is the same is counted.
func TestEventsWithAnotherNoteAreOthers(t *testing.T) {
	core := corefake.NewClientset()
	broadcaster := newBroadcaster(core)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	defer broadcaster.Shutdown()
	r := &reconciler{recorder: newRecorder(broadcaster)}
	b := decodeBucket(testObject(kindBackupBucket, "b", "bucket-b"))
	b.UID, b.ResourceVersion = "uid", "7"
	// The broadcaster takes each in a goroutine of its own, and a series begins when the first event is there.
	await := func(want ...string) []eventsv1.Event {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			list, err := core.EventsV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range list.Items {
				note := e.Note
				if e.Series != nil {
					note += " again"
				}
				got = append(got, note)
			}
			if slices.Sort(got); slices.Equal(got, want) {
				return list.Items
			}
			if time.Now().After(deadline) {
				t.Fatalf("events %q, want %q", got, want)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for _, found := range []string{"first", "second"} {
		r.warn(b, "PolicyDrift", "Verify", "the store said %s", found)
	}
	await("the store said first", "the store said second")
	r.warn(b, "PolicyDrift", "Verify", "the store said %s", "first")
	for _, e := range await("the store said first again", "the store said second") {
		ref := corev1.ObjectReference{APIVersion: extensionsGV.String(), Kind: kindBackupBucket, Name: "b", UID: "uid", ResourceVersion: "7"}
		if e.Regarding != ref || e.Type != corev1.EventTypeWarning || e.ReportingController != programName {
			t.Errorf("event %+v", e)
		}
		if e.Series != nil && e.Series.Count != 2 {
			t.Errorf("%s: counted %d times", e.Note, e.Series.Count)
		}
	}
	// A long note is cut where the API server would refuse it.
	long := strings.Repeat("x", 2*maxEventNote)
	r.warn(b, "PolicyDrift", "Verify", "%s", long)
	await("the store said first again", "the store said second", long[:maxEventNote-3]+"...")
}
