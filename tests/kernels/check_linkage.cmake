# cmake -DNM=... -DOBJECTS=a.o;b.o -P check_linkage.cmake
#
# An ISA file may define its table and nothing else that the linker sees. A weak symbol (an inline
# function or template instance) compiled with that ISA's flags could replace the one of a file that
# runs on every CPU, which would then die of an illegal instruction there.
set(tables 0)
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "isa_[a-z0-9]+\\.cpp")
    continue()
  endif()
  execute_process(COMMAND ${NM} -P ${object} OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${NM} cannot read ${object}")
  endif()
  string(REPLACE "\n" ";" symbols "${symbols}")
  foreach(symbol IN LISTS symbols)
    if(NOT symbol MATCHES "^([^ ]+) ([A-Za-z]) ?" OR CMAKE_MATCH_2 MATCHES "^[a-tx-zU]$")
      continue()  # local, or undefined
    endif()
    if(symbol MATCHES "^_ZN4kvik7kernels[0-9]+k[A-Za-z0-9]+TableE [DR] ")
      math(EXPR tables "${tables} + 1")
    else()
      message(SEND_ERROR "${object} has a symbol that other files could be linked to: ${symbol}")
    endif()
  endforeach()
endforeach()
if(tables EQUAL 0)
  message(FATAL_ERROR "no ISA object among ${OBJECTS}")
endif()
message(STATUS "${tables} tables, nothing leaks")
