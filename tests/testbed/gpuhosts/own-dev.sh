# lab-host-init.sh sources this file for host $I, whose file system lies under $new and its disk under $disk. The host gets
# a /dev of its own with $GPUS of this machine's GPUs, a /sys that shows its own network, and a cgroup tree.
mount -t sysfs sysfs "$new/sys" || mount --rbind /sys "$new/sys"
mount -t cgroup2 none "$new/sys/fs/cgroup" 2>/dev/null || true
dev=$new/dev
mount -t tmpfs -o mode=755 tmpfs "$dev"
devices="null zero full random urandom tty fuse kmsg nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-modeset nvidia-caps"
for gpu in $(seq $(((I - 1) * GPUS)) $((I * GPUS - 1))); do devices+=" nvidia$gpu"; done
for name in $devices; do [ ! -e "/dev/$name" ] || cp -a "/dev/$name" "$dev/"; done
mkdir "$dev/pts" "$dev/shm" "$dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$dev/shm"
mount -t mqueue none "$dev/mqueue" 2>/dev/null || true
ln -s pts/ptmx "$dev/ptmx"
ln -s /proc/self/fd "$dev/fd"
for stream in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${stream%%:*}" "$dev/${stream#*:}"; done
# Root could make the device file of another host's GPU, and the driver's tools do so unasked.
mount -o remount,ro "$dev" || true
if [ -e /proc/driver/nvidia/params ]; then
  sed 's/^ModifyDeviceFiles: .*/ModifyDeviceFiles: 0/' /proc/driver/nvidia/params > "$disk/params"
  mount --bind "$disk/params" "$new/proc/driver/nvidia/params" || true
fi
