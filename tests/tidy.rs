//! Rules about the source itself that no lint knows.
//!
//! The layers are those of the table at the head of `src/lib.rs`, which is read here: there is no second copy.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// Lines of a file without its tests. A file beyond holds two subjects.
const MAX_LINES: usize = 420;
/// Columns of a comment line, as of a line of code (rustfmt.toml).
const MAX_COLUMNS: usize = 120;
/// Stand below all rooms.
const LEAVES: [&str; 4] = ["order", "mac", "chain", "utc"];

/// The checkout this test runs in: asked at run time, because a built test may be moved with its checkout.
fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
}

fn sources(below: &str) -> Vec<Source> {
    let below = root().join(below);
    let entries = walkdir::WalkDir::new(&below).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path());
    let paths = entries.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    paths.map(|path| Source::read(&below, path)).collect()
}

/// One file of a crate.
struct Source {
    path: PathBuf,
    /// Where its module is in the crate: `["flash", "plan"]` for `src/flash/plan.rs`, nothing for the crate's root.
    module: Vec<String>,
    text: String,
    syntax: syn::File,
}

impl Source {
    fn read(below: &Path, path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let relative = path.strip_prefix(below).unwrap().with_extension("");
        let mut module: Vec<String> =
            relative.components().map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("lib" | "main" | "mod")) {
            module.pop();
        }
        Self { path, module, text, syntax }
    }

    fn room(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    /// Whether the comment at its head says so. The table of rooms names those that are worth reading first.
    fn says_that_it_is_pure(&self) -> bool {
        let head = self.text.lines().take_while(|line| line.starts_with("//!"));
        head.flat_map(str::split_whitespace).any(|word| word == "Pure." || word == "Pure:")
    }

    /// The text up to the tests, without comments.
    fn code(&self) -> String {
        let text = self.text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    }

    /// Every path of this crate that the code names, tests left out: `["flash", "plan", "Plan"]`.
    fn paths(&self) -> BTreeSet<Vec<String>> {
        Paths::of(self.module.clone(), &self.syntax)
    }
}

/// Collects the paths that begin with `crate`, `self` or `super`, in imports of every form and in code.
struct Paths {
    module: Vec<String>,
    /// Modules that this file declares: a path may begin with one of them.
    children: BTreeSet<String>,
    found: BTreeSet<Vec<String>>,
}

impl Paths {
    fn of(module: Vec<String>, syntax: &syn::File) -> BTreeSet<Vec<String>> {
        let children = syntax.items.iter().filter_map(|item| match item {
            syn::Item::Mod(child) if child.content.is_none() && !is_for_tests(&child.attrs) => {
                Some(child.ident.to_string())
            }
            _ => None,
        });
        let mut finder = Self { module, children: children.collect(), found: BTreeSet::new() };
        finder.visit_file(syntax);
        finder.found
    }

    /// The path from the root of the crate, for one that says where it begins.
    fn resolve(&self, path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let mut base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().checked_sub(1)?].to_vec(),
            child if self.children.contains(child) => [&self.module[..], &[child.to_owned()]].concat(),
            _ => return None,
        };
        let mut rest = rest;
        while let Some((up, after)) = rest.split_first().filter(|(name, _)| *name == "super") {
            debug_assert_eq!(up, "super");
            base.pop();
            rest = after;
        }
        base.extend_from_slice(rest);
        Some(base)
    }

    fn add_use(&mut self, tree: &syn::UseTree, before: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_use(&path.tree, before);
                before.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.add_use(item, before)),
            syn::UseTree::Name(name) => self.add_leaf(&name.ident, before),
            syn::UseTree::Rename(rename) => self.add_leaf(&rename.ident, before),
            syn::UseTree::Glob(_) => self.found.extend(self.resolve(before)),
        }
    }

    fn begins_with_child(&self, tree: &syn::UseTree) -> bool {
        matches!(tree, syn::UseTree::Path(path) if self.children.contains(&path.ident.to_string()))
    }

    fn add_leaf(&mut self, name: &syn::Ident, before: &[String]) {
        let mut path = before.to_vec();
        if name != "self" || path.is_empty() {
            path.push(name.to_string());
        }
        self.found.extend(self.resolve(&path));
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|what| what == "test")
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            self.module.push(module.ident.to_string());
            syn::visit::visit_item_mod(self, module);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // What is only passed on makes no use of it.
        if !matches!(item.vis, syn::Visibility::Public(_)) || !self.begins_with_child(&item.tree) {
            self.add_use(&item.tree, &mut Vec::new());
        }
    }

    /// `pub(super)` says who may use an item, not what it uses.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.found.extend(self.resolve(&names));
        syn::visit::visit_path(self, path);
    }
}

/// One row of the table in `src/lib.rs`.
struct Room {
    layer: String,
    name: String,
    /// Modules that do no I/O, as paths inside the room; `all` is one entry, empty.
    pure: Vec<Vec<String>>,
}

/// The rooms from the entry down to the system calls.
fn rooms() -> Vec<Room> {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! |")?.strip_suffix('|'));
    let cells = rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>());
    let rooms = cells.filter_map(|cells| match &cells[..] {
        [layer, name, _, pure] if name.starts_with('[') => Some(Room {
            layer: layer.clone(),
            name: name.trim_matches(['[', ']', '`']).to_owned(),
            pure: match pure.as_str() {
                "" => Vec::new(),
                "all" => vec![Vec::new()],
                listed => listed
                    .split(", ")
                    .map(|module| module.trim_matches('`').split("::").map(str::to_owned).collect())
                    .collect(),
            },
        }),
        _ => None,
    });
    rooms.collect()
}

#[test]
fn the_table_of_rooms_is_the_crate() {
    let rooms = rooms();
    let mut listed: Vec<&str> = rooms.iter().map(|room| room.name.as_str()).chain(LEAVES).collect();
    let lib = Source::read(&root().join("src"), root().join("src/lib.rs"));
    let mut declared: Vec<String> = lib
        .syntax
        .items
        .iter()
        .filter_map(|item| if let syn::Item::Mod(module) = item { Some(module.ident.to_string()) } else { None })
        .collect();
    listed.sort_unstable();
    declared.sort_unstable();
    assert_eq!(listed, declared);
    let mut layers: Vec<&str> = rooms.iter().map(|room| room.layer.as_str()).collect();
    layers.dedup();
    assert_eq!(layers.len(), layers.iter().collect::<BTreeSet<_>>().len(), "a layer stands in two places: {layers:?}");
}

#[test]
fn no_room_uses_one_above_it() {
    let order: Vec<String> = rooms().into_iter().map(|room| room.name).chain(LEAVES.map(str::to_owned)).collect();
    let rank = |room: &str| order.iter().position(|name| name == room);
    let mut wrong = Vec::new();
    for source in sources("src") {
        let Some(own) = source.room() else { continue };
        let own_rank = rank(own).unwrap_or_else(|| panic!("{own} is in no row of the table"));
        for path in source.paths() {
            // What is no room is something else that the crate's root has, such as a macro.
            if path.first().and_then(|room| rank(room)).is_some_and(|used| used < own_rank) {
                wrong.push(format!("{} uses {}", source.path.display(), path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "against the layers:\n{}", wrong.join("\n"));
}

/// Files that use each other, directly or through others, cannot be understood one at a time. A parent that only passes
/// on what its children have does not use them.
fn circles(crate_sources: &str) -> Vec<Vec<String>> {
    let sources = sources(crate_sources);
    let modules: BTreeSet<Vec<String>> = sources.iter().map(|source| source.module.clone()).collect();
    let file_of =
        |path: &[String]| (0..=path.len()).rev().map(|len| path[..len].to_vec()).find(|it| modules.contains(it));
    let mut graph: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for source in &sources {
        let used = source.paths().iter().filter_map(|path| file_of(path)).filter(|it| *it != source.module).collect();
        graph.insert(source.module.clone(), used);
    }
    strongly_connected(&graph)
        .into_iter()
        .map(|circle| circle.into_iter().map(|module| module.join("::")).collect())
        .collect()
}

/// Groups of more than one node that all reach each other.
fn strongly_connected(graph: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Vec<Vec<Vec<String>>> {
    let reach = |from: &Vec<String>| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&Vec<String>> = graph[from].iter().collect();
        while let Some(node) = next.pop() {
            if seen.insert(node.clone()) {
                next.extend(graph.get(node).into_iter().flatten());
            }
        }
        seen
    };
    let reachable: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> =
        graph.keys().map(|node| (node, reach(node))).collect();
    let mut groups = BTreeSet::new();
    for (node, reached) in &reachable {
        let group: Vec<Vec<String>> =
            reached.iter().filter(|other| reachable[other].contains(*node)).cloned().collect();
        if group.len() > 1 {
            groups.insert(group);
        }
    }
    groups.into_iter().collect()
}

#[test]
fn no_files_use_each_other() {
    let circles: Vec<String> = ["src", "xtask/src", "xtask/release/src"]
        .into_iter()
        .flat_map(|sources| circles(sources).into_iter().map(move |circle| format!("{sources}: {}", circle.join(", "))))
        .collect();
    assert!(circles.is_empty(), "circles of files:\n{}", circles.join("\n"));
}

#[test]
fn pure_modules_do_no_io() {
    let (rooms, mut impure) = (rooms(), Vec::new());
    for source in sources("src") {
        let Some((room, inside)) = source.module.split_first() else { continue };
        let Some(row) = rooms.iter().find(|row| row.name == *room) else { continue };
        let is_of_the_table = row.pure.iter().any(|pure| inside.starts_with(pure));
        if !is_of_the_table && !source.says_that_it_is_pure() {
            continue;
        }
        let code = source.code();
        for io in ["std::fs", "std::process", "std::net::Tcp", "Instant::now", "SystemTime::now", "std::env"] {
            if code.contains(io) {
                impure.push(format!("{} uses {io}", source.path.display()));
            }
        }
        // Others may name what `sys` describes a card or a process by.
        if is_of_the_table && source.paths().iter().any(|path| path.first().is_some_and(|room| room == "sys")) {
            impure.push(format!("{} uses system calls", source.path.display()));
        }
    }
    assert!(impure.is_empty(), "pure modules that are not:\n{}", impure.join("\n"));
    for row in &rooms {
        for pure in row.pure.iter().filter(|pure| !pure.is_empty()) {
            let file = root().join("src").join(&row.name).join(pure.join("/")).with_extension("rs");
            assert!(file.is_file(), "the table names {}, which does not exist", file.display());
        }
    }
}

/// Whether `code` has `word`, and not only as the end of another, as `unix::` ends in `nix::`.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

#[test]
fn system_calls_and_unsafe_live_in_sys() {
    for source in sources("src") {
        if source.room() == Some("sys") {
            continue;
        }
        for only_there in ["unsafe {", "unsafe fn", "nix::", "rustix::", "libc::", "netlink_sys::"] {
            assert!(!has_word(&source.code(), only_there), "{} uses {only_there}", source.path.display());
        }
    }
    for source in sources("xtask/src") {
        assert!(!source.code().contains("reflash::sys"), "{} uses reflash::sys", source.path.display());
    }
}

#[test]
fn files_are_of_readable_size() {
    for source in ["src", "xtask/src", "xtask/release/src"].into_iter().flat_map(sources) {
        let lines = source.text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines without tests", source.path.display());
    }
}

#[test]
fn comments_and_documents_are_no_wider_than_code() {
    let mut wide = Vec::new();
    for source in ["src", "xtask/src", "xtask/release/src", "tests"].into_iter().flat_map(sources) {
        for (number, line) in (1..).zip(source.text.lines()) {
            // A row of a table cannot be wrapped.
            let comment = line.trim_start().starts_with("//") && !line.trim_start().starts_with("//! |");
            if comment && !line.contains("https://") && line.chars().count() > MAX_COLUMNS {
                wide.push(format!("{}:{number}", source.path.display()));
            }
        }
    }
    for document in documents() {
        for (number, line) in (1..).zip(std::fs::read_to_string(&document).unwrap().lines()) {
            // Tables, code and addresses cannot be wrapped.
            let free = line.starts_with('|') || line.starts_with("    ") || line.contains("://");
            if !free && line.chars().count() > MAX_COLUMNS {
                wide.push(format!("{}:{number}", document.display()));
            }
        }
    }
    assert!(wide.is_empty(), "wider than {MAX_COLUMNS} columns:\n{}", wide.join("\n"));
}

/// The texts that people write. `docs/configuration.md` is generated.
fn documents() -> Vec<PathBuf> {
    let output = std::process::Command::new("git").args(["ls-files", "*.md"]).current_dir(root()).output().unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    files.lines().filter(|file| !file.ends_with("configuration.md")).map(|file| root().join(file)).collect()
}

/// Openings that only make sense to somebody who reads the item above, and nouns without a statement.
const CONTINUES: &[&str] = &[
    "The same", "Its ", "His ", "Their ", "Those ", "That ", "This is", "It ", "They ", "Both", "As ", "Also ",
    "Then ", "Why", "Which", "What", "Who", "Where", "When", "How", "Like ", "Likewise", "Another ", "Other ",
    "Others", "Same ", "One of", "None ", "Neither", "Nor ", "So ", "But ", "And ", "Or ",
];

/// The rule for a first line: it names its subject, is three words at least, and ends as a sentence does.
fn fault_of(first: &str) -> Option<&'static str> {
    let Some(start) = first.chars().next() else { return Some("is empty") };
    if !(start.is_uppercase() || start.is_numeric() || "`[\"".contains(start)) {
        return Some("does not begin like a sentence");
    }
    if !first.ends_with(['.', ':', '?', '!']) {
        return Some("does not end like a sentence");
    }
    if first.split_whitespace().count() < 3 {
        return Some("has fewer than three words");
    }
    CONTINUES.iter().any(|opening| first.starts_with(opening)).then_some("does not name its subject")
}

/// Collects what is wrong with the documentation of public items.
struct Documented<'a> {
    path: &'a Path,
    wrong: Vec<String>,
}

impl Documented<'_> {
    fn check(&mut self, what: &str, attributes: &[syn::Attribute]) {
        let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
            syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        });
        let paragraph: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let paragraph = paragraph.join(" ");
        // The first sentence is what a list of items shows.
        let end = paragraph.find(". ").map_or(paragraph.len(), |end| end + 1);
        // `missing_docs` is for what has none.
        if let Some(fault) = fault_of(&paragraph[..end]).filter(|_| !paragraph.is_empty()) {
            self.wrong.push(format!("{}: {what}: {:?} {fault}", self.path.display(), &paragraph[..end]));
        }
    }

    fn check_fields(&mut self, what: &str, fields: &syn::Fields, all: bool) {
        for field in fields {
            if all || matches!(field.vis, syn::Visibility::Public(_)) {
                let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
                self.check(&format!("{what}.{name}"), &field.attrs);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Documented<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (visible, attributes, name) = match item {
            syn::Item::Struct(it) => (&it.vis, &it.attrs, it.ident.to_string()),
            syn::Item::Enum(it) => (&it.vis, &it.attrs, it.ident.to_string()),
            syn::Item::Fn(it) => (&it.vis, &it.attrs, it.sig.ident.to_string()),
            syn::Item::Const(it) => (&it.vis, &it.attrs, it.ident.to_string()),
            syn::Item::Static(it) => (&it.vis, &it.attrs, it.ident.to_string()),
            syn::Item::Trait(it) => (&it.vis, &it.attrs, it.ident.to_string()),
            syn::Item::Type(it) => (&it.vis, &it.attrs, it.ident.to_string()),
            syn::Item::Mod(it) if is_for_tests(&it.attrs) => return,
            _ => return syn::visit::visit_item(self, item),
        };
        if matches!(visible, syn::Visibility::Public(_)) {
            self.check(&name, attributes);
            match item {
                syn::Item::Struct(it) => self.check_fields(&name, &it.fields, false),
                syn::Item::Enum(it) => {
                    for variant in &it.variants {
                        self.check(&format!("{name}::{}", variant.ident), &variant.attrs);
                        self.check_fields(&format!("{name}::{}", variant.ident), &variant.fields, true);
                    }
                }
                syn::Item::Trait(it) => {
                    for method in it.items.iter().filter_map(|item| match item {
                        syn::TraitItem::Fn(method) => Some(method),
                        _ => None,
                    }) {
                        self.check(&format!("{name}::{}", method.sig.ident), &method.attrs);
                    }
                }
                _ => {}
            }
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, method: &'ast syn::ImplItemFn) {
        if matches!(method.vis, syn::Visibility::Public(_)) {
            self.check(&method.sig.ident.to_string(), &method.attrs);
        }
    }
}

/// Names that types of several modules may share: each is only ever read beside the name of its module, or of its
/// trait.
const SHARED_NAMES: &[&str] = &["Err", "Error", "Out"];

#[test]
fn no_public_type_name_means_two_things() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in ["src", "xtask/src", "xtask/release/src", "tests/support/src"].into_iter().flat_map(sources) {
        for item in &source.syntax.items {
            let (visible, name) = match item {
                syn::Item::Struct(it) => (&it.vis, &it.ident),
                syn::Item::Enum(it) => (&it.vis, &it.ident),
                syn::Item::Trait(it) => (&it.vis, &it.ident),
                syn::Item::Type(it) => (&it.vis, &it.ident),
                _ => continue,
            };
            if !matches!(visible, syn::Visibility::Inherited) && !SHARED_NAMES.contains(&name.to_string().as_str()) {
                places.entry(name.to_string()).or_default().push(source.path.display().to_string());
            }
        }
    }
    let twice: Vec<String> = places
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert!(twice.is_empty(), "{}", twice.join("\n"));
}

#[test]
fn the_first_line_of_a_public_item_stands_alone() {
    let mut wrong = Vec::new();
    for source in ["src", "xtask/src", "xtask/release/src"].into_iter().flat_map(sources) {
        let mut documented = Documented { path: &source.path, wrong: Vec::new() };
        documented.visit_file(&source.syntax);
        wrong.append(&mut documented.wrong);
    }
    assert!(wrong.is_empty(), "{} items:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_rule_for_first_lines_knows_good_from_bad() {
    for good in [
        "Size of the image, bytes.",
        "Returns the digest of `content`.",
        "Whether the disk can be taken out.",
        "[`Index`] of one image, decoded.",
        "`grub-editenv` writes this header.",
    ] {
        assert_eq!(fault_of(good), None, "{good}");
    }
    for bad in [
        "Size.",
        "The same for a file.",
        "Its length in bytes.",
        "Why.",
        "What is wrong with it.",
        "no capital letter.",
        "No end",
    ] {
        assert!(fault_of(bad).is_some(), "{bad}");
    }
}

#[test]
fn imports_of_every_form_are_seen() {
    let text = "
        use crate::{flash::{plan::{self, Plan}, write as w}, boot};
        use super::super::disk;
        pub(crate) use self::child::*;
        fn f() -> crate::sys::block::Device { super::g::<crate::net::Stop>() }
        mod inner { use super::sibling; }
        mod file;
        use file::{Inside, deep::Deeper};
        pub use file::PassedOn;
        #[cfg(test)] mod tests { use crate::cli; }
    ";
    let module = ["jobs".to_owned(), "recovery".to_owned()];
    let found = Paths::of(module.to_vec(), &syn::parse_file(text).unwrap());
    let found: Vec<String> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        [
            "boot",
            "disk",
            "flash::plan",
            "flash::plan::Plan",
            "flash::write",
            "jobs::g",
            "jobs::recovery::child",
            "jobs::recovery::file::Inside",
            "jobs::recovery::file::deep::Deeper",
            "jobs::recovery::sibling",
            "net::Stop",
            "sys::block::Device",
        ]
    );
}

#[test]
fn the_top_level_holds_what_it_should() {
    let output = std::process::Command::new("git").arg("ls-files").current_dir(root()).output().unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "clippy.toml",
        "deny.toml",
        "rustfmt.toml",
        "src",
        "initramfs",
        "grub",
        "xtask",
        "tests",
        "docs",
    ];
    for file in files.lines() {
        let first = file.split('/').next().unwrap_or_default();
        assert!(first.starts_with('.') || allowed.contains(&first), "{file}");
    }
}
