# Sourced, with a name and packages: sets PYTHON to a Python that has them. One that is named by PYTHON already is taken as it is;
# else they are installed from pip into target/NAME.
if [ -z "${PYTHON:-}" ]; then
    environment="target/$1"
    if [ ! -x "$environment/bin/python" ]; then
        python3 -m venv "$environment"
    fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
    PYTHON="$PWD/$environment/bin/python"
fi
export PYTHON
