#!/bin/sh
# What a Linux guest's kernel says under Cordon and what it says on QEMU itself, compared: lines that
# only one of them has, without times. docs/linux-dmesg.md gives the reason for each.
#
#     cargo xtask run linux          # plays linux-direct as well
#     tests/qemu/dmesg-diff.sh
set -eu
runs=${CARGO_TARGET_DIR:-target}/runs
under=${1:-$runs/linux/uart0.log}
direct=${2:-$runs/linux-direct/uart0.log}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The first boot's lines of a log, sorted. Cordon puts the VM's name before each.
lines() {
    tr -d '\r' <"$1" | awk '/cordon: event=vm-stop/ { exit } { print }' |
        sed -n 's/^\(linux| \)\{0,1\}\[ *[0-9]*\.[0-9]*\] //p' | LC_ALL=C sort -u
}

lines "$under" >"$work/under"
lines "$direct" >"$work/direct"
LC_ALL=C comm -3 "$work/direct" "$work/under" | sed "s/^\t/+ /; t; s/^/- /"
