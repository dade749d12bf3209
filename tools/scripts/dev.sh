#!/usr/bin/env bash
# Builds mailboxd and runs one node with its gateway, ready to chat. Arguments go to `mailboxd dev`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tools/scripts/setup.sh
. tools/scripts/setup.sh
setup

started=$(date +%s)
say "building mailboxd and mailboxctl (release)"
cargo build --release --locked -p mailbox-server -p mailbox-tools --bins
say "built in $(($(date +%s) - started)) s"

exec "$CARGO_TARGET_DIR/release/mailboxd" dev "$@"
