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

  # Version 0.2.9 keeps a pointer into a list of rules that grows meanwhile, and reads
  # the name there when it refuses a regular expression: a copy of the rule stays.
  set(_faulty ${_source}/cpp/grammar_functor.cc)
  set(_mended ${CMAKE_CURRENT_BINARY_DIR}/xgrammar/grammar_functor.cc)
  set(_line "auto& rule = grammar->GetRule(rule_id);\n  return BuildExpressionFSM(")
  file(READ ${_faulty} _before)
  string(REPLACE "${_line}" "auto rule = grammar->GetRule(rule_id);\n  return BuildExpressionFSM("
    _after "${_before}")
  if(_after STREQUAL _before)
    message(FATAL_ERROR "xgrammar: ${_faulty} is not the version that "
      "deploy/get_xgrammar.sh names: expected in it ${_line}")
  endif()
  file(CONFIGURE OUTPUT ${_mended} CONTENT "${_after}" @ONLY)
  list(REMOVE_ITEM _files ${_faulty})
  list(APPEND _files ${_mended})

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
