//! `cargo xtask keygen`: a key pair in minisign's format, so that the minisign tool reads both files.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use minisign::{KeyPair, SecretKey, SecretKeyBox};

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
/// When there is one already, or the directory cannot be written.
pub fn generate(directory: &Path, password: Option<String>) -> Result<KeyFiles> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let files = KeyFiles::within(directory);
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

/// Reads a secret key. The password is asked for where the key has one: `REFLASH_KEY_PASSWORD`, or else on the
/// terminal.
///
/// # Errors
/// When the file is not a minisign secret key, or the password is wrong.
pub fn load_secret(path: &Path) -> Result<SecretKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let boxed = || SecretKeyBox::from_string(&text).with_context(|| format!("{} is not a secret key", path.display()));
    if let Ok(key) = boxed()?.into_unencrypted_secret_key() {
        return Ok(key);
    }
    let password = std::env::var("REFLASH_KEY_PASSWORD").ok();
    boxed()?.into_secret_key(password).with_context(|| format!("unlock {}", path.display()))
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
    use super::{generate, load_secret};

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
    }
}
