# The two commands are `make demo` and `make test`. Each does its own set-up: what is missing is
# installed as root or with sudo that asks nothing; otherwise the one line to type is printed.

SHELL := /bin/bash
# Debian keeps `ip` where the PATH of other users than root does not lead.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(CURDIR)/target/tools
# Pinned, so that a new release of the tool cannot ask for another compiler than rust-toolchain.toml.
DENY_VERSION := 0.20.2
DENY := $(or $(shell command -v cargo-deny),$(TOOLS)/bin/cargo-deny)
FUZZ_SECONDS ?= 600
# Tests in namespaces wait more than they compute.
TEST_THREADS := $(shell expr $$(nproc) + 3)

.PHONY: help demo shell test test-long bench lint fmt deny deb doc fuzz advisories setup setup-long setup-bench programs

help:
	@echo 'make demo        play Figure 1 of the paper: server, SaP, three services, a user'
	@echo 'make test        every test, lints included'
	@echo 'make shell       the machines of the demo with nothing started, and a shell'
	@echo 'make test-long   what takes too long for make test'
	@echo 'make bench       speed against raw, kernel VXLAN and our naive mode (docs/performance.md)'
	@echo 'make lint        formatting and clippy           make fmt    format'
	@echo 'make fuzz        fuzz for FUZZ_SECONDS=600       make deny   licences, bans, sources'
	@echo 'make doc         build the documentation         make advisories   known vulnerabilities'
	@echo 'make deb         a Debian package in target/package'

demo: setup programs
	@exec $(TARGET)/debug/examples/demo

shell: setup programs
	@exec $(TARGET)/debug/examples/demo --shell

# The programs and examples are those that the tests use too: one profile for everything.
programs:
	cargo build --locked --bins --examples

# The test build comes first: clippy and the documentation then find the dependencies' build
# scripts and macros done. The tests run last, so that their result is what one sees.
test: setup
	cargo fmt --check
	cargo test --locked --no-run
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --lib
	cargo test --locked -- --test-threads=$(TEST_THREADS)

# Long runs are tests marked `#[ignore = "long"]`. Of licences and bans `make test` asks what Cargo knows
# (`dependencies::*`); cargo-deny takes a minute to build.
# Long tests run alone and optimised, because most print a figure that has to hold: times, and what was lost at full rate.
# Those of every mix of modes compare bytes only, and take longest.
test-long: setup setup-long deny
	cargo test --locked -- --test-threads=$(TEST_THREADS)
	cargo test --locked --profile long -- --ignored --test-threads=1 --show-output --skip in_every_mix
	cargo test --locked --profile long -- --ignored --show-output in_every_mix
	$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=200

# Everything is built before anything is measured.
bench: setup setup-bench
	cargo build --locked --release --bins --example bench
	cargo bench --locked --bench micro --bench scale --no-run
	cargo bench --locked --bench micro
	cargo bench --locked --bench scale
	@exec $(TARGET)/release/examples/bench

# PROFILE=dev makes a package to try, sooner.
deb: PROFILE ?= release
deb: setup
	cargo build --locked --profile $(PROFILE) --bins
	config/debian/build $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE)) target/package

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

fmt:
	cargo fmt

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --lib

deny: $(DENY)
	$(DENY) --locked check licenses bans sources

$(TOOLS)/bin/cargo-deny:
	env -u CARGO_TARGET_DIR cargo install cargo-deny --version $(DENY_VERSION) --locked --debug --root $(TOOLS)

# The advisory database is fetched from the network, which not every machine may do: say so rather
# than pass or fail on it.
advisories: $(DENY)
	@if $(DENY) fetch db; then $(DENY) --locked check advisories; \
	else echo 'advisories: NOT CHECKED: the advisory database cannot be fetched from here'; fi

fuzz:
	@fuzz/run $(FUZZ_SECONDS)

# What is missing is named by its package; `install` puts it there or says how.
define install
	[ -z "$$missing" ] && exit 0; \
	install="apt-get update && apt-get install -y --no-install-recommends$$missing"; \
	if ! command -v apt-get > /dev/null; then \
	  echo "missing:$$missing (names as in Debian); install them and try again" >&2; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then DEBIAN_FRONTEND=noninteractive sh -c "$$install"; \
	elif sudo -n true 2> /dev/null; then sudo -n env DEBIAN_FRONTEND=noninteractive sh -c "$$install"; \
	else printf 'missing:%s\n  do:  sudo sh -c "%s"\n' "$$missing" "$$install" >&2; exit 1; fi
endef

setup:
	@missing=; \
	command -v ip > /dev/null || missing="$$missing iproute2"; \
	command -v ping > /dev/null || missing="$$missing iputils-ping"; \
	command -v hostname > /dev/null || missing="$$missing hostname"; \
	command -v nsenter > /dev/null || missing="$$missing util-linux"; \
	command -v nft > /dev/null || missing="$$missing nftables"; \
	command -v cc > /dev/null || missing="$$missing gcc libc6-dev"; \
	$(install)

setup-long:
	@missing=; \
	command -v iptables > /dev/null || missing="$$missing iptables"; \
	$(install)

# iperf3's package asks whether it should run as a service: no.
setup-bench:
	@missing=; \
	command -v iperf3 > /dev/null || missing="$$missing iperf3"; \
	command -v taskset > /dev/null || missing="$$missing util-linux"; \
	$(install)
