# The shared library exports exactly the functions that the header declares, has the SONAME, and stays when it is closed.

cmake_minimum_required(VERSION 3.16)

execute_process(COMMAND "${NM}" -D --defined-only "${LIBRARY}" OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n ]+\n" lines "${text}")
set(exported)
foreach(line IN LISTS lines)
  string(STRIP "${line}" line)
  string(REGEX REPLACE "@.*" "" line "${line}")
  list(APPEND exported "${line}")
endforeach()

file(READ "${HEADER}" text)
string(REGEX REPLACE "/\\*([^*]|\\*+[^*/])*\\*+/" "" text "${text}")
string(REGEX MATCHALL "smolvlm_[a-z_]+\\(" lines "${text}")
string(REPLACE "(" "" declared "${lines}")

list(SORT exported)
list(SORT declared)
list(LENGTH declared count)
if(count EQUAL 0 OR NOT exported STREQUAL declared)
  message(FATAL_ERROR "exported: ${exported}\ndeclared: ${declared}")
endif()

execute_process(COMMAND "${READELF}" -d "${LIBRARY}" OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
if(NOT text MATCHES "\\(SONAME\\)[^\n]*\\[([^]\n]*)\\]" OR NOT CMAKE_MATCH_1 STREQUAL SONAME)
  message(FATAL_ERROR "SONAME ${CMAKE_MATCH_1}, not ${SONAME}")
endif()
# Its threads, what threads keep for themselves, and the handlers of fork need its code after a dlclose.
if(NOT text MATCHES "\\(FLAGS_1\\)[^\n]*NODELETE")
  message(FATAL_ERROR "no NODELETE: ${text}")
endif()
message(STATUS "${count} functions, SONAME ${SONAME}, NODELETE")
