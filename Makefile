# Every target does its own set-up. Downloads and builds are cached outside the
# repository: in Go's caches and in $BUCKETWARDEN_CACHE (default: the user's cache
# directory).
CACHE = $(or $(BUCKETWARDEN_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bucketwarden)
VERSION = $(or $(shell git describe --tags --always --dirty 2>/dev/null),unknown)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build image manifests demo local test test-unit test-fuzz test-e2e bench lint

build: ## the daemon, as ./bucketwarden
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w -X main.release=$(VERSION)' -o bucketwarden .

image: PLATFORM = linux/$(shell go env GOARCH)
image: IMAGE = bucketwarden
image: TAG = $(VERSION)
image: OUTPUT = bucketwarden-image.tar
image: ## the container image IMAGE:TAG for PLATFORM (linux/amd64 or linux/arm64), as the OCI archive OUTPUT
	@mkdir -p $(CACHE)
	@TMPDIR=$(CACHE) deploy/image.sh '$(PLATFORM)' '$(VERSION)' '$(IMAGE):$(TAG)' '$(OUTPUT)'

demo: ## watch it work on a real API server and a real S3 server; ONCE=1 ends after the story
	@mkdir -p $(CACHE)
	cd test && go build -o $(CACHE)/demo ./cmd/demo
	@$(CACHE)/demo $(if $(ONCE),--once)

local: ## a seed of your own until Ctrl-C: a real API server and a real S3 server, for docs/quickstart.md
	@mkdir -p $(CACHE)
	cd test && go build -o $(CACHE)/local-environment ./cmd/local
	@$(CACHE)/local-environment

test: test-unit test-fuzz test-e2e ## unit tests, fuzzing, end-to-end tests; the first time it builds for about 10 minutes before

test-unit:
	KUBE_CACHE_MUTATION_DETECTOR=true go test -race ./...

# What it finds is written to testdata/fuzz and fails test-unit until it is mended.
test-fuzz:
	@for target in $$(go test -list '^Fuzz' . | grep '^Fuzz'); do \
		echo "$$target"; go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=10s -fuzzminimizetime=10x . || exit 1; done

# The daemon is no input that go test knows of: -count=1 keeps it from using old results.
test-e2e:
	cd test && go run ./cmd/setup
	cd test && go test -count=1 -race -timeout 80m -v ./...

manifests: ## deploy/manifests.yaml, from the chart in deploy/chart
	cd test && go run ./cmd/manifests

bench: ## the numbers of docs/benchmark.md
	cd test && go run ./cmd/bench

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...
	cd test && go vet ./...
	cd test && go run $(STATICCHECK) ./...
