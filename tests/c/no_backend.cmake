# What a library without any backend says: SOURCE, WORK, CARGO, DESCRIBE, MODEL, IMAGE.

set(target "${WORK}/no_backend")
execute_process(COMMAND "${CARGO}" build --release --locked --quiet --lib --no-default-features --target-dir "${target}"
  WORKING_DIRECTORY "${SOURCE}" COMMAND_ERROR_IS_FATAL ANY)
foreach(expected IN ITEMS
    "auto:this build has none [(]cargo features `candle`, `onnx`[)]"
    "candle:this build has no candle backend [(]cargo feature `candle`[)]"
    "onnx:this build has no onnx backend [(]cargo feature `onnx`[)]")
  string(REGEX MATCH "^([a-z]+):(.*)$" found "${expected}")
  set(backend "${CMAKE_MATCH_1}")
  set(message "${CMAKE_MATCH_2}")
  # The program is the one that the tests have built; only its library is another.
  execute_process(COMMAND "${CMAKE_COMMAND}" -E env "LD_PRELOAD=${target}/release/libsmolvlm.so"
      "${DESCRIBE}" "${MODEL}" "${IMAGE}" --backend ${backend}
    RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE error)
  if(result EQUAL 0 OR NOT error MATCHES "backend: ${message}")
    message(FATAL_ERROR "--backend ${backend}: ${result}, ${error}")
  endif()
endforeach()
