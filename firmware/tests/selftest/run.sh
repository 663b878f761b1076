#!/bin/sh
# Builds the firmware and its test image, runs them, and judges. From the repository's root:
#
#   firmware/tests/selftest/run.sh [SMP]
#
# QEMU names the emulator, qemu-system-aarch64 (11.1 or later) by default.
set -eu

smp=${1:-4}
target=aarch64-unknown-none-softfloat
objcopy=$(echo "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-objcopy)
built=${CARGO_TARGET_DIR:-target}/$target/release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --quiet --release -p cordon-firmware --target "$target"
"$objcopy" -O binary "$built/cordon-firmware" "$work/firmware.bin"
"$objcopy" -O binary "$built/firmware-selftest" "$work/selftest.img"
printf 'bundle-bytes' > "$work/bundle"
mkfifo "$work/secure.in" "$work/secure.out"

timeout 60 "${QEMU:-qemu-system-aarch64}" \
    -M virt,secure=on,virtualization=on,gic-version=3,ras=on -cpu max,x-rme=on \
    -smp "$smp" -m 1G -nic none -display none -monitor none \
    -object memory-backend-ram,id=m,size=1G -device ivshmem-plain,memdev=m \
    -bios "$work/firmware.bin" -kernel "$work/selftest.img" -initrd "$work/bundle" \
    -append "one two" -serial "file:$work/uart0" -serial "pipe:$work/secure" &
qemu=$!
cat "$work/secure.out" > "$work/secure.log" &

# What the image wants said on the secure UART.
exec 3> "$work/secure.in"
said=0
while kill -0 "$qemu" 2> /dev/null; do
    want=$(sed -n 's/^selftest: want //p' "$work/uart0" 2> /dev/null | sed -n "$((said + 1))p")
    if [ -n "$want" ]; then
        printf '%s\nstatus\n' "$want" >&3
        said=$((said + 1))
    fi
    sleep 0.1
done
exec 3>&-
wait "$qemu" || echo "selftest: FAIL qemu ended with $?"

grep -v '^selftest: ok' "$work/uart0" || true
echo "--- secure UART"
cat "$work/secure.log"
grep -q '^! ready cpus='"$smp" "$work/secure.log"
grep -q '^ok poisoned pages=1' "$work/secure.log"
grep -q '^ok healed pages=1' "$work/secure.log"
grep -q '^selftest: done passed=[0-9]* failed=0' "$work/uart0"
! grep -q '^selftest: FAIL' "$work/uart0"
