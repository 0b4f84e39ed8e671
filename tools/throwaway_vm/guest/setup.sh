# PID 1 in the guest's root (busybox sh): the file systems, the user and the groups of a usual machine, then the command.
vm=/run/vm
bb=$vm/busybox
. $vm/run.env
PATH=$vm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir $vm/bin
ln -s $bb $vm/bin/modprobe
echo $vm/bin/modprobe >/proc/sys/kernel/modprobe

mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/net /run/lock
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
[ -e /dev/net/tun ] || $bb mknod /dev/net/tun c 10 200

# A user with subordinate ids, whatever users the host has.
sed -i '/^[^:]*:[^:]*:1000:/d' /etc/passwd /etc/group
echo "$GUEST_USER:x:1000:1000::/home/$GUEST_USER:/bin/sh" >>/etc/passwd
echo "$GUEST_USER:x:1000:" >>/etc/group
for file in /etc/subuid /etc/subgid; do echo "$GUEST_USER:100000:65536" >$file; done

# /tmp in memory, homes and /var/tmp on a disk, as usual: an overlay's upper layer cannot lie on an overlay. The working directory stays to be seen.
mkdir -p $vm/root $vm/disk
mount --bind / $vm/root
mount -t ext4 -o discard /dev/ubda $vm/disk
mount -t tmpfs -o mode=1777 tmp /tmp
for directory in /var/tmp /home/$GUEST_USER; do
  mkdir -p $directory $vm/disk$directory
  chmod 1777 $vm/disk$directory
  mount --bind $vm/disk$directory $directory
done
for directory in /tmp /var/tmp /home/$GUEST_USER; do
  for shown in $SHOWN; do
    case $shown in
      $directory/*) mkdir -p "$shown" && mount --bind "$vm/root$shown" "$shown" ;;
    esac
  done
done
mkdir -p /run/user/1000
chown 1000:1000 /home/$GUEST_USER /run/user/1000
chmod 700 /home/$GUEST_USER /run/user/1000
for directory in $TRAVERSED; do chmod a+x "$directory"; done   # the user must reach what root installed for itself

for directory in $WRITABLE; do
  mkdir -p "$directory"
  mount -t hostfs -o "$directory" none "$directory"
done
$bb hostname vm
ip link set lo up 2>/dev/null || $bb ip link set lo up
. $vm/cgroups.sh

# Three serial lines carry the command's output, its errors and its status; pipes in between, as a shell would give.
for line in 0 1 2; do stty -F /dev/ttyS$line raw -echo; done
mkfifo $vm/out $vm/err
chmod 666 $vm/out $vm/err
cat $vm/out >/dev/ttyS0 &
cat $vm/err >/dev/ttyS1 &
exec 5>$vm/out 6>$vm/err
chmod 755 $vm $vm/command

drop=
HOME=/root USER=root
if [ "$RUN_AS" != root ]; then
  drop="/usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups"
  HOME=/home/$GUEST_USER USER=$GUEST_USER
  [ "$RUN_AS" != plain ] && export XDG_RUNTIME_DIR=/run/user/1000
fi
export HOME USER LOGNAME=$USER
$bb setsid $bb sh -c "echo 0 >$own/cgroup.procs && exec $drop /bin/sh $vm/command" </dev/null >$vm/out 2>$vm/err 5>&- 6>&- &
wait $!
status=$?
echo "$MARK" >&5
echo "$MARK" >&6
echo $status >/dev/ttyS2
$bb sleep 20      # the host ends the machine as soon as it has read all
$bb poweroff -f
