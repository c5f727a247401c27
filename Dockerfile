# syntax=docker/dockerfile:1

# Mintmark: one image, three programs. The manifests choose by path; the entry point
# is the command line tool.
#
#   docker buildx build --platform linux/amd64,linux/arm64 \
#     --build-arg VERSION=v0.1.0 --tag ghcr.io/mintmark-dev/mintmark:v0.1.0 --push .
#
# Where there is no container runtime, hack/image.sh builds the same with ko.

# Compiled on the machine that builds, for the platform asked for: no emulation.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src

# The modules change less often than the code.
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download

COPY api api
COPY cmd cmd
COPY controllers controllers
COPY internal internal
COPY webhook webhook

ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
# No paths of this machine, no build id, no time: the same commit gives the same bytes.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    export CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOFLAGS="-trimpath -buildvcs=false" && \
    ldflags="-s -w -buildid= -X main.version=$VERSION" && \
    go build -ldflags "$ldflags" -o /out/mintmark-controller ./cmd/controller && \
    go build -ldflags "$ldflags" -o /out/mintmark-server ./cmd/server && \
    go build -ldflags "$ldflags" -o /out/mintmark ./cmd/mintmark

# CA certificates, time zones, and a user; no shell.
FROM gcr.io/distroless/static-debian12:nonroot
ARG VERSION=dev
LABEL org.opencontainers.image.title="Mintmark" \
      org.opencontainers.image.description="Mints, delivers, rotates and verifies API keys and service tokens on Kubernetes" \
      org.opencontainers.image.source="https://github.com/mintmark-dev/mintmark" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /out/ /
# A number, for the kubelet cannot tell that a name is not root's.
USER 65532:65532
ENTRYPOINT ["/mintmark"]
