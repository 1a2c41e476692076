//! Keys, signatures, and what a signer may have signed: manifests with anything in them.

use std::io::Cursor;
use std::sync::OnceLock;

use minisign::KeyPair;
use reflash::boot::slots::RecoveryFiles;
use reflash::release::manifest::{Manifest, TrustedKeys};

/// A key for this process, whose signatures the library accepts.
pub struct Signer {
    pair: KeyPair,
    pub keys: TrustedKeys,
}

impl Signer {
    pub fn get() -> &'static Self {
        static SIGNER: OnceLock<Signer> = OnceLock::new();
        SIGNER.get_or_init(|| {
            let pair = KeyPair::generate_unencrypted_keypair().unwrap();
            let mut keys = TrustedKeys::default();
            keys.add("signer", &pair.pk.to_base64()).unwrap();
            Self { pair, keys }
        })
    }

    /// Returns the text of a signature over `bytes`.
    pub fn sign(&self, bytes: &[u8]) -> String {
        minisign::sign(None, &self.pair.sk, Cursor::new(bytes), None, None).unwrap().to_string()
    }
}

// A key and a signature over b"test" from minisign-verify's documentation.
const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
const GENUINE: &str = "RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF";

pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match kind % 3 {
        0 => {
            let mut keys = TrustedKeys::default();
            keys.add("key", KEY).unwrap();
            if keys.authenticate(b"test".to_vec(), &text).is_ok() {
                assert!(text.contains(GENUINE), "forged: {text:?}");
            }
            assert!(keys.authenticate(rest.to_vec(), GENUINE).is_err());
        }
        1 => drop(TrustedKeys::default().add("key", &text)),
        _ => signed(rest),
    }
}

fn signed(json: &[u8]) {
    // A signature costs far more than the first look at most inputs, which are no JSON.
    if serde_json::from_slice::<serde_json::Value>(json).is_err() {
        return;
    }
    let signer = Signer::get();
    let authentic = signer.keys.authenticate(json.to_vec(), &signer.sign(json)).unwrap();
    let Ok(manifest) = Manifest::parse(&authentic) else { return };
    manifest.check_values().unwrap();
    let _ = manifest.check_fit("demo", "unit-a", "stable");
    let _ = (manifest.image("system"), manifest.file("recovery/vmlinuz"), RecoveryFiles::of(&manifest));
    let again: Manifest = serde_json::from_slice(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert_eq!(again, manifest);
    let Some(layout) = &manifest.layout else { return };
    for disk_bytes in [0, 1 << 20, 8 << 30, 1 << 45, u64::MAX] {
        let Ok(placed) = layout.place(disk_bytes) else { continue };
        let mut end = 1 << 20;
        for partition in placed {
            assert!(partition.offset_bytes >= end && partition.size_bytes > 0, "{partition:?}");
            end = partition.offset_bytes.checked_add(partition.size_bytes).unwrap();
        }
        assert!(end <= disk_bytes, "the partitions end behind the disk");
    }
}
