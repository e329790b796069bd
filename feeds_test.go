package main

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// feedTestServer answers the lists and watches of one informer.
type feedTestServer struct {
	mu                sync.Mutex
	listErr, watchErr error
	hang, noBookmark  bool
	lists, watches    int
	open              *watch.FakeWatcher
}

func (s *feedTestServer) list(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	s.mu.Lock()
	s.lists++
	err, hang := s.listErr, s.hang
	s.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	l := &unstructured.UnstructuredList{}
	l.SetResourceVersion("1")
	return l, nil
}

func (s *feedTestServer) watch(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches++
	if s.watchErr != nil {
		return nil, s.watchErr
	}
	s.open = watch.NewFakeWithChanSize(1, false)
	if o.SendInitialEvents != nil && *o.SendInitialEvents && !s.noBookmark {
		end := &unstructured.Unstructured{}
		end.SetResourceVersion("1")
		end.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		s.open.Action(watch.Bookmark, end)
	}
	return s.open, nil
}

// asked is how many lists and watches there were.
func (s *feedTestServer) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists + s.watches
}

// set changes the answers, and ends the open watch if they are errors.
func (s *feedTestServer) set(listErr, watchErr error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listErr, s.watchErr = listErr, watchErr
	if (listErr != nil || watchErr != nil) && s.open != nil {
		s.open.Stop()
		s.open = nil
	}
}

// feedTestListClient is a client that cannot begin a watch with a list.
type feedTestListClient struct{}

func (feedTestListClient) IsWatchListSemanticsUnSupported() bool { return true }

var (
	feedTestMissing   = apierrors.NewNotFound(bucketsGVR.GroupResource(), "")
	feedTestForbidden = apierrors.NewForbidden(bucketsGVR.GroupResource(), "", errors.New("no"))
	feedTestRefused   = &url.Error{Op: "Get", URL: "https://api/", Err: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}
)

// feedTest runs an informer in a bubble.
func feedTest(t *testing.T, client any, s *feedTestServer, test func(f *feed, log ktesting.Buffer)) {
	synctest.Test(t, func(t *testing.T) {
		logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(0)))
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
		informer, f, err := newFeed(bucketsGVR.GroupResource(), client, s.list, s.watch, &unstructured.Unstructured{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		running.Go(func() { informer.RunWithContext(ctx) })
		test(f, logger.GetSink().(ktesting.Underlier).GetBuffer())
		stop()
		running.Wait()
	})
}

// What goes on sleeps for d and then says whether the feed is deaf.
func feedTestDeafAfter(f *feed, d time.Duration) error {
	time.Sleep(d)
	synctest.Wait()
	return f.deaf(time.Now())
}

func TestFeed(t *testing.T) {
	for name, client := range map[string]any{"lists": feedTestListClient{}, "watches that begin with a list": nil} {
		t.Run(name, func(t *testing.T) {
			t.Run("a quiet watch", func(t *testing.T) {
				s := &feedTestServer{}
				feedTest(t, client, s, func(f *feed, log ktesting.Buffer) {
					if err := feedTestDeafAfter(f, 10*time.Hour); err != nil || log.String() != "" {
						t.Errorf("%v, %s", err, log.String())
					}
					if asked := s.asked(); asked > 2 {
						t.Errorf("%d lists and watches", asked)
					}
				})
			})
			for name, test := range map[string]struct {
				listErr, watchErr error
				advice            string
			}{
				"no CRD":             {feedTestMissing, feedTestMissing, "create the CustomResourceDefinition backupbuckets.extensions.gardener.cloud"},
				"no permission":      {feedTestForbidden, feedTestForbidden, "allow the ServiceAccount to list and watch backupbuckets.extensions"},
				"no right to watch":  {nil, feedTestForbidden, "allow the ServiceAccount to list and watch backupbuckets.extensions"},
				"no credentials":     {apierrors.NewUnauthorized("no"), apierrors.NewUnauthorized("no"), "does not accept the credentials"},
				"too many requests":  {apierrors.NewTooManyRequests("no", 1), apierrors.NewTooManyRequests("no", 1), "tried again by itself"},
				"no API server":      {feedTestRefused, feedTestRefused, "tried again by itself"},
				"conversion is down": {apierrors.NewInternalError(errors.New("no")), apierrors.NewInternalError(errors.New("no")), "tried again by itself"},
			} {
				t.Run(name, func(t *testing.T) {
					s := &feedTestServer{listErr: test.listErr, watchErr: test.watchErr}
					feedTest(t, client, s, func(f *feed, log ktesting.Buffer) {
						expect := func(told, again int) {
							t.Helper()
							text := log.String()
							if strings.Count(text, "Lists or watches do not get through") != told || strings.Count(text, test.advice) != told ||
								strings.Count(text, "get through again") != again || strings.Count(text, "\n") != told+again {
								t.Errorf("want %d failures with %q, %d ends:\n%s", told, test.advice, again, text)
							}
						}
						// At the start.
						if err := feedTestDeafAfter(f, deafAfter-time.Second); err != nil {
							t.Error(err)
						}
						if err := feedTestDeafAfter(f, 2*time.Second); err == nil || !errors.Is(err, test.listErr) && !errors.Is(err, test.watchErr) {
							t.Errorf("got %v", err)
						}
						time.Sleep(time.Hour)
						expect(1, 0)
						if requests := s.asked(); requests > 750 {
							t.Errorf("%d requests in an hour", requests)
						}
						s.set(nil, nil)
						if err := feedTestDeafAfter(f, time.Minute); err != nil || !f.since().IsZero() {
							t.Errorf("%v, since %s", err, f.since())
						}
						expect(1, 1)

						// After it had worked; a short while is nothing.
						s.set(test.listErr, test.watchErr)
						if err := feedTestDeafAfter(f, time.Minute); err != nil {
							t.Error(err)
						}
						s.set(nil, nil)
						time.Sleep(time.Minute)
						s.set(test.listErr, test.watchErr)
						if err := feedTestDeafAfter(f, deafAfter-time.Second); err != nil {
							t.Error(err)
						}
						if err := feedTestDeafAfter(f, 2*time.Minute); err == nil {
							t.Error("it is not deaf")
						}
						expect(3, 2)
					})
				})
			}
		})
	}
}

// A list that gets no answer does not get through either.
func TestFeedWithoutAnswer(t *testing.T) {
	feedTest(t, feedTestListClient{}, &feedTestServer{hang: true}, func(f *feed, _ ktesting.Buffer) {
		if err := feedTestDeafAfter(f, deafAfter-time.Second); err != nil {
			t.Error(err)
		}
		if err := feedTestDeafAfter(f, time.Second); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("got %v", err)
		}
	})
	// Nor one that begins and never ends.
	feedTest(t, nil, &feedTestServer{noBookmark: true}, func(f *feed, _ ktesting.Buffer) {
		if err := feedTestDeafAfter(f, deafAfter); err == nil {
			t.Error("it is not deaf")
		}
	})
}

// An API server that cannot begin a watch with a list says that the request is invalid; that is nothing to tell.
func TestFeedOfAnOldAPIServer(t *testing.T) {
	invalid := apierrors.NewInvalid(schema.GroupKind{}, "", nil)
	s := &feedTestServer{}
	synctest.Test(t, func(t *testing.T) {
		logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(0)))
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
		informer, f, err := newFeed(bucketsGVR.GroupResource(), nil, s.list, func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, invalid
			}
			return s.watch(ctx, o)
		}, &unstructured.Unstructured{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		running.Go(func() { informer.RunWithContext(ctx) })
		if err := feedTestDeafAfter(f, time.Hour); err != nil || !f.since().IsZero() || !informer.HasSynced() {
			t.Errorf("%v, since %s", err, f.since())
		}
		if log := logger.GetSink().(ktesting.Underlier).GetBuffer().String(); log != "" {
			t.Error(log)
		}
		stop()
		running.Wait()
	})
}
