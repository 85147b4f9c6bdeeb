# All programs in one image: control-plane, relay-node, operator, sealane (admin), sealane-probe (helm test). No shell, no
# package manager, nobody to log in as; it runs as 65532 on a root file system that may be read-only.
#
#   docker build -t sealane:0.1.0 .
#
# Where no registry can be reached, name images that are there. The builder needs Rust 1.95 and is Debian or has g++,
# make, pkg-config and libclang; packages that are missing are installed by apt. Crates: `cargo vendor`, its lines in
# .cargo/config.toml, and CARGO_FLAGS=--offline.
#
#   docker build --build-arg BUILDER=my-rust --build-arg RUNTIME=scratch --build-arg CARGO_FLAGS=--offline -t sealane:0.1.0 .
#
# The list of what is in it (CycloneDX) is in the image: /usr/share/doc/sealane/sbom.cdx.json. As an attestation beside the image:
# docker buildx build --sbom=true --provenance=true.
ARG BUILDER=rust:1.95-bookworm
ARG RUNTIME=scratch

FROM ${BUILDER} AS build
ARG CARGO_FLAGS=
WORKDIR /src
COPY tests/install-packages tests/install-packages
RUN tests/install-packages g++ make pkg-config libclang-dev
COPY . .
# What is compiled stays for the next build, beside the layers; only what is needed is taken out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked ${CARGO_FLAGS} \
      -p control-plane -p relay-node -p operator -p sealane -p sealane-tests \
      --bin control-plane --bin relay-node --bin operator --bin sealane --bin sealane-probe \
    && .ci/image-root target/release /out

FROM ${RUNTIME}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="Sealane" \
      org.opencontainers.image.description="A distributed secure mail relay: control plane, relay node, Kubernetes operator, admin CLI" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /out/ /
ENV PATH=/usr/local/bin
USER 65532:65532
CMD ["/usr/local/bin/sealane", "--help"]
