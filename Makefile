# Every target does its own set-up. Downloads and builds are cached outside the
# repository: in Go's caches and in $BUCKETWARDEN_CACHE (default: the user's cache
# directory).
CACHE = $(or $(BUCKETWARDEN_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bucketwarden)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build demo test test-unit test-e2e bench lint

build: ## the daemon, as ./bucketwarden
	CGO_ENABLED=0 go build -trimpath -ldflags=-s -o bucketwarden .

demo: ## watch it work on a real API server and a real S3 server; ONCE=1 ends after the story
	@mkdir -p $(CACHE)
	cd test && go build -o $(CACHE)/demo ./cmd/demo
	@$(CACHE)/demo $(if $(ONCE),--once)

test: test-unit test-e2e ## everything; takes about 10 minutes the first time

test-unit:
	KUBE_CACHE_MUTATION_DETECTOR=true go test -race ./...

# The daemon is no input that go test knows of: -count=1 keeps it from using old results.
test-e2e:
	cd test && go run ./cmd/setup
	cd test && go test -count=1 -race -timeout 30m -v ./...

bench: ## the numbers of docs/benchmark.md
	cd test && go run ./cmd/bench

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...
	cd test && go vet ./...
	cd test && go run $(STATICCHECK) ./...
