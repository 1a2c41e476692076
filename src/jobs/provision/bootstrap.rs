//! Bootstrap files: what a release brings along for disks that have nothing yet, namely boot code, recovery and file
//! systems.

use super::preflight::Preflight;
use super::write::{BootstrapParts, TemplateImage};
use crate::boot::slots::{self, Slot};
use crate::release::layout::{Role, Scheme};

pub use crate::release::bootstrap_names as names;

/// Everything that a disk of one plan gets out of a release.
pub struct BootstrapFiles {
    /// Content for the disk as a whole.
    pub(super) parts: BootstrapParts,
    /// Files for the recovery partition: path there and content.
    pub(super) recovery: Vec<(String, Vec<u8>)>,
}

impl BootstrapFiles {
    /// Gets the files that the plan needs. `file` returns a file of the release, checked against its digest.
    ///
    /// # Errors
    /// The error of `file`.
    pub fn get<E>(plan: &Preflight, mut file: impl FnMut(&str) -> Result<Vec<u8>, E>) -> Result<Self, E> {
        let mbr = plan.table == Scheme::Mbr;
        let large_blocks = plan.candidate.disk.logical_block_size == 4096;
        let mut images = Vec::new();
        for place in &plan.placed {
            let name = match place.partition.role {
                Role::BiosBoot | Role::System | Role::System2 => continue,
                Role::Esp if large_blocks => names::ESP_4096,
                Role::Esp => names::ESP_512,
                Role::State => names::STATE,
                Role::Recovery => names::RECOVERY,
                Role::Data => names::DATA,
            };
            images.push(TemplateImage { role: place.partition.role, compressed: file(name)? });
        }
        let template = |role| images.iter().find(|image| image.role == role).map(|image| image.compressed.clone());
        let mut recovery = vec![(names::LOADER.to_owned(), file(names::LOADER)?)];
        // Both slots: a block that is lost in one of them is not missed.
        for name in slots::FILES {
            let content = file(&format!("{}/{name}", slots::RELEASE_FOLDER))?;
            recovery.extend([Slot::A, Slot::B].map(|slot| (format!("{}/{name}", slot.folder()), content.clone())));
        }
        // A destroyed state partition and a factory reset are made from these.
        recovery.extend(template(Role::State).map(|content| (names::STATE.to_owned(), content)));
        recovery.extend(template(Role::Data).map(|content| (names::DATA.to_owned(), content)));
        let parts = BootstrapParts {
            boot_image: file(names::BOOT_IMAGE)?,
            core_image: file(if mbr { names::CORE_MBR } else { names::CORE_GPT })?,
            images,
        };
        Ok(Self { parts, recovery })
    }

    /// Content of a file of the release that boot code is made of, if it was needed for the disk itself.
    pub(super) fn boot_code(&self, name: &str) -> Option<&[u8]> {
        match name {
            names::BOOT_IMAGE => Some(&self.parts.boot_image),
            names::CORE_GPT | names::CORE_MBR => Some(&self.parts.core_image),
            names::ESP_512 | names::ESP_4096 => {
                self.parts.images.iter().find(|image| image.role == Role::Esp).map(|image| image.compressed.as_slice())
            }
            _ => None,
        }
    }
}
