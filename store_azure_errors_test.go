package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestAzureStoreTokenErrors(t *testing.T) {
	entra := func(status int, name string, code int) func(http.ResponseWriter, *http.Request, string) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			fakeAzureJSON(w, status, map[string]any{"error": name, "error_codes": []int{code}, "error_description": "AADSTS" + strconv.Itoa(code) + " Trace ID aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"})
			return true
		}
	}
	always := func(answer func(http.ResponseWriter, *http.Request, string) bool) []func(http.ResponseWriter, *http.Request, string) bool {
		return slices.Repeat([]func(http.ResponseWriter, *http.Request, string) bool{answer}, 20)
	}
	for name, c := range map[string]struct {
		operation string
		answer    func(http.ResponseWriter, *http.Request, string) bool
		code      errorCode
		text      string
		requests  int
	}{
		"tenant":       {"Discovery", entra(400, "invalid_tenant", 90002), codeUnauthenticated, "(AADSTS90002): check tenantID in the credentials secret", 1},
		"client":       {"Token", entra(400, "unauthorized_client", 700016), codeUnauthenticated, "check clientID in", 2},
		"secret":       {"Token", entra(401, "invalid_client", 7000215), codeUnauthenticated, "check clientSecret in", 2},
		"expired":      {"Token", entra(401, "invalid_client", 7000222), codeUnauthenticated, "check clientSecret in", 2},
		"unknown code": {"Token", entra(401, "invalid_client", 1), codeUnauthenticated, "check clientID, clientSecret in", 2},
		"no code":      {"Token", entra(400, "invalid_grant", 0), codeUnauthenticated, "check tenantID, clientID, clientSecret in", 2},
		"not Entra":    {"Discovery", func(w http.ResponseWriter, _ *http.Request, _ string) bool { http.NotFound(w, nil); return true }, codeRetryableConfiguration, "HTTP status 404", 1},
		"down":         {"Token", entra(503, "temporarily_unavailable", 0), codeRetryableDependencies, "HTTP status 503", 1 + 4},
		"hangs up": {"Token", func(http.ResponseWriter, *http.Request, string) bool { panic(http.ErrAbortHandler) },
			codeRetryableDependencies, "no token from Microsoft Entra ID: ", 1 + 4},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			f.script(c.operation, always(c.answer)...)
			b := f.open(f.ref())
			_, err := b.Observe(t.Context())
			checkAzureError(t, err, c.code, c.text)
			if len(f.calls) != c.requests {
				t.Errorf("%d requests: %v", len(f.calls), f.calls)
			}
			if _, again := b.Observe(t.Context()); again == nil || again.Error() != err.Error() {
				t.Errorf("the error changes: %v, %v", err, again)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		f := newFakeAzure(t)
		f.arm.Close()
		_, err := f.open(f.ref()).Observe(t.Context())
		checkAzureError(t, err, codeRetryableDependencies, "no token from Microsoft Entra ID: ", "cannot be reached")
	})
	t.Run("canceled", func(t *testing.T) {
		f := newFakeAzure(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := f.open(f.ref()).Observe(ctx)
		checkAzureError(t, err, "", "the request was canceled")
	})
}

func TestAzureStoreErrorClasses(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   errorCode
		text   string
	}{
		{401, "InvalidAuthenticationTokenTenant", codeUnauthenticated, "another tenant"},
		{401, "ExpiredAuthenticationToken", codeUnauthenticated, "does not accept the credentials"},
		{400, "InvalidSubscriptionId", codeUnauthenticated, "subscriptionID"},
		{403, "AuthorizationFailed", codeUnauthorized, "Microsoft.Storage/storageAccounts/listKeys/action"},
		{403, "RequestDisallowedByPolicy", codeConfigurationProblem, "RequestDisallowedByPolicy: Because of"},
		{409, "MissingSubscriptionRegistration", codeConfigurationProblem, "Microsoft.Storage"},
		{409, "StorageAccountOperationInProgress", codeRetryableDependencies, "StorageAccountOperationInProgress"},
		{409, "ScopeLocked", codeConfigurationProblem, "remove the lock"},
		{409, "QuotaExceeded", codeQuotaExceeded, "QuotaExceeded"},
		{409, "SomethingNew", codeRetryableDependencies, "SomethingNew"},
		{400, "SomethingNew", codeConfigurationProblem, "SomethingNew"},
		{500, "InternalError", codeRetryableDependencies, "InternalError"},
		{429, "SubscriptionRequestsThrottled", codeRateLimitsExceeded, "SubscriptionRequestsThrottled"},
		{401, "", codeUnauthenticated, "HTTP status 401"},
		{404, "ContainerNotFound", codeRetryableDependencies, "ContainerNotFound"},
		{404, "ParentResourceNotFound", codeRetryableDependencies, "ParentResourceNotFound"},
		{404, "ResourceGroupNotFound", codeRetryableDependencies, "ResourceGroupNotFound"},
		{404, "ResourceNotFound", codeRetryableDependencies, "ResourceNotFound"},
	} {
		f := newFakeAzure(t)
		f.on["Account.listKeys"] = answerAzure(c.status, c.code)
		b := f.open(f.ref())
		_, err := b.Keys(t.Context())
		checkAzureError(t, err, c.want, "Azure StorageAccounts.ListKeys for bucket", c.text)
		if _, again := b.Keys(t.Context()); again.Error() != err.Error() {
			t.Errorf("the error changes: %v, %v", err, again)
		}
	}
}

func TestAzureStoreRetriesAndMetrics(t *testing.T) {
	f := newFakeAzure(t)
	f.script("Container.GET", answerAzure(503, "ServerBusy"), answerAzure(429, "TooManyRequests"))
	if _, err := f.open(f.ref()).Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.expect("Container.GET Container.GET Container.GET")
	f.account = false
	if _, err := f.open(f.ref()).Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	families, err := f.clients.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, family := range families {
		if family.GetName() != "bucketwarden_store_request_duration_seconds" {
			continue
		}
		for _, m := range family.Metric {
			labels := map[string]string{}
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			got[labels["store"]+" "+labels["operation"]+" "+labels["outcome"]] = m.GetHistogram().GetSampleCount()
		}
	}
	want := map[string]uint64{"azure Token success": 2, "azure BlobContainers.Get throttled": 2, "azure BlobContainers.Get success": 1, "azure BlobContainers.Get expected": 1}
	if !maps.Equal(got, want) {
		t.Errorf("observed %v, want %v", got, want)
	}
}

func TestAzureStoreDataPlaneErrors(t *testing.T) {
	refuse := func(status int, code string) func(http.ResponseWriter, *http.Request, string) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.Header().Set("x-ms-error-code", code)
			w.WriteHeader(status)
			fmt.Fprintf(w, "\ufeff<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>It was %s, key %s.\nRequestId:aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\nTime:2026-01-01T00:00:00Z</Message></Error>", code, code, fakeAzureKey)
			return true
		}
	}
	for code, c := range map[string]struct {
		status int
		entry  errorCode
		text   string
		bucket errorCode
	}{
		"AuthenticationFailed":               {403, codeUnauthenticated, "check storageKey", codeRetryableDependencies},
		"AuthorizationFailure":               {403, codeUnauthorized, "network rules", codeUnauthorized},
		"KeyBasedAuthenticationNotPermitted": {403, codeConfigurationProblem, "allowSharedKeyAccess", codeConfigurationProblem},
		"AccountIsDisabled":                  {403, codeConfigurationProblem, "AccountIsDisabled: It was AccountIsDisabled, key ***", codeConfigurationProblem},
	} {
		for _, operation := range []string{"List", "Batch"} {
			f := newFakeAzure(t)
			f.addBlobs(1, "a/", func(int) time.Duration { return time.Hour })
			f.on[operation] = refuse(c.status, code)
			_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
			checkAzureError(t, err, c.entry, "Azure Blobs."+operation, c.text)
			_, err = testPurge(t.Context(), f.open(f.ref()), "a/", nil)
			checkAzureError(t, err, c.bucket, code)
		}
	}
	for name, c := range map[string]struct {
		answer string
		code   errorCode
		text   string
	}{
		"refused as a whole": {"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 403 X\r\nx-ms-error-code: AuthorizationFailure\r\n\r\n--b--\r\n", codeUnauthorized, "AuthorizationFailure"},
		"unknown part":       {"--b\r\nContent-ID: 7\r\n\r\nHTTP/1.1 202 X\r\n\r\n--b--\r\n", codeRetryableDependencies, "not one of Blob Batch"},
		"no parts":           {"--b--\r\n", codeRetryableDependencies, ""},
		"part twice":         {strings.Repeat("--b\r\nContent-ID: 0\r\n\r\nHTTP/1.1 202 X\r\n\r\n", 2) + "--b--\r\n", codeRetryableDependencies, ""},
		"not multipart":      {"hello", codeRetryableDependencies, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			f.addBlobs(2, "a/", func(int) time.Duration { return time.Hour })
			f.on["Batch"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				w.Header().Set("Content-Type", "multipart/mixed; boundary=b")
				w.WriteHeader(http.StatusAccepted)
				fmt.Fprint(w, c.answer)
				return true
			}
			result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
			checkAzureError(t, err, c.code, c.text)
			if result.Deleted != 0 {
				t.Errorf("%+v", result)
			}
			f.expect("List Batch")
		})
	}
}

// What an answer says about when to come back is in the error, whatever its form, and the SDK asks no sooner itself.
func TestAzureRetryAfter(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		status int
		header map[string]string
		want   time.Duration
	}{
		"seconds":                {429, map[string]string{"Retry-After": "120"}, 2 * time.Minute},
		"a date":                 {503, map[string]string{"Retry-After": now.Add(90 * time.Second).Format(http.TimeFormat)}, 90 * time.Second},
		"milliseconds":           {429, map[string]string{"retry-after-ms": "61500"}, 61500 * time.Millisecond},
		"Microsoft milliseconds": {500, map[string]string{"x-ms-retry-after-ms": "1500"}, 1500 * time.Millisecond},
		"the finest counts":      {429, map[string]string{"Retry-After": "2", "retry-after-ms": "1500"}, 1500 * time.Millisecond},
		"one without sense":      {429, map[string]string{"Retry-After": "17", "retry-after-ms": "soon"}, 17 * time.Second},
		"absurd":                 {429, map[string]string{"Retry-After": "9223372036854775807"}, 24 * time.Hour},
		"absurd date":            {429, map[string]string{"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 24 * time.Hour},
		"negative":               {429, map[string]string{"Retry-After": "-5"}, 0},
		"past":                   {429, map[string]string{"Retry-After": now.Add(-time.Hour).Format(http.TimeFormat)}, 0},
		"none":                   {429, nil, 0},
		"a conflict":             {409, map[string]string{"Retry-After": "17"}, 17 * time.Second},
		"of no passing fault":    {403, map[string]string{"Retry-After": "17"}, 0},
	} {
		response := &http.Response{StatusCode: c.status, Header: http.Header{}}
		for header, value := range c.header {
			response.Header.Set(header, value)
		}
		if got := azureAfter(response, now); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	throttled := func(value string) func(http.ResponseWriter, *http.Request, string) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.Header().Set("Retry-After", value)
			fakeAzureError(w, 429, "TooManyRequests")
			return true
		}
	}
	check := func(f *fakeAzure, err error, calls string) {
		t.Helper()
		f.expect(calls)
		if got := retryAfter(err); got != 2*time.Minute || !isThrottled(err) || codeOf(err) != codeRateLimitsExceeded {
			t.Errorf("after %s, code %s: %v", got, codeOf(err), err)
		}
	}
	// Of each kind of request one: read, write, list, poll, token, blobs, a batch.
	f := newFakeAzure(t)
	f.on["Container.GET"] = throttled("120")
	_, err := f.open(f.ref()).Observe(t.Context())
	check(f, err, "Container.GET")
	f = newFakeAzure(t)
	f.on["Policy.PUT"] = throttled("120")
	check(f, f.open(f.ref()).SetPolicy(t.Context(), Policy{Days: 4}), "Container.GET Account.GET Policy.PUT")
	f = newFakeAzure(t)
	f.on["Account.listKeys"] = throttled("120")
	_, err = f.open(f.ref()).Keys(t.Context())
	check(f, err, "Account.listKeys")
	f = newFakeAzure(t)
	f.account, f.container = false, false
	f.on["Poll"] = throttled("120")
	check(f, f.open(f.ref()).Create(t.Context(), true), "Container.GET Account.GET Account.PUT Poll")
	f = newFakeAzure(t)
	f.on["Token"] = throttled("120")
	_, err = f.open(f.ref()).Observe(t.Context())
	check(f, err, "")
	f = newFakeAzure(t)
	f.on["List"] = throttled("120")
	_, err = testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
	check(f, err, "List")
	f = newFakeAzure(t)
	f.addBlobs(3, "a/", func(int) time.Duration { return time.Hour })
	f.on["Batch"] = throttled("120")
	_, err = testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
	check(f, err, "List Batch")
	// A short one is waited for within the pass, exactly.
	f = newFakeAzure(t)
	f.script("Container.GET", throttled("1"))
	start := time.Now()
	if _, err := f.open(f.ref()).Observe(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("asked again after %s", took)
	}
	f.expect("Container.GET Container.GET")
}

// A dead key of a generated secret is no matter of the cluster's credentials, for which Gardener would give up.
func TestAzureRejectedKey(t *testing.T) {
	f := newFakeAzure(t)
	f.on["List"] = answerAzure(403, "AuthenticationFailed")
	for account, generated := range map[string]bool{azureAccountName(fakeAzureBucket): true, "recorded": true, "another": false} {
		ref := bucketRef{Name: fakeAzureBucket}
		if account == "recorded" {
			ref.Account = account
		}
		objects, err := f.clients.openObjects(ref, map[string][]byte{"storageAccount": []byte(account), "storageKey": []byte(fakeAzureKey),
			"domain": []byte(strings.TrimPrefix(f.blob.URL, "http://"))})
		if err != nil {
			t.Fatal(err)
		}
		_, err = testPurge(t.Context(), objects, "a/", nil)
		if errors.Is(err, errKeyRejected) != generated {
			t.Errorf("%s: %v", account, err)
		}
		if generated {
			checkAzureError(t, err, codeRetryableConfiguration, "AuthenticationFailed", "generated secret", account)
		} else {
			checkAzureError(t, err, codeUnauthenticated, "AuthenticationFailed", "check storageKey", account)
		}
	}
	// Nothing else is taken for it.
	f.on["List"] = answerAzure(403, "AuthorizationFailure")
	if _, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); errors.Is(err, errKeyRejected) || codeOf(err) != codeUnauthorized {
		t.Error(err)
	}
}

// An answer that is none of Azure's is no sign that there is no policy, no blob, or nothing else in a group.
func TestAzureAnswersThatAreNone(t *testing.T) {
	for operation, call := range map[string]func(f *fakeAzure, b *azureBucket) error{
		"Container.GET":    func(_ *fakeAzure, b *azureBucket) error { _, err := b.Observe(t.Context()); return err },
		"Account.GET":      func(f *fakeAzure, b *azureBucket) error { f.days = 4; _, err := b.Observe(t.Context()); return err },
		"Account.listKeys": func(_ *fakeAzure, b *azureBucket) error { _, err := b.Keys(t.Context()); return err },
		"Policy.PUT":       func(_ *fakeAzure, b *azureBucket) error { return b.SetPolicy(t.Context(), Policy{Days: 4}) },
		"Group.GET": func(_ *fakeAzure, b *azureBucket) error {
			_, err := b.DeleteAccount(t.Context(), anything, false)
			return err
		},
		"Resources.List": func(_ *fakeAzure, b *azureBucket) error {
			_, err := b.DeleteAccount(t.Context(), anything, false)
			return err
		},
		"Container.List": func(_ *fakeAzure, b *azureBucket) error {
			_, err := b.DeleteAccount(t.Context(), anything, false)
			return err
		},
		"Table.List": func(_ *fakeAzure, b *azureBucket) error {
			_, err := b.DeleteAccount(t.Context(), anything, false)
			return err
		},
		"List": func(f *fakeAzure, b *azureBucket) error {
			if err := b.Delete(t.Context(), anything); err == nil {
				return nil
			}
			_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
			return err
		},
		"Token": func(_ *fakeAzure, b *azureBucket) error { _, err := b.Observe(t.Context()); return err },
	} {
		for _, answer := range []string{"<html>go away</html>", "{}", "[]", "null", "", "\x00\xff", `{"properties":"x","keys":7,"value":"x","tags":3}`,
			`{"properties":{"immutabilityPolicy":{"properties":{"immutabilityPeriodSinceCreationInDays":"x"}},"immutableStorageWithVersioning":[]},"keys":[null,{"value":5}],"value":[null,5],"tags":[]}`} {
			f := newFakeAzure(t)
			f.on[operation] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = w.Write([]byte(answer))
				return true
			}
			err := call(f, f.open(f.ref()))
			calls := f.take()
			if strings.Contains(calls, "DELETE") {
				t.Errorf("%s %.20q: something was deleted: %s", operation, answer, calls)
			}
			harmless := operation == "Policy.PUT" || operation == "Account.listKeys" // what is missing is missed later
			if err == nil && harmless {
				continue
			}
			checkAzureError(t, err, codeRetryableConfiguration, "understood")
			if n := len(err.Error()); n > 250 {
				t.Errorf("%s %.20q: %d characters: %v", operation, answer, n, err)
			}
		}
	}
}
