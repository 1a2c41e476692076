//! Lists of archives in an image: those that everybody has, in the place of this host's own.
//!
//! A recipe that names no mirror gets its packages from where this host's apt gets its own: a cache of the office, a
//! company mirror, with its password in the address. Robots elsewhere cannot ask that, everybody who fetches an image
//! would read the password, and two hosts would make two images of one recipe.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::within::{inside, text};
use crate::recipe::Recipe;

/// List that the bootstrap tool writes, and the one that a recipe adds to it.
const LISTS: [&str; 2] = ["etc/apt/sources.list", "etc/apt/sources.list.d/recipe.list"];

/// The lists of archives that the builder put into a tree.
#[derive(Debug)]
pub struct ArchiveLists(Vec<(&'static str, String)>);

impl ArchiveLists {
    /// Reads the lists, before a file or a command of the recipe could change them.
    ///
    /// # Errors
    /// With the list that cannot be read.
    pub fn read(tree: &Path) -> Result<Self> {
        let lists = LISTS.into_iter().map(|path| Ok((path, text(tree, path)?))).collect::<Result<Vec<_>>>()?;
        Ok(Self(lists.into_iter().filter(|(_, list)| !list.is_empty()).collect()))
    }

    /// Takes logins out of the lists, and this host's archives where the recipe left the choice to it. A list that was
    /// changed since stays: the recipe meant it.
    ///
    /// # Errors
    /// With the list that cannot be written.
    pub fn forget_host(&self, tree: &Path, recipe: &Recipe) -> Result<()> {
        let distribution = &recipe.distribution;
        let is_of_host = recipe.source.is_none() && distribution.mirror.is_none() && distribution.snapshot.is_none();
        for (path, before) in &self.0 {
            let of_everybody = match *path == LISTS[0] && is_of_host {
                true => public(before, &text(tree, "usr/lib/os-release")?),
                false => before.clone(),
            };
            let list = without_logins(&of_everybody);
            if list != *before && text(tree, path)? == *before {
                let path = inside(tree, Path::new(path));
                fs::write(&path, list).with_context(|| format!("write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Replaces the addresses of a list by those of the distribution's own servers. Those of other distributions stay.
fn public(list: &str, os_release: &str) -> String {
    let id = os_release.lines().find_map(|line| line.strip_prefix("ID=")).unwrap_or_default().trim_matches('"');
    let (main, security) = match id {
        "debian" => ("http://deb.debian.org/debian", "http://security.debian.org/debian-security"),
        "ubuntu" => ("http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu"),
        _ => return list.to_owned(),
    };
    let line = |line: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        // Options in brackets may lie between.
        let Some(at) = words.iter().position(|word| word.contains(":/")).filter(|_| words[0] == "deb") else {
            return line.to_owned() + "\n";
        };
        let is_security = words.get(at + 1).is_some_and(|release| release.ends_with("-security"));
        words[at] = if is_security { security } else { main };
        words.join(" ") + "\n"
    };
    list.lines().map(line).collect()
}

/// Takes the user and the password out of every address of a list.
fn without_logins(list: &str) -> String {
    let word = |word: &str| {
        let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        format!("{scheme}://{}{path}", host.rsplit_once('@').map_or(host, |(_, host)| host))
    };
    list.lines().map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::{ArchiveLists, LISTS, without_logins};
    use crate::recipe::Recipe;
    use std::fs;

    const HOST: &str = "deb http://user:secret@mirror.corp.example/debian/ bookworm main\n\
                        deb [trusted=yes] http://10.0.0.1:3142/sec bookworm-security main contrib\n";
    const EXTRA: &str = "deb [signed-by=/usr/share/keyrings/ros.gpg] https://me:word@ros.example/a ros main\n";

    fn lists(distribution: &str, os: &str, edit: impl Fn(&std::path::Path)) -> [String; 2] {
        let tree = tempfile::tempdir().unwrap();
        for (path, content) in [(LISTS[0], HOST), (LISTS[1], EXTRA), ("usr/lib/os-release", os)] {
            fs::create_dir_all(tree.path().join(path).parent().unwrap()).unwrap();
            fs::write(tree.path().join(path), content).unwrap();
        }
        let recipe =
            format!("name='x'\nversion='1'\n[distribution]\nsuite='bookworm'\n{distribution}\n[ostree]\nbranch='b'\n");
        let lists = ArchiveLists::read(tree.path()).unwrap();
        edit(tree.path());
        lists.forget_host(tree.path(), &Recipe::parse(&recipe).unwrap()).unwrap();
        LISTS.map(|path| fs::read_to_string(tree.path().join(path)).unwrap())
    }

    /// The password of a company's mirror was published with every image.
    #[test]
    fn the_archives_of_this_host_do_not_get_into_an_image() {
        let extra = "deb [signed-by=/usr/share/keyrings/ros.gpg] https://ros.example/a ros main\n";
        let debian = "NAME=\"Debian\"\nID=debian\n";
        assert_eq!(
            lists("", debian, |_| ()),
            [
                "deb http://deb.debian.org/debian bookworm main\n\
                 deb [trusted=yes] http://security.debian.org/debian-security bookworm-security main contrib\n",
                extra
            ]
        );
        let own = "deb http://mirror.corp.example/debian/ bookworm main\n\
                   deb [trusted=yes] http://10.0.0.1:3142/sec bookworm-security main contrib\n";
        for (distribution, os) in [("mirror='http://m.example'", debian), ("", "ID=other\n")] {
            assert_eq!(lists(distribution, os, |_| ()), [own, extra]);
        }
        let list =
            |tree: &std::path::Path| fs::write(tree.join(LISTS[0]), "deb http://me:b@c.example d main\n").unwrap();
        assert_eq!(lists("", debian, list)[0], "deb http://me:b@c.example d main\n", "the recipe's own");
    }

    #[test]
    fn addresses_without_a_login_stay_as_they_are() {
        for line in ["deb http://a.example/x@y b main\n", "deb file:///srv/debian b main\n", "# of me@example\n", ""] {
            assert_eq!(without_logins(line), line);
        }
    }
}
