#!/bin/sh
# Takes libonnxruntime.so out of PyPI's wheel of one version: fetch_onnxruntime.sh VERSION DIR
set -eu
version=$1 dir=$2
[ ! -f "$dir/libonnxruntime.so" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The library is the same in the wheels of every Python version.
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --dest "$work" "onnxruntime==$version"
python3 -m zipfile -e "$work"/onnxruntime-*.whl "$work/wheel"
mkdir -p "$dir"
cp "$work/wheel/onnxruntime/capi/libonnxruntime.so.$version" "$dir/libonnxruntime.so.new"
mv "$dir/libonnxruntime.so.new" "$dir/libonnxruntime.so"
