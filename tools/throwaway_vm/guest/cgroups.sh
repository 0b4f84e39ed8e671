# Unified cgroup v2, laid out as systemd does it. Sets $own: the group that the command runs in.
top=/sys/fs/cgroup
system=$top/system.slice/vm.service
manager=$top/user.slice/user-1000.slice/user@1000.service
session=$top/user.slice/user-1000.slice/session-1.scope
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 $top
mkdir -p $system $manager/init.scope $session

for folder in $top $top/system.slice $top/user.slice $top/user.slice/user-1000.slice $manager; do
  for controller in $(cat $folder/cgroup.controllers); do
    echo "+$controller" >$folder/cgroup.subtree_control
  done
done

# What systemd gives to a user manager with Delegate=yes: the folders, and the files that move processes and hand controllers on.
for folder in $manager $manager/init.scope; do
  chown 1000:1000 $folder $folder/cgroup.procs $folder/cgroup.threads $folder/cgroup.subtree_control
done

case $RUN_AS in
  root) own=$system ;;
  delegated) own=$manager/init.scope ;;
  plain) own=$session ;;
esac
