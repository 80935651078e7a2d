# Two commands do everything, and install what they need: `make demo` and `make test`.

CMAKE_BUILD := build/cmake
CARGO_OUT := $(CURDIR)/target/release
PACKAGES := build-essential cmake curl pkg-config python3 python3-pip python3-venv shellcheck valgrind
TOOLS := cc c++ cmake curl pip3 pkg-config python3 shellcheck valgrind

# ONNX Runtime's versions: the one that is used here, the oldest that the library accepts, and one that it must refuse.
ORT_PINNED := $(shell sed -n 's/^onnxruntime==//p' tools/requirements.txt)
ORT_OLDEST := 1.20.0
ORT_TOO_OLD := 1.19.2
ORT := $(CURDIR)/build/onnxruntime
ORT_LIBRARY := $(ORT)/$(ORT_PINNED)/libonnxruntime.so

# The web page is tested in this browser, under any of its names.
CHROMIUM := chromium chromium-browser google-chrome

.PHONY: help demo test test-rust test-asan test-features test-c test-download test-web build python-package test-python test-ray tools web-tools onnxruntime bench bench-curves bench-onnx bench-callers bench-kernels quality clean

help:
	@echo "make demo       build, then a C program asks the bundled model about the bundled picture"
	@echo "make test       all tests: every test-... below"
	@echo "make test-rust  both engines, golden arrays, header"
	@echo "make test-asan  the kernels with AddressSanitizer, which unlike Valgrind knows AVX-512"
	@echo "make test-features  builds with one backend"
	@echo "make test-c     ctest: C and C++, shared and static, Valgrind, the installed package"
	@echo "make test-download  download_models.sh against a hub on this machine"
	@echo "make test-web   the web server with four clients of its protocol, and its page and a webcam page in Chromium"
	@echo "make test-python  pytest: the Python package out of its wheel, smolvlm_demo.py, benchmark.py"
	@echo "make test-ray   pytest: a folder of images on a local Ray cluster"
	@echo "make test-tools what export_onnx.py makes of weights; needs torch, and is no part of make test"
	@echo "make bench      our engines and their peers, as ratios"
	@echo "make bench-curves  what tiles, prompt, context and threads cost"
	@echo "make bench-onnx what our engine adds to ONNX Runtime, as a ratio"
	@echo "make bench-callers  questions a second of several threads that ask one engine"
	@echo "make bench-kernels  each CPU kernel beside the measured roof of this machine"
	@echo "make quality    what each precision keeps of f32 on real weights, ours and the peers'"
	@echo "make build      libsmolvlm.so, libsmolvlm.a, C examples and C tests"

# Root may install what is missing; everybody else is told.
tools:
	@missing=; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	python3 -c "import ensurepip" 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq $(PACKAGES); \
	  else echo "missing:$$missing (Debian: $(PACKAGES))"; exit 1; fi; fi

# libonnxruntime.so from PyPI's wheels; nothing links it.
onnxruntime: tools
	tools/fetch_onnxruntime.sh $(ORT_PINNED) $(ORT)/$(ORT_PINNED)
	ln -sf $(ORT_PINNED)/libonnxruntime.so $(ORT)/libonnxruntime.so

build: tools onnxruntime
	cargo build --release --locked --lib --example smolvlm_demo
	cmake -S . -B $(CMAKE_BUILD) -DCMAKE_BUILD_TYPE=Release -DSMOLVLM_CARGO_DIR=$(CARGO_OUT)
	cmake --build $(CMAKE_BUILD)

ASK := $(CMAKE_BUILD)/examples_c/describe_shared models/demo models/demo/test_image.jpg
QUESTIONS := "What objects are in this image?" "Which way does the arrow point?" "How many objects are there?"

demo: build
	@echo; echo "Candle:"
	$(ASK) $(QUESTIONS)
	@echo; echo "ONNX Runtime:"
	ORT_DYLIB_PATH=$(ORT_LIBRARY) $(ASK) --backend onnx $(QUESTIONS)

test: test-rust test-asan test-features test-c test-download test-web test-python test-ray

test-rust: onnxruntime
	tools/fetch_onnxruntime.sh $(ORT_OLDEST) $(ORT)/$(ORT_OLDEST)
	ORT_DYLIB_PATH=$(ORT_LIBRARY) cargo test --release --locked --no-fail-fast
	cargo test --release --locked --example web_api
	ORT_DYLIB_PATH=$(ORT)/$(ORT_OLDEST)/libonnxruntime.so cargo test --release --locked --test onnx

# Stable compilers have the sanitizer, but do not offer it. A folder of its own, since all of it is built for that.
test-asan:
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
	  cargo test --release --locked -p smolvlm-kernels --target "$$(rustc -vV | sed -n 's/^host: //p')" --target-dir build/asan

test-features:
	cargo check --release --locked --lib --no-default-features --features candle
	cargo check --release --locked --lib --no-default-features --features onnx

# The path of the crate's unit tests, as cargo reports it: ctest runs those of src/ffi under Valgrind.
test-c: build
	for version in $(ORT_OLDEST) $(ORT_TOO_OLD); do tools/fetch_onnxruntime.sh $$version $(ORT)/$$version || exit 1; done
	unit_tests=$$(cargo test --release --locked --lib --no-run --message-format=json \
	  | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1) && \
	cmake -S . -B $(CMAKE_BUILD) -DSMOLVLM_UNIT_TESTS="$$unit_tests" \
	  -DSMOLVLM_ONNXRUNTIME_DIRS="$(ORT)/$(ORT_PINNED);$(ORT)/$(ORT_OLDEST);$(ORT)/$(ORT_TOO_OLD)"
	cmake --build $(CMAKE_BUILD)
	cd $(CMAKE_BUILD) && ctest --output-on-failure -j2

test-download: tools
	cargo build --release --locked --example smolvlm_demo
	shellcheck download_models.sh
	python3 tests/download/test_download.py

WEB_VENV := build/venv-web
$(WEB_VENV)/done: tests/web/requirements.txt | web-tools
	python3 -m venv $(WEB_VENV)
	$(WEB_VENV)/bin/python -m pip install --quiet -r $<
	touch $@

# OpenAI's client for JavaScript, beside what is built.
WEB_NPM := build/web-npm
$(WEB_NPM)/done: tests/web/package.json tests/web/package-lock.json | web-tools
	mkdir -p $(WEB_NPM)
	cp tests/web/package.json tests/web/package-lock.json $(WEB_NPM)
	npm ci --prefix $(WEB_NPM) --omit=peer --no-audit --no-fund --silent
	touch $@

web-tools: tools
	@missing=; command -v $(CHROMIUM) >/dev/null || missing=chromium; \
	command -v node >/dev/null || missing="$$missing nodejs"; command -v npm >/dev/null || missing="$$missing npm"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq $$missing; \
	  else echo "missing: $$missing (Debian's names)"; exit 1; fi; fi

test-web: $(WEB_VENV)/done $(WEB_NPM)/done
	cargo build --release --locked --example web_api
	cd tests/web && $(CURDIR)/$(WEB_VENV)/bin/python -m unittest

# The package is tested as its users get it: the wheel, installed.
PYTHON := build/venv-python
$(PYTHON)/done: bindings/python/tests/requirements.txt | tools
	python3 -m venv $(PYTHON)
	$(PYTHON)/bin/python -m pip install --quiet -r $<
	touch $@

python-package: $(PYTHON)/done
	cargo build --release --locked --lib
	$(PYTHON)/bin/python -m pip install --quiet --no-deps --no-build-isolation --force-reinstall ./bindings/python

test-python: python-package onnxruntime
	cd bindings/python && ORT_DYLIB_PATH=$(ORT_LIBRARY) $(CURDIR)/$(PYTHON)/bin/pytest --ignore tests/test_ray.py

$(PYTHON)/ray-done: bindings/python/tests/requirements-ray.txt | $(PYTHON)/done
	$(PYTHON)/bin/python -m pip install --quiet -r $<
	touch $@

test-ray: python-package $(PYTHON)/ray-done
	cd bindings/python && $(CURDIR)/$(PYTHON)/bin/pytest tests/test_ray.py

# What the tools need: torch and transformers, gigabytes of it.
VENV := build/venv
$(VENV)/done: tools/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r $<
	touch $@

test-tools: $(VENV)/done
	cd tools && $(CURDIR)/$(VENV)/bin/python -W ignore -m unittest test_onnx_export

# What the peers need on top of that.
$(VENV)/bench-done: benches/requirements.txt $(VENV)/done
	$(VENV)/bin/python -m pip install --quiet -r $<
	touch $@

# BENCH_OPTIONS, as in `make bench BENCH_OPTIONS=--quick`: benches/engines.py --help has them all.
bench: build $(VENV)/bench-done
	ORT_DYLIB_PATH=$(ORT_LIBRARY) $(VENV)/bin/python benches/engines.py $(BENCH_OPTIONS)

bench-curves: build $(VENV)/bench-done
	$(VENV)/bin/python benches/curves.py $(BENCH_OPTIONS)

bench-onnx: build $(VENV)/done
	ORT_DYLIB_PATH=$(ORT_LIBRARY) $(VENV)/bin/python benches/onnx_overhead.py

bench-callers:
	cargo build --release --locked --lib
	python3 benches/callers.py $(BENCH_OPTIONS)

bench-kernels:
	cargo bench --locked --bench kernels --features bench-internals

# QUALITY_OPTIONS, as in `make quality QUALITY_OPTIONS=--quick`: benches/quality/quality.py --help has them all.
quality: onnxruntime $(VENV)/bench-done
	ORT_DYLIB_PATH=$(ORT_LIBRARY) $(VENV)/bin/python benches/quality/quality.py $(QUALITY_OPTIONS)

clean:
	rm -rf build target
