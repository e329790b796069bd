# Every target does its own set-up. Downloads and builds are cached outside the
# repository: in Go's caches and in $BUCKETWARDEN_CACHE (default: the user's cache
# directory).
CACHE = $(or $(BUCKETWARDEN_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bucketwarden)
VERSION = $(or $(shell git describe --tags --always --dirty 2>/dev/null),unknown)
COSIGN = github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Two kinds of builds share their packages in Go's cache: those with -race, and all others, which
# are built as the image is.
RELEASE = CGO_ENABLED=0 go build -trimpath
# With -trimpath, the commands of test/ find the sources only by what the linker tells them.
TOOL = cd test && $(RELEASE) -ldflags="-X 'bucketwarden/test/env.directory=$(CURDIR)/test'"
# The same flags in the environment, where staticcheck finds them too.
LINT = CGO_ENABLED=0 GOFLAGS="$$(go env GOFLAGS) -trimpath"

.PHONY: build image manifests dashboard-picture report-picture cosign demo local setup test test-unit test-e2e soak fuzz bench lint

build: ## the daemon, as ./bucketwarden
	$(RELEASE) -ldflags='-s -w -X main.release=$(VERSION)' -o bucketwarden .

image: PLATFORM = linux/$(shell go env GOARCH)
image: IMAGE = bucketwarden
image: TAG = $(VERSION)
image: OUTPUT = bucketwarden-image.tar
image: ## the container image IMAGE:TAG for PLATFORM (linux/amd64 or linux/arm64), as the OCI archive OUTPUT
	@mkdir -p $(CACHE)
	@TMPDIR=$(CACHE) deploy/image.sh '$(PLATFORM)' '$(VERSION)' '$(IMAGE):$(TAG)' '$(OUTPUT)'

demo: ## watch it work on a real API server and a real S3 server; ONCE=1 ends after the story
	@mkdir -p $(CACHE)
	$(TOOL) -o $(CACHE)/demo ./cmd/demo
	@$(CACHE)/demo $(if $(ONCE),--once)

local: ## a seed of your own until Ctrl-C: a real API server and a real S3 server, for docs/quickstart.md
	@mkdir -p $(CACHE)
	$(TOOL) -o $(CACHE)/local-environment ./cmd/local
	@$(CACHE)/local-environment

setup: ## builds or fetches what the end-to-end tests run
	@mkdir -p $(CACHE)
	$(TOOL) -o $(CACHE)/setup ./cmd/setup
	@$(CACHE)/setup

test: test-unit test-e2e ## unit tests, end-to-end tests

# make lint vets.
test-unit: ## unit tests, with mutations of the fuzz seeds
	KUBE_CACHE_MUTATION_DETECTOR=true go test -race -vet=off -timeout 30m ./...

# What has no tests is left out: go test would compile it, kube-apiserver included.
# The daemon is no input that go test knows of: -count=1 keeps it from using old results.
test-e2e: setup ## end-to-end tests
	cd test && go test -count=1 -race -vet=off -timeout 80m -v \
		$$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...)

dashboard-picture: ## docs/dashboard.png: the dashboard with data of a real Prometheus, as Chromium draws it
	cd test && BUCKETWARDEN_DASHBOARD_PICTURE='$(CURDIR)/docs/dashboard.png' go test -count=1 -race -vet=off -v -run '^TestMonitoringDashboard$$' ./e2e

report-picture: ## docs/report.png: a report of evidence, as Chromium draws it
	cd test && BUCKETWARDEN_REPORT_PICTURE='$(CURDIR)/docs/report.png' go test -count=1 -race -vet=off -v -run '^TestEvidenceReport$$' ./e2e

# 2 GB of sources, and many minutes: only the tests that find it there run it.
cosign: ## cosign, for the tests of evidence
	GOBIN='$(CACHE)' go install $(COSIGN)

# What it finds is written to testdata/fuzz and fails test-unit until it is mended.
fuzz: FUZZTIME = 1m
fuzz: ## each fuzz target, guided by coverage, for FUZZTIME
	@for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p' *_test.go); do echo "$$target"; \
		go test -run='^$$' -vet=off -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=10x . || exit 1; done

manifests: ## deploy/manifests.yaml, from the chart
	@mkdir -p $(CACHE)
	$(TOOL) -o $(CACHE)/manifests ./cmd/manifests
	@$(CACHE)/manifests

soak: STEPS = 100000
soak: SEEDS = 250
soak: ## the simulation for longer: STEPS over SEEDS seeds, from SEED on; prints what it did
	SIM_STEPS=$(if $(SEED),$$(( $(STEPS) / $(SEEDS) )),$(STEPS)) SIM_SEEDS=$(SEEDS) $(if $(SEED),SIM_SEED=$(SEED)) \
		go test -vet=off -count=1 -timeout 0 -v -run '^TestSimulation$$' .

bench: ## the numbers of docs/benchmark.md
	@mkdir -p $(CACHE)
	$(TOOL) -o $(CACHE)/bench ./cmd/bench
	@$(CACHE)/bench

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	$(LINT) go vet ./...
	$(LINT) go run $(STATICCHECK) ./...
	cd test && $(LINT) go vet ./...
	cd test && $(LINT) go run $(STATICCHECK) ./...
