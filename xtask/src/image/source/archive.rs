//! Archives: uncompressed once, read member by member, and written again in one order whatever they came from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::headers::{Headers, MAJOR, MINOR, content_bytes, device, number, of_records};
use super::merge::{ArchiveInode, ContentPlace, InodeKind, Member, MergedTree, TreeName, shown};

/// Formats by their first bytes: the program that turns them into a tarball, its arguments, and its package.
const FORMATS: &[(&[u8], &str, &[&str], &str)] = &[
    (b"\x1f\x8b", "gzip", &["-dc"], "gzip"),
    (b"\x1f\x9d", "gzip", &["-dc"], "gzip"),
    (b"BZh", "bzip2", &["-dc"], "bzip2"),
    (b"\xfd7zXZ\0", "xz", &["-dc"], "xz-utils"),
    (b"\x5d\0\0", "xz", &["-dc", "--format=lzma"], "xz-utils"),
    (b"\x28\xb5\x2f\xfd", "zstd", &["-dc"], "zstd"),
    // What pzstd writes begins with a frame of its own that others skip.
    (b"\x50\x2a\x4d\x18", "zstd", &["-dc"], "zstd"),
    (b"\x04\x22\x4d\x18", "lz4", &["-dc"], "lz4"),
    (b"LZIP", "lzip", &["-dc"], "lzip"),
    (b"\x89LZO", "lzop", &["-dc"], "lzop"),
    (b"hsqs", "sqfs2tar", &[], "squashfs-tools-ng"),
];

/// Attributes that belong to the machine or the program that packed, not to the system.
const FOREIGN_ATTRIBUTES: &[&str] = &["security.selinux", "trusted.", "user.rootlesscontainers", "user.overlay."];

/// Last second of the year 9999.
const LAST_UNIX_S: u64 = 253_402_300_799;

/// Archive without compression.
#[derive(Debug)]
pub struct Plain {
    /// File with the archive, without compression.
    pub path: PathBuf,
    /// SHA-256 of it, in hexadecimal.
    pub sha256: String,
}

/// Uncompresses a tarball, or turns a squashfs file into one, below `scratch`.
///
/// # Errors
/// When the file cannot be read, or its program is missing or fails.
pub fn uncompress(path: &Path, scratch: &Path, layer: usize) -> Result<Plain> {
    let mut head = [0; 6];
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let length = file.read(&mut head).with_context(|| format!("read {}", path.display()))?;
    file.seek(SeekFrom::Start(0))?;
    if head.starts_with(b"QFI\xfb") {
        bail!("{} is the disk of a virtual machine (qcow2); export the image of a container", path.display());
    }
    let Some((_, program, arguments, package)) = FORMATS.iter().find(|(magic, ..)| head[..length].starts_with(magic))
    else {
        let sha256 =
            copy_hashed(&mut file, &mut std::io::sink()).with_context(|| format!("read {}", path.display()))?;
        return Ok(Plain { path: path.to_owned(), sha256 });
    };
    let mut command = Command::new(program);
    crate::surroundings::pin(&mut command);
    // To a file: a program that says a lot would wait for somebody to read it, and this one reads the content first.
    let said_at = scratch.join(format!("layer-{layer}.said"));
    let said = File::create(&said_at).with_context(|| format!("create {}", said_at.display()))?;
    command.args(*arguments).stdout(Stdio::piped()).stderr(said);
    // A squashfs file is no stream.
    if *program == "sqfs2tar" {
        command.arg(path);
    } else {
        command.stdin(file);
    }
    let start = format!("start {program} for {}; the package {package} has it", path.display());
    let mut child = command.spawn().context(start)?;
    let plain = scratch.join(format!("layer-{layer}.tar"));
    let mut out = File::create(&plain).with_context(|| format!("create {}", plain.display()))?;
    let mut stdout = child.stdout.take().context("the program has no output")?;
    let sha256 = copy_hashed(&mut stdout, &mut out).with_context(|| format!("uncompress {}", path.display()))?;
    drop(stdout);
    let status = child.wait()?;
    let said = std::fs::read(&said_at).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    // 2 is gzip's warning that something follows the archive, such as the zeros of a tape.
    let is_read = status.success() || (*program == "gzip" && status.code() == Some(2));
    ensure!(is_read, "{program} cannot read {}: {}", path.display(), said.trim());
    Ok(Plain { path: plain, sha256 })
}

/// Returns the SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    copy_hashed(&mut file, &mut std::io::sink()).with_context(|| format!("read {}", path.display()))
}

fn copy_hashed(from: &mut impl Read, to: &mut impl Write) -> Result<String> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..length]);
        to.write_all(&buffer[..length])?;
    }
}

/// Returns bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Members of one archive.
#[derive(Debug, Default)]
pub struct Members {
    /// Paths and what lies there, in the archive's order.
    pub members: Vec<(Vec<u8>, Member)>,
    /// Paths whose access control lists are in a form that is not carried.
    pub without_acl: usize,
}

/// What was read of a member ahead of its header.
#[derive(Default)]
struct Ahead {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads the members of an uncompressed archive, which is the only one of its source.
///
/// # Errors
/// As [`read_layer`], and when it has no member, or no mark at its end.
pub fn read(plain: &Path) -> Result<Members> {
    let (found, headers) = read_members(plain, 0)?;
    headers.finish()?;
    Ok(found)
}

/// Reads the members of an uncompressed archive, which is the layer of this number. A layer may be empty: builders of
/// container images write one for a step that changed nothing. Nor need it have a mark at its end, since its digest was
/// checked.
///
/// # Errors
/// When the archive is damaged or cut off, and with the path of a member that cannot be carried.
pub fn read_layer(plain: &Path, layer: usize) -> Result<Members> {
    Ok(read_members(plain, layer)?.0)
}

fn read_members(plain: &Path, layer: usize) -> Result<(Members, Headers)> {
    let mut headers = Headers::open(plain)?;
    let name = || format!("read the archive {}", plain.display());
    let (mut found, mut ahead) = (Members::default(), Ahead::default());
    while let Some(header) = headers.next()? {
        match header.entry_type() {
            EntryType::GNULongName => ahead.path = Some(until_zero(headers.content(&header)?)),
            EntryType::GNULongLink => ahead.link = Some(until_zero(headers.content(&header)?)),
            EntryType::XHeader => ahead.records = records(&headers.content(&header)?).with_context(name)?,
            EntryType::XGlobalHeader => drop(headers.content(&header)?),
            // The name that `tar --label` gives to the archive.
            kind if kind.as_byte() == b'V' => {}
            _ => {
                let ahead = std::mem::take(&mut ahead);
                found.without_acl += usize::from(ahead.records.keys().any(|key| key.starts_with(b"SCHILY.acl.")));
                let extent = ContentPlace { layer, offset: headers.offset(), bytes: 0 };
                let (path, member, bytes) = member(&header, ahead, extent).with_context(name)?;
                headers.pass(bytes, &path)?;
                found.members.push((path, member));
            }
        }
    }
    Ok((found, headers))
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

/// Parses the records `LENGTH KEY=VALUE\n` of an extended header; a value may have any bytes.
fn records(mut bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let record = (|| {
            let space = bytes.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            Some((length, record[..equals].to_vec(), record[equals + 1..].to_vec()))
        })();
        let (length, key, value) = record.context("an extended header is damaged")?;
        records.insert(key, value);
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// Returns the path of a member, the member, and the bytes of the archive that belong to it after the header.
fn member(header: &Header, ahead: Ahead, extent: ContentPlace) -> Result<(Vec<u8>, Member, u64)> {
    let Ahead { path, link, mut records } = ahead;
    let path = records.remove(b"path".as_slice()).or(path).unwrap_or_else(|| header.path_bytes().into_owned());
    let link = records.remove(b"linkpath".as_slice()).or(link);
    let link = link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
    // Archives from before POSIX know a directory by the slash at its end.
    let is_directory = header.entry_type() == EntryType::Regular && path.ends_with(b"/");
    let entry_type = if is_directory { EntryType::Directory } else { header.entry_type() };
    let what = || format!("member {}", shown(&path));
    let bytes = content_bytes(header, entry_type, &records).with_context(what)?;
    let extent = ContentPlace { bytes, ..extent };
    let member = of_header(header, entry_type, link, &records, extent).with_context(what)?;
    Ok((path, member, bytes))
}

fn of_header(
    header: &Header,
    entry_type: EntryType,
    link: Option<Vec<u8>>,
    records: &BTreeMap<Vec<u8>, Vec<u8>>,
    extent: ContentPlace,
) -> Result<Member> {
    let is_sparse = entry_type == EntryType::GNUSparse || records.keys().any(|key| key.starts_with(b"GNU.sparse."));
    ensure!(!is_sparse, "it is packed with holes; pack it without --sparse");
    let kind = match entry_type {
        EntryType::Regular | EntryType::Continuous => InodeKind::File(extent),
        EntryType::Directory => InodeKind::Directory(BTreeMap::new()),
        // A directory in a backup by `tar --listed-incremental`; its content is a list of names.
        other if other.as_byte() == b'D' => InodeKind::Directory(BTreeMap::new()),
        EntryType::Symlink => InodeKind::Link(link.context("it is a link without a target")?),
        EntryType::Link => return Ok(Member::HardLink(link.context("it is a hard link without a target")?)),
        EntryType::Char | EntryType::Block => InodeKind::Device(
            entry_type == EntryType::Char,
            device(header, MAJOR, || header.device_major())?,
            device(header, MINOR, || header.device_minor())?,
        ),
        EntryType::Fifo => InodeKind::Fifo,
        other => bail!(
            "it is of the kind {:?}, which only the program knows that packed it; pack it with GNU tar or bsdtar",
            char::from(other.as_byte())
        ),
    };
    let old = header.as_old();
    let id = |key, field: &[u8], of_header: &dyn Fn() -> std::io::Result<u64>| -> Result<u32> {
        let id = of_records(records, key, || number(field, of_header))?;
        // The last number means "as it was" to the kernel: the file would be root's.
        u32::try_from(id)
            .ok()
            .filter(|id| *id != u32::MAX)
            .with_context(|| format!("its {key} is {id}, which nobody has"))
    };
    let is_foreign = |name: &[u8]| FOREIGN_ATTRIBUTES.iter().any(|foreign| name.starts_with(foreign.as_bytes()));
    let attributes = records.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(b"SCHILY.xattr.")?;
        (!is_foreign(name)).then(|| (name.to_vec(), value.clone()))
    });
    // Programs that pack write what they like for a link, whose mode counts for nothing.
    let is_link = matches!(kind, InodeKind::Link(_));
    let mode = if is_link { 0o777 } else { number(&old.mode, || header.mode().map(u64::from))? };
    let modified = of_records(records, "mtime", || number(&old.mtime, || header.mtime())).unwrap_or_default();
    Ok(Member::New(ArchiveInode {
        kind,
        // Nothing above these bits.
        mode: u32::try_from(mode & 0o7777)?,
        user: id("uid", &old.uid, &|| header.uid())?,
        group: id("gid", &old.gid, &|| header.gid())?,
        modified_unix_s: time(modified),
        attributes: attributes.collect(),
    }))
}

/// Returns a time that a calendar has. One before 1970 is a negative number, in text or in the bytes of a large one,
/// and what a clock that is off wrote can be anything: the newest of all times dates the image.
fn time(unix_s: u64) -> u64 {
    if unix_s <= LAST_UNIX_S { unix_s } else { 0 }
}

/// Reads the content of a file of the tree.
///
/// # Errors
/// When the archive cannot be read.
pub fn content(layers: &[PathBuf], extent: ContentPlace) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader(layers, extent)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn reader(layers: &[PathBuf], extent: ContentPlace) -> Result<std::io::Take<File>> {
    let path = &layers[extent.layer];
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.seek(SeekFrom::Start(extent.offset))?;
    Ok(file.take(extent.bytes))
}

/// Writes the tree as one tarball: the same for the same tree, however its layers were packed.
///
/// # Errors
/// With the path at fault.
pub fn write(tree: &MergedTree, layers: &[PathBuf], out: &Path) -> Result<()> {
    let file = File::create(out).with_context(|| format!("create {}", out.display()))?;
    let mut builder = Builder::new(BufWriter::new(file));
    for name in tree.names() {
        write_one(&mut builder, tree.inode(name.number), &name, layers)
            .with_context(|| format!("write {} of the tree to {}", shown(&name.path), out.display()))?;
    }
    let mut file = builder.into_inner().with_context(|| format!("write {}", out.display()))?;
    file.flush().with_context(|| format!("write {}", out.display()))
}

fn write_one(
    builder: &mut Builder<impl Write>,
    inode: &ArchiveInode,
    name: &TreeName,
    layers: &[PathBuf],
) -> Result<()> {
    let (path, first) = (name.path.as_slice(), name.first.as_deref());
    let mut header = Header::new_gnu();
    header.set_mode(inode.mode);
    header.set_uid(inode.user.into());
    header.set_gid(inode.group.into());
    header.set_mtime(inode.modified_unix_s);
    header.set_size(0);
    let mut name = [b"./", path].concat();
    let mut link = None;
    let mut content = None;
    let entry_type = match (&inode.kind, first) {
        (_, Some(first)) => {
            link = Some([b"./", first].concat());
            EntryType::Link
        }
        (InodeKind::Directory(_), None) => {
            name.extend(if path.is_empty() { b"".as_slice() } else { b"/" });
            EntryType::Directory
        }
        (InodeKind::File(extent), None) => {
            header.set_size(extent.bytes);
            content = Some(reader(layers, *extent)?);
            EntryType::Regular
        }
        (InodeKind::Link(target), None) => {
            link = Some(target.clone());
            EntryType::Symlink
        }
        (InodeKind::Device(is_character, major, minor), None) => {
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
            if *is_character { EntryType::Char } else { EntryType::Block }
        }
        (InodeKind::Fifo, None) => EntryType::Fifo,
    };
    header.set_entry_type(entry_type);
    let mut attributes = Vec::new();
    for (name, value) in inode.attributes.iter().filter(|_| first.is_none()) {
        let name = std::str::from_utf8(name).context("the name of an extended attribute is not UTF-8")?;
        attributes.push((format!("SCHILY.xattr.{name}"), value.as_slice()));
    }
    if !attributes.is_empty() {
        builder.append_pax_extensions(attributes.iter().map(|(key, value)| (key.as_str(), *value)))?;
    }
    long(builder, EntryType::GNULongName, &name)?;
    place(&mut header.as_old_mut().name, &name);
    if let Some(link) = link {
        long(builder, EntryType::GNULongLink, &link)?;
        place(&mut header.as_old_mut().linkname, &link);
    }
    header.set_cksum();
    match content {
        Some(content) => builder.append(&header, content)?,
        None => builder.append(&header, std::io::empty())?,
    }
    Ok(())
}

/// Writes a name that does not fit into a header ahead of it, in GNU's way, which knows any bytes.
fn long(builder: &mut Builder<impl Write>, entry_type: EntryType, name: &[u8]) -> Result<()> {
    if name.len() < 100 {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    header.set_entry_type(entry_type);
    place(&mut header.as_old_mut().name, b"././@LongLink");
    header.set_size(name.len() as u64 + 1);
    header.set_cksum();
    Ok(builder.append(&header, [name, b"\0"].concat().as_slice())?)
}

fn place(field: &mut [u8; 100], name: &[u8]) {
    let length = name.len().min(field.len() - 1);
    field[..length].copy_from_slice(&name[..length]);
}

#[cfg(test)]
mod tests {
    use super::{Members, Plain, content, read, read_layer, records, uncompress, write};
    use crate::image::source::merge::{InodeKind, Member, MergedTree};
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    fn pack(format: &str, options: &[&str], directory: &Path, out: &Path) {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--owner=7", "--group=8", &format!("--format={format}")]).args(options);
        assert!(tar.arg("--file").arg(out).arg("--directory").arg(directory).arg(".").status().unwrap().success());
    }

    fn awkward(directory: &Path) {
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::fs::symlink;
        let at = |name: &[u8]| directory.join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir_all(at(&[b'd'; 120])).unwrap();
        fs::write(at(&[&[b'd'; 120][..], b"/", &[b'f'; 200]].concat()), "deep").unwrap();
        fs::write(at(b"not \xff UTF-8\n"), "bytes").unwrap();
        fs::hard_link(at(b"not \xff UTF-8\n"), at(b"zz second name")).unwrap();
        symlink("t".repeat(300), at(b"long link")).unwrap();
        fs::write(at(b"-rf"), vec![7; 100_000]).unwrap();
        fs::write(at(b"ends in a space "), "").unwrap();
        assert!(Command::new("mkfifo").arg(at(b"pipe")).status().unwrap().success());
    }

    fn tree_of(members: Members) -> MergedTree {
        let mut tree = MergedTree::default();
        tree.apply(members.members).unwrap();
        tree
    }

    #[test]
    fn archives_of_every_form_are_carried_byte_for_byte_and_end_in_the_same_one() {
        let directory = tempfile::tempdir().unwrap();
        let (source, scratch) = (directory.path().join("source"), directory.path().join("scratch"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&scratch).unwrap();
        awkward(&source);
        let mut written = Vec::new();
        for (number, (format, options)) in [
            ("gnu", &[][..]),
            ("posix", &["--gzip"]),
            ("posix", &["--xz"]),
            ("gnu", &["--zstd"]),
            ("gnu", &["--bzip2"]),
        ]
        .into_iter()
        .enumerate()
        {
            let packed = directory.path().join(format!("packed-{number}"));
            pack(format, options, &source, &packed);
            let Plain { path, .. } = uncompress(&packed, &scratch, number).unwrap();
            let layers: Vec<PathBuf> = vec![path.clone()];
            // Only the posix form has fractions of seconds.
            let mut tree = tree_of(read(&path).unwrap());
            let number = tree.find(b"not \xff UTF-8\n").unwrap();
            assert_eq!((tree.inode(number).user, tree.inode(number).group), (7, 8));
            let InodeKind::File(extent) = tree.inode(number).kind else { panic!() };
            assert_eq!(content(&layers, extent).unwrap(), b"bytes");
            // The same again from what is written, and by the tool that unpacks it.
            let out = directory.path().join("out.tar");
            write(&tree, &layers, &out).unwrap();
            written.push(fs::read(&out).unwrap());
            tree = tree_of(read(&out).unwrap());
            assert!(tree.find(&[&[b'd'; 120][..], b"/", &[b'f'; 200]].concat()).is_some());
            let unpacked = directory.path().join("unpacked");
            fs::create_dir(&unpacked).unwrap();
            let mut tar = Command::new("tar");
            tar.args(["--extract", "--no-same-owner", "--file"]).arg(&out).arg("--directory").arg(&unpacked);
            assert!(tar.status().unwrap().success());
            let same =
                Command::new("diff").args(["--recursive", "--no-dereference"]).args([&source, &unpacked]).output();
            let same = same.unwrap();
            // diff says of a pipe only that it is one, on both sides.
            let differences = String::from_utf8_lossy(&same.stdout).into_owned();
            assert!(differences.lines().all(|line| line.contains("fifo")), "{differences}");
            fs::remove_dir_all(unpacked).unwrap();
        }
        assert!(written.iter().all(|other| *other == written[0]), "the form of an archive must not matter");
    }

    #[test]
    fn values_of_attributes_may_have_line_feeds_and_zeros() {
        let found = records(b"24 SCHILY.xattr.a.b=\0\n\xff\n12 path=abc\n").unwrap();
        assert_eq!(found[b"SCHILY.xattr.a.b".as_slice()], b"\0\n\xff");
        assert_eq!(found[b"path".as_slice()], b"abc");
        for damaged in [&b"9 a=b\n"[..], b"x a=b\n", b"99999999999999999999 a=b\n", b"0 ", b"5 ab\n"] {
            assert!(records(damaged).is_err(), "{}", damaged.escape_ascii());
        }
    }

    #[test]
    fn attributes_and_large_numbers_come_and_go_with_their_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar");
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        let capability: &[u8] = b"\x01\0\0\x02\n\0\0\n\0\0\0\0\0\0\0\0\0\0\0\0";
        let records = [("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.trusted.overlay.x", b"y")];
        builder.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_path("ping").unwrap();
        header.set_size(0);
        header.set_mode(0o4755);
        header.set_uid(3_000_000_000);
        header.set_gid(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        builder.finish().unwrap();
        for _ in 0..2 {
            let tree = tree_of(read(&path).unwrap());
            let inode = tree.inode(tree.find(b"ping").unwrap()).clone();
            assert_eq!((inode.mode, inode.user), (0o4755, 3_000_000_000));
            assert_eq!(inode.attributes.len(), 1, "attributes of the host's overlay are no part of the system");
            assert_eq!(inode.attributes[b"security.capability".as_slice()], capability);
            let again = directory.path().join("b.tar");
            write(&tree, std::slice::from_ref(&path), &again).unwrap();
            fs::rename(again, &path).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_carried_is_refused_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir(&source).unwrap();
        let holes = fs::File::create(source.join("holes")).unwrap();
        holes.set_len(4 << 20).unwrap();
        let packed = directory.path().join("packed");
        for format in ["gnu", "posix"] {
            pack(format, &["--sparse"], &source, &packed);
            let error = format!("{:#}", read(&packed).unwrap_err());
            assert!(error.contains("holes") && error.contains("--sparse"), "{error}");
        }
        pack("gnu", &[], &source, &packed);
        fs::File::options().write(true).open(&packed).unwrap().set_len(1 << 20).unwrap();
        let error = format!("{:#}", read(&packed).unwrap_err());
        assert!(error.contains("cut off") && error.contains("holes"), "{error}");
        for rubbish in [&b""[..], b"rubbish", &[0; 10240]] {
            fs::write(&packed, rubbish).unwrap();
            let plain = uncompress(&packed, directory.path(), 0).unwrap();
            assert!(read(&plain.path).is_err());
        }
        // The layer of a step that changed nothing, as Docker and BuildKit write it.
        fs::write(&packed, [0; 1024]).unwrap();
        assert!(read_layer(&packed, 0).unwrap().members.is_empty());
        pack("gnu", &["--gzip"], &source, &packed);
        fs::write(&packed, [fs::read(&packed).unwrap().as_slice(), b"what follows"].concat()).unwrap();
        assert_eq!(read(&uncompress(&packed, directory.path(), 1).unwrap().path).unwrap().members.len(), 2);
        for (head, said) in [(&b"\x1f\x8brubbish"[..], "gzip cannot read"), (b"QFI\xfb", "virtual machine")] {
            fs::write(&packed, head).unwrap();
            let error = format!("{:#}", uncompress(&packed, directory.path(), 0).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn times_before_1970_and_beyond_all_calendars_do_not_date_the_image() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("old"), "").unwrap();
        fs::write(source.join("usual"), "").unwrap();
        let touch = |date: &str, name: &str| {
            assert!(Command::new("touch").args(["--date", date]).arg(source.join(name)).status().unwrap().success());
        };
        touch("1960-01-01 UTC", "old");
        touch("2026-01-01 UTC", "usual");
        touch("2025-01-01 UTC", "");
        let packed = directory.path().join("packed");
        for format in ["gnu", "posix"] {
            pack(format, &[], &source, &packed);
            let tree = tree_of(read(&packed).unwrap());
            let old = tree.inode(tree.find(b"old").unwrap()).modified_unix_s;
            assert_eq!((old, tree.newest_unix_s(u64::MAX).0), (0, 1_767_225_600), "{format}");
            let again = directory.path().join("again");
            write(&tree, std::slice::from_ref(&packed), &again).unwrap();
            assert_eq!(tree_of(read(&again).unwrap()).newest_unix_s(u64::MAX).0, 1_767_225_600);
        }
    }

    /// The kernel takes the last number for "as it is", so the file would be root's, with its set-user-ID bit.
    #[test]
    fn an_owner_that_nobody_can_be_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let packed = directory.path().join("packed");
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_mode(0o4755);
        header.set_uid(u32::MAX.into());
        header.set_cksum();
        fs::write(&packed, [header.as_bytes().as_slice(), &[0; 1024]].concat()).unwrap();
        let error = format!("{:#}", read(&packed).unwrap_err());
        assert!(error.contains("member a: its uid is 4294967295"), "{error}");
    }

    /// A backup of `tar --listed-incremental`, in which directories are of a kind of their own.
    #[test]
    fn a_backup_in_steps_is_a_tree() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir_all(source.join("d/e")).unwrap();
        fs::write(source.join("d/e/f"), "x").unwrap();
        let packed = directory.path().join("packed");
        let list = format!("--listed-incremental={}", directory.path().join("list").display());
        for format in ["gnu", "posix"] {
            let _ = fs::remove_file(directory.path().join("list"));
            pack(format, &[&list, "--label=backup"], &source, &packed);
            let names: Vec<Vec<u8>> = tree_of(read(&packed).unwrap()).names().into_iter().map(|one| one.path).collect();
            assert_eq!(names, [&b""[..], b"d", b"d/e", b"d/e/f"], "{format}");
        }
    }

    #[test]
    fn directories_of_old_archives_are_directories() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir_all(source.join("d/e")).unwrap();
        fs::write(source.join("d/e/f"), "x").unwrap();
        let packed = directory.path().join("packed");
        for format in ["v7", "ustar", "oldgnu"] {
            pack(format, &[], &source, &packed);
            let tree = tree_of(read(&packed).unwrap());
            assert!(tree.find(b"d/e/f").is_some(), "{format}");
            let names: Vec<Vec<u8>> = tree.names().into_iter().map(|name| name.path).collect();
            assert_eq!(names, [&b""[..], b"d", b"d/e", b"d/e/f"], "{format}");
        }
    }

    #[test]
    fn hard_links_keep_the_members_form() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "x").unwrap();
        fs::hard_link(directory.path().join("a"), directory.path().join("b")).unwrap();
        let packed = directory.path().join("packed");
        let mut tar = Command::new("tar");
        tar.args(["--create", "--file"]).arg(&packed).arg("--directory").arg(directory.path()).args(["./a", "./b"]);
        assert!(tar.status().unwrap().success());
        let members = read(&packed).unwrap().members;
        assert!(matches!(&members[1], (path, Member::HardLink(first)) if path == b"./b" && first == b"./a"));
    }
}
