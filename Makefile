# make run and make test do everything on a fresh machine; make alone lists the
# rest.
GOBIN := $(shell go env GOPATH)/bin
export PATH := $(GOBIN):$(PATH)
# Tests of the binary find it here.
export BERTH := $(CURDIR)/bin/berth

.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

deps: ## install what building and testing needs, as far as it is missing
	.ci/deps

build: ## build bin/berth
	.ci/build

check: test ## all that test does, and the linters
	test -z "$$(gofumpt -l . | tee /dev/stderr)"
	golangci-lint run ./...
	cd conformance && golangci-lint run --config ../.golangci.yml ./...

test: deps build ## gofmt, vet, unit tests with the race detector, stories with real clients
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet ./...
	go test -race -timeout 10m ./...
	cd conformance && go vet ./... && go test -count=1 -timeout 8m ./...

test-vm: deps ## run tests of the runtime on cgroup version 2 and AppArmor, in an emulated machine
	go vet -tags vm ./node/container
	cd conformance && go run ./vm

bench: deps build ## compare berth with other registries and engines on this machine
	cd conformance && go run ./bench -berth $(BERTH) -peer /usr/bin/docker-registry $(BENCH)

FUZZTIME   ?= 60s
EFFORT     ?= 100
MODEL_TIME ?= 10m
CYCLES     ?= 10000

soak: build ## fuzz every parser, FUZZTIME each, let disks fail under EFFORT loads, run the model for MODEL_TIME, and CYCLES containers
	for package in $$(go list ./...); do \
		for fuzz in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$fuzz"; \
			go test -run '^$$' -fuzz "^$$fuzz$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$package || exit 1; \
		done; \
	done
	cd conformance && POWERCUT_EFFORT=$(EFFORT) go test -count=1 -timeout 2h -v ./powercut
	cd conformance && MODEL_TIME=$(MODEL_TIME) go test -count=1 -timeout 24h -run Model -v ./model
	CYCLES=$(CYCLES) go test -count=1 -timeout 24h -run Cycles -v ./node/container

run: build ## start berth here and show what it does
	deploy/run.sh

clean: ## remove what was built
	rm -rf bin cmd/berth/embedded

.PHONY: help deps build check test test-vm bench soak run clean
