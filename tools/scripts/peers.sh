#!/usr/bin/env bash
# Installs the systems that `mailbox-bench peer` compares with, as far as they are missing: NATS (a Go module), etcd,
# Redis and PostgreSQL (Debian packages). Names as arguments install only those: nats etcd redis postgres.
#
# The bench starts its own processes. What a package starts by itself is stopped again, so that it takes no processor
# from anything that is measured; what was there before is left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tools/scripts/setup.sh
. tools/scripts/setup.sh

# Of nats-server; the newest release unless told otherwise. Atomic batches with message ids need 2.12 at least.
NATS_VERSION="${NATS_VERSION:-latest}"

has() { command -v "$1" >/dev/null 2>&1; }

has_postgres() { has postgres || compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null; }

has_nats() {
    has nats-server || [ -x "${GOBIN:-${GOPATH:-$HOME/go}/bin}/nats-server" ] || [ -x "$HOME/go/bin/nats-server" ]
}

install_nats() {
    if has_nats; then return 0; fi
    has go || die "go not found: install Go (https://go.dev/dl), or give the bench a server with --nats-server FILE"
    say "installing nats-server@$NATS_VERSION with go"
    go install "github.com/nats-io/nats-server/v2@$NATS_VERSION"
}

# Package, service. Neither may be started by what installs it (RUNLEVEL), nor be left running where that is not heard.
install_package() {
    has apt-get || die "$1 is missing: install it (it must be on PATH), then run this again"
    say "installing $1"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$1" >/dev/null
    if has systemctl && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now --quiet "$2" || true
    elif has service; then
        as_root service "$2" stop >/dev/null 2>&1 || true
    fi
}

install_peer() {
    case "$1" in
        nats) install_nats ;;
        etcd) has etcd || install_package etcd-server etcd ;;
        redis) has redis-server || install_package redis-server redis-server ;;
        postgres) has_postgres || install_package postgresql postgresql ;;
        *) die "unknown peer '$1': nats, etcd, redis or postgres" ;;
    esac
}

if [ $# -eq 0 ]; then set -- nats etcd redis postgres; fi
for peer in "$@"; do install_peer "$peer"; done
say "there: $*"
