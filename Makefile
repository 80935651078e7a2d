# Two commands do everything: `make demo` and `make test`.

CMAKE_BUILD := build/cmake

.PHONY: help demo test build tools clean

help:
	@echo "make demo   build, then ask the bundled model about the bundled picture, from C"
	@echo "make test   all Rust tests"
	@echo "make build  libsmolvlm.so, libsmolvlm.a and the C examples"

# A fresh Debian machine has cargo and not much else; root may install the rest.
tools:
	@if ! command -v cmake >/dev/null || ! command -v cc >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq build-essential cmake; \
	  else echo "cmake and a C compiler are needed"; exit 1; fi; fi

build: tools
	cargo build --release --locked --lib
	cmake -S . -B $(CMAKE_BUILD) -DCMAKE_BUILD_TYPE=Release
	cmake --build $(CMAKE_BUILD)

demo: tools
	cargo build --release --locked --lib
	mkdir -p build
	cc -std=c99 -Wall -Wextra -Iinclude examples_c/describe.c -o build/describe -Ltarget/release -lsmolvlm -Wl,-rpath,'$$ORIGIN/../target/release' -Wl,--disable-new-dtags
	ln -sf libsmolvlm.so target/release/libsmolvlm.so.0.1
	build/describe models/demo models/demo/test_image.jpg "What objects are in this image?" "Describe this image." "How many objects are there?"

test: tools
	cargo test --release --locked --no-fail-fast

clean:
	rm -rf build target
