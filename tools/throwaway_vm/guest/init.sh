#!/busybox sh
# PID 1 in the initramfs: put a layer in memory over the host's root, which is read through hostfs, and go on in there.
bb=/busybox
fail() { $bb echo "vm: $*"; $bb poweroff -f; }

. /run.env
$bb mkdir -p /dev /proc /sys /host /guest /layer /root
$bb mount -t devtmpfs dev /dev
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb insmod /overlay.ko || fail "cannot load the overlay module"
$bb mount -t hostfs -o / none /host || fail "cannot mount the host's root"
$bb mount -t hostfs -o "$GUEST" none /guest || fail "cannot mount $GUEST"
$bb mount -t tmpfs -o mode=755,size=90% layer /layer
$bb mkdir /layer/upper /layer/work
$bb mount -t overlay -o lowerdir=/guest:/host,upperdir=/layer/upper,workdir=/layer/work root /root || fail "cannot mount the overlay"
for directory in dev proc sys run tmp; do
  $bb mkdir -p "/root/$directory"
done
for directory in dev proc sys; do
  $bb mount --move "/$directory" "/root/$directory"
done
$bb mount -t tmpfs -o mode=755 run /root/run
$bb mkdir /root/run/vm
$bb cp /busybox /run.env /command /setup.sh /cgroups.sh /root/run/vm/
exec $bb switch_root /root /run/vm/busybox sh /run/vm/setup.sh
