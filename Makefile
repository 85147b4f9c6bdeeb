# One command each. `make help` lists them.
#
#   make run                      a local cluster until Ctrl-C; ARGS="--detach", ARGS="--destination HOST:PORT",
#                                 ARGS="--help" shows all
#   make kill NAME=relay-node-1   SIGKILL one process      make start NAME=relay-node-1   start it again
#   make stop                     stop all of it; with NAME=relay-node-1 one process, in order
#   make status                   say what runs
#   make test                     the whole suite; TESTS="--test failover" runs a part of it
#   make test-k8s                 the chart and the operator on a real API server, which is built once (needs Go);
#                                 TESTS=NAME runs a part of it, SEALANE_UPDATE=1 writes the expected objects anew
#   make e2e-k8s                  helm install on a real node of its own (kubelet, containerd, kube-proxy), as root, with
#                                 the image sealane:0.1.0 of the Docker engine; IMAGE=NAME:TAG another one,
#                                 BINARIES=target/debug without Docker; not part of the gate
#   make bench                    measure the whole system; CASES="base 64k" runs some, PEER=postfix runs
#                                 Postfix on the same work and prints the ratio, ARGS=--list names the cases,
#                                 ARGS=--profile draws flame graphs
#   make sim SEEDS=200            simulate clusters under faults, every seed twice; SEED=7 replays one with its events
#   make chaos                    faults on real processes under load, as root; MINUTES=10, SEED=n, PLAN=mixed,
#                                 powerloss, damage or space, ROUNDS=20 power losses of each kind; LIE=1: disks
#                                 lie about syncs, and the run has to report lost mail; ARGS="--only NAME"
#                                 for one fault, damage or case (--only ClockJump: never unless asked for)
#   make mutants                  break the product on purpose, one rule at a time, and show which test notices;
#                                 ARGS="--only M1,M14" tries some, ARGS=--quick what unit tests catch
#   make fmt | make lint          formatting | what the gate checks before the tests

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# rustup installs here without touching the PATH of running shells.
export PATH := $(HOME)/.cargo/bin:$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),target)
DEV := $(TARGET)/debug/sealane-dev

# Debian packages and what needs them. libclang-dev: bindgen, for RocksDB's C API.
BUILD_PACKAGES := g++ pkg-config libclang-dev
RUN_PACKAGES := $(BUILD_PACKAGES) swaks libnet-ssleay-perl openssl
# perf, for ARGS=--profile.
BENCH_PACKAGES := linux-perf
TEST_PACKAGES := $(RUN_PACKAGES) postfix strace tcpdump iproute2 iptables

# containerd only where there is none: it comes in more than one package.
NODE_PACKAGES := runc containernetworking-plugins conntrack iptables iproute2 openssl

BENCH := $(TARGET)/release/sealane-bench

CHAOS := $(TARGET)/debug/sealane-chaos

.PHONY: help run kill start stop status built test test-k8s e2e-k8s bench sim chaos mutants build fmt lint packages-run packages-test \
  packages-bench

help:
	@sed -n '/^[^#]/q; /^$$/q; s/^# \{0,1\}//p' Makefile

run: packages-run build
	@exec $(DEV) run $(strip $(ARGS))

kill: built
	@exec $(DEV) kill $(or $(NAME),$(error which one? make kill NAME=control-plane-1))

start: built
	@exec $(DEV) start $(or $(NAME),$(error which one? make start NAME=control-plane-1))

stop: built
	@exec $(DEV) stop $(NAME)

status: built
	@exec $(DEV) status

# These act on a cluster that `make run` started: they build nothing.
built:
	@test -x $(DEV) || { echo "Nothing is built in $(TARGET) yet: make run" >&2; exit 1; }

# Binaries and tests are built in one go: apart, Cargo would compile our crates twice, with and
# without what only tests need.
test: packages-test
	cargo build --workspace --bins --tests --locked
	cargo test --workspace --locked $(strip $(TESTS))
	$(if $(strip $(TESTS)),,$(TARGET)/debug/sealane-mutants --quick)

# Tests that say "ignored, needs Kubernetes" in `make test`. What is built once stays in ~/.cache/sealane/kubernetes.
test-k8s: packages-test
	cargo build --workspace --bins --tests --locked
	assets=$$(tests/kubernetes/build) && KUBEBUILDER_ASSETS="$$assets" \
	  cargo test --workspace --locked --test 'kubernetes_*' -- --include-ignored --nocapture $(strip $(TESTS))

# Nothing of ours is built here but what the node needs; its programs stay in ~/.cache/sealane/kubernetes as well.
e2e-k8s:
	@tests/install-packages $(NODE_PACKAGES) $(if $(shell command -v containerd),,containerd)
	@IMAGE="$(IMAGE)" BINARIES="$(BINARIES)" tests/kubernetes/e2e

# Measured is what would be installed: the release profile.
bench: packages-bench
	cargo build --release --workspace --exclude sealane-sim --bins --locked
	@$(BENCH) $(CASES) $(if $(PEER),--peer $(PEER)) --report $(TARGET)/bench/report.json $(strip $(ARGS))

# Deterministic: what is printed for a seed is the same on every machine.
sim: packages-run build
	@$(TARGET)/debug/sealane-sim --regressions tests/sim/regressions.seeds \
	  $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED)) $(strip $(ARGS))

# A judge that misses the losses of lying disks is none: with LIE=1 a run that sees none ends with an error.
chaos: packages-test
	cargo build --workspace --bins --locked
	@$(CHAOS) --plan $(or $(PLAN),mixed) --minutes $(or $(MINUTES),10) --rounds $(or $(ROUNDS),$(if $(LIE),2,20)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(LIE),--lie) $(strip $(ARGS))

# Built as for the tests, then once more with the feature: what has nothing to break is shared.
mutants: packages-test
	cargo build --workspace --bins --tests --locked
	@$(TARGET)/debug/sealane-mutants $(strip $(ARGS))

build:
	cargo build --workspace --bins --locked

fmt:
	cargo fmt --all

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

packages-run:
	@tests/install-packages $(RUN_PACKAGES)

packages-bench:
	@tests/install-packages $(TEST_PACKAGES) $(BENCH_PACKAGES)

packages-test:
	@tests/install-packages $(TEST_PACKAGES)
