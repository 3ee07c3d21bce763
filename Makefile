# Mamba-Integer. `make` alone lists what there is to make.
#
# Needed: make, Python 3.10 or newer, cargo (with rustfmt and clippy for `lint` and `test`) and a C++20 compiler. Everything else is fetched by
# pip and cargo at the versions that requirements.lock and Cargo.lock state, into .venv and target.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMPS := $(VENV)/stamps
PIP := $(PY) -m pip --disable-pip-version-check --quiet
ifeq ($(origin CXX),default)
CXX := c++
endif
export CXX
export CARGO_BUILD_JOBS ?= $(JOBS)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)

# Commands of .venv (maturin, and cmake where the machine has none) are found first.
WITH_BIN = PATH="$(CURDIR)/$(BIN):$$PATH"

# A workspace of its own (docs/ENCRYPTED.md), built into the same folder.
ENCRYPTED = --locked --manifest-path encrypted/Cargo.toml --target-dir target
NATIVE_SOURCES := Cargo.toml Cargo.lock .cargo/config.toml $(shell find bindings tokenizer engine trainer prover -type f \
	\( -name '*.rs' -o -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name Cargo.toml \) -not -path '*/target/*' 2>/dev/null)
CXX_SOURCES := $(shell find engine tokenizer trainer -type f \( -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name '*.c' -o -name '*.cu' -o -name '*.cuh' \) \
	-not -path '*/target/*' -not -path '*/build/*' 2>/dev/null)

say = @printf '==> %s\n' $(1)

.DEFAULT_GOAL := help
.PHONY: help demo test test-cross vectors bench lint clean build native encrypted lint-python lint-rust lint-cpp test-rust test-cpp test-python \
	test-package
.NOTPARALLEL:

help:
	@echo 'make demo      build all, let the shipped model tell a story, check every logit against the reference, prove and verify it'
	@echo 'make test      everything: lint, Rust tests, C++ tests (also under sanitizers), Python tests'
	@echo 'make test-cross  the engine on other processors, bare metal and WebAssembly: the same digests (needs cross compilers and QEMU)'
	@echo 'make lint      format and static checks of Python, Rust and C++'
	@echo 'make vectors   write spec/vectors/*.json again from the executable spec'
	@echo 'make bench     speed of decode, prefill, tokenizer and prover on this machine'
	@echo 'make build     only the environment in .venv with the package in it ($(BIN)/mamba-integer)'
	@echo 'make native    engine build/engine/mamba_infer, verifier target/release/mamba-integer-verify, tokenizer librustbpe.so (no Python needed)'
	@echo 'make encrypted the library of encrypted inference (docs/ENCRYPTED.md), beside the package; some 3 CPU-minutes the first time'
	@echo 'make clean     remove build output (not .venv)'

demo: $(STAMPS)/package $(STAMPS)/native
	$(call say,'demo')
	@$(PY) -m mamba_integer demo --standalone build/engine/mamba_infer --proof build/story.proof

build: $(STAMPS)/package
native: $(STAMPS)/native
encrypted: $(STAMPS)/encrypted

test: lint test-rust test-cpp test-python test-package
	$(call say,'all tests passed')

vectors: $(STAMPS)/package
	$(PY) scripts/make_vectors.py

bench: $(STAMPS)/package
	@$(PY) -m mamba_integer bench decode
	@$(PY) -m mamba_integer bench prefill
	@$(PY) -m mamba_integer bench tokenizer
	@$(PY) -m mamba_integer bench prove

clean:
	rm -rf build target dist mamba_integer/_native*.so mamba_integer/encrypted/lib* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf $(STAMPS)

# ---- the environment -------------------------------------------------------------------------------------------------------------------------

$(PY):
	@command -v $(PYTHON) >/dev/null || { echo 'error: $(PYTHON) not found; Python 3.10 or newer is needed (make PYTHON=/path/to/python3)' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: $$($(PYTHON) --version 2>&1) is too old: Python 3.10 or newer is needed (make PYTHON=/path/to/python3)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'error: this Python cannot make virtual environments (on Debian and Ubuntu: apt-get install python3-venv)' >&2; exit 1; }
	$(call say,'making the Python environment .venv')
	@$(PYTHON) -m venv $(VENV)

$(STAMPS)/tools: $(PY) requirements.lock
	@command -v cargo >/dev/null || { echo 'error: cargo not found; install Rust 1.89 or newer' >&2; exit 1; }
	@command -v $(CXX) >/dev/null || { echo 'error: no C++ compiler ($(CXX)); install g++ or clang++, or set CXX' >&2; exit 1; }
	$(call say,'installing maturin and NumPy')
	@$(PIP) install -c requirements.lock maturin numpy
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/package: $(STAMPS)/tools $(NATIVE_SOURCES) pyproject.toml
	$(call say,'building engine and tokenizer and prover (mamba_integer._native)')
	@$(WITH_BIN) $(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/tools requirements.lock pyproject.toml
	$(call say,'installing what the tests and checks need (PyTorch and nvcc among it: some 2.6 GB to fetch the first time)')
	@$(PY) scripts/requirements.py train test lint cuda ezkl >$(STAMPS)/requirements.txt
	@$(PIP) install -c requirements.lock -r $(STAMPS)/requirements.txt
	@touch $@

$(STAMPS)/cmake: $(STAMPS)/tools
	@if command -v cmake >/dev/null && cmake --version | awk 'NR == 1 { split($$3, v, "."); exit !(v[1] > 3 || (v[1] == 3 && v[2] >= 20)) }'; then :; else \
		printf '==> %s\n' 'installing cmake'; $(PIP) install -c requirements.lock cmake; fi
	@touch $@

$(STAMPS)/native: $(STAMPS)/cmake $(NATIVE_SOURCES) $(CXX_SOURCES)
	$(call say,'building the standalone engine (build/engine/mamba_infer)')
	@mkdir -p build
	@{ $(WITH_BIN) cmake -S engine -B build/engine -DCMAKE_BUILD_TYPE=Release && $(WITH_BIN) cmake --build build/engine --target mamba_infer; } \
		>build/engine.log 2>&1 || { cat build/engine.log >&2; exit 1; }
	$(call say,'building the standalone verifier (target/release/mamba-integer-verify)')
	@cargo build --quiet --locked --release -p mamba-integer-prover --bin mamba-integer-verify
	$(call say,'building the tokenizer as a library (target/release/libmamba_integer_tokenizer.a and librustbpe.so)')
	@cargo build --quiet --locked --release -p mamba-integer-tokenizer
	@for library in target/release/libmamba_integer_tokenizer.*; do case $$library in \
		*.so) cp "$$library" target/release/librustbpe.so;; *.dylib) cp "$$library" target/release/librustbpe.dylib;; esac; done
	@touch $@

$(STAMPS)/encrypted: $(STAMPS)/package $(shell find encrypted -type f -not -path '*/target/*' 2>/dev/null)
	$(call say,'building the library of encrypted inference')
	@cargo build --quiet --release $(ENCRYPTED)
	@for library in target/release/libmamba_integer_encrypted.*; do case $$library in \
		*.so|*.dylib) install "$$library" mamba_integer/encrypted/;; esac; done
	@touch $@

# ---- checks ----------------------------------------------------------------------------------------------------------------------------------

lint: lint-python lint-rust lint-cpp

lint-python: $(STAMPS)/dev
	$(call say,'ruff and mypy')
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy --no-error-summary

lint-rust:
	$(call say,'rustfmt and clippy')
	@cargo fmt --version >/dev/null 2>&1 || { echo 'error: rustfmt is missing (rustup component add rustfmt)' >&2; exit 1; }
	@cargo clippy --version >/dev/null 2>&1 || { echo 'error: clippy is missing (rustup component add clippy)' >&2; exit 1; }
	@cargo fmt --all --check
	@cargo fmt --manifest-path encrypted/Cargo.toml --check
	@cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@cargo clippy --quiet $(ENCRYPTED) --all-targets -- -D warnings

lint-cpp: $(STAMPS)/dev
	$(call say,'clang-format')
	@$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

test-rust:
	$(call say,'Rust tests')
	@cargo test --quiet --locked --workspace --exclude mamba-integer-prover
	@cargo test --quiet --locked --release -p mamba-integer-prover
	@cargo test --quiet --release $(ENCRYPTED)

# As shipped, with the address and undefined-behaviour sanitizers, and with the thread sanitizer.
test-cpp: $(STAMPS)/cmake
	$(call say,'C++ tests')
	@$(WITH_BIN) scripts/test_engine.sh build/engine -DCMAKE_BUILD_TYPE=Release
	$(call say,'C++ tests under the address and undefined-behaviour sanitizers')
	@$(WITH_BIN) scripts/test_engine.sh build/engine-sanitized -DCMAKE_BUILD_TYPE=Debug -DMI_SANITIZE=ON
	$(call say,'C++ tests under the thread sanitizer')
	@$(WITH_BIN) scripts/test_engine.sh build/engine-thread -DCMAKE_BUILD_TYPE=Debug -DMI_SANITIZE=thread

# The monitor's page is tested in a browser.
$(STAMPS)/browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >&2; } || \
		{ echo 'error: the tests need a browser, Chromium (on Debian: apt-get install chromium)' >&2; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

test-python: $(STAMPS)/package $(STAMPS)/encrypted $(STAMPS)/dev $(STAMPS)/native $(STAMPS)/browser
	$(call say,'Python tests')
	@$(BIN)/python -m pytest

# Needs what `scripts/test_cross.sh --packages` names, on Debian.
test-cross:
	$(call say,'the same bits on other processors')
	@scripts/test_cross.sh build/cross

# What people would install: source distribution, wheel made from it, used from another folder.
PACKAGE := build/package
test-package: $(STAMPS)/package
	$(call say,'the package as installed from its source distribution')
	@rm -rf $(PACKAGE)
	@mkdir -p $(PACKAGE)
	@{ $(BIN)/maturin sdist --out $(PACKAGE) && CARGO_TARGET_DIR="$(CURDIR)/target" $(WITH_BIN) \
		$(PIP) install --no-build-isolation --no-deps --no-index --target $(PACKAGE)/site $(PACKAGE)/*.tar.gz; } \
		>$(PACKAGE)/log 2>&1 || { cat $(PACKAGE)/log >&2; exit 1; }
	@cd $(PACKAGE) && PYTHONPATH=site ../../$(PY) -m mamba_integer info --json | grep -q '"file": "[^"]*/build/package/site/mamba_integer/models/' \
		&& PYTHONPATH=site ../../$(PY) -m mamba_integer generate --prompt 'Once upon a time' --max-tokens 8
