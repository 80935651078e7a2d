"""_abi.py and the enums say what include/smolvlm.h says: sizes, offsets, codes, functions and their arguments."""

import ctypes
import re
import subprocess

import cffi
import pytest
from conftest import ROOT

import smolvlm
from smolvlm import _abi

STRUCTS = {"options": _abi.Options, "image": _abi.Image, "request": _abi.Request, "metrics": _abi.Metrics}
ENUMS = {
    "status": {status.name: status.value for status in smolvlm.Status},
    "finish_reason": {reason.name: reason.value for reason in smolvlm.FinishReason},
    "backend": _abi.BACKENDS,
    "device": _abi.DEVICES,
    "dtype": _abi.DTYPES,
    "format": _abi.FORMATS,
    "log_level": _abi.LOG_LEVELS,
}


def header():
    return (ROOT / "include" / "smolvlm.h").read_text()


@pytest.fixture(scope="module")
def c():
    text = re.sub(r"^#include.*$", "", header(), flags=re.MULTILINE)
    text = subprocess.run(["cc", "-E", "-P", "-"], input=text, capture_output=True, text=True, check=True).stdout
    ffi = cffi.FFI()
    ffi.cdef(text)
    return ffi


def test_nothing_is_missing():
    assert {f"smolvlm_{name}" for name in STRUCTS} == set(re.findall(r"typedef struct (\w+) \{", header()))
    assert {f"smolvlm_{name}" for name in ENUMS} == set(re.findall(r"typedef enum (\w+) \{", header()))
    assert set(_abi.FUNCTIONS) == set(re.findall(r"^[a-z][\w ]*[ *](smolvlm_\w+)\(", header(), flags=re.MULTILINE))


@pytest.mark.parametrize("name", STRUCTS)
def test_struct(c, name):
    ours, theirs = STRUCTS[name], c.typeof(f"smolvlm_{name}")
    layout = {field: (type.offset, c.sizeof(type.type)) for field, type in theirs.fields}
    assert {field: (getattr(ours, field).offset, getattr(ours, field).size) for field, _ in ours._fields_} == layout
    assert {field: kind(type) for field, type in ours._fields_} == {field: c_kind(c, type.type) for field, type in theirs.fields}
    assert ctypes.sizeof(ours) == c.sizeof(theirs)


@pytest.mark.parametrize("name", ENUMS)
def test_enum(c, name):
    prefix = f"SMOLVLM_{name.upper()}_"
    theirs = {key[len(prefix) :].lower(): value for key, value in c.typeof(f"smolvlm_{name}").relements.items()}
    assert {key.lower(): value for key, value in ENUMS[name].items()} == theirs


@pytest.mark.parametrize("name", _abi.FUNCTIONS)
def test_function(c, name):
    # dlopen's handle has the declared type of each function.
    theirs = c.typeof(getattr(c.dlopen(_abi.library._name), name))
    result, arguments = _abi.FUNCTIONS[name]
    assert kind(result) == c_kind(c, theirs.result)
    assert [kind(argument) for argument in arguments] == [c_kind(c, argument) for argument in theirs.args]


def kind(type):
    """A ctypes type as a machine sees it: what it is, and its size."""
    if type is None:
        return "void"
    if isinstance(getattr(type, "_type_", None), str) and type._type_ in "fd":
        return "float", ctypes.sizeof(type)
    if issubclass(type, ctypes._SimpleCData) and type._type_ not in "zP":
        return ("signed" if type(-1).value == -1 else "unsigned"), ctypes.sizeof(type)
    return "pointer"


def c_kind(ffi, type):
    if type.kind == "void":
        return "void"
    if type.kind == "enum":  # a status: read as the int32_t that it is
        return "signed", ffi.sizeof(type)
    if type.kind != "primitive":
        return "pointer"
    if type.cname in ("float", "double"):
        return "float", ffi.sizeof(type)
    return ("signed" if int(ffi.cast(type, -1)) == -1 else "unsigned"), ffi.sizeof(type)


def test_each_failure_has_its_exception():
    statuses = [kind.status for kind in smolvlm.Error.__subclasses__()]
    assert sorted(statuses) == sorted(set(smolvlm.Status) - {smolvlm.Status.OK})


def test_version():
    cargo = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), flags=re.MULTILINE)
    assert smolvlm.__version__ == cargo.group(1)
    assert smolvlm.build_info().startswith(smolvlm.__version__)
