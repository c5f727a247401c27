# Mintmark. `make help` lists what there is to make.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

export CGO_ENABLED ?= 0

GO ?= go
BIN := bin
# Passed on to `go test`, for example TESTFLAGS='-run Rotation'.
TESTFLAGS ?=
PACKAGES ?= ./...
# Packages whose tests run under the race detector. The pure ones have no
# goroutines to race.
RACE_PACKAGES ?= ./controllers/... ./webhook/... ./internal/authn/... ./internal/server/... ./internal/oauth/...
BENCH ?= .
FUZZTIME ?= 10s
IMAGE ?= ghcr.io/mintmark-dev/mintmark
TAG ?= dev

##@ Everyday

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*## "; print "make TARGET, with these targets:"} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## Start a whole Mintmark on this machine and show what it does. Ctrl-C stops it.
	@test -x $(BIN)/mintmark-dev || echo "building hack/dev; the first time this takes a minute or two"
	@$(GO) build -o $(BIN)/mintmark-dev ./hack/dev
	@exec $(BIN)/mintmark-dev $(RUNFLAGS)

.PHONY: build
build: ## Build every binary into bin/.
	$(GO) build -o $(BIN)/mintmark-controller ./cmd/controller
	$(GO) build -o $(BIN)/mintmark-server ./cmd/server
	$(GO) build -o $(BIN)/mintmark ./cmd/mintmark
	ln -sf mintmark $(BIN)/kubectl-mintmark

.PHONY: clean
clean: ## Remove bin/, dist/ and what `make run` left. The control plane's binaries stay in the user's cache.
	rm -rf bin dist .dev

##@ Tests

.PHONY: assets
assets: ## Obtain etcd, kube-apiserver and kube-controller-manager (built once if there is nothing to download).
	@$(GO) run ./hack/assets kube-controller-manager $(if $(shell command -v kubectl),,kubectl)

# The tests of the chart build these themselves; here, beforehand, they do not count
# against the time that a test may take.
CHART_TOOLS := $(addprefix bin/,helm helm3 kustomize)

.PHONY: test
test: assets $(CHART_TOOLS) ## Run all tests: unit and integration, the latter against a real API server.
	$(GO) test -json -timeout 30m $(TESTFLAGS) $(PACKAGES) | $(GO) run ./hack/testsummary

.PHONY: test-race
test-race: assets ## Run the tests of the concurrent packages under the race detector (needs a C compiler).
	CGO_ENABLED=1 $(GO) test -race -timeout 30m $(TESTFLAGS) $(RACE_PACKAGES)

.PHONY: e2e
e2e: assets ## Run the end-to-end tests: as a person would, with kubectl, curl and real gateways.
	$(GO) test -json -tags e2e -count=1 -p 1 -timeout 30m $(TESTFLAGS) ./test/e2e/... ./test/gateways/... ./test/operations/... ./test/relyingparties/... | $(GO) run ./hack/testsummary

# -v, for the table at the end.
.PHONY: faults
faults: assets ## Break every API write, every server and the API servers in every way, and check that no request fails (25 minutes).
	$(GO) test -tags faults -count=1 -timeout 60m -v $(TESTFLAGS) ./test/faults

.PHONY: faults-short
faults-short: assets ## Some of each family of faults (two minutes).
	$(GO) test -tags faults -short -count=1 -timeout 10m -v $(TESTFLAGS) ./test/faults

# -v, for the table at the end.
.PHONY: scale
scale: assets ## Make, rotate and revoke 10,000 credentials, and measure (about a quarter of an hour). MINTMARK_SCALE=n is another number.
	$(GO) test -tags scale -run '^TestTenThousand' -count=1 -timeout 30m -v $(TESTFLAGS) ./test/scale

.PHONY: image-test
image-test: ## Build the image and look into it (a module of its own).
	GOWORK=off $(GO) test -C hack/image -timeout 20m ./...

.PHONY: soak
soak: assets ## Put a mixed load on three servers amid rotations and revocations. MINTMARK_SOAK=1h is another length than 10m.
	$(GO) test -tags scale -run '^TestSoak$$' -count=1 -timeout 0 -v $(TESTFLAGS) ./test/scale

.PHONY: bench
bench: ## Run the benchmarks, and a small run of `make scale` for what takes processes. BENCH=regexp chooses among them.
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 30m ./internal/...
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime 1x -timeout 30m ./controllers
	MINTMARK_SCALE=500 $(GO) test -tags scale -run '^TestTenThousand' -count=1 -timeout 30m -v ./test/scale

# -v, for the line at the end.
.PHONY: bench-scale
bench-scale: assets ## Start a server on 100,000 credentials, and measure time and memory. MINTMARK_SCALE=n is another number.
	$(GO) test -tags scale -run '^TestAServerStartsAsFast' -count=1 -timeout 30m -v $(TESTFLAGS) ./internal/server

# -v, for the table at the end.
.PHONY: bench-store
bench-store: ## Time each query of the store on generated events, and print the plans (2 minutes, 4 GB of disk). MINTMARK_EVENTS=n is another number than 5,000,000.
	$(GO) test -tags scale -run '^TestQueriesOfManyEvents' -count=1 -timeout 60m -v $(TESTFLAGS) ./test/store

.PHONY: fuzz
fuzz: ## Fuzz every fuzz test for FUZZTIME (10s).
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' api internal controllers webhook | \
	while IFS=: read -r file func; do \
	  echo "$${func#func } in $$(dirname $$file)"; \
	  $(GO) test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file); \
	done

##@ Source

.PHONY: lint
lint: $(BIN)/golangci-lint ## Run the linters.
	$(BIN)/golangci-lint run --timeout 20m

.PHONY: fmt
fmt: $(BIN)/golangci-lint ## Format the code.
	$(BIN)/golangci-lint fmt

.PHONY: vuln
vuln: $(BIN)/govulncheck ## Look for known vulnerabilities in what is linked (needs the internet).
	$(BIN)/govulncheck ./...

.PHONY: generate
generate: $(BIN)/controller-gen docs ## Regenerate deepcopy, CRDs, references and the chart's copies.
	$(BIN)/controller-gen object:headerFile=hack/boilerplate.go.txt paths=./api/...
	$(BIN)/controller-gen crd paths=./api/... output:crd:dir=config/crd/bases
	mkdir -p charts/mintmark/files/crds
	rm -f charts/mintmark/files/crds/*.yaml
	cp config/crd/bases/*.yaml charts/mintmark/files/crds/
	cp config/webhook/manifests.yaml charts/mintmark/files/webhooks.yaml

.PHONY: docs
docs: $(BIN)/crd-ref-docs $(BIN)/helm-docs ## Regenerate the references of the API and of the settings, and the chart's README.
	mkdir -p docs/reference
	$(BIN)/crd-ref-docs --source-path=api/v1alpha1 --config=hack/crd-ref-docs.yaml --renderer=markdown \
	  --log-level=ERROR --output-path=docs/reference/api.md
	$(BIN)/helm-docs --chart-search-root=charts --log-level=warning
	$(GO) run ./hack/settings
	$(GO) run ./hack/openapi > docs/reference/openapi.json.new
	mv docs/reference/openapi.json.new docs/reference/openapi.json

.PHONY: verify
verify: ## Fail if anything generated is not up to date.
	hack/verify.sh

##@ Release

.PHONY: image
image: $(BIN)/ko ## Build the image and push it as IMAGE:TAG.
	hack/image.sh $(IMAGE) $(TAG)

.PHONY: manifest
manifest: $(BIN)/kustomize ## Write dist/crds.yaml and dist/install.yaml, what `kubectl apply` installs, in this order.
	mkdir -p dist
	$(BIN)/kustomize build config/crd > dist/crds.yaml
	$(BIN)/kustomize build config/default > dist/install.yaml

# Tools, at the versions that the modules in hack/tools pin.

define tool
$$(BIN)/$(1): hack/tools/$(2)/go.mod hack/tools/$(2)/go.sum
	GOWORK=off GOFLAGS= $$(GO) build -C hack/tools/$(2) -o $(CURDIR)/$$@ $(3)
endef
$(eval $(call tool,controller-gen,generate,sigs.k8s.io/controller-tools/cmd/controller-gen))
$(eval $(call tool,crd-ref-docs,generate,github.com/elastic/crd-ref-docs))
$(eval $(call tool,helm-docs,generate,github.com/norwoodj/helm-docs/cmd/helm-docs))
$(eval $(call tool,kustomize,generate,sigs.k8s.io/kustomize/kustomize/v5))
$(eval $(call tool,golangci-lint,lint,github.com/golangci/golangci-lint/v2/cmd/golangci-lint))
$(eval $(call tool,helm,helm,helm.sh/helm/v4/cmd/helm))
$(eval $(call tool,helm3,helm3,helm.sh/helm/v3/cmd/helm))
$(eval $(call tool,ko,ko,github.com/google/ko))
$(eval $(call tool,govulncheck,vuln,golang.org/x/vuln/cmd/govulncheck))
$(eval $(call tool,actionlint,actionlint,github.com/rhysd/actionlint/cmd/actionlint))

.PHONY: tools
tools: $(addprefix $(BIN)/,controller-gen crd-ref-docs helm-docs kustomize golangci-lint helm helm3 ko govulncheck actionlint) ## Build every tool into bin/.
