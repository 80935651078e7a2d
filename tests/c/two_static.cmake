# Two Rust static libraries in one program. Of one toolchain they link as they are: the linker takes the standard library from
# the first. Of two toolchains their standard libraries define names twice; ours then goes in as one object that keeps its own
# names to itself, as README says. The other library stands here for any.

cmake_minimum_required(VERSION 3.19)

set(folder "${WORK}/two_static")
file(REMOVE_RECURSE "${folder}")
file(MAKE_DIRECTORY "${folder}")
file(WRITE "${folder}/other.rs" [[
#[unsafe(no_mangle)]
pub extern "C" fn other_sum(n: u32) -> u32 {
    // A panic that is caught: it needs the standard library's own unwinder.
    std::panic::catch_unwind(|| { assert!(n < 100, "{n}"); (1..=n).collect::<Vec<_>>().iter().sum() }).unwrap_or(0)
}
]])
file(WRITE "${folder}/main.c" [[
#include <smolvlm.h>
#include <stdint.h>
#include <stdio.h>
uint32_t other_sum(uint32_t n);
int main(int argc, char **argv) {
    smolvlm_engine *engine = NULL;
    int made = argc > 1 && smolvlm_create(argv[1], NULL, &engine) == SMOLVLM_STATUS_OK;
    smolvlm_free(engine);
    printf("%d %u %u\n", made, other_sum(4), other_sum(100));
    return !(made && other_sum(4) == 10 && other_sum(100) == 0);
}
]])
function(run)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${folder}" COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run("${RUSTC}" --edition 2024 -C opt-level=1 --crate-type staticlib -o libother.a other.rs)
run("${CC}" -c "-I${INCLUDE}" main.c -o main.o)
separate_arguments(native UNIX_COMMAND "${NATIVE}")

run("${CC}" main.o "${ARCHIVE}" libother.a ${native} -o as_they_are)
run("${folder}/as_they_are" "${MODEL}")

run("${CC}" -r -nostdlib -Wl,--force-group-allocation -Wl,--whole-archive "${ARCHIVE}" -Wl,--no-whole-archive -o smolvlm.o)
run("${OBJCOPY}" --wildcard "--keep-global-symbol=smolvlm_*" smolvlm.o)
run("${CC}" main.o smolvlm.o libother.a ${native} -o with_hidden_names)
run("${folder}/with_hidden_names" "${MODEL}")
# What it is for: the names that clash are not there any more.
execute_process(COMMAND "${READELF}" --symbols --wide "${folder}/smolvlm.o" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "GLOBAL +[A-Z]+ +[0-9]+ [A-Za-z0-9_.]+" defined "${symbols}")
if(defined MATCHES "rust_eh_personality" OR NOT defined MATCHES "smolvlm_create")
  message(FATAL_ERROR "smolvlm.o exports: ${defined}")
endif()
file(REMOVE_RECURSE "${folder}")
