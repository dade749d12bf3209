#!/usr/bin/env bash
# Makes a machine able to build the mailbox database. Sourced by dev.sh and test.sh.
# On Debian and Ubuntu it installs what is missing; elsewhere it says precisely what to install.
# `setup test` also installs what only tests use; elsewhere those tests say that they are skipped.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null 2>&1; then sudo "$@"
    else die "cannot run '$*': be root, or install sudo"; fi
}

have_libclang() {
    local dir
    if [ -n "${LIBCLANG_PATH:-}" ]; then return 0; fi
    for dir in /usr/lib/llvm-*/lib /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64 \
        /usr/lib /opt/homebrew/opt/llvm/lib /usr/local/opt/llvm/lib \
        /Library/Developer/CommandLineTools/usr/lib; do
        # The library alone is not enough: bindgen also wants clang's own headers beside it.
        if compgen -G "$dir/libclang*.so*" >/dev/null || [ -e "$dir/libclang.dylib" ]; then
            if compgen -G "/usr/lib/llvm-*/lib/clang/*/include/stddef.h" >/dev/null \
                || compgen -G "/usr/lib/clang/*/include/stddef.h" >/dev/null \
                || [ -e "$dir/libclang.dylib" ]; then
                return 0
            fi
        fi
    done
    return 1
}

missing_packages() {
    command -v c++ >/dev/null 2>&1 || echo "g++"
    command -v make >/dev/null 2>&1 || echo "make"
    have_libclang || echo "libclang-dev"
    command -v ccache >/dev/null 2>&1 || echo "ccache"
    if [ "$1" = test ] && command -v apt-get >/dev/null 2>&1; then
        command -v faketime >/dev/null 2>&1 || echo "faketime"
        command -v ip >/dev/null 2>&1 || echo "iproute2"
        command -v nft >/dev/null 2>&1 || [ -x /usr/sbin/nft ] || echo "nftables"
        command -v xfs_io >/dev/null 2>&1 || [ -x /usr/sbin/xfs_io ] || echo "xfsprogs"
        command -v strace >/dev/null 2>&1 || echo "strace"
        command -v iptables >/dev/null 2>&1 || [ -x /usr/sbin/iptables ] || echo "iptables"
    fi
}

setup() {
    # Cargo is often installed but not yet on the PATH of a fresh shell.
    if ! command -v cargo >/dev/null 2>&1 && [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH="$HOME/.cargo/bin:$PATH"
        export PATH
    fi
    command -v cargo >/dev/null 2>&1 || die "cargo not found: install Rust 1.95 or newer (rustup)"

    local packages
    packages=$(missing_packages "${1:-build}" | tr '\n' ' ')
    if [ -n "${packages// /}" ]; then
        if command -v apt-get >/dev/null 2>&1; then
            say "installing $packages"
            as_root apt-get update -qq
            # shellcheck disable=SC2086 # one word a package
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
        else
            die "missing: $packages
  Install a C++17 compiler, make, libclang (the library and its headers) and ccache, then run this again.
  Fedora: dnf install gcc-c++ make clang-devel ccache     Arch: pacman -S gcc make clang ccache
  macOS (for development only): xcode-select --install && brew install llvm ccache
  If libclang is somewhere unusual, set LIBCLANG_PATH to the directory that holds it."
        fi
    fi

    # Outside the clone, so that a second clone or a clean one does not compile RocksDB again.
    export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/mailbox/target}"
    export CC="${CC:-ccache gcc}" CXX="${CXX:-ccache g++}"
    if [ ! -d "$CARGO_TARGET_DIR" ]; then
        say "first build: RocksDB alone takes 15 to 30 minutes on two cores (later builds are cached)"
    fi
}
