# Two commands do everything, and install what they need: `make demo` and `make test`.

CMAKE_BUILD := build/cmake
CARGO_OUT := $(CURDIR)/target/release
PACKAGES := build-essential cmake pkg-config valgrind
TOOLS := cc c++ cmake pkg-config valgrind

.PHONY: help demo test test-rust test-c build tools clean

help:
	@echo "make demo       build, then a C program asks the bundled model about the bundled picture"
	@echo "make test       all tests: test-rust and test-c"
	@echo "make test-rust  engine, golden arrays, header"
	@echo "make test-c     ctest: C and C++, shared and static, Valgrind, the installed package"
	@echo "make build      libsmolvlm.so, libsmolvlm.a, C examples and C tests"

# Root may install what is missing; everybody else is told.
tools:
	@missing=; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq $(PACKAGES); \
	  else echo "missing:$$missing (Debian: $(PACKAGES))"; exit 1; fi; fi

build: tools
	cargo build --release --locked --lib
	cmake -S . -B $(CMAKE_BUILD) -DCMAKE_BUILD_TYPE=Release -DSMOLVLM_CARGO_DIR=$(CARGO_OUT)
	cmake --build $(CMAKE_BUILD)

demo: build
	$(CMAKE_BUILD)/examples_c/describe_shared models/demo models/demo/test_image.jpg \
	  "What objects are in this image?" "Which way does the arrow point?" "How many objects are there?"

test: test-rust test-c

test-rust:
	cargo test --release --locked --no-fail-fast

# The path of the crate's unit tests, as cargo reports it: ctest runs those of src/ffi under Valgrind.
test-c: build
	unit_tests=$$(cargo test --release --locked --lib --no-run --message-format=json \
	  | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1) && \
	cmake -S . -B $(CMAKE_BUILD) -DSMOLVLM_UNIT_TESTS="$$unit_tests"
	cd $(CMAKE_BUILD) && ctest --output-on-failure -j2

clean:
	rm -rf build target
