#!/usr/bin/env bash
# Makes .venv and installs everything into it, the football engine included.
# A step that succeeded leaves a stamp in .venv: done again it takes a moment, interrupted it goes on where it stopped.
# Variables: PYTHON, TORCH, TORCH_INDEX, FOOTBALL (no, required, or empty: if it can be had), JAX (no, or empty: if it
# can be had), see `make help`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

football=${FOOTBALL:-}

engine_version=2.10.2
engine_packages=(
  cmake g++ make
  libsdl2-dev libsdl2-image-dev libsdl2-ttf-dev libsdl2-gfx-dev
  libboost-python-dev libboost-thread-dev libboost-filesystem-dev libboost-system-dev
  libegl1-mesa-dev libgl1-mesa-dev libgl1-mesa-dri
)

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# pip ends in order on an interrupt, and bash would take that for a failure and try again.
trap 'exit 130' INT
trap 'exit 143' TERM
build=
trap '[[ -z $build ]] || rm -rf "$build"' EXIT

main() {
  lock_clone
  choose_python
  choose_torch
  key=$(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -d ' ' -f 1)
  key="$key $torch $torch_index $version $PWD"
  decide_football
  choose_extras
  install_system_packages
  decide_football # again: the packages may have brought the distribution's Python with them
  make_environment
  install_torch
  install_marl
  install_football
}

say() { printf '%s\n' "setup: $*" >&2; }
stop() { say "$@"; exit 2; }

is_stamped() { [[ -f .venv/.stamps/$1 && $(<".venv/.stamps/$1") == "$2" ]]; }
stamp() { mkdir -p .venv/.stamps && printf '%s\n' "$2" >".venv/.stamps/$1"; }

# The lock stays with a pip that outlives a killed set-up: the next one waits until .venv is left alone.
lock_clone() {
  exec 8<.
  flock -n 8 || { say "another set-up is at work here; waiting"; flock 8; }
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Sets python (what makes or made .venv), version and environment_ready.
choose_python() {
  environment_ready=
  if version=$(version_of .venv/bin/python) && [[ -z ${PYTHON:-} || $version == "$(version_of "$PYTHON")" ]] &&
    { [[ -f .venv/.stamps/environment ]] || .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    python=.venv/bin/python
    environment_ready=yes
  else
    python=${PYTHON:-$(version_of python3.11 >/dev/null && echo python3.11 || echo python3)}
    version=$(version_of "$python") || stop "$python does not run; choose another: make PYTHON=..."
  fi
  case $version in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    *) stop "$python is Python $version and marl needs 3.10 to 3.13; choose another: make PYTHON=..." ;;
  esac
}

# What was asked for once holds for this .venv until something else is asked for.
choose_torch() {
  if [[ -z ${TORCH:-}${TORCH_INDEX:-} && -n $environment_ready && -f .venv/.stamps/torch-choice ]]; then
    { read -r TORCH && read -r TORCH_INDEX; } <.venv/.stamps/torch-choice
  fi
  torch=${TORCH:-torch==2.13.0}
  torch_index=${TORCH_INDEX:-}
}

has_boost() { compgen -G "/usr/lib/*/libboost_python${version/./}.so" >/dev/null; }

# Prints why football cannot be had here, if so.
find_football_obstacle() {
  local distributed
  if ! command -v dpkg-query >/dev/null; then
    echo "its system packages are named for Debian and Ubuntu only"
  elif ! has_boost && distributed=$(version_of /usr/bin/python3) && [[ $distributed != "$version" ]]; then
    echo "it needs Boost.Python, which this system has for Python $distributed and not for $version" \
      "(make PYTHON=/usr/bin/python3 takes that one)"
  fi
}

decide_football() {
  [[ $football != no ]] || return 0
  local obstacle
  obstacle=$(find_football_obstacle)
  [[ -n $obstacle ]] || return 0
  [[ $football != required ]] || stop "no football: $obstacle"
  say "football skipped: $obstacle"
  football=no
}

# Sets extras. JaxMARL needs Python 3.11.
choose_extras() {
  extras=all
  if [[ ${JAX:-} == no ]]; then
    extras=light
  elif [[ $version == 3.10 ]]; then
    say "JaxMARL's suite skipped: it needs Python 3.11 or newer"
    extras=light
  fi
}

install_system_packages() {
  local wanted=() missing=() package
  # Debian keeps ensurepip, and with it a working venv, in a package of its own.
  if [[ -z $environment_ready ]] && ! "$python" -c 'import ensurepip' 2>/dev/null; then
    wanted+=("python$version-venv")
  fi
  if [[ $football != no ]] && ! is_stamped football "$key"; then
    wanted+=("${engine_packages[@]}")
  fi
  for package in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == "install ok installed" ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] || install_debian_packages "${missing[@]}"
}

install_debian_packages() {
  local become=()
  if [[ $(id -u) -ne 0 ]]; then
    if ! sudo -n true 2>/dev/null; then
      local as_root='sudo sh -c'
      command -v sudo >/dev/null || as_root='su -c'
      say "system packages are missing and may not be installed from here (FOOTBALL=no: without the football engine's)." \
        "Run this, then the same make again:"
      echo "$as_root 'apt-get update && apt-get install -y --no-install-recommends $*'" >&2
      exit 2
    fi
    become=(sudo -n)
  fi
  say "installing system packages: $*"
  "${become[@]}" apt-get update </dev/null || say "apt-get update failed; going on with the lists at hand"
  # Ends what an installation cut short has left; where dpkg is busy, apt-get below waits for it.
  "${become[@]}" env DEBIAN_FRONTEND=noninteractive dpkg --configure -a </dev/null || true
  "${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
    install -y --no-install-recommends "$@" </dev/null
}

# pip takes a package that a killed pip had half copied for installed. It writes INSTALLER after all files.
forget_half_installed() {
  local record
  for record in .venv/lib/python*/site-packages/*.dist-info; do
    [[ ! -d $record || -f $record/INSTALLER ]] || rm -rf "$record"
  done
}

pip_install() {
  local attempt
  for attempt in 1 2 3; do
    forget_half_installed
    .venv/bin/python -m pip install "$@" && return
    say "pip install failed, attempt $attempt of 3"
    sleep "$((5 * attempt))"
  done
  exit 1
}

make_environment() {
  if [[ -z $environment_ready ]]; then
    say "making .venv with Python $version"
    "$python" -m venv --clear .venv
    pip_install --upgrade pip
  fi
  stamp environment "$version"
  stamp torch-choice "${TORCH:-}"$'\n'"${TORCH_INDEX:-}"
}

# Before all else: what depends on torch would take its largest build where this has taken the one asked for.
install_torch() {
  ! is_stamped torch "$torch $torch_index" || return 0
  # pip takes another build of the same version for the one asked for.
  [[ ! -f .venv/.stamps/torch ]] || .venv/bin/python -m pip uninstall --yes torch
  say "installing $torch"
  pip_install ${torch_index:+--index-url "$torch_index"} "$torch"
  stamp torch "$torch $torch_index"
}

install_marl() {
  ! is_stamped marl "$key $extras" || return 0
  say "installing marl and what it needs"
  pip_install --editable ".[$extras]" --constraint constraints.txt
  stamp marl "$key $extras"
}

install_football() {
  [[ $football != no ]] || return 0
  ! is_stamped football "$key" || return 0
  local cache wheel
  # The engine links to the distribution's libraries; the wheel's name has the versions and the machine.
  # shellcheck source=/dev/null
  cache=${XDG_CACHE_HOME:-~/.cache}/marl/wheels/$(. /etc/os-release && echo "$ID${VERSION_ID:-}")
  wheel=$cache/gfootball-$engine_version-cp${version/./}-cp${version/./}-linux_$(uname -m).whl
  [[ -f $wheel ]] || build_football "$cache"
  say "installing $(basename "$wheel")"
  pip_install --no-deps --force-reinstall "$wheel"
  if ! .venv/bin/python -c 'import gfootball_engine'; then
    rm -f "$wheel"
    stop "the football engine does not load; the same make builds it again (with PIP_NO_CACHE_DIR=1, from nothing)"
  fi
  stamp football "$key"
}

# Several clones share the cache: one compiles while the others wait, and the wheel appears there whole.
build_football() {
  local cache=$1
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock -n 9 || { say "another set-up compiles the football engine; waiting"; flock 9; }
  [[ ! -f $wheel ]] || return 0
  rm -rf "$cache"/build.* # of set-ups that were killed
  build=$(mktemp -d "$cache/build.XXXXXX")
  say "compiling the football engine; some minutes, once for this machine"
  # The build script runs `python3`. CMake 4 refuses the engine's CMakeLists.txt unless told. A compiler that outlives
  # a killed set-up must not keep the locks (8 and 9).
  PATH="$PWD/.venv/bin:$PATH" TMPDIR=$build LDFLAGS=-s CMAKE_POLICY_VERSION_MINIMUM=3.5 \
    .venv/bin/python -m pip wheel --no-build-isolation --no-deps --wheel-dir "$build" \
    "gfootball==$engine_version" 8>&- 9>&-
  mv "$build"/gfootball-*.whl "$cache"
  exec 9>&-
}

main
