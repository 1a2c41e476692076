//! `cargo xtask keygen`: a key pair in minisign's format, so that the minisign tool reads both files.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use minisign::{KeyPair, PublicKeyBox, SecretKey, SecretKeyBox};

/// The two files of a key pair.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    /// The secret key, which is enough to publish releases.
    pub secret: PathBuf,
    /// The public key, for the recovery partition.
    pub public: PathBuf,
}

impl KeyFiles {
    /// `reflash.key` and `reflash.pub` in `directory`.
    #[must_use]
    pub fn within(directory: &Path) -> Self {
        Self { secret: directory.join("reflash.key"), public: directory.join("reflash.pub") }
    }
}

/// Makes a key pair in `directory`. An existing one is never overwritten: robots in the field trust it.
///
/// # Errors
/// When there is one already, the password is empty, or the directory cannot be written.
pub fn generate(directory: &Path, password: Option<String>) -> Result<KeyFiles> {
    ensure!(
        password.as_deref() != Some(""),
        "an empty password protects nothing: give one, or make the key without a password"
    );
    let files = none_yet(directory)?;
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let pair = match password {
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
        None => KeyPair::generate_unencrypted_keypair(),
    }
    .context("make a key pair")?;
    let secret = pair.sk.to_box(Some("reflash release key, secret")).context("encode the secret key")?;
    let public = pair.pk.to_box().context("encode the public key")?;
    create(&files.secret, 0o600, &secret.into_string())?;
    create(&files.public, 0o644, &public.into_string())?;
    Ok(files)
}

/// Environment variable with the password of a secret key, for programs; a person is asked on the terminal.
pub const PASSWORD_VARIABLE: &str = "REFLASH_KEY_PASSWORD";

/// Makes a key pair in `directory` whose secret key has a password: that of `REFLASH_KEY_PASSWORD`, or else one that a
/// person types twice.
///
/// # Errors
/// As [`generate`], and when there is neither the variable nor a terminal.
pub fn generate_with_password(directory: &Path) -> Result<KeyFiles> {
    let given = given_password();
    // Before a person types a password for nothing.
    let files = none_yet(directory)?;
    let password = given.map_or_else(|| ask_new_password(&files.secret), Ok)?;
    generate(directory, Some(password))
}

/// Returns the files of a pair of which neither is there: a clone of a project has the public half alone, and a new
/// secret key beside it would be the other half of nothing.
fn none_yet(directory: &Path) -> Result<KeyFiles> {
    let files = KeyFiles::within(directory);
    ensure!(!files.secret.exists(), "{} exists (an existing key is never overwritten)", files.secret.display());
    ensure!(
        !files.public.exists(),
        "{} exists (an existing key is never overwritten): bring its secret half, {}, back from where its copy is kept",
        files.public.display(),
        files.secret.display()
    );
    Ok(files)
}

/// The password of the environment. A CI sets the variable to nothing where it has no such secret, or hides it from the
/// job.
fn given_password() -> Option<String> {
    std::env::var(PASSWORD_VARIABLE).ok().filter(|password| !password.is_empty())
}

/// Reads a secret key. The password is asked for where the key has one: `REFLASH_KEY_PASSWORD`, or else on the
/// terminal.
///
/// # Errors
/// When the file is not a minisign secret key, the password is wrong, or there is no way to ask for it.
pub fn load_secret(path: &Path) -> Result<SecretKey> {
    ensure!(
        path.exists(),
        "there is no secret key {}: bring it back from where its copy is kept, or name another one with --key",
        path.display()
    );
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let boxed = || SecretKeyBox::from_string(&text).with_context(|| format!("{} is not a secret key", path.display()));
    ensure!(
        !is_public(&text),
        "{} is the public half of a key pair, which machines get; releases are signed with the secret half, mostly {}",
        path.display(),
        path.with_extension("key").display()
    );
    if let Ok(key) = boxed()?.into_unencrypted_secret_key() {
        return Ok(key);
    }
    let given = given_password();
    let from = if given.is_some() { "the password in REFLASH_KEY_PASSWORD" } else { "the password that was typed" };
    let password = given.map_or_else(|| ask_password(path), Ok)?;
    let unlocked = boxed()?.into_secret_key(Some(password));
    unlocked.with_context(|| format!("unlock {} with {from}", path.display()))
}

/// Reads the text of a public key.
///
/// # Errors
/// When the file is not a minisign public key. A secret key is named as one: it must reach no machine.
pub fn load_public(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the public key {}", path.display()))?;
    ensure!(
        is_public(&text),
        "{} is {}",
        path.display(),
        if is_secret(&text) {
            format!(
                "a secret key, which must not leave the place where releases are made; give its public half, mostly {}",
                path.with_extension("pub").display()
            )
        } else {
            "not a public key of minisign".to_owned()
        }
    );
    Ok(text)
}

/// Returns the number of a secret key, without asking a person for a password: `None` for a locked key whose password
/// is not in the environment.
///
/// # Errors
/// As [`load_secret`].
pub fn secret_number(path: &Path) -> Result<Option<Vec<u8>>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let locked = SecretKeyBox::from_string(&text).is_ok_and(|boxed| boxed.into_unencrypted_secret_key().is_err());
    if locked && !is_public(&text) && given_password().is_none() {
        return Ok(None);
    }
    Ok(Some(load_secret(path)?.keynum().to_vec()))
}

/// Returns the number that a public key shares with its secret half and with the signatures of both.
///
/// # Errors
/// When the text is not a public key.
pub fn key_number(public: &str) -> Result<Vec<u8>> {
    let key = PublicKeyBox::from_string(public).and_then(PublicKeyBox::into_public_key).context("read a public key")?;
    Ok(key.keynum().to_vec())
}

fn is_public(text: &str) -> bool {
    key_number(text).is_ok()
}

/// Whether the text is a secret key, locked or not: its content is longer than that of any other file of minisign.
fn is_secret(text: &str) -> bool {
    SecretKeyBox::from_string(text).is_ok_and(|boxed| !boxed.into_string().is_empty())
        && text.lines().nth(1).is_some_and(|line| line.trim().len() > 200)
}

fn ask_new_password(secret: &Path) -> Result<String> {
    let first = ask(&format!("Password for {}: ", secret.display()))?;
    ensure!(!first.is_empty(), "an empty password protects nothing; leave --password out for a key without one");
    let again = ask("The same again: ")?;
    ensure!(first == again, "the two passwords differ; nothing was made");
    Ok(first)
}

fn ask_password(path: &Path) -> Result<String> {
    ask(&format!("Password of {}: ", path.display()))
}

fn ask(prompt: &str) -> Result<String> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").is_ok();
    ensure!(terminal, "the key needs a password, and there is no terminal to ask at: put it into {PASSWORD_VARIABLE}");
    rpassword::prompt_password(prompt).context("read the password from the terminal")
}

fn create(path: &Path, mode: u32, text: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("create {} (an existing key is never overwritten)", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{generate, load_public, load_secret};

    #[test]
    fn the_two_halves_are_not_taken_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let files = generate(dir.path(), None).unwrap();
        let locked = generate(&dir.path().join("locked"), Some("secret".into())).unwrap();
        for pair in [&files, &locked] {
            load_public(&pair.public).unwrap();
            let text = load_secret(&pair.public).unwrap_err().to_string();
            assert!(text.contains("public half") && text.contains("reflash.key"), "{text}");
            let text = load_public(&pair.secret).unwrap_err().to_string();
            assert!(text.contains("a secret key") && text.contains("reflash.pub"), "{text}");
        }
        let other = dir.path().join("other");
        std::fs::write(&other, "hello").unwrap();
        assert!(load_public(&other).unwrap_err().to_string().contains("not a public key"));
        assert!(load_secret(&other).is_err());
        let text = load_secret(&dir.path().join("none.key")).unwrap_err().to_string();
        assert!(text.contains("there is no secret key") && text.contains("copy"), "{text}");
    }

    #[test]
    fn a_key_that_is_to_be_protected_is_not_made_without_a_password() {
        let dir = tempfile::tempdir().unwrap();
        let error = generate(dir.path(), Some(String::new())).unwrap_err().to_string();
        assert!(error.contains("protects nothing"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn keys_are_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let files = generate(dir.path(), None).unwrap();
        let secret = load_secret(&files.secret).unwrap();
        let text = std::fs::read_to_string(&files.public).unwrap();
        let signature = minisign::sign(None, &secret, &b"x"[..], None, None).unwrap().to_string();
        let mut keys = reflash::release::manifest::TrustedKeys::default();
        keys.add("test", &text).unwrap();
        assert!(keys.authenticate(b"x".to_vec(), &signature).is_ok());
        assert!(generate(dir.path(), None).is_err());
        assert_eq!(std::fs::read_to_string(&files.public).unwrap(), text);
        // In a clone: nothing is made that fits nothing, and would be in the way of the copy.
        std::fs::remove_file(&files.secret).unwrap();
        let error = generate(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("bring its secret half") && !files.secret.exists(), "{error}");
    }
}
