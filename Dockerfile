# syntax=docker/dockerfile:1
# Both images are arguments, so that a build can pin them by digest: docs/deploying.md says how.
ARG GO_IMAGE=docker.io/library/golang:1.26-bookworm
ARG BASE_IMAGE=gcr.io/distroless/static-debian12:nonroot

FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY function function
COPY internal internal
ARG TARGETOS TARGETARCH VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /reservation-expiry ./function

# Certificates, time zones and a user without rights; no shell, no package manager.
FROM ${BASE_IMAGE}
COPY --from=build /reservation-expiry /reservation-expiry
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/reservation-expiry"]
