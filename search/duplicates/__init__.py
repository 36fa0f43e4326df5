"""When two programs are one."""
