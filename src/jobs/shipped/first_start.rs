//! Carries out a list: plans every path, keeps aside what is to go, makes everything new, and only then moves it all
//! into place.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::aside::{Aside, PathBefore};
use super::ground::{Above, Ground, is_there};
use super::make::{dress, is_dressed, is_made, make};
use super::outcome::ShippedOutcome;
use super::plan::{KnownPath, Occasion, PathDecision, PathInQuestion, decide};
use super::record::ShippedRecord;
use super::room::FreeRoom;
use crate::release::shipped::{NodeType, RawPath, ShippedEntry, ShippedNode, ShippedRule};
use crate::sys::special;

/// Bytes of new content that are flushed and moved into place together.
const BATCH_BYTES: u64 = 64 << 20;
/// Paths that are moved into place together.
const BATCH_PATHS: usize = 2000;

/// Change of one path.
struct Change {
    path: RawPath,
    at: PathBuf,
    /// Knowledge of the path once the change is made.
    known: KnownPath,
    kind: ChangeKind,
}

enum ChangeKind {
    /// Puts a file where there is nothing.
    Make(Box<ShippedNode>),
    /// Puts a file in the place of another one.
    Renew(Box<ShippedNode>),
    /// Gives a directory, whose content stays, the release's owner, permissions and attributes.
    Dress(Box<ShippedNode>),
    /// Takes away what is there.
    TakeAway,
    /// Removes a directory, if it is empty.
    RemoveEmpty,
}

impl Change {
    fn content_bytes(&self) -> u64 {
        match &self.kind {
            ChangeKind::Make(node) | ChangeKind::Renew(node) => node.data.iter().map(|[_, length]| length).sum(),
            ChangeKind::Dress(_) | ChangeKind::TakeAway | ChangeKind::RemoveEmpty => 0,
        }
    }
}

/// A change, and the new file that was made for it beside its place.
type StagedChange = (Change, Option<PathBuf>);

/// Makes a change of what a path is to be.
type WayToRenew = fn(Box<ShippedNode>) -> ChangeKind;

/// A list that is being carried out.
pub(super) struct FirstStart<'a, 'g> {
    ground: &'a Ground<'g>,
    occasion: Occasion,
    image: &'a str,
    record: &'a mut ShippedRecord,
    outcome: &'a mut ShippedOutcome,
    changes: Vec<Change>,
    /// Directories that the changes make.
    directories: HashSet<RawPath>,
    /// Files that were made beside their places, each by the path that it is for.
    made: HashMap<RawPath, PathBuf>,
    /// Paths of the list, escaped.
    listed: BTreeSet<String>,
    is_whole: bool,
}

impl<'a, 'g> FirstStart<'a, 'g> {
    pub fn new(
        ground: &'a Ground<'g>,
        occasion: Occasion,
        image: &'a str,
        record: &'a mut ShippedRecord,
        outcome: &'a mut ShippedOutcome,
    ) -> Self {
        let (changes, listed) = (Vec::new(), BTreeSet::new());
        let (directories, made) = (HashSet::new(), HashMap::new());
        Self { ground, occasion, image, record, outcome, changes, directories, made, listed, is_whole: true }
    }

    /// Plans one path. What cannot be looked at is a failure of that path alone.
    pub fn plan(&mut self, entry: ShippedEntry) -> io::Result<()> {
        let path = entry.path.clone();
        if let Err(error) = self.try_plan(entry) {
            self.fail(&path, "look at", &error);
        }
        Ok(())
    }

    fn try_plan(&mut self, entry: ShippedEntry) -> io::Result<()> {
        let ShippedEntry { path, rule, digest, node } = entry;
        let Some(at) = self.ground.at(&path) else { return Ok(()) };
        let name = path.escaped();
        self.listed.insert(name.clone());
        let is_there = match self.ground.above(&path) {
            Above::Directory => is_there(&at)?,
            _ if self.makes_directory_of(&path) => false,
            // Nothing in it to take away, and nothing in it to hide the image's own.
            Above::Missing if node.is_none() => return self.know(&path, KnownPath { rule, digest }),
            above => {
                if rule != ShippedRule::Default && rule != ShippedRule::Once && self.occasion == Occasion::FirstStart {
                    let why = if above == Above::Missing { "no directory" } else { "something else than a directory" };
                    let note = format!("{path} stays as it is: the machine has {why} above it");
                    self.outcome.notes.push(note);
                }
                return Ok(());
            }
        };
        let is_directory = node.as_ref().is_some_and(|node| node.kind == NodeType::Directory);
        let known = self.record.paths.get(&name);
        let question = PathInQuestion { rule, is_directory, digest: &digest, known, is_there };
        let decision = decide(self.occasion, question);
        let known = KnownPath { rule, digest };
        let kind = match (decision, node) {
            (PathDecision::Make, Some(node)) => ChangeKind::Make(Box::new(node)),
            (PathDecision::Renew, Some(node)) => match self.renewal(&node, &at)? {
                Some(kind) => kind(Box::new(node)),
                None => return self.know(&path, known),
            },
            // The image has its own in /etc already: what hides it goes.
            (PathDecision::TakeAway | PathDecision::Renew, None) => ChangeKind::TakeAway,
            (PathDecision::Leave | PathDecision::Make | PathDecision::TakeAway, _) => return self.know(&path, known),
        };
        if let ChangeKind::Make(node) | ChangeKind::Renew(node) = &kind
            && node.kind == NodeType::Directory
        {
            self.directories.insert(path.clone());
        }
        self.changes.push(Change { path, at, known, kind });
        Ok(())
    }

    /// Whether the directory that a path lies in is made by an earlier change.
    fn makes_directory_of(&self, path: &RawPath) -> bool {
        path.0.parent().is_some_and(|parent| self.directories.contains(&RawPath(parent.to_owned())))
    }

    /// The way to renew a path, if it is not as it should be.
    fn renewal(&self, node: &ShippedNode, at: &Path) -> io::Result<Option<WayToRenew>> {
        let found = at.symlink_metadata()?;
        if node.kind == NodeType::Directory && found.is_dir() {
            return Ok((!is_dressed(node, at, &found)?).then_some(ChangeKind::Dress));
        }
        Ok((!is_made(node, self.ground.places.image, at)?).then_some(ChangeKind::Renew))
    }

    fn know(&mut self, path: &RawPath, known: KnownPath) -> io::Result<()> {
        self.record.paths.insert(path.escaped(), known);
        Ok(())
    }

    fn fail(&mut self, path: &RawPath, action: &str, error: &dyn std::fmt::Display) {
        self.is_whole = false;
        self.outcome.fail(format!("cannot {action} {path}: {error}"));
    }

    /// Makes the changes, and brings the record up to date.
    pub fn carry_out(mut self) -> io::Result<()> {
        if self.occasion == Occasion::FirstStart {
            self.plan_what_is_dropped();
        }
        let changes = std::mem::take(&mut self.changes);
        let aside = self.keep(&changes)?;
        let mut changes = changes.into_iter().peekable();
        let mut room =
            if changes.peek().is_some() { FreeRoom::of(self.ground.places.var)? } else { FreeRoom::default() };
        let (mut renewed, mut removed) = (0, 0);
        while changes.peek().is_some() {
            let batch = self.stage_batch(&mut changes, &mut room);
            special::flush_file_system(self.ground.places.var)?;
            self.ground.has_changed();
            for (change, made) in batch {
                match self.place(&change, made.as_deref(), aside.as_ref()) {
                    Ok(()) => {
                        match change.kind {
                            ChangeKind::Renew(_) | ChangeKind::Dress(_) => renewed += 1,
                            ChangeKind::TakeAway | ChangeKind::RemoveEmpty => removed += 1,
                            ChangeKind::Make(_) => {}
                        }
                        self.is_placed(change);
                    }
                    Err(error) => self.fail(&change.path, "change", &error),
                }
            }
            special::flush_file_system(self.ground.places.var)?;
        }
        if renewed + removed > 0 {
            self.outcome
                .notes
                .push(format!("the release renewed {renewed} paths of the machine and removed {removed}"));
        }
        if self.occasion == Occasion::FirstStart {
            // A later release that removes it again means it.
            let listed = &self.listed;
            self.record.paths.retain(|name, known| known.rule != ShippedRule::Remove || listed.contains(name));
            if self.is_whole {
                self.record.applied = Some(self.image.to_owned());
            }
        }
        Ok(())
    }

    /// Makes the new files of some changes beside their places. What is in place stays there when the power is cut or
    /// the time is over, so that a robot with much to bring gets on in each start.
    fn stage_batch(&mut self, changes: &mut impl Iterator<Item = Change>, room: &mut FreeRoom) -> Vec<StagedChange> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for change in changes {
            bytes += change.content_bytes();
            batch.extend(self.stage(change, room));
            if bytes >= BATCH_BYTES || batch.len() >= BATCH_PATHS {
                break;
            }
        }
        batch
    }

    /// Brings the record up to date for a path that is as it is to be.
    fn is_placed(&mut self, change: Change) {
        let name = change.path.escaped();
        if let Some(made) = self.made.get_mut(&change.path) {
            *made = change.at;
        }
        if self.listed.contains(&name) {
            self.record.paths.insert(name, change.known);
        } else {
            self.record.paths.remove(&name);
        }
    }

    /// Plans what a release before alone owned, and this one has no more: a directory only if it is empty.
    fn plan_what_is_dropped(&mut self) {
        let owned = self.record.paths.iter().filter(|(_, known)| known.rule.is_of_the_release());
        let dropped = owned.filter(|(name, _)| !self.listed.contains(*name));
        // What lies in a directory comes before it.
        let dropped: Vec<(RawPath, KnownPath)> =
            dropped.rev().map(|(name, known)| (RawPath::unescaped(name), known.clone())).collect();
        for (path, known) in dropped {
            let Some(at) = self.ground.at(&path) else { continue };
            let found = at.symlink_metadata().ok().filter(|_| self.ground.above(&path) == Above::Directory);
            let Some(found) = found else {
                self.record.paths.remove(&path.escaped());
                continue;
            };
            let kind = if found.is_dir() { ChangeKind::RemoveEmpty } else { ChangeKind::TakeAway };
            self.changes.push(Change { path, at, known, kind });
        }
    }

    /// Has on the medium what there was before each of the changes that an undo takes back.
    fn keep(&mut self, changes: &[Change]) -> io::Result<Option<Aside>> {
        if self.occasion != Occasion::FirstStart {
            return Ok(None);
        }
        let before = |change: &Change| {
            let before = match &change.kind {
                ChangeKind::Make(_) if !change.known.rule.is_of_the_release() => return None,
                ChangeKind::Make(_) => PathBefore::Absent,
                ChangeKind::Renew(_) | ChangeKind::TakeAway => PathBefore::Kept(Aside::name_of(&change.path)),
                ChangeKind::Dress(_) | ChangeKind::RemoveEmpty => {
                    let found = change.at.symlink_metadata().ok()?;
                    PathBefore::Directory { mode: found.mode() & 0o7777, uid: found.uid(), gid: found.gid() }
                }
            };
            Some((change.path.clone(), before))
        };
        let paths: Vec<(RawPath, PathBefore)> = changes.iter().filter_map(before).collect();
        let own = self.ground.own();
        if paths.is_empty() && Aside::open(&own)?.is_none() {
            return Ok(None);
        }
        self.ground.change();
        super::record::make_private(&own)?;
        Aside::extend(&own, self.image, self.record, paths).map(Some)
    }

    /// Makes the new file of a change beside its place. One that cannot be made fails alone.
    fn stage(&mut self, change: Change, room: &mut FreeRoom) -> Option<StagedChange> {
        let (ChangeKind::Make(node) | ChangeKind::Renew(node)) = &change.kind else { return Some((change, None)) };
        let earlier = node.first.as_ref().and_then(|first| self.made.get(first));
        let made = match earlier {
            Some(earlier) => self.ground.new_name().and_then(|at| {
                self.ground.change();
                fs::hard_link(earlier, &at).map(|()| (Vec::new(), at))
            }),
            None => room.take(node).and_then(|()| self.ground.new_name()).and_then(|at| {
                self.ground.change();
                Ok((make(node, self.ground.places.image, &at)?, at))
            }),
        };
        match made {
            Ok((lost, at)) => {
                for attribute in lost {
                    self.outcome.notes.push(format!("{} is without {attribute}", change.path));
                }
                if node.kind != NodeType::Directory {
                    self.made.insert(change.path.clone(), at.clone());
                }
                Some((change, Some(at)))
            }
            Err(error) => {
                self.fail(&change.path, "make", &error);
                None
            }
        }
    }

    fn place(&self, change: &Change, made: Option<&Path>, aside: Option<&Aside>) -> io::Result<()> {
        let at = &change.at;
        let is_removal = matches!(change.kind, ChangeKind::TakeAway | ChangeKind::RemoveEmpty);
        let is_in_place = self.ground.above(&change.path) == Above::Directory;
        // It was there when it was planned. An earlier change took away or replaced the directory that it lay in.
        if is_removal && (!is_in_place || !is_there(at)?) {
            return Ok(());
        }
        if !is_in_place {
            return Err(io::Error::other("the directory that it lies in is not there"));
        }
        match &change.kind {
            ChangeKind::TakeAway => self.take_away(change, aside)?,
            ChangeKind::RemoveEmpty => {
                self.ground.change();
                // With something in it, it is the machine's.
                let _ = fs::remove_dir(at);
            }
            ChangeKind::Dress(node) => {
                self.ground.change();
                dress(node, at)?;
            }
            ChangeKind::Make(node) | ChangeKind::Renew(node) => {
                if matches!(change.kind, ChangeKind::Renew(_)) && is_there(at)? {
                    self.take_away(change, aside)?;
                }
                let made = made.ok_or_else(|| io::Error::other("nothing was made for it"))?;
                match self.first_of(node)? {
                    Some(first) => {
                        self.ground.change();
                        fs::hard_link(first, at)?;
                    }
                    None => self.ground.rename(made, at)?,
                }
            }
        }
        Ok(())
    }

    /// The file that a hard link leads to, if the machine has it as the release has it. A file that the machine changed
    /// is not linked to: the link gets content of its own.
    fn first_of(&self, node: &ShippedNode) -> io::Result<Option<PathBuf>> {
        // Both were made just now, as one file.
        let first = node.first.as_ref().filter(|first| !self.made.contains_key(*first));
        let Some(first) = first else { return Ok(None) };
        let Some(at) = self.ground.at(first).filter(|_| self.ground.above(first) == Above::Directory) else {
            return Ok(None);
        };
        Ok((is_there(&at)? && is_made(node, self.ground.places.image, &at)?).then_some(at))
    }

    /// Moves away what is there: aside, where it is to be kept and nothing of an earlier release is kept for this path,
    /// else out of sight.
    fn take_away(&self, change: &Change, aside: Option<&Aside>) -> io::Result<()> {
        match aside.and_then(|aside| aside.place_of(&change.path)) {
            Some(kept) if !is_there(&kept)? => self.ground.rename(&change.at, &kept),
            _ => self.ground.throw_away(&change.at),
        }
    }
}
