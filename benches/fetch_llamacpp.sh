#!/bin/sh
# Builds llama.cpp for this processor, out of the source that llama-cpp-python publishes on PyPI: fetch_llamacpp.sh VERSION DIR
# DIR then holds `source`, with the converter to GGUF, and in `cmake/bin` the libraries.
set -eu
version=$1 dir=$2
[ ! -f "$dir/done" ] || exit 0
mkdir -p "$dir"
if [ ! -d "$dir/source" ]; then
    python3 -m pip download --quiet --no-deps --no-binary=:all: --dest "$dir" "llama-cpp-python==$version"
    name=llama_cpp_python-$version
    tar -xzf "$dir/$name.tar.gz" -C "$dir" --strip-components=2 "$name/vendor/llama.cpp"
    mv "$dir/llama.cpp" "$dir/source"
    rm "$dir/$name.tar.gz"
fi
# GCC 12 moves the stores to the tile configuration past the instruction that loads it.
sed -i 's/^\( *\)_tile_loadconfig(&tc);/\1asm volatile("" ::: "memory"); _tile_loadconfig(\&tc);/' "$dir/source/ggml/src/ggml-cpu/amx/mmq.cpp"
cmake -S "$dir/source" -B "$dir/cmake" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DLLAMA_BUILD_COMMON=OFF \
    -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_MTMD=ON -DLLAMA_OPENSSL=OFF
cmake --build "$dir/cmake" -j "$(nproc)" --target llama mtmd
touch "$dir/done"
