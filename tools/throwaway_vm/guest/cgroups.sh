# Unified cgroup v2, laid out as systemd does it. Sets $own: the group that the command runs in.
top=/sys/fs/cgroup
system=$top/system.slice/vm.service
manager=$top/user.slice/user-1000.slice/user@1000.service
session=$top/user.slice/user-1000.slice/session-1.scope
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 $top
mkdir -p $system $manager/init.scope $session

for directory in $top $top/system.slice $top/user.slice $top/user.slice/user-1000.slice $manager; do
  for controller in $(cat $directory/cgroup.controllers); do
    echo "+$controller" >$directory/cgroup.subtree_control
  done
done

# What systemd gives to a user manager with Delegate=yes: the directories, and the files that move processes and hand controllers on.
for directory in $manager $manager/init.scope; do
  chown 1000:1000 $directory $directory/cgroup.procs $directory/cgroup.threads $directory/cgroup.subtree_control
done

# A systemd manager of the user, which puts itself into init.scope; the command runs beside it, in a group below.
if [ -n "$SYSTEMD" ]; then
  rmdir $manager/init.scope
  for controller in $(cat $manager/cgroup.subtree_control); do echo -$controller >$manager/cgroup.subtree_control; done
  mkdir -p /run/systemd/system
  started="env HOME=/home/$GUEST_USER USER=$GUEST_USER XDG_RUNTIME_DIR=/run/user/1000 /lib/systemd/systemd --user"
  $bb sh -c "echo 0 >$manager/cgroup.procs && exec /usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups $started" </dev/null >/dev/null 2>&1 &
  tries=0
  until [ -S /run/user/1000/bus ] || [ $tries = 300 ]; do $bb sleep 0.1; tries=$((tries + 1)); done
  mkdir -p $manager/app.slice/command
  chown 1000:1000 $manager/app.slice/command $manager/app.slice/command/cgroup.*
fi

case $RUN_AS in
  managed) own=$manager/app.slice/command ;;
  root) own=$system ;;
  delegated) own=$manager/init.scope ;;
  plain) own=$session ;;
esac
