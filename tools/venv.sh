#!/bin/sh
# Make an empty virtual environment: tools/venv.sh FOLDER [PYTHON...]; the first that fits is used.
set -eu
folder=$1
shift
[ $# -gt 0 ] || set -- python3 python3.13 python3.12 python3.11

for python in "$@"; do
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue
    rm -rf "$folder"
    echo "$folder: $("$python" -V) of $(command -v "$python")"
    "$python" -m venv "$folder" >"$folder.log" 2>&1 && rm "$folder.log" && exit 0
    # Debian keeps ensurepip in a package of its own (python3-venv); pip can do its work.
    "$python" -m venv --clear --without-pip "$folder" &&
        "$python" -m pip --python "$folder/bin/python" install -qq pip &&
        rm "$folder.log" && exit 0
    cat "$folder.log" >&2
    rm -rf "$folder" "$folder.log"
    exit 1
done
echo "prunec needs Python 3.11, 3.12 or 3.13; none of these is one: $*" >&2
echo "help: install one, or name it: make PYTHON=/path/to/python3.12" >&2
exit 1
