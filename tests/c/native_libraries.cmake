# The libraries that the static one needs are those that rustc names, in the CMake package and in smolvlm.pc.

cmake_minimum_required(VERSION 3.16)

# An empty library around ours has the same needs, and is linked in a moment.
file(WRITE "${WORK}/native_libraries.rs" "extern crate smolvlm;\n")
execute_process(
  COMMAND "${RUSTC}" --edition 2024 --crate-type staticlib --print native-static-libs
    --extern "smolvlm=${CARGO_OUT}/libsmolvlm.rlib" -L "dependency=${CARGO_OUT}/deps"
    -o "${WORK}/native_libraries.a" "${WORK}/native_libraries.rs"
  ERROR_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE "${WORK}/native_libraries.a")
if(NOT text MATCHES "native-static-libs: ([^\n]*)")
  message(FATAL_ERROR "rustc names none: ${text}")
endif()
string(REPLACE " " ";" needed "${CMAKE_MATCH_1}")
# Every C program links it.
list(REMOVE_ITEM needed -lc)
list(REMOVE_DUPLICATES needed)
list(SORT needed)

file(STRINGS "${TARGETS}" line REGEX "^set\\(smolvlm_NATIVE_LIBRARIES ")
string(REGEX REPLACE "^set\\(smolvlm_NATIVE_LIBRARIES (.*)\\)$" "\\1" in_cmake "${line}")
string(REGEX REPLACE "([^ ]+)" "-l\\1" in_cmake "${in_cmake}")
string(REPLACE " " ";" in_cmake "${in_cmake}")
list(SORT in_cmake)

file(STRINGS "${PC}" line REGEX "^Libs.private: ")
string(REGEX REPLACE "^Libs.private: " "" in_pc "${line}")
string(REPLACE " " ";" in_pc "${in_pc}")
list(SORT in_pc)

if(NOT needed STREQUAL in_cmake OR NOT needed STREQUAL in_pc)
  message(FATAL_ERROR "rustc: ${needed}\nsmolvlmTargets.cmake: ${in_cmake}\nsmolvlm.pc: ${in_pc}")
endif()
message(STATUS "${needed}")
