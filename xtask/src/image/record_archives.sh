# Records of what day the packages of a tree are: $1 is the tree, $2 the directory that gets the record.
cp "$1"/var/lib/apt/lists/*Release* "$2/lists/"
newest=$(ls -t "$2"/lists/*Release | head -n 1)
# cp gives the copies the time of now; the lists themselves have the time of the archive.
newest="$1/var/lib/apt/lists/${newest##*/}"
find "$1/usr" -xdev -type f ! -newer "$newest" -printf '%Ts /usr/%P\n' | sort -n | tail -n 1 > "$2/newest-file"
read -r seconds path < "$2/newest-file" || exit 0
# A package may name its files as they were before /bin and /lib became links into /usr.
list=$(grep -lxF -e "$path" -e "${path#/usr}" "$1"/var/lib/dpkg/info/*.list | head -n 1) || exit 0
[ -n "$list" ] || exit 0
name=$(basename "$list" .list)
version=$(dpkg-query --admindir="$1/var/lib/dpkg" --show --showformat='${Version}' "$name") || exit 0
echo "$seconds ${name%%:*} $version" > "$2/newest"
