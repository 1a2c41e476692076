//! The codec of GRUB's environment block: the 512 bytes through which GRUB and this program communicate. Pure.
//!
//! Format, from GRUB's `grub-core/lib/envblk.c` and its manual ("Environment block"): the line
//! `# GRUB Environment Block\n`, then `NAME=VALUE\n` lines, then `#` up to the size. In a value a backslash and a
//! line feed are preceded by a backslash. GRUB itself accepts any size; we write one sector, so that a write is
//! atomic on every disk.
//!
//! Unknown variables are kept, because they belong to the program that set them.

/// Size of the block that we write, bytes: one logical sector.
pub const SIZE_BYTES: usize = 512;

const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// Names of the variables that both sides use. `grub/README.md` documents which side writes which.
pub mod names {
    /// Boots of the system left before GRUB falls back to recovery: one digit.
    pub const TRIES: &str = "reflash_tries";
    /// The number that `reflash good` sets [`TRIES`] to: one digit.
    pub const MAX_TRIES: &str = "reflash_max_tries";
    /// `1` once the running system has been confirmed as good, `0` from the moment when GRUB starts it.
    pub const BOOT_OK: &str = "reflash_boot_ok";
    /// `1` from before the first byte of `/system` is changed until the system is verified.
    pub const RECOVERING: &str = "reflash_recovering";
    /// Automatic recoveries to one release since the last good boot, `SERIAL:COUNT`.
    pub const RECOVERIES: &str = "reflash_recoveries";
    /// `1` after a person confirmed a factory reset, until it is done.
    pub const RESET: &str = "reflash_reset";
    /// The slot of the recovery partition that GRUB starts: `a` or `b`.
    pub const SLOT: &str = "reflash_slot";
    /// The slot whose recovery is on trial: `a` or `b`, and `a-tried` or `b-tried` once GRUB has started it.
    pub const TRIAL: &str = "reflash_trial";
    /// The menu entry that GRUB starts next time, once: GRUB clears the variable first.
    pub const NEXT_ENTRY: &str = "next_entry";
    /// Serial of the release that last called a boot good.
    pub const GOOD: &str = "reflash_good";
    /// `1` once the boot script has counted a start down while [`BOOT_OK`] was `1`: the installed release was good.
    pub const WAS_GOOD: &str = "reflash_was_good";
    /// Serial of the release that an undo leads back to, while one is possible.
    pub const UNDO: &str = "reflash_undo";
    /// The request to the next recovery, beside [`NEXT_ENTRY`]: `undo`, `undo:SERIAL`, `drill`, `serial:N` or
    /// `update:SERIAL:DIGEST:ASKED:HOURS`.
    pub const REQUEST: &str = "reflash_request";
    /// Number of the safe start that GRUB makes when [`NEXT_ENTRY`] is `safe`; until a good boot, the number of those
    /// that were made.
    pub const SAFE: &str = "reflash_safe";
    /// The system that GRUB starts, on a robot with two: `1` or `2`; without it the first one.
    pub const SYSTEM: &str = "reflash_system";
    /// The system that GRUB goes back to while the one that was switched to is on trial: `1` or `2`; `failed` once GRUB
    /// has gone back.
    pub const BEFORE: &str = "reflash_before";
    /// All names of this module. Any other variable in the block belongs to another program.
    pub const OURS: [&str; 16] = [
        TRIES, MAX_TRIES, BOOT_OK, RECOVERING, RECOVERIES, RESET, SLOT, TRIAL, NEXT_ENTRY, GOOD, WAS_GOOD, UNDO,
        REQUEST, SAFE, SYSTEM, BEFORE,
    ];
}

/// Size of the longest value that a program of ours writes, with room to spare: a request to update has 68 bytes.
const MAX_OWN_BYTES: usize = 96;

/// The variables of an environment block, in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrubEnv {
    variables: Vec<(String, String)>,
}

/// The error for bytes that are not an environment block, and for variables that do not fit into one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrubEnvError {
    /// The signature line is missing: empty, zeroed or foreign content.
    #[error("not a GRUB environment block: {size_bytes} bytes without the line \"# GRUB Environment Block\"")]
    NoSignature {
        /// Size of the content that was read, bytes.
        size_bytes: usize,
    },
    /// The variables need more than the 512 bytes.
    #[error(
        "the GRUB environment is full: {needed_bytes} bytes needed, {SIZE_BYTES} there; remove a variable with `reflash env unset NAME`"
    )]
    Full {
        /// Size of the signature and all variables, bytes.
        needed_bytes: usize,
    },
    /// The name is not one that GRUB's script language can use.
    #[error("{name:?} is not a variable name: expected letters, digits and '_', not starting with a digit")]
    Name {
        /// The name that was refused.
        name: String,
    },
}

impl GrubEnv {
    /// Reads a block as GRUB does, but skips names that GRUB's script language cannot use. When a name occurs twice,
    /// the last value counts, as it would after GRUB's `load_env`.
    ///
    /// # Errors
    /// [`GrubEnvError::NoSignature`] when the bytes are not an environment block.
    pub fn parse(block: &[u8]) -> Result<Self, GrubEnvError> {
        let mut env = Self::default();
        for (name, value) in Assignments::of(block)? {
            let name = String::from_utf8_lossy(name);
            if is_name(&name) {
                env.replace(&name, &String::from_utf8_lossy(&value));
            }
        }
        Ok(env)
    }

    /// Encodes the variables into the 512 bytes to write.
    ///
    /// # Errors
    /// [`GrubEnvError::Full`] when they do not fit.
    pub fn encode(&self) -> Result<[u8; SIZE_BYTES], GrubEnvError> {
        let mut bytes = SIGNATURE.to_vec();
        for (name, value) in &self.variables {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(b'=');
            for byte in value.bytes() {
                if matches!(byte, b'\\' | b'\n') {
                    bytes.push(b'\\');
                }
                bytes.push(byte);
            }
            bytes.push(b'\n');
        }
        let needed_bytes = bytes.len();
        bytes.resize(SIZE_BYTES.max(needed_bytes), b'#');
        bytes.try_into().map_err(|_| GrubEnvError::Full { needed_bytes })
    }

    /// Returns the value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Sets a variable. Only [`encode`](Self::encode) checks whether everything still fits.
    ///
    /// # Errors
    /// [`GrubEnvError::Name`] when GRUB's script language cannot use the name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), GrubEnvError> {
        if !is_name(name) {
            return Err(GrubEnvError::Name { name: name.to_owned() });
        }
        self.replace(name, value);
        Ok(())
    }

    /// Removes a variable and returns whether it was there.
    pub fn unset(&mut self, name: &str) -> bool {
        let before = self.variables.len();
        self.variables.retain(|(known, _)| known != name);
        before != self.variables.len()
    }

    /// Removes the last variable that is not ours, to make room, and returns its name.
    pub fn drop_last_foreign(&mut self) -> Option<String> {
        let last = self.variables.iter().rposition(|(name, _)| !names::OURS.contains(&name.as_str()))?;
        Some(self.variables.remove(last).0)
    }

    /// Forgets values of our variables that none of our programs can have written: they would leave no room for what
    /// has to be written.
    #[must_use]
    pub fn without_absurd_values(mut self) -> Self {
        self.variables.retain(|(name, value)| !names::OURS.contains(&name.as_str()) || value.len() <= MAX_OWN_BYTES);
        self
    }

    /// Iterates over all variables in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn replace(&mut self, name: &str, value: &str) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.variables.push((name.to_owned(), value.to_owned())),
        }
    }
}

/// Iterates over names and values as GRUB's `grub_envblk_iterate` finds them, also in a damaged block.
///
/// A name extends to the next `=`, even over line feeds. A value ends at a line feed that no backslash precedes. A
/// value without such a line feed does not count, so that a write that was cut does not yield half a value. A zero byte
/// ends names and values, since GRUB treats them as C strings.
#[derive(Debug, Clone)]
pub struct Assignments<'b> {
    rest: &'b [u8],
}

impl<'b> Assignments<'b> {
    /// Starts at the beginning of a block.
    ///
    /// # Errors
    /// [`GrubEnvError::NoSignature`] when the bytes are not an environment block.
    pub fn of(block: &'b [u8]) -> Result<Self, GrubEnvError> {
        let rest = block.strip_prefix(SIGNATURE).ok_or(GrubEnvError::NoSignature { size_bytes: block.len() })?;
        Ok(Self { rest })
    }
}

impl<'b> Iterator for Assignments<'b> {
    type Item = (&'b [u8], Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let is_comment = *self.rest.first()? == b'#';
            let name_len = if is_comment { 0 } else { self.rest.iter().position(|byte| *byte == b'=')? };
            let value_at = if is_comment { 0 } else { name_len + 1 };
            let (value, after) = split_line(&self.rest[value_at..])?;
            let name = &self.rest[..name_len];
            self.rest = after;
            if !is_comment {
                let mut value = unescape(value);
                value.truncate(c_string_len(&value));
                return Some((&name[..c_string_len(name)], value));
            }
        }
    }
}

fn c_string_len(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())
}

/// Splits text at the first unescaped line feed.
fn split_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    for (position, byte) in text.iter().enumerate() {
        match byte {
            b'\n' if !escaped => return Some((&text[..position], &text[position + 1..])),
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

fn unescape(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        out.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    out
}

/// Whether GRUB's script language can use `name` as the name of a variable.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_variable_that_has_a_name_is_ours() {
        // What is missing in the list would be dropped when the block is full.
        let names = include_str!("grubenv.rs").split("pub mod names {").nth(1).unwrap().split("\n}\n").next().unwrap();
        assert_eq!(names.matches("pub const ").count(), super::names::OURS.len() + 1);
    }

    use super::{GrubEnv, GrubEnvError, SIZE_BYTES};

    fn env(pairs: &[(&str, &str)]) -> GrubEnv {
        let mut env = GrubEnv::default();
        for (name, value) in pairs {
            env.set(name, value).unwrap();
        }
        env
    }

    #[test]
    fn what_is_written_is_read_back() {
        let written = env(&[("reflash_tries", "3"), ("odd", "a\\b\nc=d #e"), ("empty", "")]);
        let block = written.encode().unwrap();
        assert!(block.starts_with(b"# GRUB Environment Block\nreflash_tries=3\nodd=a\\\\b\\\nc=d #e\nempty=\n###"));
        assert_eq!(GrubEnv::parse(&block).unwrap(), written);
    }

    #[test]
    fn damaged_blocks_are_refused_or_read_up_to_the_damage() {
        for wrong in [&b""[..], &[0; 512], b"# GRUB Environment Bloc", &[0xff; 512]] {
            assert_eq!(GrubEnv::parse(wrong), Err(GrubEnvError::NoSignature { size_bytes: wrong.len() }));
        }
        let cut = b"# GRUB Environment Block\na=1\nb=2\nc=thr";
        assert_eq!(GrubEnv::parse(cut).unwrap(), env(&[("a", "1"), ("b", "2")]));
        let noise = b"# GRUB Environment Block\n\n===\n9a=1\nno equals\na=1\na=2\n# comment=1\n\xff\xfe=3\n";
        assert_eq!(GrubEnv::parse(noise).unwrap(), env(&[("a", "2")]));
        // What grub-editenv lists of these.
        for (damaged, read) in [
            (&b"no equals\na=1\nb=2\n"[..], [("b", "2")]),
            (b"b=3\0junk\n", [("b", "3")]),
            (b"b\0c=1\n", [("b", "1")]),
            (b"b=1\nc=x\\\n", [("b", "1")]),
            (b"#c\\\na=1\nb=2\n", [("b", "2")]),
        ] {
            assert_eq!(GrubEnv::parse(&[super::SIGNATURE, damaged].concat()).unwrap(), env(&read));
        }
    }

    #[test]
    fn a_full_block_is_an_error_and_the_last_byte_can_be_used() {
        let fixed = "# GRUB Environment Block\nx=\n".len();
        let mut full = env(&[("x", &"y".repeat(SIZE_BYTES - fixed))]);
        assert_eq!(GrubEnv::parse(&full.encode().unwrap()).unwrap(), full);
        full.set("z", "").unwrap();
        assert_eq!(full.encode(), Err(GrubEnvError::Full { needed_bytes: SIZE_BYTES + 3 }));
    }

    #[test]
    fn unset_and_names() {
        let mut one = env(&[("a", "1"), ("b", "2")]);
        assert!(one.unset("a") && !one.unset("a"));
        assert_eq!((one.get("a"), one.get("b")), (None, Some("2")));
        for wrong in ["", "9a", "a b", "a=b", "ä", "a-b"] {
            assert!(one.set(wrong, "").is_err(), "{wrong}");
        }
    }
}
