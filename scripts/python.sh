# Sourced as `. python.sh NAME PACKAGE...`: sets PYTHON to a Python with these packages. Keeps PYTHON if it is set;
# otherwise installs the packages from pip into target/NAME.
if [ -z "${PYTHON:-}" ]; then
    environment="target/$1"
    if [ ! -x "$environment/bin/python" ]; then
        python3 -m venv "$environment"
    fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
    PYTHON="$PWD/$environment/bin/python"
fi
export PYTHON
