"""A throw-away virtual machine with the kernel environment of users' machines: unified cgroup v2,
root or not, delegated or not.
"""
