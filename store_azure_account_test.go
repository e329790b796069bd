package main

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestAzureStoreKeys(t *testing.T) {
	f := newFakeAzure(t)
	b := f.open(f.ref())
	keys, err := b.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 2 || keys[0].Name != "key1" || keys[1].Name != "key2" || keys[0].Created.IsZero() || !keys[1].Created.IsZero() {
		t.Errorf("keys %+v", keys)
	}
	if _, err := b.RegenerateKey(t.Context(), "key2"); err != nil {
		t.Fatal(err)
	}
	if got := f.bodies["Account.regenerateKey"]; got != `{"keyName":"key2"}` {
		t.Error(got)
	}
	if b.key != fakeAzureKey {
		t.Error("the new key is used at once")
	}
	got := b.EntryCredentials(keys[0])
	if len(got) != 3 || string(got["storageAccount"]) != azureAccountName(fakeAzureBucket) || string(got["storageKey"]) != fakeAzureKey || string(got["domain"]) != strings.TrimPrefix(f.blob.URL, "http://") {
		t.Errorf("%q", got)
	}
	if _, err := f.clients.openObjects(f.ref(), got); err != nil {
		t.Error(err)
	}
}

func TestAzureStoreDeleteAccount(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(f *fakeAzure)
		want  AccountState
		kept  string
		calls string
		code  errorCode
	}{
		"alone":       {want: AccountState{Started: true}, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
		"empty group": {set: func(f *fakeAzure) { f.account = false }, want: AccountState{Started: true}, calls: "Group.GET Resources.List Group.DELETE"},
		"gone":        {set: func(f *fakeAzure) { f.group = false }, calls: "Group.GET"},
		"deleting":    {set: func(f *fakeAzure) { f.groupState = "Deleting" }, want: AccountState{Deleting: true}, calls: "Group.GET"},
		"logs only":   {set: func(f *fakeAzure) { f.containers = []string{"$logs"} }, want: AccountState{Started: true}, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
		"others":      {set: func(f *fakeAzure) { f.resources = []string{"vault", "disk"} }, kept: "Microsoft.Other/things disk", calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Account.DELETE"},
		"containers": {set: func(f *fakeAzure) { f.containers = []string{"other"}; f.resources = []string{"vault"} }, kept: "container other",
			calls: "Group.GET Resources.List Container.List"},
		"locked":  {set: func(f *fakeAzure) { f.script("Group.DELETE", answerAzure(409, "ScopeLocked")) }, code: codeConfigurationProblem, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
		"denied":  {set: func(f *fakeAzure) { f.script("Group.GET", answerAzure(403, "AuthorizationFailed")) }, code: codeUnauthorized, calls: "Group.GET"},
		"a share": {set: func(f *fakeAzure) { f.shares = []string{"home"} }, kept: "file share home", calls: "Group.GET Resources.List Container.List Share.List"},
		"a queue": {set: func(f *fakeAzure) { f.queues, f.resources = []string{"jobs"}, []string{"vault"} }, kept: "queue jobs",
			calls: "Group.GET Resources.List Container.List Share.List Queue.List"},
		"a table": {set: func(f *fakeAzure) { f.tables = []string{"people"} }, kept: "table people",
			calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List"},
		"shares denied": {set: func(f *fakeAzure) { f.on["Share.List"] = answerAzure(403, "AuthorizationFailed") },
			kept: "Microsoft.Storage/storageAccounts/fileServices/shares/read", calls: "Group.GET Resources.List Container.List Share.List"},
		"queues denied": {set: func(f *fakeAzure) { f.on["Queue.List"] = answerAzure(403, "AuthorizationFailed") },
			kept: "Microsoft.Storage/storageAccounts/queueServices/queues/read", calls: "Group.GET Resources.List Container.List Share.List Queue.List"},
		"tables denied": {set: func(f *fakeAzure) { f.on["Table.List"] = answerAzure(403, "AuthorizationFailed") },
			kept: "Microsoft.Storage/storageAccounts/tableServices/tables/read", calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List"},
		"not supported": {set: func(f *fakeAzure) {
			f.on["Share.List"], f.on["Queue.List"] = answerAzure(400, "FeatureNotSupportedForAccount"), answerAzure(409, "FeatureNotSupportedForAccount")
			f.on["Table.List"] = answerAzure(404, "FeatureNotSupportedForAccount")
		}, want: AccountState{Started: true}, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
		"shares not known": {set: func(f *fakeAzure) { f.on["Share.List"] = answerAzure(409, "StorageAccountOperationInProgress") }, code: codeRetryableDependencies,
			calls: "Group.GET Resources.List Container.List Share.List"},
		"gone meanwhile": {set: func(f *fakeAzure) { f.script("Group.DELETE", answerAzure(404, "ResourceGroupNotFound")) }, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			if c.set != nil {
				c.set(f)
			}
			got, err := f.open(f.ref()).DeleteAccount(t.Context())
			f.expect(c.calls)
			if c.code != "" {
				checkAzureError(t, err, c.code)
				return
			}
			if err != nil || (got.Kept != "") != (c.kept != "") || !strings.Contains(got.Kept, c.kept) || got.Started != c.want.Started || got.Deleting != c.want.Deleting {
				t.Errorf("%+v %v", got, err)
			}
		})
	}
}

func TestAzureStoreDeleteAccountFollowsTheDeletion(t *testing.T) {
	running := func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		w.WriteHeader(http.StatusAccepted)
		return true
	}
	const begin = "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"
	type step struct {
		poll  func(http.ResponseWriter, *http.Request, string) bool
		set   func(f *fakeAzure)
		want  AccountState
		calls string // empty: as many as it takes
		code  errorCode
		text  string
	}
	started := step{want: AccountState{Started: true}, calls: begin}
	gone := func(f *fakeAzure) { f.group = false }
	for name, steps := range map[string][]step{
		"done":          {started, {poll: running, want: AccountState{Deleting: true}, calls: "Poll"}, {set: gone, calls: "Poll Group.GET"}, {calls: "Group.GET"}},
		"not quite yet": {started, {set: func(f *fakeAzure) { f.groupState = "Deleting" }, want: AccountState{Deleting: true}, calls: "Poll Group.GET"}, {want: AccountState{Deleting: true}, calls: "Group.GET"}},
		"rolled back": {started, {poll: running, want: AccountState{Deleting: true}, calls: "Poll"},
			{poll: answerAzure(409, "ResourceGroupDeletionBlocked"), code: codeRetryableDependencies, text: "ResourceGroupDeletionBlocked: Because of", calls: "Poll"}, started},
		"locked": {started, {poll: answerAzure(409, "ScopeLocked"), code: codeConfigurationProblem, text: "remove the lock", calls: "Poll"}, started},
		"token has expired": {started, {poll: answerAzure(401, "ExpiredAuthenticationToken"), code: codeUnauthenticated, text: "ExpiredAuthenticationToken", calls: "Poll"},
			{poll: running, want: AccountState{Deleting: true}, calls: "Poll"}},
		"result has expired": {started, {poll: answerAzure(404, "NotFound"), want: AccountState{Started: true}, calls: "Poll " + begin}},
		"may not look":       {started, {poll: answerAzure(403, "AuthorizationFailed"), want: AccountState{Started: true}, calls: "Poll " + begin}},
		"hangs up": {started, {poll: func(http.ResponseWriter, *http.Request, string) bool { panic(http.ErrAbortHandler) }, code: codeRetryableDependencies, text: "closes the connection"},
			{poll: answerAzure(409, "ResourceGroupDeletionBlocked"), code: codeRetryableDependencies, text: "ResourceGroupDeletionBlocked", calls: "Poll"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			for i, step := range steps {
				if step.set != nil {
					step.set(f)
				}
				delete(f.on, "Poll")
				if step.poll != nil {
					f.on["Poll"] = step.poll
				}
				// Each call opens the bucket anew, as reconciles do.
				got, err := f.open(f.ref()).DeleteAccount(t.Context())
				if calls := f.take(); step.calls != "" && calls != step.calls {
					t.Errorf("step %d: requests: %s\nwant:     %s", i, calls, step.calls)
				}
				if step.code != "" {
					checkAzureError(t, err, step.code, step.text)
				} else if err != nil || got != step.want {
					t.Errorf("step %d: %+v %v, want %+v", i, got, err, step.want)
				}
			}
		})
	}
	t.Run("others have begun none", func(t *testing.T) {
		f := newFakeAzure(t)
		for _, name := range []string{fakeAzureBucket, "other-backup"} {
			ref := f.ref()
			ref.Name, ref.Account = name, azureAccountName(fakeAzureBucket)
			if got, err := f.open(ref).DeleteAccount(t.Context()); err != nil || !got.Started {
				t.Errorf("%+v %v", got, err)
			}
			f.expect(begin)
		}
	})
}

func TestAzureStoreCreate(t *testing.T) {
	t.Run("from nothing", func(t *testing.T) {
		f := newFakeAzure(t)
		f.group, f.account, f.container = false, false, false
		ref := f.ref()
		ref.KeyExpirationDays = 90
		b := f.open(ref)
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.script("Poll", func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.WriteHeader(http.StatusAccepted)
			return true
		})
		if err := b.Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET CheckName Group.GET Group.PUT Account.GET Account.PUT Poll Poll Container.PUT")
		if got := f.bodies["Group.PUT"]; got != `{"location":"westeurope"}` {
			t.Errorf("group %s", got)
		}
		for _, want := range []string{`"kind":"StorageV2"`, `"name":"Standard_ZRS"`, `"accessTier":"Cool"`, `"supportsHttpsTrafficOnly":true`, `"minimumTlsVersion":"TLS1_2"`,
			`"allowBlobPublicAccess":false`, `"keyExpirationPeriodInDays":90`, `"location":"westeurope"`} {
			if !strings.Contains(f.bodies["Account.PUT"], want) {
				t.Errorf("%s is not in %s", want, f.bodies["Account.PUT"])
			}
		}
		if !strings.Contains(f.bodies["Container.PUT"], `"publicAccess":"None"`) {
			t.Errorf("container %s", f.bodies["Container.PUT"])
		}
		// What exists is adopted.
		if err := b.Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET")
	})
	t.Run("adopts a group and an account", func(t *testing.T) {
		f := newFakeAzure(t)
		f.account, f.container = false, false
		if err := f.open(f.ref()).Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET Account.GET Account.PUT Poll Container.PUT")
		f.container = false
		if err := f.open(f.ref()).Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET Container.PUT")
	})
	t.Run("a group that appeared is not written", func(t *testing.T) {
		f := newFakeAzure(t)
		f.group, f.account, f.container = false, false, false
		b := f.open(f.ref())
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.group = true
		if err := b.Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET CheckName Group.GET Account.GET Account.PUT Poll Container.PUT")
	})
	t.Run("a taken name leaves no group behind", func(t *testing.T) {
		f := newFakeAzure(t)
		f.group, f.account, f.container = false, false, false
		f.script("CheckName", func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			fakeAzureJSON(w, http.StatusOK, map[string]any{"nameAvailable": false, "reason": "AlreadyExists"})
			return true
		}, answerAzure(403, "AuthorizationFailed"))
		err := f.open(f.ref()).Create(t.Context(), true)
		checkAzureError(t, err, codeConfigurationProblem, "is taken")
		if !errors.Is(err, errNotOurBucket) {
			t.Error(err)
		}
		f.expect("Container.GET CheckName")
		// Whoever may not ask finds out.
		if err := f.open(f.ref()).Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET CheckName Group.GET Group.PUT Account.GET Account.PUT Poll Container.PUT")
	})
	t.Run("a failed check of the name makes no group", func(t *testing.T) {
		for _, c := range []struct {
			status int
			code   string
			want   errorCode
		}{{429, "TooManyRequests", codeRateLimitsExceeded}, {503, "ServerBusy", codeRetryableDependencies}, {401, "ExpiredAuthenticationToken", codeUnauthenticated}, {409, "MissingSubscriptionRegistration", codeConfigurationProblem}} {
			f := newFakeAzure(t)
			f.group, f.account, f.container = false, false, false
			f.on["CheckName"] = answerAzure(c.status, c.code)
			checkAzureError(t, f.open(f.ref()).Create(t.Context(), true), c.want, "StorageAccounts.CheckName", c.code)
			if f.group {
				t.Errorf("%s: the group was made", c.code)
			}
		}
	})
	t.Run("not known everywhere yet", func(t *testing.T) {
		for operation, code := range map[string]string{"Account.GET": "SubscriptionNotFound", "Account.PUT": "ResourceGroupNotFound", "Container.PUT": "ParentResourceNotFound", "Poll": "ResourceNotFound"} {
			f := newFakeAzure(t)
			f.account, f.container = false, false
			f.script(operation, answerAzure(404, code))
			want := codeRetryableDependencies
			if code == "SubscriptionNotFound" {
				want = codeUnauthenticated
			}
			checkAzureError(t, f.open(f.ref()).Create(t.Context(), true), want, code)
		}
	})
	t.Run("half made", func(t *testing.T) {
		f := newFakeAzure(t)
		f.account, f.container = false, false
		f.script("Poll", answerAzure(409, "SomethingFailed"))
		b := f.open(f.ref())
		checkAzureError(t, b.Create(t.Context(), true), codeRetryableDependencies, "StorageAccounts.Create")
		f.properties["provisioningState"] = "Creating"
		f.script("Container.GET", answerAzure(404, "ResourceNotFound"), answerAzure(404, "ResourceNotFound"))
		checkAzureError(t, b.Create(t.Context(), true), codeRetryableDependencies, "in state Creating")
		f.properties["provisioningState"] = "Failed"
		f.script("Poll", func(http.ResponseWriter, *http.Request, string) bool {
			f.properties["provisioningState"] = "Succeeded"
			return false
		})
		f.take()
		if err := b.Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET Account.GET Account.PUT Poll Container.PUT")
	})
	for code, want := range map[string]struct {
		operation string
		status    int
		texts     []string
		notOurs   bool
	}{
		"StorageAccountAlreadyTaken":           {"Account.PUT", 409, []string{"is taken", azureAccountName(fakeAzureBucket)}, true},
		"StorageAccountInAnotherResourceGroup": {"Account.PUT", 409, []string{"is taken"}, true},
		"StorageAccountAlreadyExists":          {"Account.PUT", 409, []string{"is taken"}, true},
		"LocationNotAvailableForResourceGroup": {"Group.PUT", 400, []string{`region "westeurope" does not exist`}, false},
		"LocationNotAvailableForResourceType":  {"Account.PUT", 400, []string{`region "westeurope" does not exist`}, false},
		"SkuNotAvailable":                      {"Account.PUT", 409, []string{"zone-redundant"}, false},
	} {
		t.Run(code, func(t *testing.T) {
			f := newFakeAzure(t)
			f.group, f.account, f.container = false, false, false
			f.script(want.operation, answerAzure(want.status, code))
			err := f.open(f.ref()).Create(t.Context(), true)
			checkAzureError(t, err, codeConfigurationProblem, want.texts...)
			if errors.Is(err, errNotOurBucket) != want.notOurs {
				t.Errorf("errNotOurBucket: %t", !want.notOurs)
			}
			if strings.Contains(f.take(), "Container.PUT") {
				t.Error("went on")
			}
		})
	}
}

func TestAzureStoreHarden(t *testing.T) {
	harden := func(f *fakeAzure, expiration int32) []string {
		t.Helper()
		ref := f.ref()
		ref.KeyExpirationDays = expiration
		gaps, err := f.open(ref).Harden(t.Context())
		if err != nil {
			t.Error(err)
		}
		return gaps
	}
	t.Run("nothing to do", func(t *testing.T) {
		f := newFakeAzure(t)
		f.location, f.properties["minimumTlsVersion"] = "West Europe", "TLS1_3"
		if gaps := harden(f, 0); len(gaps) > 0 {
			t.Error(gaps)
		}
		f.expect("Container.GET Account.GET")
	})
	t.Run("only what is weaker", func(t *testing.T) {
		f := newFakeAzure(t)
		f.properties["minimumTlsVersion"], f.properties["allowBlobPublicAccess"] = "TLS1_0", true
		for range 2 {
			if gaps := harden(f, 30); len(gaps) > 0 {
				t.Error(gaps)
			}
		}
		f.expect("Container.GET Account.GET Account.PATCH Container.GET Account.GET")
		if got := f.bodies["Account.PATCH"]; got != `{"properties":{"allowBlobPublicAccess":false,"keyPolicy":{"keyExpirationPeriodInDays":30},"minimumTlsVersion":"TLS1_2"}}` {
			t.Error(got)
		}
	})
	t.Run("gaps", func(t *testing.T) {
		f := newFakeAzure(t)
		f.sku, f.kind, f.location, f.public, f.days, f.appends = "Standard_LRS", "BlobStorage", "northeurope", "Blob", 4, true
		f.properties["allowSharedKeyAccess"] = false
		gaps := harden(f, 0)
		for i, want := range []string{"public access", "append writes", "zone-redundant", "kind BlobStorage", "northeurope", "keys"} {
			if i >= len(gaps) || !strings.Contains(gaps[i], want) {
				t.Errorf("%q is not gap %d of %q", want, i, gaps)
			}
		}
		f.expect("Container.GET Account.GET")
	})
	t.Run("appends", func(t *testing.T) {
		for _, c := range []struct {
			locked   bool
			recorded Policy
			gap      bool
		}{
			{false, Policy{Days: 4}, false}, // bucket.go ends that
			{false, Policy{}, true}, {false, Policy{Days: 5}, true}, {true, Policy{Days: 4, Locked: true}, true}, {true, Policy{Days: 4}, true},
		} {
			f := newFakeAzure(t)
			f.days, f.appends, f.locked = 4, true, c.locked
			ref := f.ref()
			ref.Recorded = c.recorded
			gaps, err := f.open(ref).Harden(t.Context())
			if err != nil || (len(gaps) > 0) != c.gap || c.gap && !strings.Contains(gaps[0], "append writes") {
				t.Errorf("%+v: %q %v", c, gaps, err)
			}
			f.expect("Container.GET Account.GET")
		}
	})
	t.Run("version-level", func(t *testing.T) {
		f := newFakeAzure(t)
		f.days, f.locked, f.versionLevel = 4, true, map[string]any{"enabled": true}
		if gaps := harden(f, 0); len(gaps) != 1 || !strings.Contains(gaps[0], "version-level immutability") {
			t.Error(gaps)
		}
	})
	t.Run("denied", func(t *testing.T) {
		f := newFakeAzure(t)
		f.properties["allowBlobPublicAccess"] = true
		f.on["Account.PATCH"] = answerAzure(403, "AuthorizationFailed")
		if gaps := harden(f, 0); len(gaps) != 1 || !strings.Contains(gaps[0], "Microsoft.Storage/storageAccounts/write") {
			t.Error(gaps)
		}
		f.on["Account.GET"] = answerAzure(403, "AuthorizationFailed")
		if gaps := harden(f, 0); len(gaps) != 1 || !strings.Contains(gaps[0], "Microsoft.Storage/storageAccounts/read") {
			t.Error(gaps)
		}
	})
	t.Run("key policy refused", func(t *testing.T) {
		f := newFakeAzure(t)
		f.properties["allowBlobPublicAccess"] = true
		f.script("Account.PATCH", answerAzure(400, "InvalidRequestPropertyValue"))
		if gaps := harden(f, 30); len(gaps) != 1 || !strings.Contains(gaps[0], "InvalidRequestPropertyValue") {
			t.Error(gaps)
		}
		f.expect("Container.GET Account.GET Account.PATCH Account.PATCH")
		if got := f.bodies["Account.PATCH"]; got != `{"properties":{"allowBlobPublicAccess":false}}` {
			t.Error(got)
		}
		f.script("Account.PATCH", answerAzure(409, "InvalidRequestPropertyValue"))
		if gaps := harden(f, 30); len(gaps) != 1 {
			t.Error(gaps)
		}
		f.expect("Container.GET Account.GET Account.PATCH")
		delete(f.properties, "keyCreationTime")
		if gaps := harden(f, 30); len(gaps) != 1 || !strings.Contains(gaps[0], "rotated once") {
			t.Error(gaps)
		}
		f.expect("Container.GET Account.GET")
	})
	t.Run("busy", func(t *testing.T) {
		f := newFakeAzure(t)
		f.on["Account.PATCH"] = answerAzure(409, "StorageAccountOperationInProgress")
		ref := f.ref()
		ref.KeyExpirationDays = 30
		_, err := f.open(ref).Harden(t.Context())
		checkAzureError(t, err, codeRetryableDependencies)
	})
}
