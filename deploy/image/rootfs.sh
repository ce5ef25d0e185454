#!/bin/sh
# rootfs.sh FOLDER: the image's root, made of what the build stage has: the files of a few Debian packages, and dsobs.
# Scanners find the packages where they look for them in images without a package manager: var/lib/dpkg/status.d.
set -eu
root=$1
packages='base-files ca-certificates dash libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 liblzma5
  libpython3-stdlib libpython3.11-minimal libpython3.11-stdlib libsqlite3-0 libssl3 libstdc++6 libuuid1 python3-minimal
  python3.11-minimal tzdata zlib1g'

mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64" "$root/etc" "$root/proc" "$root/sys" \
  "$root/dev" "$root/tmp" "$root/run" "$root/var/lib/dpkg/status.d" "$root/opt"
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done
chmod 1777 "$root/tmp"

for package in $packages; do
  dpkg -s "$package" > "$root/var/lib/dpkg/status.d/$package"
  dpkg -L "$package"
done | sort -u | while read -r file; do
  case $file in
    /usr/share/doc/*/copyright) ;;
    /usr/share/doc/* | /usr/share/man/* | /usr/share/locale/* | /usr/share/lintian/* | /usr/share/bug/*) continue ;;
    */ensurepip/* | */lib2to3/* | */idlelib/* | */pydoc_data/* | */tkinter/* | */turtledemo/* | */distutils/*) continue ;;
  esac
  [ -d "$file" ] || printf '%s\n' "$file"
done > /tmp/files
tar --create --no-recursion --files-from /tmp/files --file - 2> /tmp/said | tar --extract --keep-directory-symlink --directory "$root" --file -
grep -v 'Removing leading' /tmp/said >&2 || true

# To a pod the simulator is an engine: its probes ask for the time, and its preStop hook sleeps.
cp /usr/bin/date /usr/bin/sleep "$root/usr/bin/"

# What packages make when they are installed, or link at.
ln -sf dash "$root/usr/bin/sh"
mkdir -p "$root/etc/ssl/certs"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
rm -rf "$root/usr/share/ca-certificates" "$root/usr/share/zoneinfo/right"
find /usr/lib/python3.11 /usr/lib/python3 -name '*.pyc' -delete
python3 -m compileall -q -d /usr/lib/python3.11 -s "$root" "$root/usr/lib/python3.11" > /dev/null || true
printf 'root:x:0:0::/root:/usr/sbin/nologin\ndsobs:x:65532:65532::/var/lib/dsobs:/usr/sbin/nologin\n' > "$root/etc/passwd"
printf 'root:x:0:\ndsobs:x:65532:\n' > "$root/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' > "$root/etc/nsswitch.conf"

cp -a /opt/dsobs "$root/opt/dsobs"
cp deploy/image/start.sh "$root/opt/dsobs/start.sh"
install -d -o 65532 -g 65532 "$root/var/lib/dsobs"
ldconfig -r "$root"
