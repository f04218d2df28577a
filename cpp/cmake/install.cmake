# The library as others use it: libkvik.a and libkvik.so made of every layer's objects, headers,
# find_package(kvik CONFIG) and pkg-config.
#
#   kvik::kvik     the shared library (the static one where only that was built)
#   kvik::static   the static library
#
# Component "library"; the Python package installs the component "python" alone.
include(CMakePackageConfigHelpers)

set(KVIK_OBJECTS "")
foreach(layer IN LISTS KVIK_LAYERS)
  list(APPEND KVIK_OBJECTS $<TARGET_OBJECTS:kvik_${layer}>)
endforeach()

set(KVIK_LIBRARIES kvik_static)
add_library(kvik_static STATIC ${KVIK_OBJECTS})
set_target_properties(kvik_static PROPERTIES OUTPUT_NAME kvik EXPORT_NAME static)

if(KVIK_BUILD_SHARED)
  list(APPEND KVIK_LIBRARIES kvik_shared)
  add_library(kvik_shared SHARED ${KVIK_OBJECTS})
  # Until 1.0 every minor version may change the interface.
  set_target_properties(kvik_shared PROPERTIES
    OUTPUT_NAME kvik EXPORT_NAME kvik
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    LINK_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/exports.map)
  # Instances of standard templates are visible by default; the script hides those as well.
  if(NOT APPLE)
    target_link_options(kvik_shared PRIVATE
      -Wl,--version-script=${CMAKE_CURRENT_LIST_DIR}/exports.map)
    if(NOT KVIK_SANITIZE)
      target_link_options(kvik_shared PRIVATE -Wl,--no-undefined)
    endif()
  endif()
endif()

foreach(library IN LISTS KVIK_LIBRARIES)
  target_include_directories(${library} INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp/include>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_compile_features(${library} INTERFACE cxx_std_20)
  target_link_libraries(${library} PUBLIC Threads::Threads)
  if(KVIK_SANITIZE)
    target_link_options(${library} PUBLIC -fsanitize=${KVIK_SANITIZE})
  endif()
endforeach()

# ---- install ------------------------------------------------------------------------------------
set(KVIK_CONFIG_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/kvik)
install(TARGETS ${KVIK_LIBRARIES} EXPORT kvik-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/cpp/include/kvik DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT library FILES_MATCHING PATTERN "*.h")
install(EXPORT kvik-targets NAMESPACE kvik:: DESTINATION ${KVIK_CONFIG_DIR} COMPONENT library)

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/kvik-config.cmake.in
  ${PROJECT_BINARY_DIR}/kvik-config.cmake INSTALL_DESTINATION ${KVIK_CONFIG_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvik-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kvik-config.cmake ${PROJECT_BINARY_DIR}/kvik-config-version.cmake
  DESTINATION ${KVIK_CONFIG_DIR} COMPONENT library)

# pkg-config files say where they were installed relative to themselves, so that the tree can move.
file(RELATIVE_PATH KVIK_PC_TO_PREFIX
  "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
configure_file(${CMAKE_CURRENT_LIST_DIR}/kvik.pc.in ${PROJECT_BINARY_DIR}/kvik.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kvik.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
  COMPONENT library)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/kvik
  COMPONENT library)
