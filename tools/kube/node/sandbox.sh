# Makes the file system of a pod and stays as its pid 1.
# usage: DIR HOSTNAME [SOURCE MOUNT-POINT]...
# The layer is a tmpfs: an overlay (such as a container's root) cannot take another one's writes.
dir=$1 hostname=$2 root=$1/layer/root
shift 2
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir/layer"
overlay() { # of the host's path $1
	mkdir -p "$dir/layer/changes$1" "$dir/layer/work$1" "$root$1"
	mount -t overlay -o "lowerdir=$1,upperdir=$dir/layer/changes$1,workdir=$dir/layer/work$1" overlay "$root$1"
}
if ! overlay / 2>/dev/null; then
	# A user namespace may not copy a directory that has mounts in it, as / has: take those below one by one.
	for path in /*; do
		case $path in
		/proc | /dev | /tmp | /sys) mkdir "$root$path" ;;
		*)
			if [ -L "$path" ]; then
				cp -P "$path" "$root$path"
			elif [ -d "$path" ]; then
				overlay "$path" 2>/dev/null || mount --rbind "$path" "$root$path"
			fi
			;;
		esac
	done
fi
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [ $# -gt 0 ]; do
	mkdir -p "$root$2"
	mount --bind "$1" "$root$2"
	shift 2
done
hostname "$hostname"
exec chroot "$root" sh -c 'cd / && echo ready && exec sleep infinity >/dev/null 2>&1'
