package main

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestAzureStoreCredentials(t *testing.T) {
	f := newFakeAzure(t)
	with := func(change ...string) map[string][]byte {
		c := fakeAzureCredentials()
		for i := 0; i < len(change); i += 2 {
			c[change[i]] = []byte(change[i+1])
		}
		return c
	}
	workload := `{"apiVersion":"azure.provider.extensions.gardener.cloud/v1alpha1","kind":"WorkloadIdentityConfig","subscriptionID":"s","tenantID":"t","clientID":"c"}`
	entry := func(change ...string) map[string][]byte {
		c := map[string][]byte{"storageAccount": []byte("account"), "storageKey": []byte(fakeAzureKey)}
		for i := 0; i < len(change); i += 2 {
			c[change[i]] = []byte(change[i+1])
		}
		return c
	}
	store := func(c map[string][]byte) error { _, err := f.clients.openStore(f.ref(), c); return err }
	objects := func(c map[string][]byte) error { _, err := f.clients.openObjects(f.ref(), c); return err }
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"good":                  {store(with()), ""},
		"workload identity":     {store(map[string][]byte{"token": []byte("t"), "config": []byte(workload)}), ""},
		"workload identity IDs": {store(with("clientSecret", "", "token", "t")), ""},
		"both":                  {store(with("token", "t")), "both clientSecret and token"},
		"no secret":             {store(with("clientSecret", " \n")), "lacks clientSecret"},
		"nothing":               {store(nil), "lacks subscriptionID, tenantID, clientID, clientSecret"},
		"of an entry":           {store(entry()), "lacks subscriptionID, tenantID, clientID, clientSecret"},
		"no token":              {store(map[string][]byte{"config": []byte(workload)}), "lacks token"},
		"bad config":            {store(map[string][]byte{"token": []byte("t"), "config": []byte("\tx")}), "WorkloadIdentityConfig"},
		"config without IDs":    {store(map[string][]byte{"token": []byte("t"), "config": []byte("{}")}), "subscriptionID neither"},
		"path in ID":            {store(with("subscriptionID", "../x")), "subscriptionID"},
		"tenant":                {store(with("tenantID", "a b")), "tenantID"},
		"entry":                 {objects(entry()), ""},
		"entry of a bucket":     {objects(with()), "lacks storageAccount, storageKey"},
		"entry without key":     {objects(entry("storageKey", "")), "lacks storageKey"},
		"entry: key":            {objects(entry("storageKey", "!!!")), "storageKey"},
		"entry: account":        {objects(entry("storageAccount", "a/b")), "storageAccount"},
		"entry: domain":         {objects(entry("domain", "evil.example/x?")), "domain"},
	} {
		if c.want == "" {
			if c.err != nil {
				t.Errorf("%s: %v", name, c.err)
			}
			continue
		}
		var config *configError
		if !errors.As(c.err, &config) {
			t.Errorf("%s: %v is no configError", name, c.err)
			continue
		}
		checkAzureError(t, c.err, codeConfigurationProblem, c.want)
	}
	f.expect("")
}

func TestAzureStoreClientsAreReused(t *testing.T) {
	f := newFakeAzure(t)
	for range 3 {
		b := f.open(f.ref())
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"Discovery", "Token", "Container.GET", "Account.listKeys", "Container.GET", "Account.listKeys", "Container.GET", "Account.listKeys"}; !slices.Equal(f.calls, want) {
		t.Errorf("requests: %v", f.calls)
	}
	if !strings.Contains(f.bodies["Token"], "client_secret="+fakeAzureSecret) {
		t.Errorf("token request %s", f.bodies["Token"])
	}
	for i := range 2 * azureMaxClients {
		c := fakeAzureCredentials()
		c["clientID"] = []byte(strconv.Itoa(i))
		if _, err := f.clients.openStore(f.ref(), c); err != nil {
			t.Fatal(err)
		}
		f.open(f.ref())
	}
	if len(f.clients.clients) != azureMaxClients {
		t.Errorf("%d clients", len(f.clients.clients))
	}
	f.take()
	if _, err := f.open(f.ref()).Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(f.calls) != 1 {
		t.Errorf("the client in use was dropped: %v", f.calls)
	}
	// Workload identity: the token is the assertion.
	c := fakeAzureCredentials()
	delete(c, "clientSecret")
	c["token"] = []byte("an-assertion")
	store, err := f.clients.openStore(f.ref(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.bodies["Token"], "client_assertion=an-assertion") {
		t.Errorf("token request %s", f.bodies["Token"])
	}
}
