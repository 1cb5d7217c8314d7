# Applies every patch beside this file to the llama.cpp inside llama-cpp-python. scripts/set_up.py has CMake read it right
# after `project(llama_cpp)`, which is before anything of llama.cpp is configured. What does not apply ends the build.

function(apply_patches)
    find_package(Git QUIET REQUIRED)
    # No repository may be found: the one around the build folder would decide which files count, and the `.git` that the
    # release carries points to nowhere, on which git refuses to work.
    set(git_apply "${CMAKE_COMMAND}" -E env GIT_DIR=/dev/null "${GIT_EXECUTABLE}" apply)
    set(tree "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp")

    file(GLOB patches "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/*.patch")
    if(NOT patches)
        message(FATAL_ERROR " found no patch in ${CMAKE_CURRENT_FUNCTION_LIST_DIR}, expected one or more")
    endif()
    foreach(patch IN LISTS patches)
        get_filename_component(name "${patch}" NAME)
        # What can be taken back is there already: CMake may run again on the same tree.
        execute_process(
            COMMAND ${git_apply} --reverse --check "${patch}"
            WORKING_DIRECTORY "${tree}" RESULT_VARIABLE is_missing ERROR_QUIET)
        if(is_missing)
            execute_process(
                COMMAND ${git_apply} "${patch}"
                WORKING_DIRECTORY "${tree}" RESULT_VARIABLE has_failed ERROR_VARIABLE why)
            if(has_failed)
                string(STRIP "${why}" why)
                string(REPLACE "\n" "; " why "${why}")
                message(FATAL_ERROR " ${name} does not apply to ${tree}: ${why}")
            endif()
        endif()
        # git says yes to a patch whose files it leaves out; then it could be applied once more.
        execute_process(
            COMMAND ${git_apply} --check "${patch}"
            WORKING_DIRECTORY "${tree}" RESULT_VARIABLE is_there ERROR_QUIET)
        if(NOT is_there)
            message(FATAL_ERROR " ${name} was applied to ${tree}, which is as before")
        endif()
        message(STATUS "llama.cpp is patched: ${name}") # set_up.py looks for this line
    endforeach()
endfunction()

apply_patches()
