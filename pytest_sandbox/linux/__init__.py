"""Interfaces of the Linux kernel, a module for each: system calls, mounts, cgroups, seccomp, ..."""
