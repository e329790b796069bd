// Command demo tells what bucketwarden does, on a real API server with S3 and Azure side
// by side: each table says what was done and what was then observed.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"bucketwarden/test/env"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/storage/armstorage/v2"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

const patience = time.Minute

func main() {
	once := flag.Bool("once", false, "end after the story")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *once)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	kube      *env.Kube
	gardenlet env.Gardenlet
	daemon    *env.Daemon
	sides     []*side
	binary    string
	// backups are what an etcd has: a full snapshot and the deltas behind it.
	backups []env.EtcdSnapshot
	// warnings are those of the API server's last answers.
	warnings []string
}

// recordWarnings makes gardenlet, keeping the warnings that kubectl would print.
func (d *demo) recordWarnings() error {
	config := rest.CopyConfig(d.kube.Config)
	config.WarningHandler = d
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	kube := *d.kube
	kube.Dynamic = client
	d.gardenlet = env.Gardenlet{Kube: &kube}
	return nil
}

// HandleWarningHeader implements rest.WarningHandler.
func (d *demo) HandleWarningHeader(_ int, _, text string) { d.warnings = append(d.warnings, text) }

// side is a seed's bucket on one store.
type side struct {
	title, kind, bucket, region string
	// locked is how the store names the policy that is wanted.
	locked      string
	credentials map[string][]byte
	// immutability is spec.providerConfig for a retention period.
	immutability func(period string) map[string]any
	// policy is what the store itself says.
	policy func(context.Context) (string, error)
	put    func(ctx context.Context, key string, content []byte) error
	// delete returns how the store refuses it.
	delete func(ctx context.Context, key string) (refusal string, err error)
	// tamper tries to end the retention, with the credentials of the store's owner; it
	// returns what became of it.
	tamper func(context.Context) ([]row, error)
	// flags and environment are what commands need to find the store.
	flags, environment []string
}

func (s *side) namespace() string { return "shoot--demo--" + s.kind }
func (s *side) entry() string     { return s.namespace() + "--5f0d7b1c-3a52-4d0e-9a3e-0a4f6f1c2b11" }
func (s *side) key(of env.EtcdSnapshot) string {
	return s.entry() + "/etcd-main/v2/" + of.Name
}

func run(ctx context.Context, once bool) error {
	fmt.Println("Building what is missing (a first run takes about 10 minutes, later ones seconds)")
	bin, err := env.EnsureBinaries(ctx, os.Stdout)
	if err != nil {
		return err
	}
	fmt.Println("Starting kube-apiserver, MinIO, Azurite with a management plane, an etcd with backups, and bucketwarden")
	kube, err := env.StartKube(ctx, bin.Testkube)
	if err != nil {
		return err
	}
	defer kube.Stop()
	minio, err := env.StartMinIO(ctx, env.MinIOOptions{Binary: bin.MinIO})
	if err != nil {
		return err
	}
	defer minio.Stop()
	azure, err := env.StartAzure(ctx, env.AzureOptions{Azurite: bin.Azurite})
	if err != nil {
		return err
	}
	defer azure.Stop()
	d := &demo{kube: kube, binary: bin.Daemon}
	if d.backups, err = takeBackups(ctx); err != nil {
		return err
	}
	if err := d.recordWarnings(); err != nil {
		return err
	}
	if err := d.gardenlet.Namespace(ctx, env.GardenNamespace); err != nil {
		return err
	}
	daemon, err := env.StartDaemon(ctx, env.DaemonOptions{Binary: bin.Daemon, Kubeconfig: kube.Kubeconfig, OnWebhook: kube.InstallWebhook,
		Args: []string{"--verify-interval=2s", "--azure-cloud-config=" + azure.CloudConfig, "--webhook-address=127.0.0.1:0", "--namespace=" + env.GardenNamespace},
		Env:  []string{"SSL_CERT_FILE=" + azure.CAFile}})
	if err != nil {
		return err
	}
	defer daemon.Kill()
	d.daemon = daemon
	if err := kube.AwaitWebhook(ctx, patience, "s3"); err != nil {
		return err
	}
	d.sides = []*side{s3Side(d, minio), azureSide(azure)}
	for i, step := range []struct {
		title string
		tell  func(context.Context, *side) ([]row, error)
	}{
		{"A BackupBucket asks for locked immutability", d.create},
		{"A snapshot cannot be deleted", d.writeSnapshot},
		{"Weakening is denied before it is stored", d.weaken},
		{"It is refused too if somebody got around admission", d.weakenUnseen},
		{"A BackupEntry gets its secret", d.createEntry},
		{"Tampering, and a backup that is written meanwhile", d.tamper},
		{"One of its backups is broken, and is left out of a restore", d.checkBackups},
		{"Prometheus sees it all", d.showMetrics},
	} {
		fmt.Printf("\n%d. %s\n", i+1, step.title)
		var columns [][]row
		for _, s := range d.sides {
			rows, err := step.tell(ctx, s)
			if err != nil {
				return fmt.Errorf("step %d, %s, on %s: %w\nlog of the daemon:\n%s", i+1, step.title, s.title, err, daemon.Log())
			}
			columns = append(columns, rows)
		}
		d.print(columns)
	}
	fmt.Println("\nEvery step was observed.")
	if once {
		return daemon.Terminate(ctx)
	}
	fmt.Printf(`
Look around; Ctrl-C ends it all:
  export KUBECONFIG=%s
  kubectl get backupbuckets,backupentries
  kubectl describe backupbucket %s
  kubectl get secret -n %s etcd-backup -o yaml
  %s snapshots %s
  curl -s %s | grep bucketwarden_
  S3: %s, access key %s, secret key %s
  Azure: what was asked of it is at %s/requests
`, kube.Kubeconfig, d.sides[1].bucket, d.sides[1].namespace(), d.binary, d.sides[0].entry(), daemon.MetricsURL, minio.Endpoint, minio.AccessKeyID, minio.SecretAccessKey, azure.ControlURL)
	<-ctx.Done()
	fmt.Println("\nStopping")
	return nil
}

// row is a line of a table; rows of the same name stand side by side.
type row struct{ name, text string }

// print prints one table: a row is as high as its longest text needs.
func (d *demo) print(columns [][]row) {
	const nameWidth, width = 10, 62
	line := func(cells ...string) {
		text := fmt.Sprintf("   %-*s", nameWidth, cells[0])
		for _, cell := range cells[1:] {
			text += fmt.Sprintf(" | %-*s", width, cell)
		}
		fmt.Println(strings.TrimRight(text, " "))
	}
	titles := []string{""}
	for _, s := range d.sides {
		titles = append(titles, s.title+", "+s.bucket)
	}
	line(titles...)
	rule := []string{strings.Repeat("-", nameWidth)}
	for range d.sides {
		rule = append(rule, strings.Repeat("-", width))
	}
	line(rule...)
	for i, r := range columns[0] {
		cells := make([][]string, len(columns))
		height := 0
		for j := range columns {
			cells[j] = wrap(columns[j][i].text, width)
			height = max(height, len(cells[j]))
		}
		for h := range height {
			texts := []string{""}
			if h == 0 {
				texts[0] = r.name
			}
			for j := range cells {
				text := ""
				if h < len(cells[j]) {
					text = cells[j][h]
				}
				texts = append(texts, text)
			}
			line(texts...)
		}
	}
}

// wrap breaks a text into lines of at most width bytes, within words if need be.
func wrap(text string, width int) []string {
	var lines []string
	current := ""
	for _, word := range strings.Fields(text) {
		for current != "" && len(current)+1+len(word) > width || len(word) > width {
			if current != "" {
				lines, current = append(lines, current), ""
				continue
			}
			lines, word = append(lines, word[:width]), word[width:]
		}
		current = strings.TrimSpace(current + " " + word)
	}
	return append(lines, current)
}

func s3Side(d *demo, minio *env.MinIO) *side {
	const bucket = "seed-eu1-backups"
	client := minio.S3(minio.Endpoint)
	s := &side{title: "S3", kind: "s3", bucket: bucket, region: minio.Region, locked: "COMPLIANCE for 4 days", credentials: minio.SecretData(minio.Endpoint)}
	s.immutability = func(period string) map[string]any {
		return env.BucketConfig(s.kind, map[string]any{"retentionType": "bucket", "retentionPeriod": period, "mode": "compliance"})
	}
	s.policy = func(ctx context.Context) (string, error) {
		out, err := client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: aws.String(bucket)})
		if err != nil {
			return "", fmt.Errorf("reading the object lock of bucket %s: %w", bucket, err)
		}
		rule := out.ObjectLockConfiguration.Rule
		if rule == nil || rule.DefaultRetention == nil {
			return "no retention", nil
		}
		return fmt.Sprintf("%s for %d days", rule.DefaultRetention.Mode, aws.ToInt32(rule.DefaultRetention.Days)), nil
	}
	var version *string
	s.put = func(ctx context.Context, key string, content []byte) error {
		put, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: &key, Body: bytes.NewReader(content)})
		if err == nil {
			version = put.VersionId
		}
		return err
	}
	s.delete = func(ctx context.Context, key string) (string, error) {
		_, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: &key, VersionId: version})
		refusal := refusalOf(err)
		if refusal == "" {
			return "", fmt.Errorf("the store did not refuse to delete the snapshot: %w", err)
		}
		if _, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: &key, VersionId: version}); err != nil {
			return "", fmt.Errorf("looking for the snapshot: %w", err)
		}
		return refusal, nil
	}
	s.tamper = func(ctx context.Context) ([]row, error) { return d.tamperS3(ctx, s, client) }
	return s
}

// refusalOf is how S3 refuses to delete what is retained; empty if it did not.
func refusalOf(err error) string {
	// AWS says AccessDenied, MinIO InvalidRequest.
	var refused smithy.APIError
	if !errors.As(err, &refused) || refused.ErrorCode() != "AccessDenied" && refused.ErrorCode() != "InvalidRequest" {
		return ""
	}
	return refused.ErrorCode() + ": " + refused.ErrorMessage()
}

func azureSide(azure *env.Azure) *side {
	const bucket = "seed-az1-backups"
	s := &side{title: "Azure", kind: "azure", bucket: bucket, region: "westeurope", locked: "Locked for 4 days", credentials: azure.SecretData()}
	s.immutability = func(period string) map[string]any {
		config := env.BucketConfig(s.kind, map[string]any{"retentionType": "bucket", "retentionPeriod": period, "locked": true})
		config["cloudConfiguration"] = map[string]any{"name": azure.CloudName}
		return config
	}
	s.policy = func(context.Context) (string, error) {
		container := azure.Container(bucket)
		if container.State == "" {
			return "no policy", nil
		}
		return fmt.Sprintf("%s for %d days", container.State, container.Days), nil
	}
	s.flags, s.environment = []string{"--azure-cloud-config=" + azure.CloudConfig}, []string{"SSL_CERT_FILE=" + azure.CAFile}
	s.put = func(ctx context.Context, key string, content []byte) error {
		return azure.PutBlob(ctx, bucket, key, content)
	}
	s.delete = func(ctx context.Context, key string) (string, error) {
		client, err := azure.Blobs(azure.Container(bucket).Account)
		if err != nil {
			return "", err
		}
		_, err = client.DeleteBlob(ctx, bucket, key, nil)
		var refused *azcore.ResponseError
		if !errors.As(err, &refused) || refused.ErrorCode != "BlobImmutableDueToPolicy" {
			return "", fmt.Errorf("the store did not refuse to delete the snapshot: %w", err)
		}
		blobs, err := azure.ListBlobs(ctx, bucket, key)
		if err != nil || len(blobs) != 1 {
			return "", fmt.Errorf("looking for the snapshot: %d found: %w", len(blobs), err)
		}
		return fmt.Sprintf("%d %s", refused.StatusCode, refused.ErrorCode), nil
	}
	s.tamper = func(ctx context.Context) ([]row, error) {
		credential, options, err := azure.ClientOptions()
		if err != nil {
			return nil, err
		}
		client, err := armstorage.NewBlobContainersClient(azure.SubscriptionID, credential, options)
		if err != nil {
			return nil, fmt.Errorf("making a client: %w", err)
		}
		container := azure.Container(bucket)
		_, err = client.DeleteImmutabilityPolicy(ctx, bucket, container.Account, bucket, container.ETag, nil)
		var refused *azcore.ResponseError
		if !errors.As(err, &refused) {
			return nil, fmt.Errorf("the store did not refuse to delete the policy: %w", err)
		}
		// Beside those of S3.
		return []row{{"did", "asked to delete the policy as the subscription's owner"}, {"did", "-"},
			{"saw", fmt.Sprintf("Azure itself refuses: %d %s", refused.StatusCode, refused.ErrorCode)},
			{"saw", "so no backup is written without a lock, and none has to be extended"}, {"did", "-"}, {"store says", "-"}}, s.expectLocked(ctx)
	}
	return s
}

func (s *side) expectLocked(ctx context.Context) error {
	policy, err := s.policy(ctx)
	if err != nil {
		return err
	}
	if policy != s.locked {
		return fmt.Errorf("the store says %s, not %s", policy, s.locked)
	}
	return nil
}

// eventNote waits for an event about an object.
func (d *demo) eventNote(ctx context.Context, reason, name string) (note string, err error) {
	err = env.Eventually(ctx, patience, "an event tells", func(ctx context.Context) error {
		events, err := d.kube.Client.EventsV1().Events("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("listing events: %w", err)
		}
		for _, e := range events.Items {
			if e.Reason == reason && e.Regarding.Name == name {
				note = e.Note
				return nil
			}
		}
		return fmt.Errorf("no event %s", reason)
	})
	return note, err
}

func (d *demo) create(ctx context.Context, s *side) ([]row, error) {
	if err := d.gardenlet.Namespace(ctx, s.namespace()); err != nil {
		return nil, err
	}
	if err := d.gardenlet.Secret(ctx, "bucket-"+s.bucket, s.credentials); err != nil {
		return nil, err
	}
	config := s.immutability("96h")
	d.warnings = nil
	if err := d.gardenlet.Bucket(ctx, s.bucket, s.kind, s.region, config); err != nil {
		return nil, err
	}
	if len(d.warnings) != 1 {
		return nil, fmt.Errorf("the API server gave %d warnings, not one of the first lock: %q", len(d.warnings), d.warnings)
	}
	o, err := d.kube.WaitFor(ctx, patience, env.BackupBuckets, "", s.bucket, env.Healthy)
	if err != nil {
		return nil, err
	}
	description, _, _ := unstructured.NestedString(o.Object, "status", "lastOperation", "description")
	wish := "retentionPeriod: 96h, locked: true"
	if s.kind == "s3" {
		wish = "retentionPeriod: 96h, mode: compliance"
	}
	return []row{{"did", "created it with " + wish}, {"warning", d.warnings[0]}, {"status", "Succeeded: " + description}, {"store says", s.locked}}, s.expectLocked(ctx)
}

func (d *demo) writeSnapshot(ctx context.Context, s *side) ([]row, error) {
	key := s.key(d.backups[0])
	if err := s.put(ctx, key, d.backups[0].Content); err != nil {
		return nil, fmt.Errorf("writing a snapshot: %w", err)
	}
	refusal, err := s.delete(ctx, key)
	return []row{{"did", "wrote " + key}, {"did", "asked to delete it with the owner's credentials"}, {"store says", refusal}}, err
}

func (d *demo) weaken(ctx context.Context, s *side) ([]row, error) {
	err := d.gardenlet.Reconcile(ctx, env.BackupBuckets, s.bucket, map[string]any{"providerConfig": s.immutability("24h")})
	var denied apierrors.APIStatus
	if !apierrors.IsForbidden(err) || !errors.As(err, &denied) {
		return nil, fmt.Errorf("the weakening was not denied: %w", err)
	}
	return []row{{"did", "changed retentionPeriod to 24h"}, {"API server", denied.Status().Message}}, s.expectLocked(ctx)
}

// weakenUnseen is what an administrator of the cluster can do: take the webhook away.
func (d *demo) weakenUnseen(ctx context.Context, s *side) ([]row, error) {
	configurations := d.kube.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	if err := configurations.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return nil, fmt.Errorf("deleting the ValidatingWebhookConfiguration: %w", err)
	}
	// The API server notices after a moment.
	if err := env.Eventually(ctx, patience, "the weakening gets around admission", func(ctx context.Context) error {
		return d.gardenlet.Reconcile(ctx, env.BackupBuckets, s.bucket, map[string]any{"providerConfig": s.immutability("24h")})
	}); err != nil {
		return nil, err
	}
	o, err := d.kube.WaitFor(ctx, patience, env.BackupBuckets, "", s.bucket, env.InState("Error"))
	if err != nil {
		return nil, err
	}
	description, _, _ := unstructured.NestedString(o.Object, "status", "lastError", "description")
	codes, _, _ := unstructured.NestedStringSlice(o.Object, "status", "lastError", "codes")
	if !slices.Contains(codes, "ERR_CONFIGURATION_PROBLEM") {
		return nil, fmt.Errorf("the codes of the error are %q", codes)
	}
	if err := s.expectLocked(ctx); err != nil {
		return nil, err
	}
	if err := d.gardenlet.Reconcile(ctx, env.BackupBuckets, s.bucket, map[string]any{"providerConfig": s.immutability("96h")}); err != nil {
		return nil, err
	}
	if _, err := d.kube.WaitFor(ctx, patience, env.BackupBuckets, "", s.bucket, env.Healthy); err != nil {
		return nil, err
	}
	if err := d.kube.InstallWebhook(ctx, d.daemon.WebhookAddress); err != nil {
		return nil, err
	}
	return []row{{"did", "deleted the webhook's configuration, changed retentionPeriod to 24h"}, {"status", "Error " + codes[0] + ": " + description},
		{"store says", "still " + s.locked}, {"did", "changed it back to 96h, restored the configuration"}, {"status", "Succeeded"}}, d.kube.AwaitWebhook(ctx, patience, s.kind)
}

func (d *demo) tamper(ctx context.Context, s *side) ([]row, error) {
	rows, err := s.tamper(ctx)
	return append(rows, row{"store says", s.locked}), err
}

func (d *demo) createEntry(ctx context.Context, s *side) ([]row, error) {
	// gardenlet takes the generated secret, where there is one, else the bucket's.
	credentials := s.credentials
	o, err := d.kube.WaitFor(ctx, patience, env.BackupBuckets, "", s.bucket, env.Healthy)
	if err != nil {
		return nil, err
	}
	from := "the credentials of the bucket"
	if name, found, _ := unstructured.NestedString(o.Object, "status", "generatedSecretRef", "name"); found {
		generated, err := d.kube.Client.CoreV1().Secrets(env.GardenNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("reading the generated secret: %w", err)
		}
		credentials, from = generated.Data, "secret "+name
	}
	if err := d.gardenlet.Secret(ctx, "entry-"+s.entry(), credentials); err != nil {
		return nil, err
	}
	if err := d.gardenlet.Entry(ctx, s.entry(), s.bucket, s.kind, s.region); err != nil {
		return nil, err
	}
	if _, err := d.kube.WaitFor(ctx, patience, env.BackupEntries, "", s.entry(), env.Healthy); err != nil {
		return nil, err
	}
	secret, err := d.kube.Client.CoreV1().Secrets(s.namespace()).Get(ctx, "etcd-backup", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the etcd-backup secret: %w", err)
	}
	var keys []string
	for key := range secret.Data {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	if string(secret.Data["bucketName"]) != s.bucket {
		return nil, fmt.Errorf("the etcd-backup secret has the keys %q and the bucket %q", keys, secret.Data["bucketName"])
	}
	return []row{{"did", "created BackupEntry " + s.entry() + " with " + from}, {"status", "Succeeded"},
		{"secret", s.namespace() + "/etcd-backup with " + strings.Join(keys, ", ")}}, nil
}

func (d *demo) showMetrics(ctx context.Context, s *side) ([]row, error) {
	// A lock that the cloud itself enforces does not drift.
	drift, extensions := "1", ""
	if s.kind == "azure" {
		drift, extensions = "0", "5"
	}
	series := []struct{ name, label, want string }{
		{"backupbucket_locked", "", "1"},
		{"backupbucket_retention_seconds", "", "345600"},
		{"backupbucket_desired_retention_seconds", "", "345600"},
		{"backupbucket_policy_drift_total", "", drift},
		{"policy_refusals_total", `reason="shorten"`, "1"},
		{"backupbucket_policy_extensions_remaining", "", extensions},
	}
	var rows []row
	err := env.Eventually(ctx, patience, "the metrics tell the story", func(ctx context.Context) error {
		lines, err := scrape(ctx, d.daemon.MetricsURL)
		if err != nil {
			return err
		}
		rows = nil
		for _, m := range series {
			name, labels := "bucketwarden_"+m.name, fmt.Sprintf("bucket=%q", s.bucket)
			if m.label != "" {
				labels += "," + m.label
			}
			name += "{" + labels + "}"
			value := ""
			for _, line := range lines {
				if rest, found := strings.CutPrefix(line, name+" "); found {
					value = rest
				}
			}
			if value != m.want {
				return fmt.Errorf("%s is %q, not %q", name, value, m.want)
			}
			if value == "" {
				value = "none, this store has no limit"
			}
			rows = append(rows, row{"metric", strings.TrimSpace(m.name+" "+m.label) + ": " + value})
		}
		return nil
	})
	return rows, err
}

func scrape(ctx context.Context, url string) ([]string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("scraping %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("scraping %s: %w", url, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("scraping %s: %w", url, err)
	}
	var lines []string
	for scanner := bufio.NewScanner(bytes.NewReader(body)); scanner.Scan(); {
		lines = append(lines, scanner.Text())
	}
	return lines, nil
}
