#!/usr/bin/env bash
# Passes every test: format, lints, then unit, property, documentation, integration and fault smoke tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tools/scripts/setup.sh
. tools/scripts/setup.sh
setup test

step() {
    local started
    started=$(date +%s)
    say "$*"
    "$@"
    say "done in $(($(date +%s) - started)) s: $*"
}

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
# The integration tests start the real binaries: these must stand before the first test runs.
step cargo build --workspace --bins --locked
# Off by default, so that nothing else would notice when it breaks.
step cargo test --workspace --lib --locked --features mailbox-tools/peers bench::peer
step cargo test --workspace --locked "$@"
