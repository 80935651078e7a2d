# smolvlm::shared, smolvlm::static and smolvlm::smolvlm, for the build tree and the installed package alike.
#
# Whoever includes this has set smolvlm_INCLUDE_DIR, smolvlm_LIBRARY_DIR, smolvlm_REAL_NAME, smolvlm_SONAME
# and smolvlm_COMPONENTS: what smolvlm::smolvlm may be.

# As `rustc --print native-static-libs` says, without what every C program links; a test compares them.
set(smolvlm_NATIVE_LIBRARIES gcc_s util rt pthread m dl)

if(NOT TARGET smolvlm::shared)
  add_library(smolvlm::shared SHARED IMPORTED GLOBAL)
  set_target_properties(smolvlm::shared PROPERTIES
    IMPORTED_LOCATION "${smolvlm_LIBRARY_DIR}/${smolvlm_REAL_NAME}"
    IMPORTED_SONAME "${smolvlm_SONAME}"
    INTERFACE_INCLUDE_DIRECTORIES "${smolvlm_INCLUDE_DIR}")

  add_library(smolvlm::static STATIC IMPORTED GLOBAL)
  set_target_properties(smolvlm::static PROPERTIES
    IMPORTED_LOCATION "${smolvlm_LIBRARY_DIR}/libsmolvlm.a"
    INTERFACE_INCLUDE_DIRECTORIES "${smolvlm_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${smolvlm_NATIVE_LIBRARIES}")

  # As BUILD_SHARED_LIBS says, where there is a choice; shared where that says nothing.
  if("static" IN_LIST smolvlm_COMPONENTS
      AND (NOT "shared" IN_LIST smolvlm_COMPONENTS OR (DEFINED BUILD_SHARED_LIBS AND NOT BUILD_SHARED_LIBS)))
    set(smolvlm_default static)
  else()
    set(smolvlm_default shared)
  endif()
  add_library(smolvlm::smolvlm INTERFACE IMPORTED GLOBAL)
  set_target_properties(smolvlm::smolvlm PROPERTIES INTERFACE_LINK_LIBRARIES "smolvlm::${smolvlm_default}")
  unset(smolvlm_default)
endif()
