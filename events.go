// Events on their way to the API server, through client-go's broadcaster. It makes one series of all events with the same
// type, reason and action about the same version of an object, whatever their notes say: the series shows the first note
// and counts the others. So a second, different drift would show the text of the first one.
//
// Here the note tells events apart as well. For the broadcaster it is in a field that it compares and that none of our
// objects uses, and it is taken out again before an event is written.

package main

import (
	"context"
	"fmt"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/reference"
)

// newBroadcaster makes a broadcaster that writes the events of its recorder.
func newBroadcaster(core kubernetes.Interface) events.EventBroadcaster {
	return events.NewBroadcaster(noteSink{&events.EventSinkImpl{Interface: core.EventsV1()}})
}

// newRecorder makes the recorder of a broadcaster of newBroadcaster.
func newRecorder(broadcaster events.EventBroadcaster) events.EventRecorder {
	scheme := runtime.NewScheme()
	return noteRecorder{EventRecorder: broadcaster.NewRecorder(scheme, programName), scheme: scheme}
}

// noteRecorder makes the note a part of what an event is about, as the place in the object that it is about.
type noteRecorder struct {
	events.EventRecorder
	scheme *runtime.Scheme
}

// Eventf implements events.EventRecorder.
func (r noteRecorder) Eventf(regarding, related runtime.Object, eventType, reason, action, note string, args ...any) {
	text := fmt.Sprintf(note, args...)
	// What is no object is told by the recorder.
	if ref, err := reference.GetReference(r.scheme, regarding); err == nil {
		noted := *ref
		noted.FieldPath = text
		regarding = &noted
	}
	r.EventRecorder.Eventf(regarding, related, eventType, reason, action, "%s", text)
}

// noteSink undoes what noteRecorder did. A series that goes on is a patch of its count, and needs nothing.
type noteSink struct{ events.EventSink }

// Create implements events.EventSink.
func (s noteSink) Create(ctx context.Context, event *eventsv1.Event) (*eventsv1.Event, error) {
	event = event.DeepCopy()
	event.Regarding.FieldPath = ""
	return s.EventSink.Create(ctx, event)
}
