# Ends the build when no archive has a package that is asked for ("$@"), before the minutes in which the minimal system
# is installed. Only names and versions are judged: what can be installed together is found out by the installation.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
# Archives of the recipe were added after apt has read its lists. Those that did not change are not fetched again.
apt-get update
said=$(apt-get --simulate --no-install-recommends install "$@" 2>&1) && exit 0
printf '%s\n' "$said" | grep -E '^E: (Unable to locate|Package .* has no installation candidate|.* was not found$)' || exit 0
exit 1
