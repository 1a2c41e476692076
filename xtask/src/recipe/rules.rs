//! Section `[[rules]]` of a recipe: what a release renews and removes of the directories that belong to the machine.

use std::path::{Component, Path};

use anyhow::{Context, Result, ensure};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use reflash::release::shipped::ShippedRule;
use serde::{Deserialize, Serialize};

/// Directories of the machine that rules are about; the build follows the links among them to `/var`.
const OF_THE_MACHINE: &[&str] = &["/var/", "/etc/", "/home/", "/root/", "/srv/", "/mnt/"];
/// Directories without which no system works, and what is the machine's alone.
const NEVER: &[&str] = &["/var/lib", "/var/log", "/var/cache", "/var/home", "/var/roothome", "/var/lib/reflash"];
/// Files that make a machine itself.
const IDENTITY: &[&str] = &["/etc/machine-id", "/etc/hostname"];

/// Section `[[rules]]` of a recipe: one rule and the paths that it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// Absolute paths of files and directories. `*` matches any text without a slash, `**` whole directories. A
    /// directory stands for all that is in it.
    pub paths: Vec<String>,
    /// Name of the rule. Of several that match a path, the last one in the recipe counts.
    pub rule: ShippedRule,
}

impl PathRule {
    /// Checks what can be checked without an image.
    ///
    /// # Errors
    /// Names the path and what is wrong with it.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.paths.is_empty(), "rules: a rule {:?} has no paths", self.name());
        self.paths.iter().try_for_each(|path| self.check_path(path))
    }

    fn check_path(&self, path: &str) -> Result<()> {
        // "/var//lib" is the same directory by another name.
        let is_doubled = path.contains("//") || path.contains("/./") || path.ends_with("/.");
        ensure!(!is_doubled, "rules: path {path} names a directory in two ways; leave '//' and '/.' out");
        let plain = Path::new(path).components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        ensure!(path.starts_with('/') && plain, "rules: path {path} is not an absolute path without '..'");
        ensure!(
            OF_THE_MACHINE.iter().any(|top| path.starts_with(top) && path.len() > top.len()),
            "rules: {path} does not lie in a directory of the machine ({}); everything else is the image's own",
            OF_THE_MACHINE.join(", ")
        );
        self.globs(path)?;
        let name = self.name();
        let end = path.trim_end_matches('/');
        if self.rule == ShippedRule::Remove {
            ensure!(!path.contains(['*', '?', '[', '{']), "rules: {path}: a path to remove has no pattern in it");
            ensure!(!NEVER.contains(&end), "rules: {path} cannot be removed: the system needs it");
        }
        ensure!(!path.starts_with("/var/lib/reflash/"), "rules: {path} is what the machine's own record needs");
        if path.starts_with("/etc/") {
            ensure!(
                self.rule.is_of_the_release() || self.rule == ShippedRule::Remove,
                "rules: {path}: in /etc a file of the image is seen until the machine has its own, so there is no rule \
                 {name:?}; version, always and remove take the machine's own away"
            );
            ensure!(!IDENTITY.contains(&end), "rules: {path} is each machine's own");
        }
        Ok(())
    }

    /// Name of the rule, as the recipe has it.
    #[must_use]
    pub fn name(&self) -> String {
        serde_json::to_string(&self.rule).unwrap_or_default().trim_matches('"').to_owned()
    }

    /// The patterns of a path: itself, and all that is below it.
    fn globs(&self, path: &str) -> Result<[Glob; 2]> {
        let path = path.trim_end_matches('/');
        let glob = |text: &str| {
            let built = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
            built.with_context(|| format!("rules: {text} is no pattern"))
        };
        Ok([glob(path)?, glob(&format!("{path}/**"))?])
    }

    /// The matcher of one of its paths, which may have been followed to where it leads.
    ///
    /// # Errors
    /// The path is no pattern.
    pub fn matcher(&self, path: &str) -> Result<GlobSet> {
        let mut builder = GlobSetBuilder::new();
        for glob in self.globs(path)? {
            builder.add(glob);
        }
        builder.build().with_context(|| format!("rules: {path} is no pattern"))
    }
}

#[cfg(test)]
mod tests {
    use super::PathRule;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn rule(path: &str, rule: &str) -> PathRule {
        toml::from_str(&format!("paths = ['{path}']\nrule = '{rule}'")).unwrap()
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_refused_with_its_path() {
        for (path, name, why) in [
            ("/opt/x", "version", "image's own"),
            ("/usr/share/x", "remove", "image's own"),
            ("/var", "version", "image's own"),
            ("/var/", "once", "image's own"),
            ("var/x", "once", "absolute"),
            ("/var/../usr", "once", "'..'"),
            ("/var/lib", "remove", "needs it"),
            ("/var/lib/", "remove", "needs it"),
            ("/var//lib/reflash", "remove", "leave '//'"),
            ("/var/./lib", "remove", "leave '//'"),
            ("/var/lib/.", "remove", "leave '//'"),
            ("/var/lib/reflash/x", "always", "record"),
            ("/var/lib/*", "remove", "pattern"),
            ("/var/lib/[", "version", "no pattern"),
            ("/etc/x", "once", "version, always and remove"),
            ("/etc/x", "default", "version, always and remove"),
            ("/etc/machine-id", "always", "each machine's own"),
        ] {
            let error = format!("{:#}", rule(path, name).check().unwrap_err());
            assert!(error.contains(why) && error.contains(path), "{path} {name}: {error}");
        }
        for (path, name) in
            [("/var/www", "version"), ("/home/pilot/.ssh", "version"), ("/etc/x", "remove"), ("/var/lib/x", "remove")]
        {
            rule(path, name).check().unwrap();
        }
        assert!(PathRule { paths: Vec::new(), ..rule("/var/x", "once") }.check().is_err());
    }

    #[test]
    fn a_path_stands_for_all_that_is_in_it() {
        let matcher = rule("/var/www/*.d", "version").matcher("/var/www/*.d").unwrap();
        for (path, expected) in [
            (&b"/var/www/a.d"[..], true),
            (b"/var/www/a.d/b/c", true),
            (b"/var/www/\xff.d/\xe4", true),
            (b"/var/www/a/b.d", false),
            (b"/var/www", false),
            (b"/var/www2/a.d", false),
        ] {
            assert_eq!(matcher.is_match(OsStr::from_bytes(path)), expected, "{}", String::from_utf8_lossy(path));
        }
    }
}
