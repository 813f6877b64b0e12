# A digest is the image's content: a registry can only refuse it, not bring another. Google's distroless images are in
# whichever registry BASE_REGISTRY names: docs/deploying.md.
ARG GO_IMAGE=golang:1.26.8-bookworm@sha256:dc9ad6c05acc7a88e5b71bde60a5fe3bd4b9f0db209011711b464107438a8107
ARG BASE_REGISTRY
ARG BASE_IMAGE=${BASE_REGISTRY}/distroless/static-debian12:nonroot@sha256:afa5c872c891853ca7fcf1f12c3edb23f7eeef36189728842dd51042ff57f7ab

FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY function function
COPY internal internal
ARG TARGETOS TARGETARCH VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/go/build \
    GOCACHE=/go/build CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /reservation-expiry ./function

# Certificates, time zones and a user without rights; no shell, no package manager.
FROM ${BASE_IMAGE}
COPY --from=build /reservation-expiry /reservation-expiry
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/reservation-expiry"]
