# make run and make test do everything on a fresh machine; make help lists the rest.

export CGO_ENABLED = 0
GO      ?= go
LDFLAGS := -s -w
INIT    := cmd/berth/embedded/berth-init

# What the tests run: clients and servers of others, as Debian packages.
PACKAGES := skopeo podman buildah docker.io docker-registry crun runc busybox-static debootstrap \
            nftables iproute2 jq curl ca-certificates gcc libc6-dev xz-utils zstd fuse3 uidmap
CRANE    := github.com/google/go-containerregistry/cmd/crane@v0.22.1

.PHONY: help deps build test check bench soak run clean

help: ## list what make can do
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

deps: ## install what the tests need (Debian, root)
	@deploy/deps.sh "$(CRANE)" $(PACKAGES)

build: $(INIT) ## build bin/berth, with berth-init inside
	$(GO) build -trimpath -tags embed_init -ldflags '$(LDFLAGS)' -o bin/berth ./cmd/berth

.PHONY: $(INIT)
$(INIT):
	@mkdir -p $(@D)
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/berth-init

test: deps build ## vet and test everything, the built binary with real clients included
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	$(GO) vet ./...
	cd conformance && $(GO) vet ./...
	CGO_ENABLED=1 $(GO) test -race -timeout 10m ./...
	cd conformance && BERTH=$(CURDIR)/bin/berth $(GO) test -timeout 10m ./...

check: ## formatting and linters
	test -z "$$(gofumpt -l $$(git ls-files '*.go'))"
	golangci-lint run ./...
	cd conformance && golangci-lint run ./...

bench: build ## load berth and Debian's docker-registry side by side
	cd conformance && $(GO) run ./bench -berth $(CURDIR)/bin/berth -peer /usr/bin/docker-registry $(BENCH)

run: build ## start a registry and a node here, push, pull and run; until Ctrl-C
	@deploy/run.sh

clean: ## remove what was built
	rm -rf bin cmd/berth/embedded
