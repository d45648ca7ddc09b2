# What people call. What it does is in scripts/setup and xtask/.

export PATH := $(HOME)/.cargo/bin:$(PATH)
SERVERS ?= 3
XTASK = cargo run --quiet --locked -p xtask --

.PHONY: help setup build images demo test bench lint openapi

help:
	@echo 'make demo [DEMO=exit]   three servers and their guests, then stay up or exit; SERVERS=1: one'
	@echo 'make test               all tests'
	@echo 'make bench [BENCH=NAME] measure'
	@echo 'make build              target/release/basin'
	@echo 'make images             the guest images that tests and demo use'
	@echo 'make lint               format, clippy, architecture'
	@echo 'make openapi            write openapi/basin-v1.json anew'

setup:
	@scripts/setup

build: setup
	cargo build --locked --release -p basin

images: setup
	$(XTASK) images

demo: build
	$(XTASK) demo --servers $(SERVERS) $(if $(filter exit,$(DEMO)),--exit)

test: setup
	$(XTASK) test

bench: setup
	$(XTASK) bench $(BENCH)

lint: setup
	cargo fmt --all --check
	$(XTASK) tidy
	cargo clippy --locked --workspace --all-targets -- -D warnings

openapi: setup
	$(XTASK) openapi
