# Records of what day the packages of a tree are: $1 is the tree, $2 the directory that gets the record.
cp "$1"/var/lib/apt/lists/*Release* "$2/lists/"
# The lists have the time of the archive. What is newer was made by the installation.
newest=$(ls -t "$1"/var/lib/apt/lists/*Release | head -n 1)
find "$1/usr" -xdev -type f ! -newer "$newest" -printf '%Ts /usr/%P\n' | sort -rn | head -n 200 > "$2/newest-files"
while read -r seconds path; do
    # A package may name its files as they were before /bin and /lib became links into /usr.
    list=$(grep -lxF -e "$path" -e "${path#/usr}" "$1"/var/lib/dpkg/info/*.list | head -n 1)
    [ -n "$list" ] || continue
    name=$(basename "$list" .list)
    version=$(dpkg-query --admindir="$1/var/lib/dpkg" --show --showformat='${Version}' "$name") || continue
    echo "$seconds ${name%%:*} $version" > "$2/newest"
    break
done < "$2/newest-files"
rm "$2/newest-files"
