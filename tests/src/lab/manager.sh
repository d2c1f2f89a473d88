# Runs systemd as the first process of its own namespaces, with the files of a directory only.
# $1: the directory, with `allowlist` and `units`. SELF: this script. PROGRAM: the path of systemd.

if [ $$ != 1 ]; then
    # A control group below the one of this process, in which systemd creates its own.
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    own=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
    group=$own/allowlist-test-$$
    mkdir "$group"
    echo $$ >"$group/cgroup.procs"
    setpriv --pdeathsig KILL unshare --kill-child --fork \
        --cgroup --ipc --mount --pid --uts sh -euc "$SELF" manager "$1" &
    child=$!
    echo $$ >"$own/cgroup.procs"
    trap 'kill -KILL $child 2>/dev/null || true' TERM
    echo "manager $child"
    while kill -0 $child 2>/dev/null; do wait $child || true; done
    # The killed processes disappear from the control group a little later.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && exit
        sleep 0.1
    done
    exit 1
fi

mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs tmpfs /usr/local
mkdir -p /usr/local/sbin /usr/local/etc
cp "$1/allowlist" /usr/local/sbin/
cp -r "$1/units" /usr/local/units
# The sysfs of this network namespace.
mount -t sysfs sysfs /sys
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for folder in /run /tmp /var/lib /var/tmp; do
    mount -t tmpfs tmpfs $folder
done
mkdir /run/none
# Keeps systemd from writing to the file systems of the machine.
mount -o remount,bind,ro /
export container=other SYSTEMD_UNIT_PATH=/usr/local/units
export SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none
exec "$PROGRAM" --system --log-target=console --show-status=no
