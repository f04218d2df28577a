#!/usr/bin/env bash
# asan_python.sh SITE PYTHON ARGUMENTS...: run the interpreter behind a virtual environment's PYTHON
# with the instrumented packages of SITE before those of the environment.
#
# The sanitizer's runtime has to be loaded before an uninstrumented interpreter starts, with
# libstdc++ beside it, since it intercepts how exceptions are thrown. Leaks are not looked for:
# CPython keeps objects until the process ends. The environment's own interpreter is not used, since
# it would find the extension that is installed there.
set -euo pipefail
site=$1 python=$2
shift 2
compiler=${CXX:-c++}
base=$("$python" -c 'import sys; print(sys._base_executable)')
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$site:$packages"
export KVIK_TEST_SANITIZED=1
exec "$base" "$@"
