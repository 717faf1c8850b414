# xgrammar::xgrammar: grammars that an answer keeps to. Debian has no package of it:
# its C++ is built from the source distribution on PyPI, as a static library. Its own
# CMakeLists.txt sets flags for all that there is, so it is not used.
#
# XCACHE_XGRAMMAR_SOURCE: the folder of its source; empty: deploy/get_xgrammar.sh gets
# it, of the version and checksum that stand there.
set(XCACHE_XGRAMMAR_SOURCE "" CACHE PATH
  "Source of xgrammar; empty: got from PyPI and kept")
set(_source "${XCACHE_XGRAMMAR_SOURCE}")
if(NOT _source)
  execute_process(
    COMMAND ${CMAKE_CURRENT_LIST_DIR}/../get_xgrammar.sh
    OUTPUT_VARIABLE _source OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE _result)
  if(NOT _result EQUAL 0)
    message(FATAL_ERROR "xgrammar: its source was not got. Without a network, "
      "unpack it and name it with -DXCACHE_XGRAMMAR_SOURCE=FOLDER")
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_path(_include xgrammar/xgrammar.h PATHS ${_source}/include
  NO_DEFAULT_PATH NO_CACHE)
find_package_handle_standard_args(XGrammar REQUIRED_VARS _include)

if(NOT TARGET xgrammar::xgrammar)
  file(GLOB _files ${_source}/cpp/*.cc ${_source}/cpp/converter_ext/*.cc
    ${_source}/cpp/support/*.cc)

  # What is wrong in it is mended in a copy: `line` of cpp/`name` becomes `mended`.
  function(xgrammar_mend name line mended)
    file(READ ${_source}/cpp/${name} before)
    string(REPLACE "${line}" "${mended}" after "${before}")
    if(after STREQUAL before)
      message(FATAL_ERROR "xgrammar: ${_source}/cpp/${name} is not of the version "
        "that deploy/get_xgrammar.sh names: expected in it ${line}")
    endif()
    set(copy ${CMAKE_CURRENT_BINARY_DIR}/xgrammar/${name})
    file(CONFIGURE OUTPUT ${copy} CONTENT "${after}" @ONLY)
    list(REMOVE_ITEM _files ${_source}/cpp/${name})
    set(_files ${_files} ${copy} PARENT_SCOPE)
  endfunction()
  # A pointer into a list of rules that grows meanwhile: the name there is read when a
  # regular expression is refused.
  xgrammar_mend(grammar_functor.cc
    "auto& rule = grammar->GetRule(rule_id);\n  return BuildExpressionFSM("
    "auto rule = grammar->GetRule(rule_id);\n  return BuildExpressionFSM(")
  # Strings of a length have control characters, which JSON's have not.
  xgrammar_mend(json_schema_converter.cc
    "AddCharacterClass({{'\"', '\"'}, {'\\\\', '\\\\'}, {'\\r', '\\r'}, {'\\n', '\\n'}}, true)"
    "AddCharacterClass({{0, 0x1f}, {'\"', '\"'}, {'\\\\', '\\\\'}}, true)")

  add_library(xgrammar STATIC EXCLUDE_FROM_ALL ${_files})
  add_library(xgrammar::xgrammar ALIAS xgrammar)
  target_compile_features(xgrammar PRIVATE cxx_std_17)
  set_target_properties(xgrammar PROPERTIES CXX_STANDARD 17)
  target_include_directories(xgrammar SYSTEM PUBLIC ${_source}/include
    ${_source}/3rdparty/dlpack/include ${_source}/3rdparty/picojson)
  target_include_directories(xgrammar SYSTEM PRIVATE ${_source}/cpp)
  # Its warnings are not ours, nor is what UBSan says of it.
  target_compile_options(xgrammar PRIVATE -w)
  if(XCACHE_SANITIZE)
    string(REPLACE ",undefined" "" _sanitize "${XCACHE_SANITIZE}")
    target_compile_options(xgrammar PRIVATE -fsanitize=${_sanitize}
      -fno-omit-frame-pointer)
  endif()
  target_compile_definitions(xgrammar PUBLIC XGRAMMAR_LOG_CUSTOMIZE=1
    XGRAMMAR_ENABLE_CPPTRACE=0
    XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
  target_link_libraries(xgrammar PUBLIC Threads::Threads)
endif()
