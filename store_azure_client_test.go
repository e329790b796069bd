package main

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
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
	for i := range 2 * maxClients {
		c := fakeAzureCredentials()
		c["clientID"] = []byte(strconv.Itoa(i))
		if _, err := f.clients.openStore(f.ref(), c); err != nil {
			t.Fatal(err)
		}
		f.open(f.ref())
	}
	if len(f.clients.cache.clients) != maxClients {
		t.Errorf("%d clients", len(f.clients.cache.clients))
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

// What is validated is what the cluster gets: etcd-backup-restore takes the values as they are.
func TestAzureEntrySecretIsHandedOverAsValidated(t *testing.T) {
	f := newFakeAzure(t)
	broken := fakeAzureKey[:10] + "\r\n" + fakeAzureKey[10:]
	for name, test := range map[string]struct {
		source, want map[string]string
	}{
		"clean": {map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey, "domain": "blob.example.com"},
			map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey, "domain": "blob.example.com"}},
		"line breaks and spaces": {map[string]string{"storageAccount": " account\n", "storageKey": fakeAzureKey + "\r\n", "domain": "\tblob.example.com\n"},
			map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey, "domain": "blob.example.com"}},
		"a line break within the key": {map[string]string{"storageAccount": "account", "storageKey": broken},
			map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey}},
		"upper case": {map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey, "domain": "Blob.Example.COM"},
			map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey, "domain": "blob.example.com"}},
		"an empty domain is none": {map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey, "domain": " \n"},
			map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey}},
		"what is not known is left alone": {map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey, "more": " x\n"},
			map[string]string{"storageAccount": "account", "storageKey": fakeAzureKey, "more": " x\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			source := &corev1.Secret{Data: map[string][]byte{}}
			for key, value := range test.source {
				source.Data[key] = []byte(value)
			}
			if _, err := f.clients.openObjects(f.ref(), source.Data); err != nil {
				t.Fatal(err)
			}
			wanted := &corev1.Secret{Data: map[string][]byte{}}
			if err := f.clients.entrySecret(nil, source, nil, wanted); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for key, value := range wanted.Data {
				got[key] = string(value)
			}
			if !maps.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			for key, value := range test.source {
				if string(source.Data[key]) != value {
					t.Errorf("%s of the source was changed", key)
				}
			}
		})
	}
	// So is what a generated secret names, and what we publish has nothing to trim.
	account, key := f.clients.published(&corev1.Secret{Data: map[string][]byte{"storageAccount": []byte("account\n"), "storageKey": []byte(" key ")}})
	if account != "account" || key != "key" {
		t.Errorf("published %q %q", account, key)
	}
	f.script("Account.listKeys", func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		fakeAzureJSON(w, http.StatusOK, map[string]any{"keys": []map[string]any{{"keyName": "key1", "value": fakeAzureKey + "\n"}}})
		return true
	})
	b := f.open(f.ref())
	keys, err := b.Keys(t.Context())
	if err != nil || len(keys) != 1 || string(b.EntryCredentials(keys[0])["storageKey"]) != fakeAzureKey {
		t.Errorf("%v %v", keys, err)
	}
}
